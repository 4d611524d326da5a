//! How an upload goes on: a live line on a terminal, plain lines elsewhere. On standard error.

use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use codius_api::{LeaseEvent, LeaseEventKind, Phase};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::failure::printable;

/// How often the live line moves.
const TICK: Duration = Duration::from_millis(120);

/// An honest host has fewer.
const MAX_PHASES: usize = 64;

/// The lines of several hosts, one below the other.
pub(crate) struct Board {
    /// On a terminal.
    live: Option<MultiProgress>,
    /// There are several hosts, so each line says whose it is.
    labelled: bool,
}

impl Board {
    pub(crate) fn new(hosts: usize) -> Self {
        Self {
            live: stderr().is_terminal().then(MultiProgress::new),
            labelled: hosts > 1,
        }
    }

    /// The line of one host.
    pub(crate) fn line(&self, host: &str) -> Display {
        let live = self.live.as_ref().map(|board| {
            let style = ProgressStyle::with_template("{spinner} {prefix}{msg} ({elapsed})");
            let bar = board.add(ProgressBar::new_spinner());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(TICK);
            bar
        });
        let label = if self.labelled {
            format!("{host}: ")
        } else {
            String::new()
        };
        if let Some(bar) = &live {
            bar.set_prefix(label.clone());
        }
        Display {
            live,
            label,
            last: String::new(),
            phases: Vec::new(),
        }
    }

    /// Says something that stays, above the live lines.
    pub(crate) fn tell(&self, text: &str) {
        let text = printable(text);
        match &self.live {
            Some(board) => {
                let _ = board.println(text);
            }
            None => eprintln!("{text}"),
        }
    }
}

/// Shows what a host tells.
pub(crate) struct Display {
    live: Option<ProgressBar>,
    label: String,
    last: String,
    phases: Vec<LeaseEvent>,
}

impl Display {
    pub(crate) fn say(&mut self, text: &str) {
        if text == self.last {
            return;
        }
        text.clone_into(&mut self.last);
        match &self.live {
            Some(bar) => bar.set_message(text.to_owned()),
            None => eprintln!("{}{text}", self.label),
        }
    }

    pub(crate) fn event(&mut self, event: LeaseEvent) {
        if let LeaseEventKind::Frozen { ends_at } = &event.kind {
            self.say(&format!(
                "Frozen, its money is used up; it ends at {ends_at}"
            ));
        }
        if let LeaseEventKind::Phase(phase) = &event.kind {
            // Off a terminal a pull is told in tenths, not byte by byte.
            let text = in_words(phase, self.live.is_none());
            self.say(&text);
            let same = |last: &LeaseEvent| name(&last.kind) == name(&event.kind);
            if !self.phases.last().is_some_and(same) && self.phases.len() < MAX_PHASES {
                self.phases.push(event);
            }
        }
    }

    /// Clears the live line; what was shown is over.
    pub(crate) fn end(self) -> Vec<LeaseEvent> {
        if let Some(bar) = &self.live {
            bar.finish_and_clear();
        }
        self.phases
    }
}

/// The phase's name, as in the API.
pub(crate) fn name(kind: &LeaseEventKind) -> &'static str {
    match kind {
        LeaseEventKind::Phase(phase) => match phase {
            Phase::Resolving => "resolving",
            Phase::Pulling { .. } => "pulling",
            Phase::Building => "building",
            Phase::Booting => "booting",
            Phase::Starting => "starting",
            Phase::WaitingForPort { .. } => "waiting_for_port",
            Phase::Running { .. } => "running",
        },
        LeaseEventKind::Draining { .. } => "draining",
        LeaseEventKind::DrainUndone => "drain_undone",
        LeaseEventKind::Container(_) => "container",
        LeaseEventKind::Failed { .. } => "failed",
        LeaseEventKind::Expiring { .. } => "expiring",
        LeaseEventKind::Frozen { .. } => "frozen",
        LeaseEventKind::Ended { .. } => "ended",
    }
}

fn in_words(phase: &Phase, in_tenths: bool) -> String {
    match phase {
        Phase::Resolving => "Looking up the images".to_owned(),
        Phase::Pulling { of: 0, .. } => "Pulling the images".to_owned(),
        Phase::Pulling { bytes, of } if in_tenths => {
            format!(
                "Pulling the images, {}% of {}",
                bytes.saturating_mul(10) / of * 10,
                HumanBytes(*of)
            )
        }
        Phase::Pulling { bytes, of } => format!(
            "Pulling the images, {} of {}",
            HumanBytes(*bytes),
            HumanBytes(*of)
        ),
        Phase::Building => "Making the block image".to_owned(),
        Phase::Booting => "Booting the pod".to_owned(),
        Phase::Starting => "Starting the containers".to_owned(),
        Phase::WaitingForPort { port } => format!("Waiting for port {port}"),
        Phase::Running { .. } => "Running".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_one_plain_line() {
        let lines: Vec<_> = [
            Phase::Resolving,
            Phase::Pulling { bytes: 0, of: 0 },
            Phase::Pulling { bytes: 57, of: 100 },
            Phase::Building,
            Phase::Booting,
            Phase::Starting,
            Phase::WaitingForPort { port: 8080 },
        ]
        .iter()
        .map(|phase| in_words(phase, true))
        .collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        Looking up the images
        Pulling the images
        Pulling the images, 50% of 100 B
        Making the block image
        Booting the pod
        Starting the containers
        Waiting for port 8080
        ");
    }
}
