//! The log of version 1: lines `_CONTAINER stdout TEXT` or `_CONTAINER stderr TEXT`, which a host sends
//! as they are written.
//!
//! Traps: the original's hosts send a line `ping` each second while one follows, which is no output (it
//! stopped the original's tool for good). What a program writes may move a terminal's cursor.

use std::{
    env,
    io::{IsTerminal, Write, stdout},
};

use codius_api::UnixMillis;
use codius_client::LogResponse;
use serde_json::json;

use crate::failure::{Failure, UNREACHABLE, printable};

/// A longer line is cut into several.
const MAX_LINE_BYTES: usize = 64 * 1024;
const PING: &[u8] = b"ping";

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogLine {
    /// When the host received it, if it says so.
    pub(crate) at: Option<UnixMillis>,
    /// Without the underscore in front.
    pub(crate) container: String,
    /// `stdout` or `stderr`.
    pub(crate) stream: String,
    pub(crate) text: String,
}

impl LogLine {
    /// `None` for a ping. What has not this form is a line of nobody.
    fn parse(line: &[u8]) -> Option<Self> {
        if line == PING {
            return None;
        }
        let line = String::from_utf8_lossy(line);
        let mut words = line.splitn(3, ' ');
        let parsed = match (words.next(), words.next(), words.next()) {
            (Some(container), Some(stream @ ("stdout" | "stderr")), text) => Self {
                at: None,
                container: container.strip_prefix('_').unwrap_or(container).to_owned(),
                stream: stream.to_owned(),
                text: text.unwrap_or_default().to_owned(),
            },
            _ => Self {
                at: None,
                container: String::new(),
                stream: String::new(),
                text: line.into_owned(),
            },
        };
        Some(parsed)
    }
}

/// Cuts what comes into lines.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        for &byte in bytes {
            if byte != b'\n' && self.0.len() < MAX_LINE_BYTES {
                self.0.push(byte);
                continue;
            }
            if !each(self.0.strip_suffix(b"\r").unwrap_or(&self.0)) {
                return false;
            }
            self.0.clear();
            if byte != b'\n' {
                self.0.push(byte);
            }
        }
        true
    }

    fn end(&mut self, each: &mut dyn FnMut(&[u8]) -> bool) {
        if !self.0.is_empty() {
            each(&std::mem::take(&mut self.0));
        }
    }
}

/// How lines are shown.
#[derive(Debug)]
pub(crate) struct Printer {
    /// In front of each line.
    host: Option<String>,
    json: bool,
    colour: bool,
}

impl Printer {
    /// As the host sends them, but for pings.
    pub(crate) fn plain() -> Self {
        Self {
            host: None,
            json: false,
            colour: false,
        }
    }

    /// An object for each line.
    pub(crate) fn json(host: &str) -> Self {
        Self {
            host: Some(host.to_owned()),
            json: true,
            colour: false,
        }
    }

    /// As the original's `tail`: host, container, text.
    pub(crate) fn labelled(host: &str) -> Self {
        let name = host.split_once("://").map_or(host, |(_, name)| name);
        Self {
            host: Some(name.to_owned()),
            json: false,
            colour: stdout().is_terminal()
                && env::var_os("NO_COLOR").is_none_or(|text| text.is_empty()),
        }
    }

    fn render(&self, line: &LogLine) -> String {
        let LogLine {
            at,
            container,
            stream,
            text,
        } = line;
        if self.json {
            let line = json!({
                "host": self.host, "at": at, "container": container, "stream": stream, "text": text
            });
            return line.to_string();
        }
        let Some(host) = &self.host else {
            return match stream.as_str() {
                "" => text.clone(),
                stream => format!("_{container} {stream} {text}"),
            };
        };
        // A terminal is told nothing by strangers but letters.
        let (container, text) = (printable(container), printable(text));
        if !self.colour {
            return format!("{host} {container} {text}");
        }
        let colour = match stream.as_str() {
            "stdout" => 32,
            "stderr" => 31,
            _ => 34,
        };
        format!("\u{1b}[90m{host}\u{1b}[0m \u{1b}[{colour}m{container}\u{1b}[0m {text}")
    }

    /// Prints a line; `false` when nobody reads any more.
    pub(crate) fn print(&self, line: &LogLine) -> bool {
        let mut out = stdout().lock();
        writeln!(out, "{}", self.render(line))
            .and_then(|()| out.flush())
            .is_ok()
    }
}

/// Prints all that comes, to the end.
pub(crate) async fn copy(mut response: LogResponse, printer: &mut Printer) -> Result<(), Failure> {
    let mut lines = Lines::default();
    let mut print = |line: &[u8]| LogLine::parse(line).is_none_or(|line| printer.print(&line));
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                // Whoever reads us may stop reading.
                if !lines.push(&chunk, &mut print) {
                    return Ok(());
                }
            }
            Ok(None) => {
                lines.end(&mut print);
                return Ok(());
            }
            Err(error) => {
                return Err(Failure::new(
                    UNREACHABLE,
                    format!("the host stopped in the middle: {error}"),
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<LogLine> {
        let mut lines = Lines::default();
        let mut all = Vec::new();
        let mut each = |line: &[u8]| {
            all.extend(LogLine::parse(line));
            true
        };
        for chunk in chunks {
            lines.push(chunk, &mut each);
        }
        lines.end(&mut each);
        all
    }

    fn line(container: &str, stream: &str, text: &str) -> LogLine {
        LogLine {
            at: None,
            container: container.into(),
            stream: stream.into(),
            text: text.into(),
        }
    }

    #[test]
    fn lines_are_whole_whatever_the_chunks_and_pings_are_no_output() {
        let chunks: [&[u8]; 4] = [
            b"_web std",
            b"out hello  world\npi",
            b"ng\n_web stderr \n",
            b"x",
        ];
        assert_eq!(
            lines(&chunks),
            [
                line("web", "stdout", "hello  world"),
                line("web", "stderr", ""),
                line("", "", "x"),
            ]
        );
        let long = vec![b'a'; MAX_LINE_BYTES + 1];
        assert_eq!(lines(&[&long]).len(), 2);
    }

    #[test]
    fn what_a_program_writes_does_not_move_the_cursor() {
        let shown = Printer {
            host: Some("host.example".into()),
            json: false,
            colour: false,
        };
        let evil = line("web", "stdout", "a\u{1b}[2Jb");
        assert_eq!(shown.render(&evil), "host.example web a[2Jb");
        assert_eq!(
            Printer::json("https://host.example").render(&evil),
            r#"{"host":"https://host.example","at":null,"container":"web","stream":"stdout","text":"a\u001b[2Jb"}"#
        );
        assert_eq!(
            Printer::plain().render(&line("web", "stderr", "x")),
            "_web stderr x"
        );
    }
}
