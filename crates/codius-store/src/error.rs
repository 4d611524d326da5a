//! Why something is not in the store.

use std::{io, path::PathBuf, sync::Arc};

use codius_ledger::Account;
use rusqlite::ErrorCode;

/// Why the store could not do it. Unless a variant says otherwise, nothing has changed in the file
/// and the store goes on working.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The file or its directory cannot be opened. The operator looks at the path and its rights.
    #[error("{} could not be opened", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    /// Another process works with the file. The operator stops one of the two.
    #[error("{} is in use by another process", path.display())]
    InUse { path: PathBuf },
    /// The file is a database of another program. The operator corrects the path.
    #[error("{} is not a database of this program", path.display())]
    NotOurs { path: PathBuf },
    /// A newer version of this program has written the file. The operator installs that version.
    #[error("{} was written by a newer version of this program (schema {found}, known {known})", path.display())]
    TooNew {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    /// An older version of this program has written the file, and it can only be read as it is. A start
    /// of the host brings it up to date.
    #[error("{} was written by an older version of this program (schema {found}, known {known}); start codiusd once to bring it up to date", path.display())]
    TooOld {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    /// A file is there that would be overwritten. Whoever asks chooses another name, or removes it.
    #[error("{} is there already", path.display())]
    Exists { path: PathBuf },
    /// The disk is full. The operator makes room; then everything goes on.
    #[error("the disk is full")]
    DiskFull {
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The file system is read-only, or the file may not be written by this user. The operator.
    #[error("the database cannot be written")]
    ReadOnly {
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// Another process held the database locked for too long. A retry helps when it is done.
    #[error("the database is locked by another process")]
    Busy {
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// An account would go below zero that may not. The caller has spent money that is not there.
    #[error("{account} has {balance} and would go below zero by {amount}")]
    Overdraft {
        account: Account,
        balance: i64,
        amount: i64,
    },
    /// The batch breaks a rule of the schema. The caller is wrong.
    #[error("refused: {reason}")]
    Refused { reason: String },
    /// What is in the file cannot be read as what it should be: it was changed by someone else or the
    /// disk has lost something. The operator restores a backup.
    #[error("the database holds something wrong: {what}")]
    Inconsistent { what: String },
    /// SQLite has failed in another way.
    #[error("the database failed")]
    Failed {
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// An earlier write failed so that nobody knows what is on the disk. This write was not tried and
    /// none will be; the program has to be started again, which recovers what is durable.
    #[error("an earlier write to the database has failed; it has to be opened again")]
    Poisoned,
    /// The store was closed.
    #[error("the database is closed")]
    Closed,
}

impl StoreError {
    /// An error of SQLite by what can be done about it.
    pub(crate) fn of(error: rusqlite::Error) -> Self {
        let code = match &error {
            rusqlite::Error::SqliteFailure(failure, _) => Some(failure.code),
            rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..) => Some(ErrorCode::DatabaseCorrupt),
            _ => None,
        };
        match code {
            Some(ErrorCode::ConstraintViolation) => Self::Refused {
                reason: error.to_string(),
            },
            Some(ErrorCode::DiskFull) => Self::DiskFull {
                source: Arc::new(error),
            },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly {
                source: Arc::new(error),
            },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy {
                source: Arc::new(error),
            },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Inconsistent {
                what: error.to_string(),
            },
            _ => Self::Failed {
                source: Arc::new(error),
            },
        }
    }

    /// The batch itself is at fault, and not the disk or the machine.
    pub(crate) fn is_of_batch(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Overdraft { .. })
    }

    /// The same write may succeed later, without the program being started again.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::DiskFull { .. } | Self::ReadOnly { .. } | Self::Busy { .. }
        )
    }

    /// After it, what is on the disk is unknown.
    pub(crate) fn poisons(&self) -> bool {
        match self {
            Self::Failed { .. } | Self::Inconsistent { .. } | Self::Poisoned => true,
            Self::Open { .. }
            | Self::InUse { .. }
            | Self::NotOurs { .. }
            | Self::TooNew { .. }
            | Self::TooOld { .. }
            | Self::Exists { .. }
            | Self::DiskFull { .. }
            | Self::ReadOnly { .. }
            | Self::Busy { .. }
            | Self::Overdraft { .. }
            | Self::Refused { .. }
            | Self::Closed => false,
        }
    }

    pub(crate) fn wrong(what: impl Into<String>) -> Self {
        Self::Inconsistent { what: what.into() }
    }

    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused {
            reason: reason.into(),
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::of(error)
    }
}
