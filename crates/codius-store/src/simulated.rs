//! The store for a simulation of the whole host: the same tables, the same SQL and the same grouping of
//! writes, without a file and without threads.
//!
//! ```text
//! queue, tray ─▶ Faults::before ─┬─ write ─▶ COMMIT ─▶ Faults::written ─▶ Faults::after ─▶ answer all
//!                                ├─ fail ──────────────────────────────────────────────▶ an error for all
//!                                ├─ crash before ─▶ (nothing written, nobody is answered)
//!                                └─ crash after ──▶ COMMIT ─▶ (nobody is answered)
//! ```
//!
//! The two threads of the real store are two tasks of the runtime that opens it, so the runtime's clock
//! decides when something is written. A [`Disk`] outlives the stores that are opened on it: opening the
//! next one takes the database away from the one before, which from then on answers nobody, as a process
//! that was killed.
//!
//! Deliberately absent: whether SQLite keeps its promises when the power fails. The tests of `schema.rs`
//! look that it is told to.

use std::{
    fmt,
    future::{Future, pending},
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use rusqlite;
use rusqlite::{Connection, ffi};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Batch, Store, StoreError,
    bank::{Packet, Tray},
    schema,
    store::{QUEUE_LEN, Question, READ_QUEUE_LEN},
    writer::{Job, MAX_GROUP, Writer},
};

/// What happens at a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Write,
    /// The disk is full: nothing is written, and everything goes on.
    DiskFull,
    /// SQLite fails: nothing is written, and nothing will be until the store is opened again.
    Broken,
    /// The process ends before the write.
    CrashBefore,
    /// The process ends after the write, and nobody hears of it.
    CrashAfter,
}

/// Time that passes for a write.
pub type Wait<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Decides what becomes of each write.
pub trait Faults: Send + Sync {
    /// There is something to write. What comes until this returns is written with it.
    fn before(&self) -> Wait<'_, Verdict>;
    /// It is durable; nobody knows it yet.
    fn written(&self, connection: &Connection);
    /// Passes time until the askers hear of it.
    fn after(&self) -> Wait<'_, ()>;
}

/// What survives the processes that write to it.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Slot>>);

/// The writer of the store that was opened last, and through it the database.
type Slot = Arc<Mutex<Option<Writer>>>;

impl fmt::Debug for Disk {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Disk")
    }
}

impl Disk {
    /// A database with the newest schema and nothing in it.
    pub fn new() -> Result<Self, StoreError> {
        let mut connection = Connection::open_in_memory()?;
        schema::open_in_memory(&mut connection)?;
        let writer = Writer::new(connection, Arc::default());
        Ok(Self(Arc::new(Mutex::new(Arc::new(Mutex::new(Some(
            writer,
        )))))))
    }

    /// Opens the database as a process does that has just been started. Whatever store was open on it
    /// before answers nobody any more. Must be called on a runtime.
    ///
    /// # Panics
    /// If an earlier call has panicked.
    #[must_use]
    pub fn open(&self, faults: Arc<dyn Faults>) -> Store {
        let mut current = lock(&self.0);
        let before = lock(&current).take();
        let connection = before.expect("there is one database").into_connection();
        let tray = Arc::<Tray>::default();
        let writer = Writer::new(connection, Arc::clone(&tray));
        let poisoned = writer.poisoned();
        let slot: Slot = Arc::new(Mutex::new(Some(writer)));
        *current = Arc::clone(&slot);

        let (jobs, job_queue) = mpsc::channel(QUEUE_LEN);
        let (questions, question_queue) = mpsc::channel(READ_QUEUE_LEN);
        tokio::spawn(write(
            Arc::clone(&slot),
            job_queue,
            Arc::clone(&tray),
            faults,
        ));
        tokio::spawn(read(slot, question_queue));
        Store::simulated(jobs, tray, questions, poisoned)
    }

    /// Looks at the database as it is, past every store.
    ///
    /// # Panics
    /// If an earlier call has panicked.
    pub fn look<T>(&self, look: impl FnOnce(&Connection) -> T) -> T {
        let current = lock(&self.0);
        let writer = lock(&current);
        let writer = writer.as_ref().expect("there is one database");
        look(writer.connection())
    }
}

async fn read(slot: Slot, mut questions: mpsc::Receiver<Question>) {
    while let Some(question) = questions.recv().await {
        let unanswered = {
            match lock(&slot).as_ref() {
                Some(writer) => {
                    question(writer.connection());
                    None
                }
                None => Some(question),
            }
        };
        if unanswered.is_some() {
            pending::<()>().await;
        }
    }
}

/// As `Writer::run`, which does it in a thread.
async fn write(
    slot: Slot,
    mut jobs: mpsc::Receiver<Job>,
    tray: Arc<Tray>,
    faults: Arc<dyn Faults>,
) {
    let mut group = Group::default();
    let mut next = jobs.recv().await;
    let mut closers: Vec<oneshot::Sender<()>> = Vec::new();
    while let Some(job) = next.take() {
        match job {
            job @ (Job::Commit(..) | Job::Packets) => {
                let verdict = faults.before().await;
                let mut job = Some(job);
                while let Some(one) = job.take() {
                    match one {
                        Job::Commit(batch, answer) => group.batches.push((batch, answer)),
                        Job::Packets => {}
                        other @ (Job::Prune { .. } | Job::Close(_)) => {
                            next = Some(other);
                            break;
                        }
                    }
                    if group.batches.len() < MAX_GROUP {
                        job = jobs.try_recv().ok();
                    }
                }
                tray.take(&mut group.packets);
                group.write(&slot, verdict, &*faults).await;
            }
            Job::Prune {
                before_unix_ms,
                limit,
                answer,
            } => {
                let pruned = lock(&slot)
                    .as_mut()
                    .map(|writer| writer.prune(before_unix_ms, limit));
                match pruned {
                    Some(pruned) => drop(answer.send(pruned)),
                    None => pending().await,
                }
            }
            Job::Close(closed) => {
                jobs.close();
                closers.push(closed);
            }
        }
        if next.is_none() {
            next = jobs.recv().await;
        }
    }
    group.packets = tray.close();
    if !group.packets.is_empty() {
        let verdict = faults.before().await;
        group.write(&slot, verdict, &*faults).await;
    }
    for closed in closers {
        let _ = closed.send(());
    }
}

/// What is written together.
#[derive(Default)]
struct Group {
    batches: Vec<(Batch, oneshot::Sender<Result<(), StoreError>>)>,
    packets: Vec<Packet>,
}

impl Group {
    async fn write(&mut self, slot: &Slot, verdict: Verdict, faults: &dyn Faults) {
        match verdict {
            Verdict::DiskFull => self.refuse(&failure(ffi::SQLITE_FULL)),
            Verdict::Broken => {
                if let Some(writer) = lock(slot).as_mut() {
                    writer.poison();
                }
                self.refuse(&failure(ffi::SQLITE_IOERR));
            }
            Verdict::CrashBefore => pending().await,
            Verdict::Write | Verdict::CrashAfter => {
                let written = {
                    let mut writer = lock(slot);
                    writer.as_mut().map(|writer| {
                        let written = writer.write(&self.batches, &self.packets);
                        faults.written(writer.connection());
                        written
                    })
                };
                let Some(written) = written.filter(|_| verdict == Verdict::Write) else {
                    return pending().await;
                };
                faults.after().await;
                written.tell(&mut self.batches, &mut self.packets);
            }
        }
    }

    fn refuse(&mut self, error: &StoreError) {
        for (_, answer) in self.batches.drain(..) {
            let _ = answer.send(Err(error.clone()));
        }
        for packet in self.packets.drain(..) {
            packet.complete(&Err(error.clone()));
        }
    }
}

fn failure(code: std::ffi::c_int) -> StoreError {
    StoreError::of(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of a database that has no file.
pub(crate) fn no_path() -> &'static Path {
    Path::new(":memory:")
}
