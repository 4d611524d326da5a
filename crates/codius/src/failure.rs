//! How the tool fails: one sentence, a next step, and an exit code.

use std::{error::Error, process::ExitCode};

use codius_client::{ClientError, Receipt};

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
    /// What else is known, one line each.
    notes: Vec<String>,
}

pub(crate) const USAGE: u8 = 2;
pub(crate) const NOT_PAID: u8 = 3;
pub(crate) const REFUSED: u8 = 4;
pub(crate) const UNREACHABLE: u8 = 5;
pub(crate) const INTERRUPTED: u8 = 130;

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            notes: Vec::new(),
        }
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Tells it on standard error.
    pub(crate) fn report(self) -> ExitCode {
        eprintln!("codius: {}", printable(&self.message));
        for note in &self.notes {
            for line in note.lines() {
                eprintln!("  {}", printable(line));
            }
        }
        ExitCode::from(self.code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let receipt = error.receipt();
        let code = match &error {
            ClientError::InvalidHost { .. } | ClientError::InvalidWallet(_) => USAGE,
            ClientError::TooDear { .. } | ClientError::NoPayment { .. } => NOT_PAID,
            ClientError::Refused { body, .. } if body.status_code == 402 => NOT_PAID,
            ClientError::Refused { .. } | ClientError::NotAHost { .. } => REFUSED,
            ClientError::Unreachable { .. }
            | ClientError::NoWallet { .. }
            | ClientError::Wallet { .. }
            | ClientError::Lost(_) => UNREACHABLE,
        };
        let failure = Self::new(code, error.to_string());
        match &error {
            ClientError::Refused { body, .. } => {
                let mut failure = failure;
                if let Some(detail) = body.detail.as_ref().filter(|detail| **detail != body.message) {
                    failure = failure.note(detail.clone());
                }
                let owed = body.owed.map_or(0, |owed| owed.0);
                if receipt != Receipt::default() || owed > 0 {
                    failure = failure.note(money(&receipt, owed));
                }
                match &body.next {
                    Some(next) => failure.note(format!("Next: {next}.")),
                    None => failure,
                }
            }
            ClientError::Lost(_) => failure
                .note("The host has recorded what it received and did not use: upload the same manifest again to use it."),
            error => match error.source() {
                Some(source) => failure.note(chain(source)),
                None => failure,
            },
        }
    }
}

/// Where the money of a failed order is, in smallest units.
fn money(receipt: &Receipt, owed: u64) -> String {
    let Receipt { paid, refunded } = receipt;
    let kept = paid.saturating_sub(*refunded);
    if kept == 0 && *paid > 0 {
        return format!("All of the {paid} units that were paid came back.");
    }
    format!(
        "Paid {paid} units, of which {refunded} came back and {owed} are owed to the next upload of this manifest."
    )
}

/// Text of a host or a program, without what could move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|letter| !letter.is_control() || *letter == '\n')
        .collect()
}

/// An error and what caused it, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
