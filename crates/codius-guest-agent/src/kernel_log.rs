//! The agent's own words, for whoever debugs a pod: they go to the kernel's log and so to the
//! console, if the VM has one. Uploaders never see them.

use std::{fs::OpenOptions, io::Write};

/// As errors, which also a "quiet" kernel shows.
const ERROR_LEVEL: &str = "<3>";
/// The kernel cuts longer messages off.
const MAX_MESSAGE_BYTES: usize = 900;

pub(crate) fn write(message: &str) {
    let end = (0..=MAX_MESSAGE_BYTES.min(message.len()))
        .rev()
        .find(|&end| message.is_char_boundary(end))
        .unwrap_or(0);
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // There is nobody to tell that the log cannot be written.
        let _ = writeln!(log, "{ERROR_LEVEL}codius-guest-agent: {}", &message[..end]);
    }
}
