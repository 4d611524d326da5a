//! Where the books are read: from the host that runs, or from the file of one that does not.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use codius_store::{Books, EntryFilter, Period};
use hyper::Method;
use serde::de::DeserializeOwned;

use super::{
    DATABASE,
    report::{self, EntryLine, LeaseLine, Summary, VerifiedReport},
};
use crate::admin::{SOCKET, call};

pub(super) enum Source {
    Host(PathBuf),
    File(Books),
}

impl Source {
    /// The host of a data directory if it runs, else its database.
    pub(super) async fn open(data_dir: &Path) -> Result<Self> {
        let socket = data_dir.join(SOCKET);
        match tokio::net::UnixStream::connect(&socket).await {
            Ok(_) => Ok(Self::Host(socket)),
            // What a host that was killed leaves refuses.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                let database = data_dir.join(DATABASE);
                if !database.exists() {
                    bail!(
                        "there is no {}; name the host's data directory with --data-dir",
                        database.display()
                    );
                }
                Ok(Self::File(Books::open(&database)?))
            }
            Err(error) => Err(error).with_context(|| format!("cannot use {}", socket.display())),
        }
    }

    pub(super) async fn summary(&self, period: Period) -> Result<Summary> {
        match self {
            Self::Host(socket) => ask(socket, Method::GET, &path("/ledger", &bounds(period))).await,
            Self::File(books) => Ok(report::summary(books, period)?),
        }
    }

    pub(super) async fn leases(&self, after: i64) -> Result<Vec<LeaseLine>> {
        match self {
            Self::Host(socket) => {
                let query = vec![("after", after.to_string())];
                ask(socket, Method::GET, &path("/ledger/leases", &query)).await
            }
            Self::File(books) => Ok(report::leases(books, after)?),
        }
    }

    pub(super) async fn entries(&self, after: u64, filter: &EntryFilter) -> Result<Vec<EntryLine>> {
        match self {
            Self::Host(socket) => {
                let mut query = bounds(filter.period);
                query.push(("after", after.to_string()));
                query.push(("through", filter.through.to_string()));
                if let Some(account) = &filter.account {
                    query.push(("account", account.to_string()));
                }
                ask(socket, Method::GET, &path("/ledger/entries", &query)).await
            }
            Self::File(books) => Ok(report::entries(books, after, filter)?),
        }
    }

    pub(super) async fn verify(&self) -> Result<VerifiedReport> {
        match self {
            Self::Host(socket) => ask(socket, Method::POST, "/ledger/verify").await,
            Self::File(books) => Ok(books
                .verify()
                .context("the ledger does not add up; restore a backup")?
                .into()),
        }
    }
}

async fn ask<T: DeserializeOwned>(socket: &Path, method: Method, path: &str) -> Result<T> {
    let text = call(socket, method, path, String::new()).await?;
    serde_json::from_str(&text).context("the host's answer cannot be read; is it another version?")
}

fn bounds(period: Period) -> Vec<(&'static str, String)> {
    let bounds = [
        ("since", period.since_unix_ms),
        ("until", period.until_unix_ms),
    ];
    let given = bounds
        .into_iter()
        .filter_map(|(name, moment)| Some((name, moment?.to_string())));
    given.collect()
}

fn path(path: &str, query: &[(&str, String)]) -> String {
    let query = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(query)
        .finish();
    format!("{path}?{query}")
}
