//! Programs of the distribution that the driver runs.

use std::{
    ffi::OsStr,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    fd::OwnedFd,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{
    OpenError,
    limits::{MAX_COMPLAINT_BYTES, PROGRAM_DEADLINE},
    process::wait_readable,
};

/// Where they are.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) qemu: PathBuf,
    pub(crate) ip: PathBuf,
    pub(crate) nft: PathBuf,
    pub(crate) mke2fs: PathBuf,
}

/// Looked at beside `PATH`: a daemon's `PATH` often lacks the administrator's directories.
const SYSTEM_DIRS: [&str; 5] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"];

impl Programs {
    pub(crate) fn find() -> Result<Self, OpenError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self::find_in(
            std::env::split_paths(&path)
                .chain(SYSTEM_DIRS.map(PathBuf::from))
                .collect(),
        )
    }

    fn find_in(dirs: Vec<PathBuf>) -> Result<Self, OpenError> {
        let find = |program: &'static str, package: &'static str| {
            dirs.iter()
                .map(|dir| dir.join(program))
                .find(|path| path.is_absolute() && path.is_file())
                .ok_or(OpenError::MissingProgram { program, package })
        };
        Ok(Self {
            qemu: find("qemu-system-x86_64", "qemu-system-x86")?,
            ip: find("ip", "iproute2")?,
            nft: find("nft", "nftables")?,
            mke2fs: find("mke2fs", "e2fsprogs")?,
        })
    }
}

/// Runs a program to its end with `script` as its standard input, in a network namespace if one is given.
/// Its complaint (standard error) is part of the error. Blocks for at most [`PROGRAM_DEADLINE`].
pub(crate) fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    script: &str,
    namespace: Option<&OwnedFd>,
) -> io::Result<()> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if let Some(namespace) = namespace {
        let namespace = namespace.try_clone()?;
        #[expect(
            unsafe_code,
            reason = "a child has to enter the namespace before it becomes the program"
        )]
        // SAFETY: setns is one system call: no allocation, no lock.
        unsafe {
            command.pre_exec(move || enter_network_namespace(&namespace));
        }
    }
    let mut child = command.spawn()?;
    let outcome = finish(&mut child, script);
    if outcome.is_err() {
        // It may be running still; nothing of it may go on after this function.
        let _ = child.kill();
        let _ = child.wait();
    }
    outcome.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))
}

fn finish(child: &mut Child, script: &str) -> io::Result<()> {
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(script.as_bytes()) {
            // It has ended early; what it says on standard error is the better error.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    if !wait_readable(pidfd.as_fd(), PROGRAM_DEADLINE)? {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "did not end in time",
        ));
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    let mut complaint = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr
            .take(MAX_COMPLAINT_BYTES)
            .read_to_end(&mut complaint)?;
    }
    Err(io::Error::other(format!(
        "{status}: {}",
        String::from_utf8_lossy(&complaint).trim()
    )))
}

/// Moves the calling thread; its children start there.
pub(crate) fn enter_network_namespace(namespace: &OwnedFd) -> io::Result<()> {
    rustix::thread::move_into_link_name_space(
        namespace.as_fd(),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )?;
    Ok(())
}

/// A version text, as `qemu-system-x86_64 --version` prints it.
pub(crate) fn first_line(program: &Path, argument: &str, deadline: Duration) -> io::Result<String> {
    let text = captured(program, &[argument.as_ref()], deadline, MAX_COMPLAINT_BYTES)?.1;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// What a program prints, if it succeeds. It prints at most `max_bytes`, which fit into a pipe.
pub(crate) fn output(
    program: &Path,
    arguments: &[&OsStr],
    deadline: Duration,
    max_bytes: u64,
) -> io::Result<String> {
    let (succeeded, text) = captured(program, arguments, deadline, max_bytes)?;
    if succeeded {
        return Ok(text);
    }
    let command = format!("{} {arguments:?}", program.display());
    Err(io::Error::other(format!("{command} has failed: {text}")))
}

fn captured(
    program: &Path,
    arguments: &[&OsStr],
    deadline: Duration,
    max_bytes: u64,
) -> io::Result<(bool, String)> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    if !wait_readable(pidfd.as_fd(), deadline)? {
        child.kill()?;
    }
    let status = child.wait()?;
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(max_bytes).read_to_end(&mut text)?;
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok((status.success(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let empty = tempfile::tempdir().unwrap();
        let error = Programs::find_in(vec![empty.path().to_owned()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "qemu-system-x86_64 is not installed; install the Debian package qemu-system-x86"
        );
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let error = run(
            Path::new("/bin/sh"),
            &["-c", "echo no such luck >&2; exit 3"],
            "",
            None,
        )
        .unwrap_err();
        assert!(error.to_string().contains("no such luck"), "{error}");
        assert!(error.to_string().contains('3'), "{error}");
    }

    #[test]
    fn a_program_reads_its_script() {
        run(Path::new("/bin/sh"), &["-s"], "test 1 = 1", None).unwrap();
        assert!(run(Path::new("/bin/sh"), &["-s"], "test 1 = 2", None).is_err());
    }
}
