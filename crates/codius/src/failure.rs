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

    /// An exit code that says all.
    pub(crate) fn silent(code: u8) -> Self {
        Self::new(code, "")
    }

    /// Something to know before all other notes.
    pub(crate) fn first(mut self, note: impl Into<String>) -> Self {
        self.notes.insert(0, note.into());
        self
    }

    /// Where it happened, in front of the sentence.
    pub(crate) fn at(mut self, place: &str) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Tells it on standard error.
    pub(crate) fn report(self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("codius: {}", printable(&self.message));
        }
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
        Self::of_order(&error, &|paid| format!("{paid} units"), &|owed| {
            format!("{owed} units")
        })
    }
}

impl Failure {
    /// Why an order failed and where its money is; `ours` and `theirs` write amounts of the payer and of
    /// the host.
    pub(crate) fn of_order(
        error: &ClientError,
        ours: &dyn Fn(u64) -> String,
        theirs: &dyn Fn(u64) -> String,
    ) -> Self {
        let receipt = error.receipt();
        let code = match error {
            ClientError::InvalidHost { .. } | ClientError::InvalidWallet(_) => USAGE,
            ClientError::TooDear { .. } | ClientError::NoPayment { .. } => NOT_PAID,
            ClientError::Refused { body, .. } if body.status_code == 402 => NOT_PAID,
            ClientError::Refused { .. } | ClientError::NotAHost { .. } => REFUSED,
            ClientError::Unreachable { .. }
            | ClientError::NoWallet { .. }
            | ClientError::Wallet { .. }
            | ClientError::Lost(_) => UNREACHABLE,
        };
        let mut failure = Self::new(code, error.to_string());
        match error {
            ClientError::TooDear { price, limit } => {
                failure.message = format!(
                    "the host asks for {}, more than the {} that it said before",
                    theirs(*price),
                    theirs(*limit)
                );
                failure
            }
            ClientError::Refused { body, .. } => {
                if let Some(detail) = body
                    .detail
                    .as_ref()
                    .filter(|detail| **detail != body.message)
                {
                    failure = failure.note(detail.clone());
                }
                let owed = body.owed.map_or(0, |owed| owed.0);
                if receipt != Receipt::default() || owed > 0 {
                    failure = failure.note(money(&receipt, owed, ours, theirs));
                }
                match &body.next {
                    Some(next) => failure.note(format!("Next: {next}.")),
                    None => failure,
                }
            }
            ClientError::NotAHost { .. } if receipt != Receipt::default() => {
                failure.note(money(&receipt, 0, ours, theirs))
            }
            ClientError::Lost(lost) if receipt.paid == 0 => {
                failure.message = "contact with the host was lost".to_owned();
                failure.note(chain(&lost.source))
            }
            ClientError::Lost(lost) => {
                failure.message =
                    "contact with the host was lost after it had been paid".to_owned();
                failure
                    .note(chain(&lost.source))
                    .note(money(&receipt, 0, ours, theirs))
                    .note("The host has recorded what it received and did not use: upload the same manifest again to use it.")
            }
            error => match error.source() {
                Some(source) => failure.note(chain(source)),
                None => failure,
            },
        }
    }
}

/// Where the money of a failed order is.
fn money(
    receipt: &Receipt,
    owed: u64,
    ours: &dyn Fn(u64) -> String,
    theirs: &dyn Fn(u64) -> String,
) -> String {
    let Receipt { paid, refunded } = *receipt;
    if paid > 0 && refunded >= paid {
        return format!("All of the {} that was paid came back.", ours(paid));
    }
    let rest = match owed {
        0 => "the host has not said what becomes of the rest".to_owned(),
        owed => format!(
            "{} is owed to the next upload of this manifest",
            theirs(owed)
        ),
    };
    format!(
        "Paid {}, of which {} came back; {rest}.",
        ours(paid),
        ours(refunded)
    )
}

/// Text of a host or a program, without what could move a terminal's cursor.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .filter(|letter| !letter.is_control() || *letter == '\n')
        .collect()
}

/// The same in one line.
pub(crate) fn one_line(text: &str) -> String {
    printable(text).replace('\n', " ")
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
