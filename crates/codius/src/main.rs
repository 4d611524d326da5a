//! The command-line tool of uploaders.

#![forbid(unsafe_code)]

mod amount;
mod command;
mod failure;
mod manifest;
mod pod;
mod progress;
mod upload;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::main()
}
