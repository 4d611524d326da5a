//! The sessions of `exec` of one pod: which there are, and what each may have on the way.
//!
//! A hostile guest can say of a session whatever it likes: what it says of one that is not there is passed
//! over (it may have been killed just now), and what is more than the session's window ends the pod.

use std::collections::HashMap;

use codius_guest_protocol::{ExecAnswer, ExecAsk, HostMessage, MAX_EXEC_SESSIONS};
use codius_pod::{ExecDriven, ExecError, ExecEvent, ExecSession, ExecStart, ExecWish};
use tokio::sync::mpsc;

use crate::limits::MAX_EXEC_WISHES;

#[derive(Debug)]
pub(crate) struct Sessions {
    offered: bool,
    next: u32,
    driven: HashMap<u32, ExecDriven>,
    wish: mpsc::Sender<(u32, ExecWish)>,
    wishes: mpsc::Receiver<(u32, ExecWish)>,
    /// One number for each session that is dropped.
    drop: mpsc::UnboundedSender<u32>,
    dropped: mpsc::UnboundedReceiver<u32>,
}

impl Default for Sessions {
    fn default() -> Self {
        let (wish, wishes) = mpsc::channel(MAX_EXEC_WISHES);
        let (drop, dropped) = mpsc::unbounded_channel();
        Self {
            offered: false,
            next: 0,
            driven: HashMap::new(),
            wish,
            wishes,
            drop,
            dropped,
        }
    }
}

impl Sessions {
    /// Of a pod whose agent carries sessions.
    pub(crate) fn offered() -> Self {
        Self {
            offered: true,
            ..Self::default()
        }
    }

    pub(crate) fn set_offered(&mut self, offered: bool) {
        self.offered = offered;
    }

    /// Begins a session; the message tells the agent.
    pub(crate) fn begin(
        &mut self,
        start: ExecStart,
    ) -> Result<(HostMessage, ExecSession), ExecError> {
        let container = u16::try_from(start.container).map_err(|_| ExecError::NotRunning)?;
        if !self.offered {
            return Err(ExecError::NotOffered);
        }
        if self.driven.len() >= MAX_EXEC_SESSIONS {
            return Err(ExecError::TooMany);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let (driven, session) = ExecDriven::new(id, self.wish.clone(), self.drop.clone());
        self.driven.insert(id, driven);
        let ask = ExecAsk::Start {
            container,
            args: start.args,
            env: start.env,
            input: start.input,
            terminal: start.terminal,
        };
        Ok((HostMessage::Exec { session: id, ask }, session))
    }

    /// Passes on what the guest says of a session. An error says how it breaks the protocol.
    pub(crate) fn hear(&mut self, id: u32, answer: ExecAnswer) -> Result<(), String> {
        let Some(driven) = self.driven.get_mut(&id) else {
            return Ok(());
        };
        let (event, last) = match answer {
            ExecAnswer::Started => (ExecEvent::Started, false),
            ExecAnswer::Output { stream, data } => (ExecEvent::Output { stream, data }, false),
            ExecAnswer::Failed { code, message } => (ExecEvent::Failed { code, message }, true),
            ExecAnswer::Ended(exit) => (ExecEvent::Ended(exit), true),
            ExecAnswer::Taken { bytes } if driven.taken(bytes) => return Ok(()),
            ExecAnswer::Taken { .. } => {
                return Err("the guest has taken more than a session was given".to_owned());
            }
        };
        let kept_to = driven.tell(event);
        if last {
            self.driven.remove(&id);
        }
        if kept_to {
            Ok(())
        } else {
            Err("the guest sends more of a session than it may".to_owned())
        }
    }

    /// What is to be told to the agent next. Safe to drop while waiting.
    pub(crate) async fn next(&mut self) -> HostMessage {
        loop {
            // Both have a sender here, so neither ever ends.
            let (session, ask) = tokio::select! {
                biased;
                Some(id) = self.dropped.recv() => match self.driven.remove(&id) {
                    Some(_) => (id, ExecAsk::Kill),
                    None => continue,
                },
                Some((id, wish)) = self.wishes.recv() => match self.driven.get_mut(&id) {
                    Some(driven) => (id, asked(driven, wish)),
                    None => continue,
                },
            };
            return HostMessage::Exec { session, ask };
        }
    }
}

fn asked(driven: &mut ExecDriven, wish: ExecWish) -> ExecAsk {
    match wish {
        ExecWish::Input(data) => {
            driven.sends(data.len());
            ExecAsk::Input { data }
        }
        ExecWish::EndOfInput => ExecAsk::EndOfInput,
        ExecWish::Resize(size) => ExecAsk::Resize(size),
        ExecWish::Read(bytes) => {
            driven.gives(bytes);
            ExecAsk::Credit { bytes }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use codius_guest_protocol::{
        ContainerExit, EXEC_MIN_COST_BYTES, EXEC_WINDOW_BYTES, LogStream, MAX_EXEC_PIECE_BYTES,
        exec_cost,
    };

    fn start() -> ExecStart {
        ExecStart {
            container: 0,
            args: vec!["sh".to_owned()],
            env: Vec::new(),
            input: true,
            terminal: None,
        }
    }

    fn output(bytes: usize) -> ExecAnswer {
        ExecAnswer::Output {
            stream: LogStream::Stdout,
            data: vec![b'x'; bytes],
        }
    }

    fn begun() -> (Sessions, ExecSession) {
        let mut sessions = Sessions::offered();
        let (_, session) = sessions.begin(start()).unwrap();
        (sessions, session)
    }

    #[tokio::test]
    async fn a_pod_carries_so_many_sessions_and_no_more() {
        assert_eq!(
            Sessions::default().begin(start()).unwrap_err(),
            ExecError::NotOffered
        );
        let mut sessions = Sessions::offered();
        let mut begun: Vec<_> = (0..MAX_EXEC_SESSIONS)
            .map(|_| sessions.begin(start()).unwrap().1)
            .collect();
        assert_eq!(sessions.begin(start()).unwrap_err(), ExecError::TooMany);
        drop(begun.remove(3));
        let kill = HostMessage::Exec {
            session: 3,
            ask: ExecAsk::Kill,
        };
        assert_eq!(sessions.next().await, kill);
        let (again, _session) = sessions.begin(start()).unwrap();
        assert!(
            matches!(again, HostMessage::Exec { session: 8, .. }),
            "{again:?}"
        );
    }

    #[tokio::test]
    async fn a_guest_may_send_a_window_and_what_was_read() {
        let (mut sessions, mut session) = begun();
        let pieces = EXEC_WINDOW_BYTES / exec_cost(MAX_EXEC_PIECE_BYTES);
        for _ in 0..pieces {
            sessions.hear(0, output(MAX_EXEC_PIECE_BYTES)).unwrap();
        }
        // Two are read: the first is paid back when the next is asked for.
        for _ in 0..2 {
            assert!(matches!(
                session.output.next().await,
                Some(ExecEvent::Output { .. })
            ));
        }
        let HostMessage::Exec {
            ask: ExecAsk::Credit { bytes },
            ..
        } = sessions.next().await
        else {
            panic!("no credit")
        };
        assert_eq!(bytes, exec_cost(MAX_EXEC_PIECE_BYTES));
        sessions.hear(0, output(MAX_EXEC_PIECE_BYTES)).unwrap();
        sessions.hear(0, output(1)).unwrap_err();
    }

    #[test]
    fn tiny_pieces_of_a_hostile_guest_are_bounded_too() {
        let (mut sessions, _session) = begun();
        for _ in 0..EXEC_WINDOW_BYTES / EXEC_MIN_COST_BYTES {
            sessions.hear(0, output(1)).unwrap();
        }
        sessions.hear(0, output(1)).unwrap_err();
    }

    #[tokio::test]
    async fn input_waits_for_the_program_and_a_guest_cannot_take_what_was_not_given() {
        let (mut sessions, session) = begun();
        let data = vec![7; EXEC_WINDOW_BYTES as usize + 1];
        let writing = session.input.write(&data);
        tokio::pin!(writing);
        let mut sent = 0;
        while sent < EXEC_WINDOW_BYTES as usize {
            let message = tokio::select! {
                message = sessions.next() => message,
                done = &mut writing => panic!("{done:?} before the program has read"),
            };
            let HostMessage::Exec {
                ask: ExecAsk::Input { data },
                ..
            } = message
            else {
                panic!("{message:?}")
            };
            sent += data.len();
        }
        let full = ExecAnswer::Taken {
            bytes: EXEC_WINDOW_BYTES + 1,
        };
        sessions.hear(0, full).unwrap_err();
        let some = ExecAnswer::Taken {
            bytes: exec_cost(MAX_EXEC_PIECE_BYTES),
        };
        sessions.hear(0, some).unwrap();
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn nothing_comes_after_the_end_and_a_stranger_is_passed_over() {
        let (mut sessions, mut session) = begun();
        sessions.hear(77, output(1)).unwrap();
        let end = ExecAnswer::Ended(ContainerExit::Code(3));
        sessions.hear(0, end.clone()).unwrap();
        sessions.hear(0, end).unwrap();
        let ended = Some(ExecEvent::Ended(ContainerExit::Code(3)));
        assert_eq!(session.output.next().await, ended);
        assert_eq!(session.output.next().await, None);
        assert!(session.input.write(b"x").await.is_err());
    }
}
