//! What `codius run` shows: the program's output on standard output, all else on standard error, with a
//! live line on a terminal; or with `--json` all of it as JSON lines on standard output (docs/codius-json.md).

use std::{
    io::{IsTerminal, Write, stderr, stdout},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::{
    failure::printable,
    raw_log::{LogLine, Printer},
};

/// How often the live line moves.
const TICK: Duration = Duration::from_millis(250);

pub(crate) struct Show {
    live: Option<ProgressBar>,
    printer: Printer,
    json: bool,
}

impl Show {
    pub(crate) fn new(json: bool) -> Self {
        let live = (!json && stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg}");
            let bar = ProgressBar::new_spinner();
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(TICK);
            bar
        });
        Self {
            live,
            printer: Printer::plain(),
            json,
        }
    }

    pub(crate) fn in_json(&self) -> bool {
        self.json
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// A line of the program; false when nobody reads any more.
    pub(crate) fn line(&self, line: &LogLine) -> bool {
        if self.json {
            return self.object(
                "log",
                json!({
                    "at": line.at, "container": line.container,
                    "stream": line.stream, "text": line.text,
                }),
            );
        }
        match &self.live {
            Some(bar) => bar.suspend(|| self.printer.print(line)),
            None => self.printer.print(line),
        }
    }

    /// Something that has happened: a sentence for people, an event for programs.
    pub(crate) fn tell(&self, text: &str, event: &str, members: Value) -> bool {
        if self.json {
            return self.object(event, members);
        }
        let text = printable(text);
        match &self.live {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
        true
    }

    /// How it goes: on the live line, or as an event.
    pub(crate) fn cost(&self, text: &str, members: Value) -> bool {
        match &self.live {
            Some(bar) => bar.set_message(text.to_owned()),
            None if self.json => return self.object("cost", members),
            None => eprintln!("{text}"),
        }
        true
    }

    /// The end, on standard output.
    pub(crate) fn end(&self, text: &str, members: Value) {
        if let Some(bar) = &self.live {
            bar.finish_and_clear();
        }
        if self.json {
            self.object("ended", members);
        } else {
            let _ = writeln!(stdout(), "{}", printable(text));
        }
    }

    fn object(&self, event: &str, members: Value) -> bool {
        let mut whole = json!({ "event": event });
        if let (Value::Object(whole), Value::Object(members)) = (&mut whole, members) {
            whole.extend(members);
        }
        let mut out = stdout().lock();
        writeln!(out, "{whole}").and_then(|()| out.flush()).is_ok()
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if let Some(bar) = &self.live {
            bar.finish_and_clear();
        }
    }
}
