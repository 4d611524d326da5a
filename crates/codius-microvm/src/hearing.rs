//! What a message of a guest means to the host. The guest is hostile: its words are judged here before
//! anything comes of them, and never decide more than the end of its own pod.

use std::time::Duration;

use codius_guest_protocol::{
    AgentMessage, ContainerStanding, ExecAnswer, MAX_EXEC_PIECE_BYTES, MAX_LOG_BYTES, Standing,
};
use codius_pod::{Activity, ContainerState, PodEvent};

use crate::limits::{MAX_REASON_CHARS, MAX_RESTART_WAIT};

/// What a message means to the host.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Event(PodEvent),
    Failed {
        container: Option<usize>,
        reason: String,
    },
    Stopped,
    /// About a session of `exec`, if there is one of this number.
    Exec {
        session: u32,
        answer: ExecAnswer,
    },
    /// Only a sign of life.
    Nothing,
}

/// Judges a message of a guest that is in step. An error says how it breaks the protocol.
pub(crate) fn hear(message: AgentMessage, containers: usize) -> Result<Heard, String> {
    let known = |container: u16| {
        let index = usize::from(container);
        if index < containers {
            Ok(index)
        } else {
            Err(format!(
                "the guest speaks of container {index} of {containers}"
            ))
        }
    };
    Ok(match message {
        AgentMessage::Hello { .. } | AgentMessage::Warmed | AgentMessage::Pong { .. } => {
            Heard::Nothing
        }
        AgentMessage::Started => Heard::Event(PodEvent::Started),
        AgentMessage::Listening => Heard::Event(PodEvent::Listening),
        AgentMessage::ListeningOnLoopbackOnly => Heard::Event(PodEvent::ListeningOnLoopbackOnly),
        AgentMessage::Log { data, .. } if data.len() > MAX_LOG_BYTES => {
            return Err(format!(
                "the guest sends {} bytes of output at once",
                data.len()
            ));
        }
        AgentMessage::Log {
            container,
            stream,
            data,
        } => Heard::Event(PodEvent::Log {
            container: known(container)?,
            stream,
            data,
        }),
        AgentMessage::LogDropped { container, bytes } => Heard::Event(PodEvent::LogDropped {
            container: known(container)?,
            bytes,
        }),
        AgentMessage::Exited { container, exit } => Heard::Event(PodEvent::Exited {
            container: known(container)?,
            exit,
        }),
        AgentMessage::Standing(standing) => Heard::Event(PodEvent::Standing {
            container: known(standing.container)?,
            state: state(&standing),
        }),
        AgentMessage::Exec {
            answer: ExecAnswer::Output { data, .. },
            ..
        } if data.len() > MAX_EXEC_PIECE_BYTES => {
            return Err(format!(
                "the guest sends {} bytes of a session at once",
                data.len()
            ));
        }
        AgentMessage::Exec { session, answer } => Heard::Exec {
            session,
            answer: match answer {
                ExecAnswer::Failed { code, message } => ExecAnswer::Failed {
                    code,
                    message: one_line(&message),
                },
                other => other,
            },
        },
        AgentMessage::Stopped => Heard::Stopped,
        AgentMessage::Failed { container, message } => {
            let container = container.map(known).transpose()?;
            Heard::Failed {
                container,
                reason: one_line(&message),
            }
        }
    })
}

fn state(standing: &ContainerStanding) -> ContainerState {
    ContainerState {
        now: match standing.now {
            Standing::Running => Activity::Running,
            Standing::Waiting { next_ms } => Activity::Waiting {
                next: Duration::from_millis(next_ms).min(MAX_RESTART_WAIT),
            },
            Standing::Exited => Activity::Exited,
        },
        since: Duration::from_millis(standing.for_ms),
        restarts: standing.restarts,
        last_exit: standing.last_exit,
    }
}

/// A guest's words, fit for a sentence of ours.
fn one_line(text: &str) -> String {
    let clean = text
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter });
    clean.take(MAX_REASON_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use codius_guest_protocol::{ContainerExit, LogStream};

    #[test]
    fn a_container_that_is_not_there_is_a_fault() {
        let exited = |container| AgentMessage::Exited {
            container,
            exit: ContainerExit::Code(0),
        };
        assert_eq!(
            hear(exited(1), 2),
            Ok(Heard::Event(PodEvent::Exited {
                container: 1,
                exit: ContainerExit::Code(0)
            }))
        );
        assert!(hear(exited(2), 2).is_err());
        assert!(
            hear(
                AgentMessage::LogDropped {
                    container: 7,
                    bytes: 1
                },
                2
            )
            .is_err()
        );
        assert!(
            hear(
                AgentMessage::Failed {
                    container: Some(9),
                    message: String::new()
                },
                2
            )
            .is_err()
        );
    }

    #[test]
    fn output_is_taken_in_small_pieces_only() {
        let log = |bytes| AgentMessage::Log {
            container: 0,
            stream: LogStream::Stdout,
            data: vec![0; bytes],
        };
        assert!(hear(log(MAX_LOG_BYTES), 1).is_ok());
        assert!(hear(log(MAX_LOG_BYTES + 1), 1).is_err());
    }

    #[test]
    fn a_guest_cannot_break_our_lines() {
        let message = format!("no\n\u{1b}[31m{}", "x".repeat(10_000));
        let Ok(Heard::Failed { reason, .. }) = hear(
            AgentMessage::Failed {
                container: None,
                message,
            },
            1,
        ) else {
            panic!("not heard")
        };
        assert!(!reason.chars().any(char::is_control));
        assert_eq!(reason.chars().count(), MAX_REASON_CHARS);
    }
}
