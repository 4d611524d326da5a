//! What a guest says, from bytes to messages, within bounds whatever it says.
//!
//! ```text
//! out of step ── set_in_step (the guest has answered our nonce) ──▶ in step ── too many unreadable lines ──▶ given up
//! unreadable lines are passed over                                  they are counted
//! ```
//!
//! Out of step, a stream may begin in the middle of a line that was meant for a host that is gone. What was
//! taken in together with the answer is judged as out of step, too: at most one read.
//!
//! Memory: one partial line of [`MAX_GUEST_LINE_BYTES`], and the messages of one read. An unreadable line
//! leaves nothing but the text of the last one.

use std::collections::VecDeque;

use codius_guest_protocol::{AgentMessage, Line, LineReader, MAX_GUEST_LINE_BYTES};

use crate::limits::MAX_UNREADABLE_LINES;

#[derive(Debug)]
pub(crate) struct Intake {
    reader: LineReader,
    messages: VecDeque<AgentMessage>,
    in_step: bool,
    unreadable: u32,
    /// Why the guest is given up. What it said before is still heard.
    fault: Option<String>,
}

impl Intake {
    pub(crate) fn new() -> Self {
        Self {
            reader: LineReader::new(MAX_GUEST_LINE_BYTES),
            messages: VecDeque::new(),
            in_step: false,
            unreadable: 0,
            fault: None,
        }
    }

    /// From now on every line has to make sense.
    pub(crate) fn set_in_step(&mut self) {
        self.in_step = true;
    }

    /// Takes what was read; says how many lines it ended.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> usize {
        let mut lines = 0;
        let Self {
            reader,
            messages,
            in_step,
            unreadable,
            fault,
        } = self;
        reader.push(bytes, |line| {
            lines += 1;
            match line {
                _ if fault.is_some() => {}
                Line::Message(message) => messages.push_back(message),
                Line::Unreadable(_) if !*in_step => {}
                Line::Unreadable(why) => {
                    *unreadable += 1;
                    tracing::warn!(?why, "unreadable line from the guest");
                    if *unreadable > MAX_UNREADABLE_LINES {
                        *fault = Some(why);
                    }
                }
            }
        });
        lines
    }

    /// The next message; at the end, why there will be none any more.
    pub(crate) fn next(&mut self) -> Option<Result<AgentMessage, String>> {
        match self.messages.pop_front() {
            Some(message) => Some(Ok(message)),
            None => self.fault.clone().map(Err),
        }
    }

    /// Bytes of memory that a partial line takes.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn held_bytes(&self) -> usize {
        self.reader.held_bytes()
    }
}

#[cfg(test)]
mod tests {
    use codius_guest_protocol::{
        ContainerExit, ContainerStanding, ContainerStatus, ExecAnswer, LogStream, MAX_CONTAINERS,
        MAX_EXEC_PIECE_BYTES, MAX_LOG_BYTES, Standing, encode,
    };
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        hearing::{Heard, hear},
        limits::MAX_REASON_CHARS,
    };

    fn exit() -> impl Strategy<Value = ContainerExit> {
        prop_oneof![
            any::<i32>().prop_map(ContainerExit::Code),
            any::<i32>().prop_map(ContainerExit::Signal),
            Just(ContainerExit::OutOfMemory),
        ]
    }

    fn status() -> impl Strategy<Value = ContainerStatus> {
        prop_oneof![
            Just(ContainerStatus::Waiting),
            Just(ContainerStatus::Running),
            exit().prop_map(ContainerStatus::Exited),
        ]
    }

    fn standing() -> impl Strategy<Value = ContainerStanding> {
        let now = prop_oneof![
            Just(Standing::Running),
            any::<u64>().prop_map(|next_ms| Standing::Waiting { next_ms }),
            Just(Standing::Exited),
        ];
        let numbers = (0..40_u16, any::<u64>(), any::<u32>());
        (numbers, now, prop::option::of(exit())).prop_map(
            |((container, for_ms, restarts), now, last_exit)| ContainerStanding {
                container,
                now,
                for_ms,
                restarts,
                last_exit,
            },
        )
    }

    fn answer() -> impl Strategy<Value = ExecAnswer> {
        let stream = prop_oneof![Just(LogStream::Stdout), Just(LogStream::Stderr)];
        prop_oneof![
            Just(ExecAnswer::Started),
            (any::<i32>(), "\\PC{0,700}|[\\x00-\\x1f]{0,9}")
                .prop_map(|(code, message)| ExecAnswer::Failed { code, message }),
            (stream, vec(any::<u8>(), 0..60))
                .prop_map(|(stream, data)| ExecAnswer::Output { stream, data }),
            any::<u32>().prop_map(|bytes| ExecAnswer::Taken { bytes }),
            exit().prop_map(ExecAnswer::Ended),
        ]
    }

    /// Any message that can be written, also those that no agent of ours says.
    fn message() -> impl Strategy<Value = AgentMessage> {
        let stream = prop_oneof![Just(LogStream::Stdout), Just(LogStream::Stderr)];
        prop_oneof![
            (
                ".{0,40}",
                any::<u32>(),
                any::<bool>(),
                vec(status(), 0..20),
                any::<u16>()
            )
                .prop_map(|(nonce, version, configured, containers, sessions)| {
                    AgentMessage::Hello {
                        nonce,
                        version,
                        configured,
                        containers,
                        sessions,
                    }
                }),
            standing().prop_map(AgentMessage::Standing),
            (any::<u32>(), answer())
                .prop_map(|(session, answer)| AgentMessage::Exec { session, answer }),
            Just(AgentMessage::Started),
            Just(AgentMessage::Listening),
            Just(AgentMessage::ListeningOnLoopbackOnly),
            (any::<u16>(), stream, vec(any::<u8>(), 0..60)).prop_map(
                |(container, stream, data)| AgentMessage::Log {
                    container,
                    stream,
                    data
                }
            ),
            (0..40_u16, any::<u64>())
                .prop_map(|(container, bytes)| AgentMessage::LogDropped { container, bytes }),
            (0..40_u16, exit())
                .prop_map(|(container, exit)| AgentMessage::Exited { container, exit }),
            any::<u64>().prop_map(|id| AgentMessage::Pong { id }),
            Just(AgentMessage::Stopped),
            (
                prop::option::of(0..40_u16),
                "\\PC{0,700}|[\\x00-\\x1f]{0,9}"
            )
                .prop_map(|(container, message)| AgentMessage::Failed { container, message }),
        ]
    }

    /// Lines as from a hostile kernel: messages, messages with a wrong byte, JSON of another kind, noise.
    fn line() -> impl Strategy<Value = Vec<u8>> {
        let damaged = (message(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
            |(message, at, byte)| {
                let mut line = encode(&message);
                let at = at.index(line.len());
                line[at] = byte;
                line
            },
        );
        let other = prop_oneof![
            Just(b"[[[[".repeat(200)),
            Just(b"{\"type\":\"pong\",\"id\":-1}\n".to_vec()),
            Just(b"{\"type\":\"pong\",\"id\":1e999}\n".to_vec()),
            Just(
                b"{\"type\":\"log\",\"container\":0,\"stream\":\"stdout\",\"data\":\"!\"}\n"
                    .to_vec()
            ),
            Just(b"{\"type\":\"hello\",\"type\":\"started\"}\n".to_vec()),
            Just(b"\n\n\n\n".to_vec()),
            vec(any::<u8>(), 0..100),
        ];
        prop_oneof![4 => message().prop_map(|message| encode(&message)), 2 => damaged, 1 => other]
    }

    /// All that comes out, with the guest in step from the start.
    fn listen(bytes: &[u8], pieces: impl Iterator<Item = usize>) -> (Vec<AgentMessage>, bool) {
        let mut intake = Intake::new();
        intake.set_in_step();
        let (mut heard, mut given_up) = (Vec::new(), false);
        let mut rest = bytes;
        let mut collect = |intake: &mut Intake| {
            while let Some(next) = intake.next() {
                match next {
                    Ok(message) => {
                        assert!(!given_up, "heard after the guest was given up");
                        heard.push(message);
                    }
                    Err(_) => {
                        given_up = true;
                        break;
                    }
                }
            }
        };
        for piece in pieces {
            let (now, later) = rest.split_at(piece.min(rest.len()));
            rest = later;
            intake.take(now);
            assert!(intake.held_bytes() <= 2 * MAX_GUEST_LINE_BYTES);
            collect(&mut intake);
        }
        intake.take(rest);
        collect(&mut intake);
        (heard, given_up)
    }

    proptest! {
        /// However a hostile stream is cut, the same is heard, and it is given up at the same point.
        #[test]
        fn where_a_stream_is_cut_changes_nothing(
            lines in vec(line(), 0..60),
            pieces in vec(0..300_usize, 0..100),
        ) {
            let bytes = lines.concat();
            let at_once = listen(&bytes, std::iter::empty());
            prop_assert_eq!(&listen(&bytes, pieces.into_iter()), &at_once);
            prop_assert_eq!(&listen(&bytes, std::iter::repeat_n(1, bytes.len())), &at_once);
        }

        /// All that keeps to the protocol is heard, in its order, whatever stands between it, as long as that
        /// is little.
        #[test]
        fn what_makes_sense_is_heard(
            messages in vec(message(), 0..30),
            noise in vec(any::<prop::sample::Index>(), 0..MAX_UNREADABLE_LINES as usize),
        ) {
            let mut lines: Vec<Vec<u8>> = messages.iter().map(encode).collect();
            for at in noise {
                lines.insert(at.index(lines.len() + 1), b"{\"type\":\"no\"}\n".to_vec());
            }
            let (heard, given_up) = listen(&lines.concat(), std::iter::repeat_n(7, 100));
            prop_assert!(!given_up);
            prop_assert_eq!(heard, messages);
        }

        /// What is passed on keeps to our limits; the rest ends the pod with one line.
        #[test]
        fn what_is_passed_on_keeps_to_the_limits(
            message in message(),
            containers in 0..=MAX_CONTAINERS,
        ) {
            use codius_pod::PodEvent;
            match hear(message, containers) {
                Ok(Heard::Event(
                    PodEvent::LogDropped { container, .. }
                    | PodEvent::Exited { container, .. }
                    | PodEvent::Standing { container, .. },
                )) => prop_assert!(container < containers),
                Ok(Heard::Event(PodEvent::Log { container, data, .. })) => {
                    prop_assert!(container < containers && data.len() <= MAX_LOG_BYTES);
                }
                Ok(Heard::Failed { container, reason }) => {
                    prop_assert!(container.is_none_or(|container| container < containers));
                    prop_assert!(reason.chars().count() <= MAX_REASON_CHARS);
                    prop_assert!(!reason.chars().any(char::is_control));
                }
                Ok(Heard::Exec { answer: ExecAnswer::Output { data, .. }, .. }) => {
                    prop_assert!(data.len() <= MAX_EXEC_PIECE_BYTES);
                }
                Ok(Heard::Exec { answer: ExecAnswer::Failed { message, .. }, .. }) => {
                    prop_assert!(message.chars().count() <= MAX_REASON_CHARS);
                    prop_assert!(!message.chars().any(char::is_control));
                }
                Ok(Heard::Event(_) | Heard::Exec { .. } | Heard::Stopped | Heard::Nothing) => {}
                Err(fault) => prop_assert!(!fault.chars().any(char::is_control)),
            }
        }
    }

    #[test]
    fn the_first_lines_of_a_stream_may_be_anything() {
        let mut intake = Intake::new();
        for _ in 0..1000 {
            intake.take(b"the rest of something\n");
        }
        intake.take(&encode(&AgentMessage::Started));
        assert_eq!(intake.next(), Some(Ok(AgentMessage::Started)));
        assert_eq!(intake.next(), None);
    }

    #[test]
    fn the_lines_before_a_guest_is_given_up_are_heard_and_none_after() {
        let mut intake = Intake::new();
        intake.set_in_step();
        let mut bytes = encode(&AgentMessage::Started);
        bytes.extend(b"?\n".repeat(MAX_UNREADABLE_LINES as usize + 1));
        bytes.extend(encode(&AgentMessage::Listening));
        assert_eq!(intake.take(&bytes), MAX_UNREADABLE_LINES as usize + 3);
        assert_eq!(intake.next(), Some(Ok(AgentMessage::Started)));
        assert!(matches!(intake.next(), Some(Err(_))));
        intake.take(&encode(&AgentMessage::Listening));
        assert!(matches!(intake.next(), Some(Err(_))), "for ever");
    }

    #[test]
    fn a_read_of_tiny_lines_leaves_little_behind() {
        let mut intake = Intake::new();
        intake.set_in_step();
        assert_eq!(intake.take(&b"?\n".repeat(32 * 1024)), 32 * 1024);
        assert!(intake.messages.is_empty() && intake.held_bytes() == 0);
    }
}
