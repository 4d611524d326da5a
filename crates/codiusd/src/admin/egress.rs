//! What pods reach, as the operator sees and changes it: permits and counters.

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::StatusCode,
    response::Response,
};
use codius_manifest::ManifestHash;
use codius_pod::Permit;
use serde::{Deserialize, Serialize};

use super::{Shared, house::read};
use crate::{
    api::json,
    egress::{Change, PermitError},
    http_error::HttpError,
};

/// `POST /egress`: one of both.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum PermitChange {
    Allow(PermitOf),
    Remove(PermitOf),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PermitOf {
    pub(super) hash: ManifestHash,
    #[serde(default)]
    pub(super) ports: Vec<codius_pod::Ports>,
    #[serde(default)]
    pub(super) ranges: Vec<codius_address::Ipv4Range>,
}

impl PermitOf {
    fn permit(&self) -> Permit {
        Permit {
            ports: self.ports.iter().copied().collect(),
            ranges: self.ranges.iter().copied().collect(),
        }
    }
}

pub(super) async fn show(State(admin): Shared) -> Response {
    json(StatusCode::OK, &admin.leases.egress.report())
}

pub(super) async fn change(
    State(admin): Shared,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, HttpError> {
    let change: PermitChange = read(body)?;
    let (hash, wanted) = match &change {
        PermitChange::Allow(of) => (of.hash, Change::Allow(of.permit())),
        PermitChange::Remove(of) => (of.hash, Change::Remove(of.permit())),
    };
    let egress = &admin.leases.egress;
    let changed = egress.change(hash, wanted, &admin.store).await;
    changed.map_err(refusal)?;
    tracing::info!(pod = %hash, ?change, "the operator has changed what a pod may reach");
    Ok(json(StatusCode::OK, &egress.report()))
}

fn refusal(error: PermitError) -> HttpError {
    let text = error.to_string();
    match error {
        PermitError::Invalid(_) | PermitError::Empty | PermitError::TooLong => {
            HttpError::new(StatusCode::BAD_REQUEST, text)
                .next("name ports such as 25/tcp, or ranges such as 10.1.0.0/16")
        }
        PermitError::TooMany | PermitError::Unknown => HttpError::new(StatusCode::CONFLICT, text)
            .next("`codiusd admin egress list` lists them"),
        PermitError::Store(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "permit not changed"
            );
            HttpError::internal()
        }
        PermitError::NotInForce(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "permit not in force"
            );
            HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, text)
                .next("stop the pod (`codiusd admin stop`): its next one has what is recorded")
        }
    }
}

pub(super) async fn traffic(State(admin): Shared) -> Response {
    let running = admin.leases.overview().into_iter();
    let pods: Vec<_> = running.map(|(hash, _)| hash).collect();
    json(StatusCode::OK, &admin.leases.egress.traffic_of(&pods).await)
}
