//! `cargo xtask …`: everything that is done with this repository beside building it.

mod bench;
mod build;
mod check;
mod crash;
mod demo;
mod fuzz;
mod guest;
mod kernel;
mod layers;
mod packages;
mod session;
mod sim;
mod upgrade;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    about = "Demo, tests, guest image, layer check and benchmarks"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the main job on this machine: a host, an example, an upload, an answer
    Demo {
        /// End after the first answer; 0 only if all of it worked
        #[arg(long)]
        once: bool,
        /// Install missing packages without asking
        #[arg(long)]
        yes: bool,
        /// Port of the host; 0 takes a free one
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// Run every test, including those that boot pods
    Test {
        /// Install missing packages without asking
        #[arg(long)]
        yes: bool,
        /// Only these tests, as the test runner names them; without the other checks
        filter: Vec<String>,
    },
    /// Run the tests with the original programs and libraries from npm
    Interop {
        /// Install missing packages without asking
        #[arg(long)]
        yes: bool,
    },
    /// Compare with others, by hand: ilp, image, ledger, proxy, start (docs/benchmarks.md)
    Bench {
        name: bench::Name,
        /// Measurements of each figure; the median is printed
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        /// Install missing packages without asking
        #[arg(long)]
        yes: bool,
    },
    /// Kill a real host with real pods under load, and check its books and the process table
    Crash {
        /// How often something is killed
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        kills: u32,
        /// Gives the same events again; without it a new one is drawn
        #[arg(long)]
        seed: Option<u64>,
        /// Install missing packages without asking
        #[arg(long)]
        yes: bool,
    },
    /// Try to break every parser and state machine with made-up input
    Fuzz {
        /// Time for each target
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
        /// Only this target; may be repeated
        #[arg(long, value_name = "NAME")]
        target: Vec<String>,
    },
    /// Build the kernel and initramfs that every pod boots, into target/guest
    Guest {
        /// A bzImage or vmlinux instead of the distribution's kernel
        #[arg(long, value_name = "PATH")]
        kernel: Option<PathBuf>,
        /// Its module directory, /lib/modules/VERSION
        #[arg(long, value_name = "PATH", requires = "kernel")]
        modules: Option<PathBuf>,
    },
    /// Build a small kernel for pods from the distribution's kernel source, into target/kernel (docs/operator.md)
    Kernel {
        /// Install missing packages without asking
        #[arg(long)]
        yes: bool,
    },
    /// Write docs/session.txt, and the same into the README: what an uploader does and sees, from a real run
    Session {
        /// Install missing packages without asking
        #[arg(long)]
        yes: bool,
    },
    /// Replace a host's program under load, and kill it: no pod may restart and no request may fail
    Upgrade {
        /// Pods that answer meanwhile; each is an emulated or virtual machine
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=30))]
        pods: u32,
        /// How often the program is replaced
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        swaps: u32,
        /// Install missing packages without asking
        #[arg(long)]
        yes: bool,
    },
    /// Run a whole host in one thread, with pretended time, pods and faults (docs/simulation.md)
    Sim {
        /// How many
        #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
        schedules: u32,
        /// The seed of the first; the others follow it
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Only the schedule of this seed, and show what happens
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Check that dependencies between our crates only point down
    Layers,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Arguments::parse().command {
        Command::Demo { once, yes, port } => demo::run(once, yes, port),
        Command::Interop { yes } => check::interop(yes),
        Command::Test { yes, filter } => check::test(yes, &filter),
        Command::Bench { name, runs, yes } => bench::run(name, runs, yes),
        Command::Crash { kills, seed, yes } => crash::run(kills, seed, yes),
        Command::Fuzz { seconds, target } => fuzz::run(seconds, &target),
        Command::Guest { kernel, modules } => {
            let guest = guest::build(&guest::default_dir(), &guest::Options { kernel, modules })?;
            println!("{}", guest.description.display());
            Ok(())
        }
        Command::Kernel { yes } => kernel::run(yes),
        Command::Session { yes } => session::run(yes),
        Command::Upgrade { pods, swaps, yes } => upgrade::run(pods, swaps, yes),
        Command::Sim {
            schedules,
            first,
            seed,
        } => sim::run(schedules, first, seed),
        Command::Layers => layers::check(),
    }
}
