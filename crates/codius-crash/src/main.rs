//! `codius-crash`: what `cargo xtask crash` runs.

#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use codius_crash::Settings;

#[derive(Debug, Parser)]
struct Arguments {
    /// How often something is killed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    kills: u32,
    /// Gives the same events again; without it a new one is drawn
    #[arg(long)]
    seed: Option<u64>,
    /// The program to be killed
    #[arg(long, value_name = "PATH")]
    codiusd: PathBuf,
    /// Holds `vmlinux` and `initramfs.cpio`
    #[arg(long, value_name = "DIR")]
    guest: PathBuf,
    /// The static program that clients upload
    #[arg(long, value_name = "PATH")]
    hello: PathBuf,
    /// How many clients there are
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=4))]
    clients: u32,
    /// Print what clients fail at, too
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let Arguments {
        kills,
        seed,
        codiusd,
        guest,
        hello,
        clients,
        verbose,
    } = Arguments::parse();
    let settings = Settings {
        kills,
        seed: seed.unwrap_or_else(|| rand::random::<u32>().into()),
        codiusd,
        guest,
        hello,
        clients,
        verbose,
    };
    let seed = settings.seed;
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("codius-crash: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(codius_crash::run(settings)) {
        Ok(report) => {
            println!("{report}");
            if report.violations.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("codius-crash: the run could not be finished (seed {seed}): {error:#}");
            ExitCode::FAILURE
        }
    }
}
