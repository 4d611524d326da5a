//! Told to end at an awkward moment.

use std::{process::Command, time::Duration};

use anyhow::Result;
use codius_testkit::{Background, Listen};

const PATIENCE: Duration = Duration::from_secs(60);

/// The signal comes while the host starts, when nobody waits for it yet.
#[test]
fn a_host_that_is_told_to_end_while_it_starts_ends() -> Result<()> {
    let place = tempfile::Builder::new().prefix("codius-end-").tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_codiusd"));
    command
        .args(["--local", "--listen", "127.0.0.1:0"])
        .args(["--interledger-listen", "127.0.0.1:0"])
        .arg("--data-dir")
        .arg(place.path().join("data"));
    let host = Background::start(&command, Listen::Errors)?;
    host.line_with("ledger adds up", PATIENCE)?;
    host.terminate(PATIENCE)
}
