//! Runs schedules of the simulation (docs/simulation.md); `cargo xtask sim` starts it.

use std::process::ExitCode;

fn main() -> ExitCode {
    codiusd::simulation::main()
}
