//! `cargo xtask sim`: the simulation of a whole host (docs/simulation.md), on many schedules.

use std::thread;

use anyhow::Result;

use crate::build::cargo;

/// Runs so many schedules, or shows one of them.
pub(crate) fn run(schedules: u32, first: u64, seed: Option<u64>) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let numbers = match seed {
        Some(seed) => vec![("--seed", seed)],
        None => vec![
            ("--schedules", schedules.into()),
            ("--first", first),
            ("--threads", threads as u64),
        ],
    };
    let numbers: Vec<_> = numbers
        .into_iter()
        .map(|(name, number)| (name, number.to_string()))
        .collect();
    let mut arguments = vec![
        "run",
        "--quiet",
        "--release",
        "--package",
        "codiusd",
        "--features",
        "simulation",
        "--bin",
        "codius-sim",
        "--",
    ];
    for (name, number) in &numbers {
        arguments.extend([*name, number]);
    }
    cargo(&arguments)
}
