//! Pieces of output, put together to lines again.

use std::collections::HashMap;

use codius_guest_protocol::LogStream;
use codius_pod::LogRecord;

/// The longest line; longer ones are cut into several.
const MAX_LINE_BYTES: usize = 16 * 1024;

/// Puts the pieces of one pod together.
pub(super) struct Lines {
    /// Of the containers, in the manifest's order.
    names: Vec<String>,
    partial: HashMap<(usize, LogStream), Partial>,
}

/// A line whose end has not come yet.
#[derive(Default)]
struct Partial {
    text: Vec<u8>,
    place: u64,
    at_unix_ms: u64,
}

/// A line, or as much of it as a line may have.
pub(super) struct Line<'a> {
    pub(super) container: &'a str,
    pub(super) stream: LogStream,
    /// Without its line feed.
    pub(super) text: &'a [u8],
    /// Where its last byte is in all output of the pod.
    pub(super) place: u64,
    /// When that byte came.
    pub(super) at_unix_ms: u64,
}

impl Lines {
    pub(super) fn new(names: Vec<String>) -> Self {
        Self {
            names,
            partial: HashMap::new(),
        }
    }

    /// Adds a piece, and tells the lines that it completes.
    pub(super) fn push(&mut self, record: &LogRecord, mut tell: impl FnMut(&Line<'_>)) {
        let Some(name) = self.names.get(record.container) else {
            return;
        };
        let key = (record.container, record.stream);
        let partial = self.partial.entry(key).or_default();
        let mut end = record.offset;
        for piece in record.data.split_inclusive(|&byte| byte == b'\n') {
            end += piece.len() as u64;
            partial.text.extend_from_slice(piece);
            partial.place = end - 1;
            partial.at_unix_ms = record.at_unix_ms;
            if piece.ends_with(b"\n") || partial.text.len() >= MAX_LINE_BYTES {
                let line = std::mem::take(partial);
                tell(&line.of(name, record.stream));
            }
        }
    }

    /// Tells what was written without a line feed at its end.
    pub(super) fn finish(self, mut tell: impl FnMut(&Line<'_>)) {
        let mut rest: Vec<_> = self
            .partial
            .into_iter()
            .filter(|(_, partial)| !partial.text.is_empty())
            .collect();
        rest.sort_by_key(|(_, partial)| partial.place);
        for ((container, stream), partial) in rest {
            if let Some(name) = self.names.get(container) {
                tell(&partial.of(name, stream));
            }
        }
    }
}

impl Partial {
    fn of<'a>(&'a self, container: &'a str, stream: LogStream) -> Line<'a> {
        Line {
            container,
            stream,
            text: self.text.strip_suffix(b"\n").unwrap_or(&self.text),
            place: self.place,
            at_unix_ms: self.at_unix_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines_of_their_container_and_stream() {
        let mut lines = Lines::new(vec!["app".into(), "db".into()]);
        let mut told = Vec::new();
        let mut tell = |line: &Line<'_>| {
            let text = String::from_utf8_lossy(line.text).into_owned();
            told.push((line.container.to_owned(), text, line.place, line.at_unix_ms));
        };
        let mut offset = 100;
        for (at_unix_ms, (container, stream, data)) in (1..).zip([
            (0, LogStream::Stdout, "hel"),
            (1, LogStream::Stderr, "oops\n"),
            (0, LogStream::Stdout, "lo\n\nwor"),
            (9, LogStream::Stdout, "nobody\n"),
        ]) {
            let record = LogRecord {
                container,
                stream,
                data: data.into(),
                at_unix_ms,
                offset,
            };
            offset += data.len() as u64;
            lines.push(&record, &mut tell);
        }
        lines.finish(&mut tell);
        let line = |container: &str, text: &str, place, at| {
            (container.to_owned(), text.to_owned(), place, at)
        };
        assert_eq!(
            told,
            [
                line("db", "oops", 107, 2),
                line("app", "hello", 110, 3),
                line("app", "", 111, 3),
                line("app", "wor", 114, 3),
            ]
        );
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let mut lines = Lines::new(vec!["app".into()]);
        let mut lengths = Vec::new();
        for number in 0..9 {
            let record = LogRecord {
                container: 0,
                stream: LogStream::Stdout,
                data: vec![b'x'; MAX_LINE_BYTES / 4],
                at_unix_ms: 0,
                offset: number * MAX_LINE_BYTES as u64 / 4,
            };
            lines.push(&record, |line| lengths.push(line.text.len()));
        }
        assert_eq!(lengths, [MAX_LINE_BYTES, MAX_LINE_BYTES]);
    }
}
