//! How much this host gives away: memory and pods are reserved before money is asked for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::Machine;

/// What the pods of this host may use in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    pub memory_mib: u64,
    pub pods: usize,
}

/// Counts reservations against the capacity. Memory is never promised twice.
#[derive(Debug, Clone)]
pub struct Admission {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    capacity: Capacity,
    used: Capacity,
}

/// The host has no room. Nothing happened; the uploader takes another host or comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("this host is full")]
pub struct Full;

/// Room for one pod; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    inner: Arc<Mutex<Inner>>,
    memory_mib: u64,
}

impl Admission {
    pub fn new(capacity: Capacity) -> Self {
        let used = Capacity {
            memory_mib: 0,
            pods: 0,
        };
        Self {
            inner: Arc::new(Mutex::new(Inner { capacity, used })),
        }
    }

    pub fn reserve(&self, machine: Machine) -> Result<Reservation, Full> {
        let memory_mib = u64::from(machine.memory_mib);
        let mut inner = lock(&self.inner);
        let free = inner
            .capacity
            .memory_mib
            .saturating_sub(inner.used.memory_mib);
        if memory_mib > free || inner.used.pods >= inner.capacity.pods {
            return Err(Full);
        }
        inner.used.memory_mib += memory_mib;
        inner.used.pods += 1;
        Ok(Reservation {
            inner: Arc::clone(&self.inner),
            memory_mib,
        })
    }

    /// Takes room for a pod that runs already, whether there is room or not.
    pub fn reserve_running(&self, machine: Machine) -> Reservation {
        let memory_mib = u64::from(machine.memory_mib);
        let mut inner = lock(&self.inner);
        inner.used.memory_mib += memory_mib;
        inner.used.pods += 1;
        Reservation {
            inner: Arc::clone(&self.inner),
            memory_mib,
        }
    }

    pub fn has_room_for(&self, machine: Machine) -> bool {
        self.free_mib() >= u64::from(machine.memory_mib) && {
            let inner = lock(&self.inner);
            inner.used.pods < inner.capacity.pods
        }
    }

    /// MiB that can still be reserved.
    pub fn free_mib(&self) -> u64 {
        let inner = lock(&self.inner);
        inner
            .capacity
            .memory_mib
            .saturating_sub(inner.used.memory_mib)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut inner = lock(&self.inner);
        inner.used.memory_mib -= self.memory_mib;
        inner.used.pods -= 1;
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_never_promised_twice_and_comes_back() {
        let admission = Admission::new(Capacity {
            memory_mib: 1200,
            pods: 10,
        });
        let first = admission.reserve(Machine::SMALL).unwrap();
        let _second = admission.reserve(Machine::SMALL).unwrap();
        assert_eq!(admission.reserve(Machine::SMALL).unwrap_err(), Full);
        assert!(!admission.has_room_for(Machine::SMALL));
        drop(first);
        assert_eq!(admission.free_mib(), 1200 - 512);
        admission.reserve(Machine::SMALL).unwrap();
    }

    #[test]
    fn the_number_of_pods_is_bounded_too() {
        let admission = Admission::new(Capacity {
            memory_mib: 1 << 20,
            pods: 1,
        });
        let _pod = admission.reserve(Machine::SMALL).unwrap();
        assert_eq!(admission.reserve(Machine::SMALL).unwrap_err(), Full);
        assert!(!admission.has_room_for(Machine::SMALL));
    }
}
