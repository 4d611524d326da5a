//! `cargo xtask bench`: side by side with others, in one run, as ratios. By hand: these machines are
//! shared, and a figure alone says little.

mod containers;
mod density;
mod disk;
mod figure;
mod ilp;
mod ledger;
mod phases;
mod restored;
mod start;

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    build::{Profile, cargo},
    packages,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    /// Packets, STREAM and paid requests over Interledger, against the JavaScript originals
    Ilp,
    /// Pull and block image of a 100 MB image, against skopeo and umoci
    Image,
    /// Small answers through the proxy, against nginx
    Proxy,
    /// Durable commits; start, charge and status with a million ledger entries, against a small ledger
    Ledger,
    /// From a paid upload to the program's first byte, against a bare boot of the same kernel and containers
    Start,
    /// Memory and processor time of many idle pods, booted and cloned; --runs is how many pods
    Density,
}

/// Prints one JSON line a figure: `name`, `median`, `ratio`, `aim`, `met`.
pub(crate) fn run(name: Name, runs: u32, yes: bool) -> Result<()> {
    match name {
        Name::Image => example("codius-image", "bench_image", runs, yes),
        Name::Proxy => example("codius-proxy", "bench_proxy", runs, yes),
        Name::Ilp => ilp::run(runs, yes),
        Name::Ledger => ledger::run(runs),
        Name::Start => start::run(runs, yes),
        Name::Density => density::run(runs, yes),
    }
}

/// What is measured is what is shipped. `CODIUS_BENCH_PROFILE=dev` is for work on the benchmarks themselves.
fn profile() -> Profile {
    match std::env::var("CODIUS_BENCH_PROFILE").as_deref() {
        Ok("dev") => Profile::Dev,
        _ => Profile::Release,
    }
}

/// Runs a benchmark that is an example of the crate that it measures.
fn example(package: &str, example: &str, runs: u32, yes: bool) -> Result<()> {
    packages::ensure(&[packages::HOST, packages::BENCH], yes)?;
    cargo(&[
        "run",
        "--quiet",
        "--release",
        "-p",
        package,
        "--example",
        example,
        "--",
        "--runs",
        &runs.to_string(),
    ])
}

/// The middle of some values, or between the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_does_not_move_the_median() {
        assert!((median(&[9000.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 9000.0, 2.0]) - 3.0).abs() < f64::EPSILON);
    }
}
