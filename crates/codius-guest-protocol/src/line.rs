//! Lines: cutting a byte stream at line feeds within a bound, and turning them into messages.

use serde::{Serialize, de::DeserializeOwned};

/// One message as a line, with its line feed.
pub fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("protocol messages have only string keys");
    line.push(b'\n');
    line
}

/// What a line held.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<M> {
    Message(M),
    /// Not a message of this protocol, or longer than the limit: the rest of a broken line, or a
    /// peer that does not keep to the protocol. The text says which.
    Unreadable(String),
}

/// Cuts bytes into lines and parses each. Holds at most `limit` bytes.
#[derive(Debug)]
pub struct LineReader {
    limit: usize,
    partial: Vec<u8>,
    /// The current line is over the limit and is thrown away up to its end.
    overlong: bool,
}

impl LineReader {
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            partial: Vec::new(),
            overlong: false,
        }
    }

    /// Forgets a half line: the other side has gone.
    pub fn reset(&mut self) {
        self.partial.clear();
        self.overlong = false;
    }

    /// Bytes of memory that the current line takes, so that a bound of it can be checked.
    pub fn held_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// Takes bytes as they arrive and hands every complete line to `each`. Empty lines are ignored.
    pub fn push<M: DeserializeOwned>(&mut self, mut bytes: &[u8], mut each: impl FnMut(Line<M>)) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (head, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.overlong || self.partial.len() + head.len() > self.limit {
                self.reset();
                each(Line::Unreadable(format!("line over {} bytes", self.limit)));
                continue;
            }
            let parsed = if self.partial.is_empty() {
                if head.is_empty() {
                    continue;
                }
                serde_json::from_slice(head)
            } else {
                self.partial.extend_from_slice(head);
                let line = std::mem::take(&mut self.partial);
                serde_json::from_slice(&line)
            };
            each(match parsed {
                Ok(message) => Line::Message(message),
                Err(error) => Line::Unreadable(error.to_string()),
            });
        }
        if self.overlong || self.partial.len() + bytes.len() > self.limit {
            self.partial = Vec::new();
            self.overlong = true;
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AgentMessage, ExecAnswer, ExecAsk, HostMessage, LogStream};
    use proptest::prelude::*;

    fn read(reader: &mut LineReader, bytes: &[u8]) -> Vec<Line<AgentMessage>> {
        let mut lines = Vec::new();
        reader.push(bytes, |line| lines.push(line));
        lines
    }

    #[test]
    fn a_half_line_of_a_dead_host_is_dropped_and_the_next_is_read() {
        let mut reader = LineReader::new(1000);
        let mut seen: Vec<Line<HostMessage>> = Vec::new();
        reader.push(b"{\"type\":\"ping\",", |line| seen.push(line));
        reader.push(b"\n", |line| seen.push(line));
        let attach = HostMessage::Attach { nonce: "n".into() };
        reader.push(&encode(&attach), |line| seen.push(line));
        assert!(matches!(seen[0], Line::Unreadable(_)));
        assert_eq!(seen[1], Line::Message(attach));
    }

    #[test]
    fn an_overlong_line_costs_no_memory_and_one_report() {
        let mut reader = LineReader::new(16);
        for _ in 0..1000 {
            assert!(read(&mut reader, b"xxxxxxxxxxxxxxxxxxxx").is_empty());
        }
        assert_eq!(reader.partial.capacity(), 0);
        let lines = read(&mut reader, b"x\n{\"type\":\"\n");
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(read(&mut reader, &encode(&AgentMessage::Started)).len(), 1);
    }

    /// An agent of before there were sessions says nothing of them, and is understood.
    #[test]
    fn an_earlier_agent_offers_no_sessions() {
        let said = br#"{"type":"hello","nonce":"n","version":1,"configured":true,"containers":["running",{"exited":{"code":1}}]}"#;
        let mut reader = LineReader::new(1000);
        let lines = read(&mut reader, &[said.as_slice(), b"\n"].concat());
        assert!(matches!(
            lines[..],
            [Line::Message(AgentMessage::Hello { sessions: 0, .. })]
        ));
    }

    proptest! {
        #[test]
        fn logs_survive_any_cutting(data in proptest::collection::vec(any::<u8>(), 0..200), cut in 1_usize..50) {
            let message = AgentMessage::Log { container: 1, stream: LogStream::Stderr, data };
            let mut reader = LineReader::new(4096);
            let mut lines = Vec::new();
            for piece in encode(&message).chunks(cut) {
                reader.push(piece, |line| lines.push(line));
            }
            prop_assert_eq!(lines, vec![Line::Message(message)]);
        }

        #[test]
        fn sessions_survive_any_cutting(
            session in any::<u32>(),
            data in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 1_usize..50,
        ) {
            let answer = ExecAnswer::Output { stream: LogStream::Stdout, data: data.clone() };
            let message = AgentMessage::Exec { session, answer };
            let mut reader = LineReader::new(4096);
            let mut lines = Vec::new();
            for piece in encode(&message).chunks(cut) {
                reader.push(piece, |line| lines.push(line));
            }
            prop_assert_eq!(lines, vec![Line::Message(message)]);
            let message = HostMessage::Exec { session, ask: ExecAsk::Input { data } };
            let mut lines = Vec::new();
            LineReader::new(4096).push(&encode(&message), |line| lines.push(line));
            prop_assert_eq!(lines, vec![Line::Message(message)]);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            read(&mut LineReader::new(64), &bytes);
        }
    }
}
