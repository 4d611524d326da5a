//! A process that is not necessarily our child: known by its id, its start time and the boot it belongs to.
//!
//! Process ids are used again, so an id alone never gets a signal: a pidfd is opened first, then the start
//! time is compared, then the signal goes through the pidfd.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
    },
};
use serde::{Deserialize, Serialize};
use tokio::{io::unix::AsyncFd, time::sleep};

use crate::limits::{HOLD_DEADLINE, HOLD_LOOK_INTERVAL, KILL_DEADLINE};

/// Which process, over restarts of the daemon and of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessIdentity {
    pub(crate) pid: i32,
    /// In clock ticks since the boot (`proc_pid_stat(5)`, field 22).
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
}

impl ProcessIdentity {
    /// The identity of a process that is known to be alive or a zombie of ours.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_time: start_time(pid)?,
            boot_id: boot_id()?,
        })
    }

    /// Whether it is held still by a signal (`proc_pid_stat(5)`, field 3: `T`). The caller knows that it
    /// runs.
    pub(crate) fn is_stopped(&self) -> io::Result<bool> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        Ok(parse_state(&stat) == Some('T'))
    }

    /// A hold on the process if it still runs.
    pub(crate) fn find(&self) -> io::Result<Option<ProcessHandle>> {
        if self.boot_id != boot_id()? {
            return Ok(None);
        }
        let Some(handle) = ProcessHandle::open(self.pid)? else {
            return Ok(None);
        };
        // The handle is of whoever has the id now; the start time tells whether it is the one meant.
        match start_time(self.pid) {
            Ok(start_time) if start_time == self.start_time && !handle.has_ended()? => {
                Ok(Some(handle))
            }
            _ => {
                handle.reap();
                Ok(None)
            }
        }
    }
}

/// A hold on one process: it cannot become another one's.
#[derive(Debug)]
pub(crate) struct ProcessHandle {
    pidfd: OwnedFd,
    pid: Pid,
}

impl ProcessHandle {
    /// `None` if there is no such process.
    pub(crate) fn open(pid: i32) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(pid) else {
            return Ok(None);
        };
        match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => Ok(Some(Self { pidfd, pid })),
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        wait_readable(self.pidfd.as_fd(), Duration::ZERO)
    }

    /// SIGKILL, and the wait for its end. Blocks.
    pub(crate) fn kill_and_wait(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        if !wait_readable(self.pidfd.as_fd(), KILL_DEADLINE)? {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "a killed process does not end",
            ));
        }
        self.reap();
        Ok(())
    }

    /// Takes the exit status if it is our child's: else it would stay as a zombie.
    fn reap(&self) {
        // An error means that it is not our child, and then its parent takes the status.
        let _ = waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }

    /// For waiting in a task.
    pub(crate) fn watch(self) -> io::Result<ProcessWatch> {
        #[expect(
            unsafe_code,
            reason = "an AsyncFd has to be promised that its descriptor stays"
        )]
        // SAFETY: an OwnedFd is open and the same descriptor for as long as it lives, and the AsyncFd
        // owns it and never gives it out.
        let registered = unsafe { AsyncFd::register(self.pidfd) };
        Ok(ProcessWatch {
            pidfd: registered?,
            pid: self.pid,
        })
    }
}

/// Tells a task of the end of a process.
#[derive(Debug)]
pub(crate) struct ProcessWatch {
    pidfd: AsyncFd<OwnedFd>,
    pid: Pid,
}

impl ProcessWatch {
    /// Holds it still, until [`Self::go_on`]. Returns once it is: each of its threads stops by itself, at its next
    /// way through the kernel. Nothing tells of that but `/proc` (`waitid(2)` does for children only, and after
    /// a restart of the daemon it is nobody's child).
    pub(crate) async fn hold_still(&self) -> io::Result<()> {
        pidfd_send_signal(self.pidfd.get_ref(), Signal::STOP)?;
        let deadline = Instant::now() + HOLD_DEADLINE;
        while !has_only_stopped_threads(self.pid)? {
            if Instant::now() > deadline {
                self.go_on()?;
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "a process that was told to stop goes on",
                ));
            }
            sleep(HOLD_LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(self.pidfd.get_ref(), Signal::CONT)?)
    }

    /// Returns once the process has ended. May be dropped and called again.
    pub(crate) async fn ended(&self) {
        loop {
            let Ok(mut guard) = self.pidfd.readable().await else {
                return;
            };
            // A pidfd stays readable, but readiness may be announced falsely once.
            if wait_readable(self.pidfd.get_ref().as_fd(), Duration::ZERO).unwrap_or(true) {
                return;
            }
            guard.clear_ready();
        }
    }
}

/// Waits until a descriptor is readable; `false` when the time is up.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, within: Duration) -> io::Result<bool> {
    let timeout = Timespec {
        tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(within.subsec_nanos()),
    };
    loop {
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn has_only_stopped_threads(pid: Pid) -> io::Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        match fs::read_to_string(thread?.path().join("stat")) {
            Ok(stat) if matches!(parse_state(&stat), Some('T' | 'Z' | 'X')) => {}
            Ok(_) => return Ok(false),
            // The thread has ended meanwhile: before the file was opened, or after.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Names this boot of the machine.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown form of /proc/PID/stat"))
}

fn parse_state(stat: &str) -> Option<char> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.trim_start().chars().next()
}

/// The name in parentheses may hold anything, even parentheses and blanks: count from the last one.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn start_time_is_found_behind_a_nasty_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1 1";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_state(stat), Some('S'));
        assert_eq!(parse_start_time("7 (x"), None);
    }

    #[test]
    fn a_reused_id_is_not_taken_for_the_process() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let identity = ProcessIdentity::of(pid).unwrap();
        assert!(identity.find().unwrap().is_some());
        let other_start = ProcessIdentity {
            start_time: identity.start_time + 1,
            ..identity.clone()
        };
        assert!(other_start.find().unwrap().is_none());
        let other_boot = ProcessIdentity {
            boot_id: "another".into(),
            ..identity.clone()
        };
        assert!(other_boot.find().unwrap().is_none());

        identity.find().unwrap().unwrap().kill_and_wait().unwrap();
        assert!(identity.find().unwrap().is_none());
        // Already reaped by us.
        assert!(child.wait().is_err());
    }

    #[tokio::test]
    async fn a_busy_process_is_still_when_it_is_said_to_be() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let identity = ProcessIdentity::of(pid).unwrap();
        let watch = identity.find().unwrap().unwrap().watch().unwrap();
        for _ in 0..50 {
            watch.hold_still().await.unwrap();
            assert!(identity.is_stopped().unwrap());
            watch.go_on().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(watch.hold_still().await.is_err());
    }

    #[tokio::test]
    async fn a_watch_tells_of_the_end() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let watch = ProcessHandle::open(pid).unwrap().unwrap().watch().unwrap();
        let early = tokio::time::timeout(Duration::from_millis(20), watch.ended()).await;
        assert!(early.is_err());
        child.kill().unwrap();
        tokio::time::timeout(Duration::from_secs(5), watch.ended())
            .await
            .unwrap();
        child.wait().unwrap();
    }
}
