//! A network of its own for a test: programs with fixed ports run beside each other.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Result;

use crate::background::output_of;

const PACKAGE: &str = "iproute2";
const PREFIX: &str = "codius-test-";
/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A network namespace with nothing but loopback. Dropping it removes it. Needs root.
#[derive(Debug)]
pub struct NetworkNamespace {
    name: String,
}

impl NetworkNamespace {
    /// A new one. What tests that were killed have left behind is removed first.
    pub fn new() -> Result<Self> {
        sweep();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// A command that runs `program` in here. The process is the program itself, not `ip`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        // The next test tries again if this fails.
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

/// Removes the namespaces of processes that are no more.
fn sweep() {
    for entry in fs::read_dir(NAMES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((process, _)) = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'))
        else {
            continue;
        };
        if !Path::new("/proc").join(process).exists() {
            // Another test may have been faster.
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    output_of(Command::new("ip").args(arguments), PACKAGE).map(drop)
}
