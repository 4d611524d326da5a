//! Tables, and how older files become newer ones.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::{StoreError, backup};

/// `CODI`: what `file` and SQLite call the application id.
const APPLICATION_ID: i64 = 0x434f_4449;

/// How long to wait for another process, such as the operator's `sqlite3`, to let go of a lock.
const BUSY_TIMEOUT_MS: u32 = 5000;

/// In order; the number of those applied is the file's `user_version`. An entry never changes once a
/// version with it was released.
const MIGRATIONS: &[&str] = &[
    include_str!("schema/0001.sql"),
    include_str!("schema/0002.sql"),
    include_str!("schema/0003.sql"),
    include_str!("schema/0004.sql"),
    include_str!("schema/0005.sql"),
    include_str!("schema/0006.sql"),
    include_str!("schema/0007.sql"),
];

/// Settings of every connection.
pub(crate) fn prepare(connection: &Connection) -> Result<(), StoreError> {
    connection.pragma_update(None, "busy_timeout", BUSY_TIMEOUT_MS)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(())
}

/// Settings of the writing connection, and the newest schema. An older database is kept beside it
/// first.
pub(crate) fn open(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    open_as(connection, path, true)
}

/// The same for a database that is a copy itself.
pub(crate) fn open_unguarded(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    open_as(connection, path, false)
}

fn open_as(connection: &mut Connection, path: &Path, keeps_older: bool) -> Result<(), StoreError> {
    prepare(connection)?;
    let application = application_id(connection, path)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && (application != 0 || tables != 0) {
        return Err(StoreError::NotOurs {
            path: path.to_owned(),
        });
    }
    let found = version(connection, path)?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        return Err(StoreError::wrong(format!(
            "journal mode is {mode} and cannot be changed"
        )));
    }
    // FULL: the log is synced at each commit, not only when it is moved into the database.
    connection.pragma_update(None, "synchronous", "full")?;
    // Private variables of a lease that has ended are overwritten, not just unlinked.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    if keeps_older && 0 < found && found < newest() {
        let kept = backup::keep_before(connection, path, newest())?;
        tracing::info!(found, newest = newest(), kept = %kept.display(), "the database is older; it is kept as it was");
    }
    migrate(connection, path, MIGRATIONS)
}

/// The number of the newest schema.
fn newest() -> i64 {
    i64::try_from(MIGRATIONS.len()).expect("there are few migrations")
}

fn application_id(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|error| match StoreError::of(error) {
            StoreError::Inconsistent { .. } => StoreError::NotOurs {
                path: path.to_owned(),
            },
            other => other,
        })
}

/// The file's schema, if this program knows it.
fn version(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if !(0..=newest()).contains(&found) {
        return Err(StoreError::TooNew {
            path: path.to_owned(),
            found,
            known: newest(),
        });
    }
    Ok(found)
}

/// A database of this program, of this version or an older one.
pub(crate) fn expect_ours(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let not_ours = application_id(connection, path)? != APPLICATION_ID;
    if not_ours {
        return Err(StoreError::NotOurs {
            path: path.to_owned(),
        });
    }
    version(connection, path).map(drop)
}

/// A database that no migration is waiting for.
pub(crate) fn expect_current(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let found = version(connection, path)?;
    if found != newest() {
        return Err(StoreError::TooOld {
            path: path.to_owned(),
            found,
            known: newest(),
        });
    }
    Ok(())
}

/// The newest schema in a database that has no file, and so no log.
#[cfg(feature = "simulation")]
pub(crate) fn open_in_memory(connection: &mut Connection) -> Result<(), StoreError> {
    prepare(connection)?;
    migrate(connection, crate::simulated::no_path(), MIGRATIONS)
}

/// All that are missing, or none of them.
fn migrate(
    connection: &mut Connection,
    path: &Path,
    migrations: &[&str],
) -> Result<(), StoreError> {
    let known = i64::try_from(migrations.len()).expect("there are few migrations");
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let done = usize::try_from(found)
        .ok()
        .filter(|done| *done <= migrations.len());
    let Some(done) = done else {
        return Err(StoreError::TooNew {
            path: path.to_owned(),
            found,
            known,
        });
    };
    if found == known {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for migration in &migrations[done..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    tracing::info!(from = found, to = known, "database schema updated");
    Ok(())
}

/// A new database in memory, with the newest schema.
#[cfg(test)]
pub(crate) fn open_for_test(connection: &mut Connection, path: &Path) {
    migrate(connection, path, MIGRATIONS).expect("the schema is valid");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(connection: &Connection) -> i64 {
        connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap()
    }

    /// A killed process cannot show this: what it wrote is in the kernel's memory. A power cut would.
    #[test]
    fn each_commit_is_synced_to_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut connection = Connection::open(&path).unwrap();
        open(&mut connection, &path).unwrap();
        let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        assert_eq!(number("synchronous"), Ok(2), "FULL");
        assert_eq!(number("foreign_keys"), Ok(1));
        assert_eq!(number("application_id"), Ok(APPLICATION_ID));
        let mode: String = connection
            .pragma_query_value(None, "journal_mode", |row| row.get(0))
            .unwrap();
        assert_eq!(mode, "wal");
    }

    #[test]
    fn an_older_file_keeps_its_rows_and_gets_what_is_new() {
        let path = Path::new("x");
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(
            &mut connection,
            path,
            &["CREATE TABLE a (x INTEGER) STRICT"],
        )
        .unwrap();
        connection.execute("INSERT INTO a VALUES (7)", []).unwrap();
        let newer = [
            "CREATE TABLE a (x INTEGER) STRICT",
            "ALTER TABLE a ADD COLUMN y INTEGER DEFAULT 8",
        ];
        migrate(&mut connection, path, &newer).unwrap();
        let row: (i64, i64) = connection
            .query_row("SELECT x, y FROM a", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!((row, version(&connection)), ((7, 8), 2));
        migrate(&mut connection, path, &newer).unwrap();
    }

    #[test]
    fn a_lease_of_an_older_host_has_no_owner() {
        let path = Path::new("x");
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, path, &MIGRATIONS[..2]).unwrap();
        connection
            .execute(
                "INSERT INTO leases (hash, created_at_unix_ms, rate, state, run_ms, charged, granted_ms)
                 VALUES ('h', 5, '1', 'starting', 0, 0, 0)",
                [],
            )
            .unwrap();
        migrate(&mut connection, path, MIGRATIONS).unwrap();
        let row: (String, Option<Vec<u8>>, i64) = connection
            .query_row("SELECT hash, owner, carried FROM leases", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .unwrap();
        assert_eq!(row, ("h".to_owned(), None, 0));
        connection
            .execute("UPDATE leases SET owner = x'00'", [])
            .unwrap_err();
    }

    #[test]
    fn an_owned_lease_of_an_older_host_gets_a_refund_of_its_own() {
        let path = Path::new("x");
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, path, &MIGRATIONS[..5]).unwrap();
        connection
            .execute_batch(
                "INSERT INTO leases (hash, created_at_unix_ms, rate, state, end_reason, run_ms, charged,
                                     granted_ms, owner)
                 VALUES ('a', 5, '1', 'starting', NULL, 0, 0, 0, zeroblob(32)),
                        ('b', 6, '1', 'starting', NULL, 0, 0, 0, NULL),
                        ('a', 4, '1', 'ended', 'lost', 0, 0, 0, zeroblob(32))",
            )
            .unwrap();
        migrate(&mut connection, path, MIGRATIONS).unwrap();
        let refunds: i64 = connection
            .query_row(
                "SELECT count(*) FROM refunds JOIN leases ON leases.refund = refunds.id
                 WHERE leases.created_at_unix_ms = 5 AND refunds.owner = leases.owner",
                [],
                |row| row.get(0),
            )
            .unwrap();
        let without: i64 = connection
            .query_row(
                "SELECT count(*) FROM leases WHERE refund IS NULL",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!((refunds, without), (1, 2));
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        let broken = [
            "CREATE TABLE a (x INTEGER) STRICT",
            "CREATE TABLE b (x INTEGER) STRICT; INSERT INTO nowhere VALUES (1)",
        ];
        migrate(&mut connection, Path::new("x"), &broken).unwrap_err();
        let tables: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .unwrap();
        assert_eq!((tables, version(&connection)), (0, 0));
    }

    #[test]
    fn a_newer_file_is_left_alone() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        let error = migrate(&mut connection, Path::new("x"), MIGRATIONS).unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::TooNew { found: 99, known, .. } if known == newest()
            ),
            "{error}"
        );
    }
}
