//! `GET /api/v2/host`: what this host says of itself.

use axum::{extract::State, http::StatusCode, response::Response};
use codius_api::v2::{Capacity, DurationRange, HostReply, IsolationInfo, MachineInfo, Price};
use codius_manifest::MachineName;
use codius_pod::Machine;

use crate::api::{Shared, info, json};

pub(super) async fn show(State(api): Shared) -> Response {
    // The same numbers as in version 1, from the same place.
    let info = info::describe(&api);
    let uri = info.uri;
    let payment_pointer = match uri.split_once("://") {
        Some((_, authority)) => format!("${authority}"),
        None => format!("${uri}"),
    };
    let reply = HostReply {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        payment_pointer,
        uri,
        asset: api.leases.asset.clone(),
        price: Price {
            per_second: api.leases.rate.to_string(),
            per_month: api.cost_per_month.clone(),
        },
        duration: DurationRange {
            min_seconds: 1,
            max_seconds: api.max_duration.0,
        },
        machines: vec![MachineInfo {
            name: MachineName::Small.as_str().to_owned(),
            vcpus: Machine::SMALL.vcpus.into(),
            memory_mib: Machine::SMALL.memory_mib.into(),
        }],
        isolation: IsolationInfo {
            kind: api.isolation.to_string(),
            reason: api.isolation_reason.clone(),
        },
        capacity: Capacity {
            accepting_uploads: info.accepting_uploads,
            free_memory_bytes: info.server_free_memory,
            running_pods: info.running_contracts.unwrap_or_default(),
        },
        load_1m_per_core: info.avg_load,
        uptime_seconds: info.service_uptime,
        peers: info.num_peers,
    };
    json(StatusCode::OK, &reply)
}
