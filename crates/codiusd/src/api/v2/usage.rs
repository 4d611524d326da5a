//! `GET /api/v2/leases/{hash}/usage`: what a pod has used of its host, what it has sent and received, and what
//! was refused of it.
//!
//! For the owner, who signs the request: what a program does, and how much it talks with others, is his.

use axum::{
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::Response,
};
use codius_api::v2::{DiskUsage, Exchanged, MemoryUsage, NetworkUsage, Packets, UsageReply};
use codius_manifest::ManifestHash;
use codius_pod::{Count, DriverError, Traffic};

use super::{Problem, hash::LeaseHash, leases::from_owner};
use crate::{
    api::{Api, Shared, json},
    http_error::HttpError,
    leases::sold,
};

pub(super) async fn show(
    State(api): Shared,
    method: Method,
    uri: Uri,
    LeaseHash(hash): LeaseHash,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    from_owner(&api, &method, &uri, &headers, &hash).await?;
    let Some(usage) = usage(&api, &hash).await.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, %hash, "usage");
        HttpError::internal()
    })?
    else {
        let text = "this lease does not run; what its pod has used is not kept";
        let not_running = HttpError::new(StatusCode::CONFLICT, text);
        let next = "ask while it runs; its events tell when that is";
        return Err(not_running.next(next).into());
    };
    Ok(json(StatusCode::OK, &usage))
}

/// `None` if it does not run.
async fn usage(api: &Api, hash: &ManifestHash) -> Result<Option<UsageReply>, DriverError> {
    let Some(shown) = api.leases.shown(hash) else {
        return Ok(None);
    };
    let pods = std::slice::from_ref(hash);
    let (traffic, used) = tokio::try_join!(
        api.leases.egress.traffic(pods),
        api.leases.supervisor.usage(pods)
    )?;
    let (Some(traffic), Some(used)) = (traffic.get(hash), used.get(hash)) else {
        return Ok(None);
    };
    Ok(Some(UsageReply {
        manifest_hash: *hash,
        machine: Some(sold(shown.size)),
        cpu_ms: Some(used.cpu_ms),
        memory: Some(MemoryUsage {
            bytes: used.memory_bytes,
            peak_bytes: used.memory_peak_bytes,
        }),
        disk: Some(DiskUsage {
            bytes: used.disk_bytes,
            read_bytes: used.disk_read_bytes,
            written_bytes: used.disk_written_bytes,
        }),
        network: network(traffic),
    }))
}

fn network(traffic: &Traffic) -> NetworkUsage {
    let told = |count: &Count| Packets {
        packets: count.packets,
        bytes: count.bytes,
    };
    let exchanged = |sent, received| Exchanged {
        sent: told(sent),
        received: told(received),
    };
    let refused = traffic.refused.iter();
    NetworkUsage {
        internet: exchanged(&traffic.sent, &traffic.received),
        visitors: exchanged(&traffic.visitors_sent, &traffic.visitors_received),
        refused: refused
            .map(|(refusal, count)| (refusal.as_str().to_owned(), told(count)))
            .collect(),
    }
}
