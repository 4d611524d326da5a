//! One process at a time.

use std::{
    fs::{File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::StoreError;

/// Nobody but the owner reads the database: it holds secrets and private variables.
pub(crate) const FILE_MODE: u32 = 0o600;

/// Holds the database for this process; the kernel lets go of it when the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// A lock on the file beside the database, because SQLite has its own locks on the database.
    pub(crate) fn take(database: &Path) -> Result<Self, StoreError> {
        let mut name = database.as_os_str().to_owned();
        name.push("-lock");
        let path = PathBuf::from(name);
        let file = open(&path).map_err(|source| open_error(&path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
                path: database.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(open_error(&path, source)),
        }
    }
}

/// Makes sure that the database exists and is its owner's alone, before SQLite opens it; the files
/// that SQLite makes beside it get the same mode.
pub(crate) fn create(database: &Path) -> Result<(), StoreError> {
    let created = || -> io::Result<()> {
        let file = open(database)?;
        if file.metadata()?.permissions().mode() & 0o777 != FILE_MODE {
            file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        }
        // The name of a new file is durable once its directory is.
        let parent = database
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    created().map_err(|source| open_error(database, source))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)
}

fn open_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Open {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}
