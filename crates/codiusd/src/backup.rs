//! `codiusd backup` and `codiusd restore`.
//!
//! A backup is made beside a host that works, by this process and not by the host. Traps: the copy is
//! the host, with its secret and its money; two of them must not run (docs/operator-books.md).

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use codius_store::{Copied, StoreError};

use crate::ledger::DATABASE;

#[derive(Debug, Args)]
pub(crate) struct BackupArguments {
    /// The copy; made with mode 0600
    file: PathBuf,
    /// Replace a file that has this name
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArguments {
    /// What `codiusd backup` has made
    file: PathBuf,
}

/// Copies the database of a host, whether or not it runs.
pub(crate) fn backup(arguments: &BackupArguments, data_dir: &Path) -> Result<()> {
    let database = data_dir.join(DATABASE);
    let copied = codius_store::backup(&database, &arguments.file, arguments.force);
    let copied = copied.map_err(|error| match error {
        StoreError::Exists { .. } => anyhow::Error::from(error)
            .context("no backup was made; take another name, or --force to replace the file"),
        StoreError::Open { ref path, .. } if *path == database => anyhow::Error::from(error).context(
            "no backup was made; name the host's data directory with --data-dir, as its configuration does",
        ),
        StoreError::Open { .. } => anyhow::Error::from(error)
            .context("no backup was made; name a file in a directory that is there and can be written to"),
        error => anyhow::Error::from(error).context("no backup was made"),
    })?;
    println!("{}", told(&arguments.file, copied));
    Ok(())
}

/// Makes a copy the database of a data directory that has none.
pub(crate) fn restore(arguments: &RestoreArguments, data_dir: &Path) -> Result<()> {
    // Before anything is made for it.
    fs::File::open(&arguments.file).with_context(|| {
        format!(
            "nothing was restored; name a file that `codiusd backup` has made, {} cannot be read",
            arguments.file.display()
        )
    })?;
    make_private_dir(data_dir)?;
    let copied = codius_store::restore(&arguments.file, &data_dir.join(DATABASE));
    let copied = copied.map_err(|error| match error {
        StoreError::Exists { .. } => anyhow::Error::from(error).context(
            "nothing was restored: a data directory with a database is left alone; name an empty one",
        ),
        error => anyhow::Error::from(error).context("nothing was restored"),
    })?;
    println!("{}", told(&data_dir.join(DATABASE), copied));
    println!(
        "It is the host that the backup was made of: never start both. What that host did after the \
         backup is not in here."
    );
    Ok(())
}

fn told(file: &Path, copied: Copied) -> String {
    let totals = copied.checked.totals;
    format!(
        "{}: {} bytes; {} postings in {} transactions add up.",
        file.display(),
        copied.bytes,
        totals.postings,
        totals.transactions
    )
}

/// Made if it is missing; nobody else may write into it.
fn make_private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the data directory {}", path.display()))?;
    let mode = fs::metadata(path)?.permissions().mode();
    ensure!(
        mode & 0o022 == 0,
        "the data directory {} can be written by others (mode {mode:o})",
        path.display()
    );
    Ok(())
}
