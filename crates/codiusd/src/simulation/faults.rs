//! What becomes of each write of the host.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use codius_store::simulated::{Faults, Verdict, Wait, rusqlite::Connection};

use super::{
    dice::Dice,
    world::{Incarnation, World, lock, sleep_ms},
};

/// How the disk is.
#[derive(Debug)]
pub(super) struct DiskMood {
    dice: Dice,
    pub(super) full: bool,
    /// Nothing goes wrong any more.
    pub(super) healed: bool,
    /// When a write was last refused.
    pub(super) refused_at_ms: Option<u64>,
}

impl DiskMood {
    pub(super) fn new(dice: Dice) -> Self {
        Self {
            dice,
            full: false,
            healed: false,
            refused_at_ms: None,
        }
    }
}

/// The disk as one process of the host has it.
pub(super) struct DiskOf {
    world: Arc<World>,
    incarnation: Incarnation,
    /// The process ends with the next write.
    ends_after: AtomicBool,
}

impl DiskOf {
    pub(super) fn new(world: Arc<World>, incarnation: Incarnation) -> Self {
        Self {
            world,
            incarnation,
            ends_after: AtomicBool::new(false),
        }
    }

    fn delay_ms(&self) -> u64 {
        let plan = &self.world.plan.disk;
        let mut mood = lock(&self.world.mood);
        if plan.slow > 0 && !mood.healed && mood.dice.permille(plan.slow) {
            return mood.dice.between(0, plan.slow_ms);
        }
        mood.dice.between(0, plan.delay_ms)
    }

    fn decide(&self) -> Verdict {
        let plan = &self.world.plan.disk;
        let now = self.world.now_ms();
        let mut mood = lock(&self.world.mood);
        if mood.healed {
            return Verdict::Write;
        }
        if mood.full {
            mood.refused_at_ms = Some(now);
            return Verdict::DiskFull;
        }
        if mood.dice.permille(plan.broken) {
            mood.refused_at_ms = Some(now);
            return Verdict::Broken;
        }
        if mood.dice.permille(plan.crash) {
            return if mood.dice.permille(500) {
                Verdict::CrashBefore
            } else {
                Verdict::CrashAfter
            };
        }
        Verdict::Write
    }
}

impl Faults for DiskOf {
    fn before(&self) -> Wait<'_, Verdict> {
        Box::pin(async move {
            sleep_ms(self.delay_ms()).await;
            self.incarnation.must_live().await;
            let verdict = self.decide();
            match verdict {
                Verdict::Write => {}
                Verdict::CrashAfter => self.ends_after.store(true, Ordering::Relaxed),
                Verdict::DiskFull => self.world.note(|| "the disk is full".to_owned()),
                Verdict::Broken => {
                    self.world.note(|| "the database is broken".to_owned());
                    self.world.broken(&self.incarnation);
                }
                Verdict::CrashBefore => self.world.kill("crash before a write"),
            }
            if matches!(verdict, Verdict::DiskFull | Verdict::Broken) {
                lock(&self.world.model).disturb();
                for client in &self.world.clients {
                    client.disk_failed();
                }
            }
            verdict
        })
    }

    fn written(&self, connection: &Connection) {
        self.world.look(connection);
        if self.ends_after.swap(false, Ordering::Relaxed) {
            self.world.kill("crash after a write");
        }
    }

    fn after(&self) -> Wait<'_, ()> {
        Box::pin(async move {
            sleep_ms(self.delay_ms()).await;
            self.incarnation.must_live().await;
        })
    }
}
