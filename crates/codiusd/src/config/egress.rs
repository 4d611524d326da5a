//! `[egress]`: what pods may reach, and how much.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use codius_address::Ipv4Range;
use codius_microvm::Ipv4Pool;
use codius_pod::{EgressLimits, EgressPolicy, Permit, Ports};
use serde::Deserialize;

/// More belongs into a firewall of the operator's own.
const MAX_EGRESS_ENTRIES: usize = 256;
const MAX_EGRESS_RATE: u64 = 10_000_000;
const MAX_EGRESS_KIB_PER_SEC: u64 = 100 * 1024 * 1024;

/// What pods may reach, and how much. Numbers, ranges and ports: docs/egress.md.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Egress {
    /// Ports that are refused besides those that are abused.
    pub(crate) deny_ports: BTreeSet<Ports>,
    /// Ports that are open although they are abused.
    pub(crate) allow_ports: BTreeSet<Ports>,
    /// Ranges that are refused besides what is not public.
    pub(crate) deny_ranges: BTreeSet<Ipv4Range>,
    /// Ranges that are open although they are not public.
    pub(crate) allow_ranges: BTreeSet<Ipv4Range>,
    /// Packets that a pod may send in a second.
    pub(crate) max_packets_per_sec: u32,
    /// KiB that a pod may send, and receive, in a second.
    pub(crate) max_kib_per_sec: u64,
    /// Connections that a pod may open in a second.
    pub(crate) max_new_connections_per_sec: u32,
    /// Connections that a pod may have open.
    pub(crate) max_open_connections: u32,
}

impl Default for Egress {
    fn default() -> Self {
        let limits = EgressLimits::default();
        Self {
            deny_ports: BTreeSet::new(),
            allow_ports: BTreeSet::new(),
            deny_ranges: BTreeSet::new(),
            allow_ranges: BTreeSet::new(),
            max_packets_per_sec: limits.packets_per_sec,
            max_kib_per_sec: limits.bytes_per_sec / 1024,
            max_new_connections_per_sec: limits.new_connections_per_sec,
            max_open_connections: limits.open_connections,
        }
    }
}

impl Egress {
    pub(super) fn check(&self, pool: Ipv4Pool) -> Result<()> {
        for (name, entries) in [
            ("deny_ports", self.deny_ports.len()),
            ("allow_ports", self.allow_ports.len()),
            ("deny_ranges", self.deny_ranges.len()),
            ("allow_ranges", self.allow_ranges.len()),
        ] {
            ensure!(
                entries <= MAX_EGRESS_ENTRIES,
                "egress.{name} has {entries} entries; at most {MAX_EGRESS_ENTRIES} are possible"
            );
        }
        for (name, limit, most) in [
            (
                "max_packets_per_sec",
                u64::from(self.max_packets_per_sec),
                MAX_EGRESS_RATE,
            ),
            (
                "max_kib_per_sec",
                self.max_kib_per_sec,
                MAX_EGRESS_KIB_PER_SEC,
            ),
            (
                "max_new_connections_per_sec",
                u64::from(self.max_new_connections_per_sec),
                MAX_EGRESS_RATE,
            ),
            (
                "max_open_connections",
                u64::from(self.max_open_connections),
                MAX_EGRESS_RATE,
            ),
        ] {
            ensure!(
                (1..=most).contains(&limit),
                "egress.{name} is {limit}; it must be 1 to {most}"
            );
        }
        let permit = self.policy().permit;
        permit.check(pool.range()).context("egress.allow_ranges")
    }

    pub(crate) fn policy(&self) -> EgressPolicy {
        EgressPolicy {
            deny_ports: self.deny_ports.clone(),
            deny_ranges: self.deny_ranges.clone(),
            permit: Permit {
                ports: self.allow_ports.clone(),
                ranges: self.allow_ranges.clone(),
            },
            limits: EgressLimits {
                packets_per_sec: self.max_packets_per_sec,
                bytes_per_sec: self.max_kib_per_sec.saturating_mul(1024),
                new_connections_per_sec: self.max_new_connections_per_sec,
                open_connections: self.max_open_connections,
            },
        }
    }
}
