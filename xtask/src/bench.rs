//! `cargo xtask bench`: side by side with others, in one run, as ratios. By hand: these machines are
//! shared, and a figure alone says little.

use anyhow::Result;
use clap::ValueEnum;

use crate::{build::cargo, packages};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    /// Pull and block image of a 100 MB image, against skopeo and umoci
    Image,
    /// Small answers through the proxy, against nginx
    Proxy,
}

/// Prints one JSON line a figure: `name`, `median`, `ratio`, `aim`, `met`.
pub(crate) fn run(name: Name, runs: u32, yes: bool) -> Result<()> {
    packages::ensure(&[packages::HOST, packages::BENCH], yes)?;
    let (package, example) = match name {
        Name::Image => ("codius-image", "bench_image"),
        Name::Proxy => ("codius-proxy", "bench_proxy"),
    };
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
