//! What is there beside the host: time, the disk, the pods that go on without it, and what everyone has
//! seen. It outlives every process of the host.
//!
//! ```text
//! Incarnation: starting ──▶ up ──▶ dead      (crash at a write, kill, shutdown, power failure)
//! ```
//! A process that is dead is not taken apart: its tasks are still there, but nothing they do has an
//! effect any more. The disk answers them nothing, the driver and the links do nothing for them.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use codius_ledger::BootId;
use codius_store::simulated::Disk;
use ilp_packet::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    dice::Dice, driver::Machines, faults::DiskMood, host::Host, model::Model, network::Client,
    plan::Plan,
};
use crate::clock::ClockSource;

/// When schedules begin by the wall clock, milliseconds since 1970.
const WALL_BEGINS_MS: i64 = 1_700_000_000_000;

/// How often the host may look at a clock at one moment.
const MAX_ASKED: u64 = 200_000;

/// Everything but the host.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) disk: Disk,
    began: Instant,
    pub(super) clocks: Mutex<Clocks>,
    pub(super) mood: Mutex<DiskMood>,
    pub(super) machines: Mutex<Machines>,
    pub(super) model: Mutex<Model>,
    pub(super) clients: Vec<Arc<Client>>,
    host: Mutex<Running>,
    trace: Mutex<Trace>,
    /// Numbers the packets, pods and payments of this schedule.
    numbers: AtomicU64,
    /// How often the host has asked for the time at one moment.
    asked_at_ms: AtomicU64,
    asked: AtomicU64,
}

/// The process of the moment.
#[derive(Default)]
struct Running {
    host: Option<Arc<Host>>,
    /// Also while it is starting.
    incarnation: Option<Incarnation>,
    /// Since when requests are answered.
    up_since_ms: Option<u64>,
    number: u64,
}

/// One process of the host.
#[derive(Clone)]
pub(super) struct Incarnation {
    pub(super) number: u64,
    pub(super) dead: CancellationToken,
}

impl Incarnation {
    pub(super) fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }

    /// Does not return for a process that is dead.
    pub(super) async fn must_live(&self) {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }
}

/// The clocks of the host's machine, and that of everyone else.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    pub(super) host_ahead_ms: i64,
    pub(super) others_ahead_ms: i64,
    /// Which start of the machine this is, and when it was.
    boot: u8,
    boot_began_ms: u64,
}

/// What has happened: as text for people, and as one number to compare.
#[derive(Default)]
struct Trace {
    hash: u64,
    lines: u64,
    shown: bool,
    violations: Vec<String>,
}

impl World {
    pub(super) fn new(plan: Plan, disk: Disk, clients: Vec<Arc<Client>>, shown: bool) -> Arc<Self> {
        let machines = Machines::new(Dice::of(plan.seed, 11));
        let mood = DiskMood::new(Dice::of(plan.seed, 12));
        Arc::new(Self {
            plan,
            disk,
            began: Instant::now(),
            clocks: Mutex::default(),
            mood: Mutex::new(mood),
            machines: Mutex::new(machines),
            model: Mutex::default(),
            clients,
            host: Mutex::default(),
            trace: Mutex::new(Trace {
                shown,
                ..Trace::default()
            }),
            numbers: AtomicU64::new(0),
            asked_at_ms: AtomicU64::new(0),
            asked: AtomicU64::new(0),
        })
    }

    /// Time since the schedule began.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds to what has happened.
    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        let at = self.now_ms();
        let mut line = String::with_capacity(80);
        let _ = write!(line, "{:>8}.{:03}  ", at / 1000, at % 1000);
        line += &what();
        let mut trace = lock(&self.trace);
        trace.lines += 1;
        // FNV-1a.
        for byte in line.bytes() {
            trace.hash = (trace.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if trace.shown {
            println!("{line}");
        }
    }

    /// Something is wrong with the host.
    pub(super) fn violation(&self, what: impl Into<String>) {
        let what = what.into();
        self.note(|| format!("VIOLATION {what}"));
        let at = self.now_ms();
        lock(&self.trace)
            .violations
            .push(format!("{}.{:03} s: {what}", at / 1000, at % 1000));
    }

    pub(super) fn violations(&self) -> Vec<String> {
        lock(&self.trace).violations.clone()
    }

    /// Equal for two runs of the same schedule.
    pub(super) fn trace_hash(&self) -> u64 {
        let trace = lock(&self.trace);
        trace.hash ^ trace.lines
    }

    pub(super) fn host(&self) -> Option<Arc<Host>> {
        lock(&self.host).host.clone()
    }

    pub(super) fn is_up(&self) -> bool {
        lock(&self.host).host.is_some()
    }

    /// For how long the host has been answering requests, if it does.
    pub(super) fn up_since_ms(&self) -> Option<u64> {
        lock(&self.host).up_since_ms
    }

    /// A process of the host begins.
    pub(super) fn begin(&self) -> Incarnation {
        let mut running = lock(&self.host);
        running.number += 1;
        let incarnation = Incarnation {
            number: running.number,
            dead: CancellationToken::new(),
        };
        running.incarnation = Some(incarnation.clone());
        incarnation
    }

    /// It answers requests from now on, unless it has died meanwhile.
    pub(super) fn up(&self, host: Arc<Host>) {
        let now = self.now_ms();
        let mut running = lock(&self.host);
        if host.incarnation.is_dead() {
            return;
        }
        running.host = Some(host);
        running.up_since_ms = Some(now);
    }

    /// The process of the moment is gone; what it was doing has no effect any more.
    pub(super) fn kill(&self, why: &str) {
        let gone = {
            let mut running = lock(&self.host);
            running.host = None;
            running.up_since_ms = None;
            running.incarnation.take()
        };
        if let Some(incarnation) = gone {
            self.note(|| format!("host {} is gone: {why}", incarnation.number));
            incarnation.dead.cancel();
            lock(&self.machines).let_go();
            lock(&self.model).host_died();
            for client in &self.clients {
                client.host_died();
            }
        }
    }

    /// The machine is started again: the clock that never jumps begins anew, and no pod is left.
    pub(super) fn reboot(&self) {
        self.kill("power failure");
        let now = self.now_ms();
        {
            let mut clocks = lock(&self.clocks);
            clocks.boot = clocks.boot.wrapping_add(1);
            clocks.boot_began_ms = now;
        }
        lock(&self.machines).power_failure(self, now);
    }

    pub(super) fn boot(&self) -> BootId {
        BootId([lock(&self.clocks).boot; 16])
    }

    /// The host looks at a clock. Time stands still while it has something to do, so one that does
    /// something over and over again without a pause would do it for ever.
    fn asked(&self) {
        let now = self.now_ms();
        if self.asked_at_ms.swap(now, Ordering::Relaxed) != now {
            self.asked.store(0, Ordering::Relaxed);
        }
        if self.asked.fetch_add(1, Ordering::Relaxed) > MAX_ASKED {
            self.asked.store(0, Ordering::Relaxed);
            panic!("something in the host goes on without a pause, at {now} ms");
        }
    }

    fn wall_ms_of(&self, ahead_ms: i64) -> u64 {
        let now = i64::try_from(self.now_ms()).unwrap_or(i64::MAX);
        u64::try_from(WALL_BEGINS_MS + now + ahead_ms).unwrap_or_default()
    }
}

/// The clocks of the host.
pub(super) struct HostClock(pub(super) Arc<World>);

impl ClockSource for HostClock {
    fn wall_ms(&self) -> u64 {
        self.0.asked();
        let ahead = lock(&self.0.clocks).host_ahead_ms;
        self.0.wall_ms_of(ahead)
    }

    fn steady_ms(&self) -> u64 {
        self.0.asked();
        let began = lock(&self.0.clocks).boot_began_ms;
        self.0.now_ms().saturating_sub(began)
    }
}

impl ilp_connector::Clock for HostClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.wall_ms())
    }
}

/// The clock of the clients.
pub(super) struct OthersClock(pub(super) Arc<World>);

impl ilp_connector::Clock for OthersClock {
    fn now(&self) -> Timestamp {
        let ahead = lock(&self.0.clocks).others_ahead_ms;
        Timestamp::from_millis(self.0.wall_ms_of(ahead))
    }
}

pub(super) async fn sleep_ms(millis: u64) {
    if millis > 0 {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

pub(super) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
