//! `[price]` and `[sizes]`: what pods there are and what they cost.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use codius_ledger::Cost;
use codius_manifest::{Machine, MachineName};
use serde::Deserialize;

/// Sizes of pods besides small.
const MAX_SIZES: usize = 32;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Price {
    /// Price of a small pod for a month (2,628,000 s) in whole units of the asset, as decimal text.
    pub(crate) cost_per_month: String,
    /// Prices of a month of what other sizes are made of, in the same form: all three, or none. Without them
    /// a size costs as many times the price of a small pod as it has of what it has most of.
    pub(crate) per_vcpu_month: Option<String>,
    pub(crate) per_gib_memory_month: Option<String>,
    pub(crate) per_gib_disk_month: Option<String>,
    /// The longest time that can be bought at once, in seconds.
    pub(crate) max_duration_secs: u64,
}

/// A size of pods.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SizeOffered {
    pub(crate) vcpus: u8,
    /// Memory for programs; the host takes more for each pod.
    pub(crate) memory_mib: u32,
    pub(crate) disk_mib: u32,
    /// A price of its own for a month, in place of what follows from `[price]`.
    #[serde(default)]
    pub(crate) cost_per_month: Option<String>,
}

impl SizeOffered {
    pub(crate) fn machine(&self) -> Machine {
        Machine {
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            scratch_mib: self.disk_mib,
        }
    }
}

impl Default for Price {
    fn default() -> Self {
        Self {
            cost_per_month: "10".to_owned(),
            per_vcpu_month: None,
            per_gib_memory_month: None,
            per_gib_disk_month: None,
            max_duration_secs: 31 * 24 * 3600,
        }
    }
}

impl Price {
    /// What sizes are made of.
    pub(crate) fn parts(&self) -> [(&'static str, &Option<String>); 3] {
        [
            ("per_vcpu_month", &self.per_vcpu_month),
            ("per_gib_memory_month", &self.per_gib_memory_month),
            ("per_gib_disk_month", &self.per_gib_disk_month),
        ]
    }
}

/// Twice and four times a small pod.
pub(super) fn without_a_table() -> BTreeMap<MachineName, SizeOffered> {
    let sizes = [("medium", 2), ("large", 4)].map(|(name, times)| {
        let Machine {
            vcpus,
            memory_mib,
            scratch_mib,
        } = Machine::SMALL;
        let size = SizeOffered {
            vcpus: times * vcpus,
            memory_mib: u32::from(times) * memory_mib,
            disk_mib: u32::from(times) * scratch_mib,
            cost_per_month: None,
        };
        (name.parse().expect("it is a name"), size)
    });
    sizes.into()
}

/// Refuses sizes that cannot be run or priced.
pub(super) fn check(sizes: &BTreeMap<MachineName, SizeOffered>, price: &Price) -> Result<()> {
    ensure!(
        sizes.len() <= MAX_SIZES,
        "there are {} sizes; at most {MAX_SIZES} are possible",
        sizes.len()
    );
    for (name, size) in sizes {
        ensure!(
            *name != MachineName::SMALL,
            "sizes.small cannot be changed: it is 1 processor and 512 MiB on every host, and its price is \
                 price.cost_per_month"
        );
        if let Some(problem) = codius_microvm::unfit(size.machine()) {
            bail!("sizes.{name} cannot be run: {problem}");
        }
    }
    let parts = price.parts();
    ensure!(
        parts.iter().all(|(_, cost)| cost.is_some())
            || parts.iter().all(|(_, cost)| cost.is_none()),
        "price.per_vcpu_month, per_gib_memory_month and per_gib_disk_month belong together; write \"0\" for \
             what costs nothing"
    );
    let small = (
        "price.cost_per_month".to_owned(),
        Some(&price.cost_per_month),
    );
    let parts = parts.map(|(name, cost)| (format!("price.{name}"), cost.as_ref()));
    let own = sizes.iter().map(|(name, size)| {
        (
            format!("sizes.{name}.cost_per_month"),
            size.cost_per_month.as_ref(),
        )
    });
    for (name, cost) in [small].into_iter().chain(parts).chain(own) {
        if let Some(cost) = cost {
            cost.parse::<Cost>()
                .with_context(|| format!("{name} is {cost:?}"))?;
        }
    }
    Ok(())
}
