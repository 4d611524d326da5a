//! What the host has for pods, what it has sold of it, and what pods use.

use std::collections::BTreeMap;

use axum::{extract::State, http::StatusCode, response::Response};
use codius_manifest::ManifestHash;
use codius_pod::PodUsage;
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::{
    api::json,
    capacity::{cores, ratio},
    leases::Leases,
};

/// `GET /capacity`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CapacityReport {
    pub(super) memory_mib: Bounded,
    pub(super) disk_mib: Bounded,
    pub(super) vcpus: Bounded,
    pub(super) pods: Bounded,
    pub(super) cores: u64,
    /// Virtual processors that are sold for each core.
    pub(super) cpu_overcommit: f64,
    pub(super) sizes: Vec<SizeReport>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Bounded {
    pub(super) sold: u64,
    /// None: no limit.
    pub(super) of: Option<u64>,
}

impl Bounded {
    fn new(sold: u64, of: u64) -> Self {
        Self {
            sold,
            of: (of < u64::MAX).then_some(of),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SizeReport {
    pub(super) name: String,
    pub(super) vcpus: u8,
    pub(super) memory_mib: u32,
    pub(super) disk_mib: u32,
    /// In whole units of the asset.
    pub(super) cost_per_month: String,
    pub(super) has_room: bool,
}

impl CapacityReport {
    pub(super) fn of(leases: &Leases) -> Self {
        let admission = &leases.admission;
        let (used, capacity) = (admission.used(), admission.capacity());
        let sizes = leases.rate.offers().into_iter().map(|offer| {
            let machine = offer.size.machine;
            SizeReport {
                name: offer.size.name.to_string(),
                vcpus: machine.vcpus,
                memory_mib: machine.memory_mib,
                disk_mib: machine.scratch_mib,
                cost_per_month: offer.cost_per_month.to_string(),
                has_room: admission.has_room_for(machine),
            }
        });
        Self {
            memory_mib: Bounded::new(used.memory_mib, capacity.memory_mib),
            disk_mib: Bounded::new(used.disk_mib, capacity.disk_mib),
            vcpus: Bounded::new(used.vcpus, capacity.vcpus),
            pods: Bounded::new(used.pods, capacity.pods),
            cores: cores(),
            cpu_overcommit: ratio(used.vcpus, cores()),
            sizes: sizes.collect(),
        }
    }
}

/// `GET /usage`: by manifest hash.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct UsageReport {
    pub(super) pods: BTreeMap<String, PodUsage>,
}

impl UsageReport {
    /// What cannot be read is left out, and logged.
    pub(super) async fn of(leases: &Leases, pods: &[ManifestHash]) -> Self {
        let pods = leases.supervisor.usage(pods).await.unwrap_or_else(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "usage cannot be read"
            );
            BTreeMap::new()
        });
        let pods = pods.into_iter();
        Self {
            pods: pods
                .map(|(hash, usage)| (hash.to_string(), usage))
                .collect(),
        }
    }
}

pub(super) async fn show(State(admin): Shared) -> Response {
    json(StatusCode::OK, &CapacityReport::of(&admin.leases))
}

pub(super) async fn usage(State(admin): Shared) -> Response {
    let running = admin.leases.overview().into_iter();
    let pods: Vec<_> = running.map(|(hash, _)| hash).collect();
    json(StatusCode::OK, &UsageReport::of(&admin.leases, &pods).await)
}
