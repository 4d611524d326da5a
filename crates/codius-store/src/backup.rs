//! Copies of the database: for the operator, and before a schema changes.
//!
//! ```text
//! VACUUM INTO name.part (one moment, beside a working host) ─▶ added up ─▶ fsync ─▶ name
//! ```
//! A name that is there is a whole copy: what was interrupted is called `….part`, and the next try
//! replaces it.
//!
//! Traps:
//! - A copy holds everything: the host's secret, balances, private variables. Its mode is 0600.
//! - A copy that is started beside the original is the same host twice: both spend the same money.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::Connection;

use crate::{
    Checked, StoreError,
    books::{Books, open_to_read},
    lock::{FILE_MODE, Lock},
    schema,
};

/// A copy that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Size of the file.
    pub bytes: u64,
    pub checked: Checked,
}

/// Copies a database, whether or not a host works with it: of one moment, added up, and durable when
/// this returns. `over`: a file that has this name is replaced.
pub fn backup(database: &Path, target: &Path, over: bool) -> Result<Copied, StoreError> {
    if !over && target.try_exists().unwrap_or(true) {
        return Err(StoreError::Exists {
            path: target.to_owned(),
        });
    }
    let connection = open_to_read(database)?;
    schema::expect_current(&connection, database)?;
    let (checked, bytes) = copy(&connection, target, |part| {
        whole(part)?;
        Books::open(part)?.verify()
    })?;
    Ok(Copied { bytes, checked })
}

/// Makes a copy the database of a directory that has none: brought to the newest schema and added up
/// before it gets the name.
pub fn restore(copied: &Path, database: &Path) -> Result<Copied, StoreError> {
    let source = open_to_read(copied)?;
    whole(copied)?;
    let _lock = Lock::take(database)?;
    // A log of another database would be taken for this one's.
    for suffix in ["", "-wal", "-journal"] {
        let path = with(database, suffix);
        if path.symlink_metadata().is_ok() {
            return Err(StoreError::Exists { path });
        }
    }
    let (checked, bytes) = copy(&source, database, |part| {
        whole(part)?;
        {
            let mut connection = Connection::open(part)?;
            schema::open_unguarded(&mut connection, part)?;
            // So that the file alone is all of it.
            let _: String =
                connection
                    .pragma_update_and_check(None, "journal_mode", "delete", |row| row.get(0))?;
        }
        Books::open(part)?.verify()
    })?;
    Ok(Copied { bytes, checked })
}

/// Keeps the database as it is, beside it, before its schema is changed.
pub(crate) fn keep_before(
    connection: &Connection,
    database: &Path,
    schema: i64,
) -> Result<PathBuf, StoreError> {
    let target = with(database, &format!(".before-{schema}"));
    copy(connection, &target, whole)?;
    Ok(target)
}

/// Copies, looks at the copy, and gives it its name. Returns what the look has brought, and how many
/// bytes the copy has.
fn copy<T>(
    connection: &Connection,
    target: &Path,
    check: impl FnOnce(&Path) -> Result<T, StoreError>,
) -> Result<(T, u64), StoreError> {
    let part = with(target, ".part");
    let failed = |source| StoreError::Open {
        path: part.clone(),
        source: Arc::new(source),
    };
    remove(&part).map_err(failed)?;
    let written = || -> Result<(T, u64), StoreError> {
        // An empty file is filled by SQLite, and keeps the mode that it has.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&part)
            .map_err(failed)?;
        let Some(name) = part.to_str() else {
            return Err(failed(io::Error::other("the path is not UTF-8")));
        };
        connection.execute("VACUUM INTO ?1", [name])?;
        let checked = check(&part)?;
        // SQLite does not wait for the disk when it writes a copy.
        file.sync_all().map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        fs::rename(&part, target).map_err(failed)?;
        let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = File::open(dir.unwrap_or(Path::new("."))).map_err(failed)?;
        dir.sync_all().map_err(failed)?;
        Ok((checked, bytes))
    };
    let written = written();
    if written.is_err() {
        let _ = remove(&part);
    }
    written
}

/// Every page can be read, and tables and indexes say the same.
fn whole(path: &Path) -> Result<(), StoreError> {
    let connection = open_to_read(path)?;
    let found: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(StoreError::wrong(format!("{}: {found}", path.display())));
    }
    Ok(())
}

/// With what SQLite may have left beside it.
fn remove(part: &Path) -> io::Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        match fs::remove_file(with(part, suffix)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
