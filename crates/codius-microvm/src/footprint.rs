//! Which machines can be run, and what each takes of the host.

use codius_pod::{Isolation, Machine};

use crate::limits::{
    MAX_MEMORY_MIB, MAX_SCRATCH_MIB, MAX_VCPUS, MIN_MEMORY_MIB, MIN_SCRATCH_MIB, qemu_bounds,
};

const MIB: u64 = 1 << 20;

/// Why a machine cannot be run, as a sentence for the operator; none if it can.
pub fn unfit(machine: Machine) -> Option<String> {
    if !(1..=MAX_VCPUS).contains(&machine.vcpus) {
        return Some(format!("a machine has 1 to {MAX_VCPUS} processors"));
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&machine.memory_mib) {
        return Some(format!(
            "a machine has {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB of memory"
        ));
    }
    if !(MIN_SCRATCH_MIB..=MAX_SCRATCH_MIB).contains(&machine.scratch_mib) {
        return Some(format!(
            "a machine has {MIN_SCRATCH_MIB} to {MAX_SCRATCH_MIB} MiB of disk"
        ));
    }
    None
}

/// What a machine takes of the host's memory at most, in MiB, beside what its programs get: as much as its
/// control group lets it have.
pub(crate) fn overhead_mib(machine: Machine, isolation: Isolation) -> u64 {
    let is_emulated = match isolation {
        Isolation::Kvm => false,
        Isolation::Gvisor | Isolation::Tcg => true,
    };
    let bounds = qemu_bounds(machine, is_emulated, false);
    (bounds.memory_bytes.div_ceil(MIB)).saturating_sub(machine.memory_mib.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_run_is_told_with_its_bounds() {
        assert_eq!(unfit(Machine::SMALL), None);
        for (machine, what) in [
            (
                Machine {
                    vcpus: 0,
                    ..Machine::SMALL
                },
                "1 to 64 processors",
            ),
            (
                Machine {
                    memory_mib: 63,
                    ..Machine::SMALL
                },
                "64 to 1048576 MiB of memory",
            ),
            (
                Machine {
                    scratch_mib: 15,
                    ..Machine::SMALL
                },
                "MiB of disk",
            ),
        ] {
            let problem = unfit(machine).unwrap();
            assert!(problem.contains(what), "{problem}");
        }
    }

    #[test]
    fn a_machine_is_promised_with_all_that_its_control_group_lets_it_have() {
        for (machine, is_emulated, isolation) in [
            (Machine::SMALL, false, Isolation::Kvm),
            (Machine::SMALL, true, Isolation::Tcg),
            (
                Machine {
                    vcpus: 16,
                    memory_mib: 32_768,
                    scratch_mib: 1024,
                },
                true,
                Isolation::Tcg,
            ),
        ] {
            let promised_mib = u64::from(machine.memory_mib) + overhead_mib(machine, isolation);
            let bounds = qemu_bounds(machine, is_emulated, false);
            assert_eq!(promised_mib * MIB, bounds.memory_bytes, "{machine:?}");
        }
        assert_eq!(overhead_mib(Machine::SMALL, Isolation::Kvm), 268);
        assert_eq!(overhead_mib(Machine::SMALL, Isolation::Tcg), 460);
    }
}
