//! Real crashes: a real host with real pods under load, killed again and again, and its books and the
//! process table looked at from outside (`codius-crash`).

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{
    build::{cargo, target_dir},
    guest, packages,
};

/// Prints what happens as it happens; the last line is `N kills, N violations`.
pub(crate) fn run(kills: u32, seed: Option<u64>, yes: bool) -> Result<()> {
    packages::require_root("the crash run")?;
    packages::ensure(&[packages::HOST], yes)?;
    cargo(&[
        "build",
        "--quiet",
        "-p",
        "codiusd",
        "-p",
        "codius-crash",
        "--bins",
    ])?;
    let guest_dir = guest::default_dir();
    guest::build(&guest_dir, &guest::Options::default())?;
    let hello = guest::build_static(&guest_dir, "codius-example-hello")?;
    let programs = target_dir().join("debug");
    let mut command = Command::new(programs.join("codius-crash"));
    command
        .args(["--kills", &kills.to_string()])
        .arg("--codiusd")
        .arg(programs.join("codiusd"))
        .arg("--guest")
        .arg(&guest_dir)
        .arg("--hello")
        .arg(&hello);
    if let Some(seed) = seed {
        command.args(["--seed", &seed.to_string()]);
    }
    let status = command.status().context("codius-crash cannot be run")?;
    if !status.success() {
        bail!("the host did not hold; the seed and what was found are above ({status})");
    }
    Ok(())
}
