//! The books through the admin API.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use codius_ledger::Account;
use codius_store::{EntryFilter, Period, StoreError};
use serde::Deserialize;

use super::report::{self, VerifiedReport};
use crate::{admin::Admin, api::json, http_error::HttpError};

type Shared = State<Arc<Admin>>;

pub(crate) fn router() -> Router<Arc<Admin>> {
    Router::new()
        .route("/ledger", get(summary))
        .route("/ledger/leases", get(leases))
        .route("/ledger/entries", get(entries))
        .route("/ledger/verify", post(verify))
}

/// Moments in milliseconds since 1970.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    since: Option<u64>,
    until: Option<u64>,
    after: Option<u64>,
    through: Option<u64>,
    account: Option<Account>,
}

type AskedQuery = Result<Query<Asked>, QueryRejection>;

async fn summary(State(admin): Shared, asked: AskedQuery) -> Result<Response, HttpError> {
    let period = read(asked)?.period();
    let summary = admin
        .store
        .books(move |books| report::summary(books, period))
        .await;
    Ok(json(
        StatusCode::OK,
        &summary.map_err(|error| failed(&error))?,
    ))
}

async fn leases(State(admin): Shared, asked: AskedQuery) -> Result<Response, HttpError> {
    let after = read(asked)?.after.unwrap_or_default();
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let leases = admin
        .store
        .books(move |books| report::leases(books, after))
        .await;
    Ok(json(
        StatusCode::OK,
        &leases.map_err(|error| failed(&error))?,
    ))
}

async fn entries(State(admin): Shared, asked: AskedQuery) -> Result<Response, HttpError> {
    let asked = read(asked)?;
    let after = asked.after.unwrap_or_default();
    let filter = EntryFilter {
        period: asked.period(),
        through: asked.through.unwrap_or(u64::MAX),
        account: asked.account,
    };
    let entries = admin
        .store
        .books(move |books| report::entries(books, after, &filter))
        .await;
    Ok(json(
        StatusCode::OK,
        &entries.map_err(|error| failed(&error))?,
    ))
}

async fn verify(State(admin): Shared) -> Result<Response, HttpError> {
    let checked = admin.store.check_all().await.map_err(|error| {
        let text = "the ledger does not add up";
        tracing::error!(error = &error as &dyn std::error::Error, "{text}");
        HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, text)
            .detail(error.to_string())
            .next("stop the host, keep a copy of its database, and restore a backup")
    })?;
    Ok(json(StatusCode::OK, &VerifiedReport::from(checked)))
}

fn read(asked: AskedQuery) -> Result<Asked, HttpError> {
    let Query(asked) = asked.map_err(|error| {
        HttpError::new(StatusCode::BAD_REQUEST, "Invalid request query").detail(error.body_text())
    })?;
    Ok(asked)
}

fn failed(error: &StoreError) -> HttpError {
    tracing::error!(error = error as &dyn std::error::Error, "books");
    HttpError::internal()
}

impl Asked {
    fn period(&self) -> Period {
        Period {
            since_unix_ms: self.since,
            until_unix_ms: self.until,
        }
    }
}
