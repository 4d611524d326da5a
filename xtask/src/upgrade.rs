//! `cargo xtask upgrade`: the proof that a host's program can be replaced under load, with as many pods as wanted.
//! It runs the test of that name in `crates/codiusd/tests/upgrade.rs`, which prints the line with the numbers.

use anyhow::{Result, ensure};

use crate::{
    build::{self, cargo_command, workspace},
    guest, packages,
};

const TEST: &str = "the_program_is_replaced_and_killed_while_pods_answer";

pub(crate) fn run(pods: u32, swaps: u32, yes: bool) -> Result<()> {
    packages::require_root("an upgrade with real pods")?;
    packages::ensure(&[packages::HOST, packages::TEST], yes)?;
    guest::build(&guest::default_dir(), &guest::Options::default())?;
    build::programs(build::Profile::Dev)?;
    let status = cargo_command()
        .args(["test", "--package", "codiusd", "--test", "upgrade", "--"])
        .args(["--exact", TEST, "--nocapture"])
        .env("CODIUS_UPGRADE_PODS", pods.to_string())
        .env("CODIUS_UPGRADE_SWAPS", swaps.to_string())
        .current_dir(workspace())
        .status()?;
    ensure!(
        status.success(),
        "the upgrade failed; what is above says how"
    );
    Ok(())
}
