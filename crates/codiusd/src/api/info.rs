//! What this host says of itself.

use std::fs;

use axum::{
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use codius_api::{AssetInfo, HostInfo, Info, Memory, Version};
use codius_pod::Machine;

use super::{Api, Shared, json, peers, query};

const MIB: u64 = 1024 * 1024;
/// What this program calls itself; the original says `Codiusd (JavaScript)`.
pub(super) const NAME: &str = "Codiusd (Rust)";

pub(super) async fn version() -> Response {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    json(
        StatusCode::OK,
        &Version {
            name: NAME.to_owned(),
            version,
        },
    )
}

pub(super) async fn memory(State(api): Shared) -> Response {
    json(
        StatusCode::OK,
        &Memory {
            free_mem: api.leases.admission.free_mib() * MIB,
        },
    )
}

pub(super) async fn info(State(api): Shared, uri: Uri) -> Response {
    let mut info = describe(&api);
    if query::value(uri.query(), "requestPeers").is_some_and(|value| value == "true") {
        info.peers = Some(api.peers.sample(peers::MAX_PEERS));
    }
    json(StatusCode::OK, &info)
}

pub(super) fn describe(api: &Api) -> Info {
    let leases = &api.leases;
    let has_room = leases.admission.has_room_for(Machine::SMALL);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Info {
        full_mem: !has_room,
        accepting_uploads: has_room && !leases.closing.is_cancelled() && !leases.drain.is_on(),
        server_free_memory: leases.admission.free_mib() * MIB,
        server_uptime: first_number("/proc/uptime").map_or(0, whole),
        service_uptime: api.started.elapsed().as_secs(),
        #[expect(clippy::cast_precision_loss, reason = "no machine has 2^52 cores")]
        avg_load: first_number("/proc/loadavg").unwrap_or_default() / cores as f64,
        num_peers: u64::try_from(api.peers.count()).unwrap_or(u64::MAX),
        currency: api.asset.code().to_owned(),
        cost_per_month: leases
            .rate
            .cost_per_month()
            .parse()
            .unwrap_or_else(|_| 0.into()),
        uri: leases.public_uri.as_str().trim_end_matches('/').to_owned(),
        self_test_success: api.self_test.stats().self_test_success,
        running_contracts: api
            .publish_running
            .then(|| u64::try_from(leases.running()).unwrap_or(u64::MAX)),
        peers: None,
        host: Some(HostInfo {
            isolation: api.isolation.to_string(),
            isolation_reason: api.isolation_reason.clone(),
            asset: AssetInfo {
                code: api.asset.code().to_owned(),
                scale: api.asset.scale(),
            },
            price_per_second: leases.rate.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }),
    }
}

/// The page that a browser sees at the host's own address.
pub(super) fn page(api: &Api) -> impl IntoResponse {
    let info = describe(api);
    let row = |name: &str, id: &str, value: String| {
        format!(
            "<tr><th scope=\"row\">{name}</th><td id=\"{id}\">{}</td></tr>\n",
            escape(&value)
        )
    };
    let rows = [
        row("Address", "uri", info.uri),
        row("Known hosts", "numPeers", info.num_peers.to_string()),
        row("Machine up", "serverUptime", span(info.server_uptime)),
        row("Host up", "serviceUptime", span(info.service_uptime)),
        row("Load per core", "avgLoad", format!("{:.2}", info.avg_load)),
        row(
            "Price of a pod",
            "costPerMonth",
            format!("{} {} a month", info.cost_per_month, info.currency),
        ),
        row("Currency", "currency", info.currency),
        row(
            "Memory for pods",
            "memory",
            format!("{} MiB free", info.server_free_memory / MIB),
        ),
        row(
            "Room for a pod",
            "fullMem",
            if info.full_mem { "no" } else { "yes" }.to_owned(),
        ),
        match info.running_contracts {
            Some(count) => row("Pods running", "runningContracts", count.to_string()),
            None => String::new(),
        },
        row(
            "Isolation",
            "isolation",
            format!("{}: {}", api.isolation, api.isolation_reason),
        ),
    ];
    let html = format!(
        include_str!("page.html"),
        rows = rows.concat(),
        version = env!("CARGO_PKG_VERSION")
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'",
        ),
    ];
    (headers, html)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Seconds as people say them.
fn span(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs} s"),
        60..3600 => format!("{} min", secs / 60),
        3600..86_400 => format!("{} h {} min", secs / 3600, secs / 60 % 60),
        86_400.. => format!("{} d {} h", secs / 86_400, secs / 3600 % 24),
    }
}

/// The first number in a file of /proc.
fn first_number(path: &str) -> Option<f64> {
    fs::read_to_string(path)
        .ok()?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounding down is meant; `as` saturates"
)]
fn whole(number: f64) -> u64 {
    number as u64
}
