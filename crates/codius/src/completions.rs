//! `codius completions` and `codius man`: what shells and `man` need to know of the commands.

use std::{fs, io::Write, path::PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct CompletionsArguments {
    /// Which shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// Write a page for each command into this directory; without it, one page goes to standard output
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the script that a shell reads.
pub(crate) fn completions(
    arguments: &CompletionsArguments,
    mut command: Command,
) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "codius", &mut script);
    print(&script)
}

/// Prints or writes manual pages.
pub(crate) fn man(arguments: &ManArguments, command: Command) -> Result<(), Failure> {
    let Some(directory) = &arguments.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut page)
            .map_err(|error| unwritable("the page", &error))?;
        return print(&page);
    };
    let place = directory.display().to_string();
    fs::create_dir_all(directory).map_err(|error| unwritable(&place, &error))?;
    clap_mangen::generate_to(command, directory).map_err(|error| unwritable(&place, &error))?;
    eprintln!("Wrote the manual pages to {place}");
    Ok(())
}

/// A reader that has seen enough is no failure.
fn print(text: &[u8]) -> Result<(), Failure> {
    match std::io::stdout().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(unwritable("standard output", &error))
        }
        _ => Ok(()),
    }
}

fn unwritable(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(1, format!("{what} cannot be written: {error}"))
        .note("Next: choose a directory of your own with --dir, or send it elsewhere.")
}
