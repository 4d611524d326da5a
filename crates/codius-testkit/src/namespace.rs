//! A network of its own for a test: programs with fixed ports run beside each other.

use std::{
    fs::{self, File},
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::background::output_of;

const PACKAGE: &str = "iproute2";
const PREFIX: &str = "codius-test-";
/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";
/// Where `ip netns exec` looks for files that a network has in place of those in /etc.
const FILES: &str = "/etc/netns";

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

    /// Moves the calling thread in here, and whatever it starts from now on: threads, and programs with
    /// their sockets. There is no way back, so it is for the thread of a test, before its runtime.
    pub fn enter(&self) -> Result<()> {
        let namespace = File::open(Path::new(NAMES).join(&self.name))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering a network")
    }

    /// Gives names an address, for programs that are started by [`command`](Self::command) from now on.
    pub fn name_hosts(&self, address: IpAddr, names: &[&str]) -> Result<()> {
        let files = self.files();
        fs::create_dir_all(&files)?;
        let text = format!("127.0.0.1 localhost\n{address} {}\n", names.join(" "));
        fs::write(files.join("hosts"), text).context("naming hosts")
    }

    fn files(&self) -> PathBuf {
        Path::new(FILES).join(&self.name)
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        // The next test tries again if this fails.
        let _ = fs::remove_dir_all(self.files());
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
            let _ = fs::remove_dir_all(Path::new(FILES).join(&name));
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    output_of(Command::new("ip").args(arguments), PACKAGE).map(drop)
}
