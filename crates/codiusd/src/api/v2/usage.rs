//! `GET /api/v2/leases/{hash}/usage`: what a pod has sent and received, and what was refused of it.
//!
//! For the owner, who signs the request: what a program talks about with others, and how much, is his.

use axum::{
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::Response,
};
use codius_api::v2::{Exchanged, NetworkUsage, Packets, UsageReply};
use codius_pod::{Count, Traffic};

use super::{Problem, hash::LeaseHash, leases::from_owner};
use crate::{
    api::{Shared, json},
    http_error::HttpError,
};

pub(super) async fn show(
    State(api): Shared,
    method: Method,
    uri: Uri,
    LeaseHash(hash): LeaseHash,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    from_owner(&api, &method, &uri, &headers, &hash).await?;
    let traffic = match api.leases.shown(&hash) {
        Some(_) => api.leases.egress.traffic(&hash).await,
        None => Ok(None),
    };
    let traffic = traffic.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, %hash, "counters");
        HttpError::internal()
    })?;
    let Some(traffic) = traffic else {
        let text = "this lease does not run; what its pod has used is not kept";
        let not_running = HttpError::new(StatusCode::CONFLICT, text);
        let next = "ask while it runs; its events tell when that is";
        return Err(not_running.next(next).into());
    };
    let reply = UsageReply {
        manifest_hash: hash,
        network: network(&traffic),
    };
    Ok(json(StatusCode::OK, &reply))
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
