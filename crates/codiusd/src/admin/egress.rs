//! What pods reach, as the operator sees and changes it: permits, counters, and the counters as metrics.

use std::fmt::Write as _;

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use codius_manifest::ManifestHash;
use codius_pod::{Count, Permit};
use serde::{Deserialize, Serialize};

use super::{Shared, house::read};
use crate::{
    api::json,
    egress::{Change, PermitError, TrafficReport},
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
    let pods = running.map(|(hash, _)| hash).collect();
    json(StatusCode::OK, &admin.leases.egress.traffic_of(pods).await)
}

/// `GET /metrics`, for Prometheus.
pub(super) async fn metrics(State(admin): Shared) -> Response {
    let running = admin.leases.overview().into_iter();
    let pods = running.map(|(hash, _)| hash).collect();
    let report = admin.leases.egress.traffic_of(pods).await;
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (StatusCode::OK, kind, exposition(&report)).into_response()
}

/// The text format of Prometheus. Counters begin anew with each pod. No text in it comes from strangers:
/// hashes are letters and digits.
fn exposition(report: &TrafficReport) -> String {
    let mut text = String::new();
    let mut family = |name: &str, help: &str, samples: Vec<(String, u64)>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let each = |of: fn(&Count) -> u64| {
        let pods = report.pods.iter();
        let samples = pods.flat_map(move |(pod, traffic)| {
            [
                ("internet", "sent", traffic.sent),
                ("internet", "received", traffic.received),
                ("visitors", "sent", traffic.visitors_sent),
                ("visitors", "received", traffic.visitors_received),
            ]
            .map(|(with, direction, count)| {
                let labels = format!("{{pod=\"{pod}\",with=\"{with}\",direction=\"{direction}\"}}");
                (labels, of(&count))
            })
        });
        samples.collect()
    };
    family(
        "codius_pod_network_bytes_total",
        "Bytes with IP headers that a pod has sent and received.",
        each(|count| count.bytes),
    );
    family(
        "codius_pod_network_packets_total",
        "Packets that a pod has sent and received.",
        each(|count| count.packets),
    );
    let pods = report.pods.iter();
    let refused = pods.flat_map(|(pod, traffic)| {
        let refused = traffic.refused.iter();
        refused.map(move |(refusal, count)| {
            let reason = refusal.as_str();
            let labels = format!("{{pod=\"{pod}\",reason=\"{reason}\"}}");
            (labels, count.packets)
        })
    });
    family(
        "codius_pod_refused_packets_total",
        "Packets of a pod that were refused or dropped.",
        refused.collect(),
    );
    family(
        "codius_host_refused_packets_total",
        "Packets of all pods that were refused behind each pod's own rules, such as those to this host.",
        vec![(String::new(), report.refused_by_host.packets)],
    );
    text
}

#[cfg(test)]
mod tests {
    use codius_pod::{Refusal, Traffic};

    use super::*;

    #[test]
    fn metrics_are_in_the_format_of_prometheus() {
        let mut traffic = Traffic {
            sent: Count {
                packets: 2,
                bytes: 300,
            },
            ..Traffic::default()
        };
        traffic.refused.insert(
            Refusal::Port,
            Count {
                packets: 7,
                bytes: 420,
            },
        );
        let report = TrafficReport {
            pods: [("abc".to_owned(), traffic)].into(),
            refused_by_host: Count {
                packets: 1,
                bytes: 60,
            },
        };
        let text = exposition(&report);
        for line in [
            "# TYPE codius_pod_network_bytes_total counter",
            "codius_pod_network_bytes_total{pod=\"abc\",with=\"internet\",direction=\"sent\"} 300",
            "codius_pod_network_packets_total{pod=\"abc\",with=\"internet\",direction=\"sent\"} 2",
            "codius_pod_refused_packets_total{pod=\"abc\",reason=\"port\"} 7",
            "codius_host_refused_packets_total 1",
        ] {
            assert!(
                text.lines().any(|it| it == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(text.ends_with('\n'));
    }
}
