//! How much this host gives away: everything of a pod is reserved before money is asked for.
//!
//! Memory and disk are never promised twice. Processors may be: pods idle most of the time, so how many
//! virtual ones are sold for each core is the operator's to bound and everyone's to see.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use thiserror::Error;

use crate::Machine;

/// What the pods of this host may use in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    pub memory_mib: u64,
    pub disk_mib: u64,
    /// Virtual processors.
    pub vcpus: u64,
    pub pods: u64,
}

impl Capacity {
    /// No bound that a host could reach.
    pub const ENDLESS: Self = Self {
        memory_mib: u64::MAX,
        disk_mib: u64::MAX,
        vcpus: u64::MAX,
        pods: u64::MAX,
    };
    const NOTHING: Self = Self {
        memory_mib: 0,
        disk_mib: 0,
        vcpus: 0,
        pods: 0,
    };

    /// What one machine takes at most, of which `overhead_mib` of memory are not its programs'.
    fn of(machine: Machine, overhead_mib: u64) -> Self {
        Self {
            memory_mib: u64::from(machine.memory_mib).saturating_add(overhead_mib),
            disk_mib: machine.scratch_mib.into(),
            vcpus: machine.vcpus.into(),
            pods: 1,
        }
    }

    /// Member by member; no sum is so large.
    fn plus(self, other: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_mib: self.disk_mib.saturating_add(other.disk_mib),
            vcpus: self.vcpus.saturating_add(other.vcpus),
            pods: self.pods.saturating_add(other.pods),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_mib: self.disk_mib.saturating_sub(other.disk_mib),
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            pods: self.pods.saturating_sub(other.pods),
        }
    }
}

/// What a machine takes of the host's memory beside what it gives to programs.
pub type Overhead = Arc<dyn Fn(Machine) -> u64 + Send + Sync>;

/// Counts reservations against the capacity.
#[derive(Clone)]
pub struct Admission {
    capacity: Capacity,
    overhead: Overhead,
    used: Arc<Mutex<Capacity>>,
}

impl fmt::Debug for Admission {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Admission")
            .field("capacity", &self.capacity)
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

/// The host has no room: of what. Nothing happened; the uploader takes another host or comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Full {
    #[error("this host has no memory left for such a pod")]
    Memory,
    #[error("this host has no disk left for such a pod")]
    Disk,
    #[error("this host sells no more processors")]
    Processors,
    #[error("this host runs as many pods as it may")]
    Pods,
}

/// Room for one pod; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    used: Arc<Mutex<Capacity>>,
    taken: Capacity,
}

impl Admission {
    pub fn new(capacity: Capacity, overhead: Overhead) -> Self {
        Self {
            capacity,
            overhead,
            used: Arc::new(Mutex::new(Capacity::NOTHING)),
        }
    }

    pub fn reserve(&self, machine: Machine) -> Result<Reservation, Full> {
        let taken = self.footprint(machine);
        let mut used = lock(&self.used);
        self.fits(*used, taken)?;
        *used = used.plus(taken);
        Ok(Reservation {
            used: Arc::clone(&self.used),
            taken,
        })
    }

    /// Takes room for a pod that runs already, whether there is room or not.
    pub fn reserve_running(&self, machine: Machine) -> Reservation {
        let taken = self.footprint(machine);
        let mut used = lock(&self.used);
        *used = used.plus(taken);
        Reservation {
            used: Arc::clone(&self.used),
            taken,
        }
    }

    /// Whether there is room, and if not of what there is none.
    pub fn room_for(&self, machine: Machine) -> Result<(), Full> {
        self.fits(self.used(), self.footprint(machine))
    }

    pub fn has_room_for(&self, machine: Machine) -> bool {
        self.room_for(machine).is_ok()
    }

    /// What can still be reserved.
    pub fn free(&self) -> Capacity {
        self.capacity.minus(self.used())
    }

    /// MiB of memory that can still be reserved.
    pub fn free_mib(&self) -> u64 {
        self.free().memory_mib
    }

    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// What is reserved: of a host whose capacity was lowered, perhaps more than it has.
    pub fn used(&self) -> Capacity {
        *lock(&self.used)
    }

    fn footprint(&self, machine: Machine) -> Capacity {
        Capacity::of(machine, (self.overhead)(machine))
    }

    fn fits(&self, used: Capacity, taken: Capacity) -> Result<(), Full> {
        let free = self.capacity.minus(used);
        if taken.memory_mib > free.memory_mib {
            return Err(Full::Memory);
        }
        if taken.disk_mib > free.disk_mib {
            return Err(Full::Disk);
        }
        if taken.vcpus > free.vcpus {
            return Err(Full::Processors);
        }
        if taken.pods > free.pods {
            return Err(Full::Pods);
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut used = lock(&self.used);
        *used = used.minus(self.taken);
    }
}

fn lock(used: &Mutex<Capacity>) -> MutexGuard<'_, Capacity> {
    used.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEDIUM: Machine = Machine {
        vcpus: 2,
        memory_mib: 1024,
        scratch_mib: 2048,
    };
    /// More for larger machines.
    fn overhead() -> Overhead {
        Arc::new(|machine| 100 + u64::from(machine.memory_mib) / 256)
    }

    fn admission(capacity: Capacity) -> Admission {
        Admission::new(capacity, overhead())
    }

    #[test]
    fn memory_is_never_promised_twice_and_comes_back() {
        // Two small pods with all that they take, and a MiB less than a third.
        let admission = admission(Capacity {
            memory_mib: 3 * 614 - 1,
            ..Capacity::ENDLESS
        });
        let first = admission.reserve(Machine::SMALL).unwrap();
        let _second = admission.reserve(Machine::SMALL).unwrap();
        assert_eq!(admission.reserve(Machine::SMALL).unwrap_err(), Full::Memory);
        assert!(!admission.has_room_for(Machine::SMALL));
        assert_eq!(admission.free_mib(), 613);
        drop(first);
        assert_eq!(admission.free_mib(), 2 * 614 - 1);
        assert_eq!(admission.room_for(MEDIUM), Ok(()));
        assert_eq!(admission.used().memory_mib, 614);
        admission.reserve(Machine::SMALL).unwrap();
    }

    #[test]
    fn each_bound_is_told_by_its_name() {
        for (capacity, full) in [
            (
                Capacity {
                    memory_mib: 1127,
                    ..Capacity::ENDLESS
                },
                Full::Memory,
            ),
            (
                Capacity {
                    disk_mib: 2047,
                    ..Capacity::ENDLESS
                },
                Full::Disk,
            ),
            (
                Capacity {
                    vcpus: 1,
                    ..Capacity::ENDLESS
                },
                Full::Processors,
            ),
            (
                Capacity {
                    pods: 0,
                    ..Capacity::ENDLESS
                },
                Full::Pods,
            ),
        ] {
            let admission = admission(capacity);
            assert_eq!(admission.reserve(MEDIUM).unwrap_err(), full);
            assert_eq!(admission.room_for(MEDIUM), Err(full));
            assert_eq!(admission.used(), Capacity::NOTHING);
        }
    }

    #[test]
    fn what_runs_already_is_counted_even_if_it_is_too_much() {
        let admission = admission(Capacity {
            vcpus: 1,
            ..Capacity::ENDLESS
        });
        let running = admission.reserve_running(MEDIUM);
        assert_eq!(admission.used().vcpus, 2);
        assert_eq!(admission.free().vcpus, 0);
        drop(running);
        assert_eq!(admission.used(), Capacity::NOTHING);
        admission.reserve(Machine::SMALL).unwrap();
    }
}
