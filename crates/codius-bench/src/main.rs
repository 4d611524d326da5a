//! `codius-bench`: the programs that `cargo xtask bench ilp` runs side by side, each as a process of
//! its own so that its CPU time and memory can be told apart.

#![forbid(unsafe_code)]

mod host;
mod load;
mod relay;
mod stream;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The Interledger part of a host with a durable ledger, until its standard input ends
    Host(host::Options),
    /// Prepares from client to client through a connector, as fast as they are fulfilled
    Load(load::Options),
    /// STREAM payments through a connector
    Stream(stream::Options),
    /// Two clients joined to each other: what the load itself can do
    Relay,
}

fn main() -> ExitCode {
    let done: Result<()> = match Arguments::parse().command {
        Command::Host(options) => host::run(&options),
        Command::Load(options) => load::run(&options),
        Command::Stream(options) => stream::run(&options),
        Command::Relay => relay::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("codius-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
