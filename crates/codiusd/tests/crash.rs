//! A short run of what `cargo xtask crash` does at length: a real host with real pods is killed under
//! load, and its books, its machines and what it has left are as they should be.

mod support;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use codius_crash::Settings;

/// Few enough for three minutes under emulation.
const KILLS: u32 = 6;
const CLIENTS: u32 = 2;
/// Its plan kills the host, pods, both, and cuts a start.
const SEED: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_loses_nothing_and_leaves_nothing() -> Result<()> {
    let report = codius_crash::run(Settings {
        kills: KILLS,
        seed: SEED,
        codiusd: PathBuf::from(env!("CARGO_BIN_EXE_codiusd")),
        guest: support::guest_dir()?,
        hello: support::hello_program()?,
        clients: CLIENTS,
        verbose: true,
    })
    .await?;
    ensure!(report.violations.is_empty(), "{report}");
    Ok(())
}
