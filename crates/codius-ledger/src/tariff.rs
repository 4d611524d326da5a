//! What sizes of pods cost.
//!
//! The operator names the price of a small pod. What others cost follows from it in proportion, or from the
//! prices of what they are made of; a size may also have a price of its own, which is not decided here. Every
//! result is an exact decimal number: it is rounded once, when it becomes a [`Rate`](crate::Rate).

use codius_manifest::Machine;

use crate::Cost;

/// 1 GiB = 2^10 MiB.
const HALVINGS_TO_MIB: u32 = 10;

/// How sizes beyond small are priced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tariff {
    /// As many times the price of a small pod as the machine has of it, of processors, memory or disk: what
    /// it has most of counts, so that no part of a machine is sold for less than in a small one.
    Proportional { small: Cost },
    /// The sum of its parts.
    ByPart {
        vcpu: Cost,
        gib_memory: Cost,
        gib_disk: Cost,
    },
}

/// The price cannot be written. Nothing happened; the operator gives the size a price of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "its price has more than {} digits before or behind the point; give the size a cost_per_month of its own",
    Cost::MAX_DIGITS
)]
pub struct TariffError;

impl Tariff {
    /// What a machine costs in a month.
    pub fn cost(&self, machine: Machine) -> Result<Cost, TariffError> {
        match *self {
            Self::Proportional { small } => proportional(small, machine),
            Self::ByPart {
                vcpu,
                gib_memory,
                gib_disk,
            } => by_part(vcpu, gib_memory, gib_disk, machine),
        }
        .ok_or(TariffError)
    }
}

fn proportional(small: Cost, machine: Machine) -> Option<Cost> {
    let of = Machine::SMALL;
    let parts = [
        (u64::from(machine.vcpus), u64::from(of.vcpus)),
        (u64::from(machine.memory_mib), u64::from(of.memory_mib)),
        (u64::from(machine.scratch_mib), u64::from(of.scratch_mib)),
    ];
    // All of 32 bits, so that no product is too large.
    let (times, of) = parts
        .into_iter()
        .max_by(|(one, of_one), (other, of_other)| (one * of_other).cmp(&(other * of_one)))?;
    // What a small pod has is a power of two of each.
    small.times(times)?.halved(of.ilog2())
}

fn by_part(vcpu: Cost, gib_memory: Cost, gib_disk: Cost, machine: Machine) -> Option<Cost> {
    let of_mib = |gib: Cost, mib: u32| gib.times(mib.into())?.halved(HALVINGS_TO_MIB);
    vcpu.times(machine.vcpus.into())?
        .plus(of_mib(gib_memory, machine.memory_mib)?)?
        .plus(of_mib(gib_disk, machine.scratch_mib)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Asset, Rate, Seconds};

    fn machine(vcpus: u8, memory_mib: u32, scratch_mib: u32) -> Machine {
        Machine {
            vcpus,
            memory_mib,
            scratch_mib,
        }
    }

    fn cost(text: &str) -> Cost {
        text.parse().unwrap()
    }

    #[test]
    fn a_size_costs_as_many_small_pods_as_it_has_most_of() {
        let tariff = Tariff::Proportional { small: cost("10") };
        for (machine, price) in [
            (Machine::SMALL, "10"),
            (machine(2, 1024, 2048), "20"),
            (machine(1, 512, 4096), "40"),
            (machine(8, 512, 1024), "80"),
            (machine(1, 768, 1024), "15"),
            (machine(1, 513, 1024), "10.01953125"),
            // Not less than its processor.
            (machine(1, 64, 16), "10"),
        ] {
            assert_eq!(tariff.cost(machine).unwrap(), cost(price), "{machine:?}");
        }
        let free = Tariff::Proportional { small: cost("0") };
        assert!(free.cost(machine(64, 1 << 20, 1 << 24)).unwrap().is_free());
    }

    #[test]
    fn parts_are_added_up_exactly() {
        let tariff = Tariff::ByPart {
            vcpu: cost("3"),
            gib_memory: cost("4.5"),
            gib_disk: cost("0.25"),
        };
        let medium = tariff.cost(machine(2, 1024, 2048)).unwrap();
        assert_eq!(medium, cost("11"));
        let odd = tariff.cost(machine(1, 1, 1)).unwrap();
        assert_eq!(odd.to_string(), "3.004638671875");
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let most = "999999999999999999.999999999999999999";
        for tariff in [
            Tariff::Proportional { small: cost(most) },
            Tariff::ByPart {
                vcpu: cost(most),
                gib_memory: cost(most),
                gib_disk: cost(most),
            },
            // 19 digits behind the point, and more.
            Tariff::ByPart {
                vcpu: cost("0"),
                gib_memory: cost("0.000000000000000001"),
                gib_disk: cost("0"),
            },
        ] {
            assert_eq!(tariff.cost(machine(2, 513, 1024)), Err(TariffError));
        }
    }

    proptest! {
        /// Against the same sum in units of 10⁻¹⁶.
        #[test]
        fn prices_are_exact(
            vcpus in 1..=64u8, memory_mib in 1..=1u32 << 20, scratch_mib in 1..=1u32 << 24,
            digits in prop::array::uniform3(0..=1_000_000_000u64),
        ) {
            let machine = machine(vcpus, memory_mib, scratch_mib);
            let [vcpu, gib_memory, gib_disk] =
                digits.map(|digits| cost(&format!("{}.{:06}", digits / 1_000_000, digits % 1_000_000)));
            let tariff = Tariff::ByPart { vcpu, gib_memory, gib_disk };
            // 10⁻⁶ ÷ 1024 is a whole number of 10⁻¹⁶.
            let per_mib = 10_000_000_000u128 / 1024;
            let expected = u128::from(digits[0]) * u128::from(vcpus) * 1024 * per_mib
                + u128::from(digits[1]) * u128::from(memory_mib) * per_mib
                + u128::from(digits[2]) * u128::from(scratch_mib) * per_mib;
            let text = tariff.cost(machine).unwrap().to_string();
            let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
            let found: u128 = format!("{whole}{fraction:0<16}").parse().unwrap();
            prop_assert_eq!(found, expected);
        }

        /// A larger machine never costs less, in either way; and the rate follows.
        #[test]
        fn more_never_costs_less(
            vcpus in 1..=32u8, memory_mib in 64..=1u32 << 19, scratch_mib in 16..=1u32 << 20,
            more in (0..=32u8, 0..=1u32 << 19, 0..=1u32 << 20),
            digits in 1..=999_999u64, secs in 1..=3_000_000u64,
        ) {
            let less = machine(vcpus, memory_mib, scratch_mib);
            let larger = machine(vcpus + more.0, memory_mib + more.1, scratch_mib + more.2);
            let unit = cost(&format!("0.{digits:06}"));
            let asset = Asset::new("XRP", 9).unwrap();
            let price = |tariff: Tariff, machine| {
                let rate = Rate::per_month(tariff.cost(machine).unwrap(), &asset).unwrap();
                rate.price(Seconds(secs)).unwrap()
            };
            for tariff in [
                Tariff::Proportional { small: unit },
                Tariff::ByPart { vcpu: unit, gib_memory: unit, gib_disk: unit },
            ] {
                prop_assert!(price(tariff, less) <= price(tariff, larger));
            }
            // Never under the price of a small pod.
            let small = Rate::per_month(unit, &asset).unwrap().price(Seconds(secs)).unwrap();
            let in_proportion = price(Tariff::Proportional { small: unit }, larger);
            prop_assert!(in_proportion >= small);
        }
    }
}
