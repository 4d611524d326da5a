//! The store as its users have it.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use codius_ledger::{Account, Order, OrderId, RefundId};
use codius_manifest::ManifestHash;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Batch, Entry, Pruned, Snapshot, StoreError, StoredLease, StoredRefund, Verified,
    bank::{Packet, Put, Tray},
    lock::{self, Lock},
    query, refund, schema,
    verify::verify,
    writer::{Job, Writer},
};

/// Batches that wait for the writer; more callers wait before they are queued.
pub const QUEUE_LEN: usize = 1024;
/// Questions that wait for the reader.
pub(crate) const READ_QUEUE_LEN: usize = 256;
/// The most entries of one answer.
pub const MAX_ENTRIES: usize = 10_000;

/// An open database. Clones are handles of the same one; it is closed by [`Store::close`] or when the
/// last is dropped.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
    tray: Arc<Tray>,
    questions: mpsc::Sender<Question>,
    poisoned: watch::Receiver<bool>,
}

pub(crate) type Question = Box<dyn FnOnce(&Connection) + Send>;

impl fmt::Debug for Store {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Store")
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or makes the database, in a directory that exists. Blocks for a moment; call it before
    /// there is traffic.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = Lock::take(path)?;
        lock::create(path)?;
        let mut connection = Connection::open_with_flags(path, flags())?;
        schema::open(&mut connection, path)?;
        let reader = read_connection(path)?;

        let (jobs, job_queue) = mpsc::channel(QUEUE_LEN);
        let (questions, question_queue) = mpsc::channel::<Question>(READ_QUEUE_LEN);
        let tray = Arc::<Tray>::default();
        let writer = Writer::new(connection, Arc::clone(&tray));
        let poisoned = writer.poisoned();
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(work)
                .map_err(|source| StoreError::Open {
                    path: path.to_owned(),
                    source: Arc::new(source),
                })
        };
        spawn(
            "store-writer",
            Box::new(move || {
                writer.run(job_queue, lock);
            }),
        )?;
        spawn(
            "store-reader",
            Box::new(move || {
                let mut question_queue = question_queue;
                while let Some(question) = question_queue.blocking_recv() {
                    question(&reader);
                }
            }),
        )?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                jobs,
                tray,
                questions,
                poisoned,
            }),
        })
    }

    /// A store whose work is done by others.
    #[cfg(feature = "simulation")]
    pub(crate) fn simulated(
        jobs: mpsc::Sender<Job>,
        tray: Arc<Tray>,
        questions: mpsc::Sender<Question>,
        poisoned: watch::Receiver<bool>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                path: crate::simulated::no_path().to_owned(),
                jobs,
                tray,
                questions,
                poisoned,
            }),
        }
    }

    /// Writes a batch. It is durable when this returns; nothing of it is there when this fails.
    pub async fn commit(&self, batch: impl Into<Batch>) -> Result<(), StoreError> {
        self.ask(|answer| Job::Commit(batch.into(), answer)).await
    }

    /// Removes leases that have ended and orders that are answered, if they were created before then;
    /// at most `limit` of each, so that nobody waits long. The ledger is never cut.
    pub async fn prune(&self, before_unix_ms: u64, limit: usize) -> Result<Pruned, StoreError> {
        self.ask(|answer| Job::Prune {
            before_unix_ms,
            limit,
            answer,
        })
        .await
    }

    /// Writes what is queued and closes the file. Later calls of any handle get
    /// [`StoreError::Closed`].
    pub async fn close(&self) {
        let (closed, wait) = oneshot::channel();
        if self.inner.jobs.send(Job::Close(closed)).await.is_ok() {
            let _ = wait.await;
        }
    }

    /// Waits for a write that fails so that nobody knows what is on the disk. From then on nothing is
    /// written ([`StoreError::Poisoned`]), and only a process that opens the file anew can go on. Safe to
    /// drop while waiting.
    pub async fn poisoned(&self) {
        let mut poisoned = self.inner.poisoned.clone();
        if poisoned.wait_for(|is_so| *is_so).await.is_err() {
            // It was closed, and nothing was wrong with it.
            std::future::pending::<()>().await;
        }
    }

    /// What a starting host needs.
    pub async fn load(&self) -> Result<Snapshot, StoreError> {
        self.read(query::snapshot).await
    }

    /// The lease of a program that has not ended, else the last one that has.
    pub async fn lease(&self, hash: ManifestHash) -> Result<Option<StoredLease>, StoreError> {
        self.read(move |connection| query::lease(connection, &hash))
            .await
    }

    pub async fn order(&self, id: OrderId) -> Result<Option<Order>, StoreError> {
        self.read(move |connection| query::order(connection, &id))
            .await
    }

    /// A refund, whether something of it is due or not.
    pub async fn refund(&self, id: RefundId) -> Result<Option<StoredRefund>, StoreError> {
        self.read(move |connection| refund::one(connection, &id))
            .await
    }

    /// The refunds of a program that are due, oldest first; at most [`MAX_ENTRIES`].
    pub async fn refunds_of(&self, hash: ManifestHash) -> Result<Vec<StoredRefund>, StoreError> {
        self.read(move |connection| refund::of_program(connection, &hash, MAX_ENTRIES))
            .await
    }

    /// The refunds that wait to be sent, those that come first first; at most `limit`, up to
    /// [`MAX_ENTRIES`].
    pub async fn refunds_to_send(&self, limit: usize) -> Result<Vec<StoredRefund>, StoreError> {
        let limit = limit.min(MAX_ENTRIES);
        self.read(move |connection| refund::to_send(connection, limit))
            .await
    }

    /// Every refund of which something is due, oldest first; at most `limit`, up to [`MAX_ENTRIES`].
    /// With the accounts `owed:HASH` this is all that the host owes to payers of what has ended.
    pub async fn refunds_due(&self, limit: usize) -> Result<Vec<StoredRefund>, StoreError> {
        let limit = limit.min(MAX_ENTRIES);
        self.read(move |connection| refund::due(connection, limit))
            .await
    }

    /// Zero for an account that was never used.
    pub async fn balance(&self, account: &Account) -> Result<i64, StoreError> {
        let account = account.clone();
        self.read(move |connection| query::balance(connection, &account))
            .await
    }

    /// Every account that is not at zero.
    pub async fn balances(&self) -> Result<BTreeMap<Account, i64>, StoreError> {
        self.read(query::balances).await
    }

    /// What the operator has earned in all.
    pub async fn earned_total(&self) -> Result<i64, StoreError> {
        self.balance(&Account::Earned).await
    }

    /// The newest postings of an account, newest first, at most [`MAX_ENTRIES`].
    pub async fn entries(&self, account: &Account, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let account = account.clone();
        let limit = limit.min(MAX_ENTRIES);
        self.read(move |connection| query::entries(connection, &account, limit))
            .await
    }

    /// Adds up the whole ledger again (seconds for some million entries). Others go on meanwhile.
    pub async fn verify(&self) -> Result<Verified, StoreError> {
        #[cfg(feature = "simulation")]
        if self.inner.path == crate::simulated::no_path() {
            let added_up = |connection: &Connection| verify(connection).map(|found| found.totals);
            return self.read(added_up).await;
        }
        self.read_apart(|connection| verify(&connection).map(|checkpoint| checkpoint.totals))
            .await
    }

    /// Asks what takes long, on a connection and thread of its own, so that short questions do not
    /// wait for it.
    pub(crate) async fn read_apart<T: Send + 'static>(
        &self,
        question: impl FnOnce(Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if self.inner.jobs.is_closed() {
            return Err(StoreError::Closed);
        }
        let path = self.inner.path.clone();
        let (answer, wait) = oneshot::channel();
        let spawned = thread::Builder::new()
            .name("store-report".to_owned())
            .spawn(move || {
                let _ = answer.send(read_connection(&path).and_then(question));
            });
        spawned.map_err(|source| StoreError::Open {
            path: self.inner.path.clone(),
            source: Arc::new(source),
        })?;
        wait.await.map_err(|_| StoreError::Closed)?
    }

    /// Writes a packet with the next group.
    pub(crate) fn record_packet(&self, packet: Packet) {
        match self.inner.tray.put(packet) {
            // A full queue means that the writer looks into the tray soon without being told, and a
            // closed one that it does so before it ends.
            Put::First => drop(self.inner.jobs.try_send(Job::Packets)),
            Put::Later => {}
            Put::Closed(packet) => packet.complete(&Err(StoreError::Closed)),
        }
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let (answer, wait) = oneshot::channel();
        self.inner
            .jobs
            .send(job(answer))
            .await
            .map_err(|_| StoreError::Closed)?;
        wait.await.map_err(|_| StoreError::Closed)?
    }

    async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if self.inner.jobs.is_closed() {
            return Err(StoreError::Closed);
        }
        let (answer, wait) = oneshot::channel();
        let question: Question = Box::new(move |connection| {
            let _ = answer.send(question(connection));
        });
        self.inner
            .questions
            .send(question)
            .await
            .map_err(|_| StoreError::Closed)?;
        wait.await.map_err(|_| StoreError::Closed)?
    }
}

fn flags() -> OpenFlags {
    // Not created here (that is done with the right mode before), and each connection is used by one
    // thread at a time.
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

fn read_connection(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, flags())?;
    schema::prepare(&connection)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}
