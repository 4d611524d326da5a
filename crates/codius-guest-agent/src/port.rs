//! The control port: a virtio-serial port that behaves like one end of a socket pair.
//!
//! Traps, all of Linux's `virtio_console`: reading gives 0 as long as no host has the other end open,
//! and `poll` then reports the port as readable for ever, so it is watched edge-triggered and read until
//! it has no more. Writing without a host waits (`EAGAIN`); what was written when the host went away is
//! lost, perhaps in the middle of a line. How both sides find each other again is told in
//! `codius-guest-protocol`.

use std::{
    fs,
    io::{self, ErrorKind},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use codius_guest_protocol::{
    AgentMessage, HostMessage, Line, LineReader, MAX_LINE_BYTES, PORT_NAME, encode,
};
use rustix::fs::{Mode, OFlags, open};

use crate::kernel_log;

/// How long the kernel may take to show the port after its driver was loaded.
const PORT_DEADLINE: Duration = Duration::from_secs(20);
const PORT_RETRY: Duration = Duration::from_millis(1);
const READ_BYTES: usize = 64 * 1024;

/// The agent's end of the control channel.
#[derive(Debug)]
pub(crate) struct Port {
    file: OwnedFd,
    reader: LineReader,
    /// A line of which the first `sent` bytes are written.
    line: Vec<u8>,
    sent: usize,
}

impl Port {
    /// Waits for the port to appear and opens it.
    pub(crate) fn open() -> io::Result<Self> {
        let deadline = Instant::now() + PORT_DEADLINE;
        let device = loop {
            if let Some(device) = find()? {
                break device;
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(
                    ErrorKind::NotFound,
                    "there is no control port",
                ));
            }
            std::thread::sleep(PORT_RETRY);
        };
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open(format!("/dev/{device}"), flags, Mode::empty())?;
        Ok(Self {
            file,
            reader: LineReader::new(MAX_LINE_BYTES),
            line: Vec::new(),
            sent: 0,
        })
    }

    /// Everything that has arrived. The flag says that the host has closed its end.
    pub(crate) fn receive(&mut self) -> io::Result<(Vec<HostMessage>, bool)> {
        let mut messages = Vec::new();
        let mut bytes = vec![0; READ_BYTES];
        loop {
            match rustix::io::read(&self.file, &mut bytes) {
                Ok(0) => {
                    self.reader.reset();
                    return Ok((messages, true));
                }
                Ok(length) => self.reader.push(&bytes[..length], |line| match line {
                    Line::Message(message) => messages.push(message),
                    Line::Unreadable(why) => {
                        kernel_log::write(&format!("line from the host: {why}"));
                    }
                }),
                Err(rustix::io::Errno::AGAIN) => return Ok((messages, false)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends what is left of the last line, then what `next` gives, until nothing is left or the port
    /// takes no more. Says whether any byte was taken.
    pub(crate) fn send(
        &mut self,
        mut next: impl FnMut() -> Option<AgentMessage>,
    ) -> io::Result<bool> {
        let mut progress = false;
        loop {
            if self.sent == self.line.len() {
                let Some(message) = next() else {
                    return Ok(progress);
                };
                self.line = encode(&message);
                self.sent = 0;
            }
            match rustix::io::write(&self.file, &self.line[self.sent..]) {
                Ok(length) => {
                    self.sent += length;
                    progress |= length > 0;
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(progress),
                Err(rustix::io::Errno::INTR) => {}
                // The host was closed at this very moment; reading will tell.
                Err(rustix::io::Errno::PIPE) => return Ok(progress),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends a line that an earlier host may have got only half of. The rest of the current line goes
    /// out first; a new host drops everything before its hello.
    pub(crate) fn break_line(&mut self) {
        self.line.push(b'\n');
    }

    pub(crate) fn has_unsent(&self) -> bool {
        self.sent < self.line.len()
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The device node of the port with our name.
fn find() -> io::Result<Option<String>> {
    let ports = match fs::read_dir("/sys/class/virtio-ports") {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        ports => ports?,
    };
    for port in ports {
        let port = port?;
        // The name comes in a message of its own, a little after the port.
        let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Ok(port.file_name().into_string().ok());
        }
    }
    Ok(None)
}
