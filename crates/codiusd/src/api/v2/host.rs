//! `GET /api/v2/host`: what this host says of itself.

use axum::{extract::State, http::StatusCode, response::Response};
use codius_api::v2::{
    Capacity, DurationRange, HostReply, IsolationInfo, MachineInfo, MachineSize, Price, Processors,
};

use crate::{
    api::{Api, Shared, info, json},
    capacity::{self, ratio},
    leases::sold,
    price::Offer,
};

const MIB: u64 = 1 << 20;

pub(super) async fn show(State(api): Shared) -> Response {
    // The same numbers as in version 1, from the same place.
    let info = info::describe(&api);
    let uri = info.uri;
    let payment_pointer = match uri.split_once("://") {
        Some((_, authority)) => format!("${authority}"),
        None => format!("${uri}"),
    };
    let admission = &api.leases.admission;
    let (used, free, capacity) = (admission.used(), admission.free(), admission.capacity());
    let cores = capacity::cores();
    let is_bounded = capacity.vcpus < u64::MAX;
    let offers = api.leases.rate.offers();
    let reply = HostReply {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        payment_pointer,
        uri,
        asset: api.leases.asset.clone(),
        price: Price {
            per_second: api.leases.rate.to_string(),
            per_month: api.leases.rate.cost_per_month(),
        },
        duration: DurationRange {
            min_seconds: 1,
            max_seconds: api.max_duration.0,
        },
        machines: offers
            .into_iter()
            .map(|offer| machine(&api, offer))
            .collect(),
        isolation: IsolationInfo {
            kind: api.isolation.to_string(),
            reason: api.isolation_reason.clone(),
        },
        capacity: Capacity {
            accepting_uploads: info.accepting_uploads,
            free_memory_bytes: info.server_free_memory,
            running_pods: info.running_contracts,
            free_disk_bytes: Some(free.disk_mib.saturating_mul(MIB)),
            processors: Some(Processors {
                cores,
                sold: used.vcpus,
                sold_per_core: ratio(used.vcpus, cores),
                most_sold_per_core: is_bounded.then(|| ratio(capacity.vcpus, cores)),
            }),
        },
        load_1m_per_core: info.avg_load,
        uptime_seconds: info.service_uptime,
        peers: info.num_peers,
    };
    json(StatusCode::OK, &reply)
}

fn machine(api: &Api, offer: Offer) -> MachineInfo {
    let MachineSize {
        name,
        vcpus,
        memory_mib,
        disk_mib,
    } = sold(offer.size);
    MachineInfo {
        name,
        vcpus,
        memory_mib,
        disk_mib: Some(disk_mib),
        price: Some(Price {
            per_second: offer.rate.to_string(),
            per_month: offer.cost_per_month.to_string(),
        }),
        has_room: Some(api.leases.admission.has_room_for(offer.size.machine)),
    }
}
