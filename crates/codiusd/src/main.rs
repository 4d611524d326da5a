//! The Codius host daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    codiusd::command::main()
}
