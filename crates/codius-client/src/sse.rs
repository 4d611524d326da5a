//! Server-sent events, as far as hosts use them: `id` and `data` of one line.

use std::collections::VecDeque;

use reqwest::Response;

/// The longest event that is read.
const MAX_EVENT_BYTES: usize = 256 * 1024;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerEvent {
    pub(crate) id: Option<String>,
    pub(crate) data: String,
}

/// Why there are no more.
#[derive(Debug, thiserror::Error)]
pub enum Cut {
    #[error("the connection to the host broke")]
    Connection(#[source] reqwest::Error),
    #[error("the host sent an event that is too long")]
    TooLong,
}

/// Reads the body of an answer.
#[derive(Debug)]
pub(crate) struct ServerEvents {
    response: Response,
    parser: Parser,
}

impl ServerEvents {
    pub(crate) fn new(response: Response) -> Self {
        Self {
            response,
            parser: Parser::default(),
        }
    }

    /// The next event; `None` at the end. Safe to drop while waiting.
    pub(crate) async fn next(&mut self) -> Result<Option<ServerEvent>, Cut> {
        loop {
            if let Some(event) = self.parser.complete.pop_front() {
                return Ok(Some(event));
            }
            match self.response.chunk().await.map_err(Cut::Connection)? {
                Some(chunk) => self.parser.push(&chunk)?,
                None => return Ok(None),
            }
        }
    }
}

#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    event: ServerEvent,
    complete: VecDeque<ServerEvent>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Result<(), Cut> {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() + self.event.data.len() > MAX_EVENT_BYTES {
                    return Err(Cut::TooLong);
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            self.end_line(&String::from_utf8_lossy(&line));
        }
        Ok(())
    }

    fn end_line(&mut self, line: &str) {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            // A comment that keeps the connection alive is no event.
            if !event.data.is_empty() {
                self.complete.push_back(event);
            }
            return;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => self.event.id = Some(value.to_owned()),
            "data" => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // Comments, and fields that hosts do not use.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_whole_whatever_the_chunks() {
        let mut parser = Parser::default();
        for chunk in [
            ": hi\n\nid: 7\nda",
            "ta: {\"a\":",
            "1}\r\n\r\n",
            "data:x\ndata: y\n\ndata: z\n",
        ] {
            parser.push(chunk.as_bytes()).unwrap();
        }
        let event = |id: Option<&str>, data: &str| ServerEvent {
            id: id.map(str::to_owned),
            data: data.to_owned(),
        };
        assert_eq!(
            Vec::from(parser.complete),
            [event(Some("7"), "{\"a\":1}"), event(None, "x\ny")]
        );
    }

    #[test]
    fn an_event_has_a_longest_length() {
        let mut parser = Parser::default();
        let long = vec![b'a'; MAX_EVENT_BYTES];
        parser.push(&long).unwrap();
        assert!(matches!(parser.push(b"a"), Err(Cut::TooLong)));
    }
}
