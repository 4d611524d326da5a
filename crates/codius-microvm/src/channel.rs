//! The line to the agent of one pod: bounded in what it holds and in how fast a guest can make us work.
//!
//! Everything here may be dropped at any await: nothing is lost but what [`Channel::next`] has returned.

use std::{collections::VecDeque, io, path::Path, time::Duration};

use codius_guest_protocol::{AgentMessage, ContainerStatus, HostMessage, PROTOCOL_VERSION, encode};
use data_encoding::HEXLOWER;
use thiserror::Error;
use tokio::{
    net::UnixStream,
    time::{Instant, sleep_until},
};

use crate::{
    intake::Intake,
    limits::{
        ATTACH_INTERVAL, GUEST_BURST_BYTES, GUEST_BYTES_PER_SEC, GUEST_LINE_COST, MAX_OUTBOX_BYTES,
    },
};

/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
    intake: Intake,
    outbox: VecDeque<u8>,
    allowance: Allowance,
}

/// The guest is lost to us.
#[derive(Debug, Error)]
pub(crate) enum ChannelError {
    #[error("the connection to the guest agent ended")]
    Closed,
    #[error("the connection to the guest agent failed")]
    Io(#[from] io::Error),
    #[error("the guest agent does not keep to the protocol ({0})")]
    Unreadable(String),
    #[error("the guest agent does not read what it is told")]
    NotRead,
}

impl Channel {
    pub(crate) async fn connect(socket: &Path) -> io::Result<Self> {
        Ok(Self::over(UnixStream::connect(socket).await?))
    }

    pub(crate) fn over(stream: UnixStream) -> Self {
        Self {
            stream,
            intake: Intake::new(),
            // Ends whatever half line a dead host has left.
            outbox: VecDeque::from(*b"\n"),
            allowance: Allowance::new(Instant::now()),
        }
    }

    /// From now on every line has to make sense.
    pub(crate) fn set_in_step(&mut self) {
        self.intake.set_in_step();
    }

    /// Says something to the agent, as [`Self::next`] goes on being called.
    pub(crate) fn send(&mut self, message: &HostMessage) -> Result<(), ChannelError> {
        let line = encode(message);
        if self.outbox.len() + line.len() > MAX_OUTBOX_BYTES {
            return Err(ChannelError::NotRead);
        }
        self.outbox.extend(line);
        Ok(())
    }

    /// The agent's next message. Also writes what is to be written.
    pub(crate) async fn next(&mut self) -> Result<AgentMessage, ChannelError> {
        loop {
            if let Some(next) = self.intake.next() {
                return next.map_err(ChannelError::Unreadable);
            }
            self.exchange().await?;
        }
    }

    async fn exchange(&mut self) -> Result<(), ChannelError> {
        let pause = self.allowance.pause(Instant::now());
        tokio::select! {
            readable = self.stream.readable(), if pause.is_none() => {
                readable?;
                self.read()
            }
            writable = self.stream.writable(), if !self.outbox.is_empty() => {
                writable?;
                self.write()
            }
            () = sleep_until(pause.unwrap_or_else(Instant::now)), if pause.is_some() => Ok(()),
        }
    }

    fn read(&mut self) -> Result<(), ChannelError> {
        let mut buffer = vec![0; READ_BYTES];
        let count = match self.stream.try_read(&mut buffer) {
            Ok(0) => return Err(ChannelError::Closed),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let lines = self.intake.take(&buffer[..count]);
        self.allowance.spend(count, lines);
        Ok(())
    }

    fn write(&mut self) -> Result<(), ChannelError> {
        let (head, _) = self.outbox.as_slices();
        match self.stream.try_write(head) {
            Ok(count) => {
                self.outbox.drain(..count);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a first answer of an agent says.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) configured: bool,
    pub(crate) containers: Vec<ContainerStatus>,
    /// Whether it carries sessions of `exec`.
    pub(crate) sessions: bool,
}

/// Gets in step with the agent.
pub(crate) async fn hello(channel: &mut Channel) -> Result<Hello, ChannelError> {
    let ours = HEXLOWER.encode(&rand::random::<[u8; 16]>());
    let mut attach = tokio::time::interval(ATTACH_INTERVAL);
    loop {
        tokio::select! {
            _ = attach.tick() => channel.send(&HostMessage::Attach { nonce: ours.clone() })?,
            message = channel.next() => match message? {
                AgentMessage::Hello { nonce, version, configured, containers, sessions } if nonce == ours => {
                    if version != PROTOCOL_VERSION {
                        let versions = format!("its version is {version}, ours {PROTOCOL_VERSION}");
                        return Err(ChannelError::Unreadable(versions));
                    }
                    channel.set_in_step();
                    return Ok(Hello { configured, containers, sessions: sessions > 0 });
                }
                // Of an earlier talk.
                other => tracing::debug!(?other, "dropped what the guest said before the first answer"),
            },
        }
    }
}

/// How much a guest may make us read: a burst, then a rate. While it is used up nothing is read; the
/// guest's output then waits in the guest, whose agent drops and counts it.
#[derive(Debug)]
struct Allowance {
    left: i64,
    at: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self {
            left: i64::from(GUEST_BURST_BYTES),
            at: now,
        }
    }

    fn spend(&mut self, bytes: usize, lines: usize) {
        let lines = i64::try_from(lines)
            .unwrap_or(i64::MAX)
            .saturating_mul(i64::from(GUEST_LINE_COST));
        self.left -= i64::try_from(bytes)
            .unwrap_or(i64::MAX)
            .saturating_add(lines);
    }

    /// Until when nothing may be read.
    fn pause(&mut self, now: Instant) -> Option<Instant> {
        let elapsed = now
            .saturating_duration_since(self.at)
            .min(Duration::from_secs(60));
        let earned = elapsed.as_millis() * u128::from(GUEST_BYTES_PER_SEC) / 1000;
        if earned > 0 {
            self.at = now;
            self.left = (self.left + i64::try_from(earned).unwrap_or(i64::MAX))
                .min(i64::from(GUEST_BURST_BYTES));
        }
        if self.left > 0 {
            return None;
        }
        let millis = (-self.left).unsigned_abs() * 1000 / u64::from(GUEST_BYTES_PER_SEC) + 1;
        Some(now + Duration::from_millis(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_UNREADABLE_LINES;
    use codius_guest_protocol::LogStream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (Channel, UnixStream) {
        let (host, guest) = UnixStream::pair().unwrap();
        (Channel::over(host), guest)
    }

    #[tokio::test]
    async fn rests_of_an_earlier_talk_are_dropped_until_in_step() {
        let (mut channel, mut guest) = pair();
        guest.write_all(b"lf a line\"}\n").await.unwrap();
        guest
            .write_all(&encode(&AgentMessage::Pong { id: 1 }))
            .await
            .unwrap();
        assert_eq!(channel.next().await.unwrap(), AgentMessage::Pong { id: 1 });
    }

    #[tokio::test]
    async fn a_guest_that_talks_nonsense_is_given_up() {
        let (mut channel, mut guest) = pair();
        channel.set_in_step();
        for _ in 0..=MAX_UNREADABLE_LINES {
            guest.write_all(b"nonsense\n").await.unwrap();
        }
        assert!(matches!(
            channel.next().await,
            Err(ChannelError::Unreadable(_))
        ));
    }

    #[tokio::test]
    async fn an_endless_line_is_nonsense_and_costs_no_memory() {
        let (mut channel, mut guest) = pair();
        channel.set_in_step();
        let flood = tokio::spawn(async move {
            let piece = vec![b'x'; 64 * 1024];
            for _ in 0..32 {
                guest.write_all(&piece).await.unwrap();
            }
            guest.write_all(b"\n").await.unwrap();
            guest
                .write_all(&encode(&AgentMessage::Started))
                .await
                .unwrap();
            guest
        });
        assert_eq!(channel.next().await.unwrap(), AgentMessage::Started);
        flood.await.unwrap();
    }

    #[tokio::test]
    async fn an_end_is_told() {
        let (mut channel, guest) = pair();
        drop(guest);
        assert!(matches!(
            channel.next().await,
            Err(ChannelError::Closed | ChannelError::Io(_))
        ));
    }

    #[tokio::test]
    async fn a_guest_that_does_not_read_costs_bounded_memory() {
        let (mut channel, _guest) = pair();
        let message = HostMessage::Attach {
            nonce: "n".repeat(1024 * 1024),
        };
        let sent = (0..100)
            .take_while(|_| channel.send(&message).is_ok())
            .count();
        assert!((1..40).contains(&sent), "{sent}");
    }

    #[tokio::test]
    async fn writing_and_reading_do_not_wait_for_each_other() {
        let (mut channel, mut guest) = pair();
        // More than the socket's buffer in both directions at once.
        let big = HostMessage::Attach {
            nonce: "n".repeat(4 * 1024 * 1024),
        };
        channel.send(&big).unwrap();
        let peer = tokio::spawn(async move {
            let log = AgentMessage::Log {
                container: 0,
                stream: LogStream::Stdout,
                data: vec![7; 16 * 1024],
            };
            for _ in 0..100 {
                guest.write_all(&encode(&log)).await.unwrap();
            }
            let mut received = vec![0; encode(&big).len() + 1];
            guest.read_exact(&mut received).await.unwrap();
            guest
                .write_all(&encode(&AgentMessage::Started))
                .await
                .unwrap();
            guest
        });
        let mut logs = 0;
        loop {
            match channel.next().await.unwrap() {
                AgentMessage::Log { .. } => logs += 1,
                AgentMessage::Started => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(logs, 100);
        peer.await.unwrap();
    }

    #[test]
    fn the_allowance_comes_back_with_time() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        assert_eq!(allowance.pause(start), None);
        allowance.spend(GUEST_BURST_BYTES as usize, 100);
        let until = allowance.pause(start).unwrap();
        assert!(until > start && until < start + Duration::from_secs(1));
        assert_eq!(allowance.pause(until), None);
        // A long rest earns one burst, not more.
        let later = until + Duration::from_secs(3600);
        assert_eq!(allowance.pause(later), None);
        assert_eq!(allowance.left, i64::from(GUEST_BURST_BYTES));
    }
}
