//! `cargo xtask …`: everything that is done with this repository beside building it.

mod guest;
mod layers;
mod packages;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Demo, tests, guest image, layer check and benchmarks")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the kernel and initramfs that every pod boots, into target/guest
    Guest {
        /// A bzImage or vmlinux instead of the distribution's kernel
        #[arg(long, value_name = "PATH")]
        kernel: Option<std::path::PathBuf>,
        /// Its module directory, /lib/modules/VERSION
        #[arg(long, value_name = "PATH", requires = "kernel")]
        modules: Option<std::path::PathBuf>,
    },
    /// Check that dependencies between our crates only point down
    Layers,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Guest { kernel, modules } => {
            let out_dir = guest::workspace_root()?.join("target/guest");
            let guest = guest::build(&out_dir, &guest::Options { kernel, modules })?;
            println!("{}", guest.description.display());
            Ok(())
        }
        Command::Layers => layers::check(),
    }
}
