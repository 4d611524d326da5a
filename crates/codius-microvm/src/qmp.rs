//! QEMU's own control channel (QMP: one JSON object a line), as far as cloning needs it.
//!
//! It is used before a guest has run a stranger's instruction, yet QEMU may be anyone's by the time it
//! answers again: lines and their number are bounded, and nothing that is said is believed beyond "done" and
//! "failed". Everything may be dropped at any await; the caller has a deadline.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{io::Interest, net::UnixStream};

use crate::limits::{MAX_QMP_LINE_BYTES, MAX_QMP_LINES};

/// The machine is of no use any more; the caller ends it.
#[derive(Debug, Error)]
pub(crate) enum QmpError {
    #[error("QEMU's control channel failed")]
    Io(#[from] io::Error),
    #[error("QEMU ended")]
    Closed,
    #[error("QEMU does not keep to its protocol")]
    Unreadable,
    #[error("QEMU refuses: {0}")]
    Refused(String),
}

#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    /// What was read and is not a whole line yet.
    rest: Vec<u8>,
    /// Lines that may still be read.
    left: u32,
}

impl Qmp {
    pub(crate) async fn connect(socket: &Path) -> Result<Self, QmpError> {
        let mut qmp = Self {
            stream: UnixStream::connect(socket).await?,
            rest: Vec::new(),
            left: MAX_QMP_LINES,
        };
        // The greeting.
        qmp.line().await?;
        Ok(qmp)
    }

    /// Sends all commands at once and waits until each was done.
    pub(crate) async fn run(&mut self, commands: &[Value]) -> Result<(), QmpError> {
        let mut lines = String::new();
        for command in commands {
            lines.push_str(&command.to_string());
            lines.push('\n');
        }
        let mut bytes = lines.as_bytes();
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        for _ in commands {
            self.done().await?;
        }
        Ok(())
    }

    /// Gives QEMU a file under a name.
    pub(crate) async fn pass(&mut self, name: &str, file: BorrowedFd<'_>) -> Result<(), QmpError> {
        let line = format!(
            "{}\n",
            json!({ "execute": "getfd", "arguments": { "fdname": name } })
        );
        loop {
            self.stream.writable().await?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let descriptors = [file];
                let mut space =
                    [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&descriptors));
                let bytes = [io::IoSlice::new(line.as_bytes())];
                Ok(sendmsg(
                    self.stream.as_fd(),
                    &bytes,
                    &mut control,
                    SendFlags::NOSIGNAL,
                )?)
            });
            match sent {
                Ok(count) if count == line.len() => break,
                Ok(_) => return Err(QmpError::Unreadable),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.done().await
    }

    /// Waits for the end of a migration whose events were switched on.
    pub(crate) async fn migrated(&mut self) -> Result<(), QmpError> {
        loop {
            let line = self.line().await?;
            if line["event"] != "MIGRATION" {
                continue;
            }
            match line["data"]["status"].as_str() {
                Some("completed") => return Ok(()),
                Some(status @ ("failed" | "cancelled")) => {
                    return Err(QmpError::Refused(format!("the migration {status}")));
                }
                _ => {}
            }
        }
    }

    /// The answer to one command, past all events.
    async fn done(&mut self) -> Result<(), QmpError> {
        loop {
            let line = self.line().await?;
            if line.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = line.get("error") {
                let reason = error["desc"].as_str().unwrap_or("for no reason");
                return Err(QmpError::Refused(reason.chars().take(300).collect()));
            }
        }
    }

    async fn line(&mut self) -> Result<Value, QmpError> {
        loop {
            if let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                self.left = self.left.checked_sub(1).ok_or(QmpError::Unreadable)?;
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|_| QmpError::Unreadable);
            }
            if self.rest.len() > MAX_QMP_LINE_BYTES {
                return Err(QmpError::Unreadable);
            }
            self.stream.readable().await?;
            let mut buffer = [0; 4096];
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(count) => self.rest.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Everything that takes a machine's state without its shared memory begins with these two.
fn greeting(events: bool) -> [Value; 2] {
    let capability = |name: &str, state: bool| json!({ "capability": name, "state": state });
    [
        json!({ "execute": "qmp_capabilities" }),
        json!({ "execute": "migrate-set-capabilities", "arguments": { "capabilities":
            [capability("x-ignore-shared", true), capability("events", events)] } }),
    ]
}

/// What saves a running machine's state, all but its memory, to the file passed under this name.
pub(crate) fn save_commands() -> [Value; 2] {
    greeting(true)
}

pub(crate) fn save_to(name: &str) -> Value {
    json!({ "execute": "migrate", "arguments": { "uri": format!("fd:{name}") } })
}

/// What makes a machine that waits for it go on from a state, read from a descriptor that it has inherited.
pub(crate) fn restore_commands(state: i32) -> [Value; 3] {
    let [capabilities, ignore] = greeting(false);
    let uri = format!("fd:{state}");
    [
        capabilities,
        ignore,
        json!({ "execute": "migrate-incoming", "arguments": { "uri": uri } }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    fn pair() -> (Qmp, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qmp = Qmp {
            stream: ours,
            rest: Vec::new(),
            left: MAX_QMP_LINES,
        };
        (qmp, theirs)
    }

    #[tokio::test]
    async fn an_answer_is_found_behind_events_and_a_refusal_is_told() {
        let (mut qmp, mut qemu) = pair();
        let said =
            b"{\"event\":\"RESUME\"}\r\n{\"return\":{}}\r\n{\"error\":{\"desc\":\"no\"}}\r\n";
        qemu.write_all(said).await.unwrap();
        qmp.run(&[json!({ "execute": "a" })]).await.unwrap();
        let refused = qmp.run(&[json!({ "execute": "b" })]).await.unwrap_err();
        assert_eq!(refused.to_string(), "QEMU refuses: no");
    }

    #[tokio::test]
    async fn endless_lines_and_endless_events_are_given_up() {
        let (mut qmp, mut qemu) = pair();
        let flood =
            tokio::spawn(async move { while qemu.write_all(&[b'x'; 4096]).await.is_ok() {} });
        assert!(matches!(qmp.line().await, Err(QmpError::Unreadable)));
        assert!(qmp.rest.len() <= MAX_QMP_LINE_BYTES + 4096);
        drop(qmp);
        flood.await.unwrap();

        let (mut qmp, mut qemu) = pair();
        let flood = tokio::spawn(async move {
            while qemu.write_all(b"{\"event\":\"RESUME\"}\n").await.is_ok() {}
        });
        assert!(matches!(qmp.done().await, Err(QmpError::Unreadable)));
        drop(qmp);
        flood.await.unwrap();
    }

    #[tokio::test]
    async fn an_end_and_a_failed_migration_are_told() {
        let (mut qmp, mut qemu) = pair();
        let failed = b"{\"event\":\"MIGRATION\",\"data\":{\"status\":\"active\"}}\n\
            {\"event\":\"MIGRATION\",\"data\":{\"status\":\"failed\"}}\n";
        qemu.write_all(failed).await.unwrap();
        assert!(matches!(qmp.migrated().await, Err(QmpError::Refused(_))));
        drop(qemu);
        assert!(matches!(
            qmp.migrated().await,
            Err(QmpError::Closed | QmpError::Io(_))
        ));
    }
}
