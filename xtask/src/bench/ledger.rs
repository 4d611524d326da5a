//! Durable commits, and a host with a million entries in its ledger: measured by an example of the store.

use anyhow::Result;

use crate::build::cargo;

/// Needs nothing that is not built here.
pub(super) fn run(runs: u32) -> Result<()> {
    cargo(&[
        "run",
        "--quiet",
        "--release",
        "-p",
        "codius-store",
        "--example",
        "bench_ledger",
        "--",
        "--runs",
        &runs.to_string(),
    ])
}
