//! `GET /metrics`, for Prometheus: what the host has sold, and what each pod uses.
//!
//! Counters of a pod begin anew when its machine is started anew, which Prometheus takes for a reset. They go on
//! over restarts of the daemon: what counts is the machine's process and the firewall.

use std::fmt::{Display, Write as _};

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use codius_pod::{Count, PodUsage, Traffic};

use super::{
    Shared,
    capacity::{CapacityReport, UsageReport},
};
use crate::egress::TrafficReport;

const MIB: u64 = 1 << 20;

pub(super) async fn show(State(admin): Shared) -> Response {
    let running = admin.leases.overview().into_iter();
    let pods: Vec<_> = running.map(|(hash, _)| hash).collect();
    let (traffic, usage) = tokio::join!(
        admin.leases.egress.traffic_of(&pods),
        UsageReport::of(&admin.leases, &pods)
    );
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    let text = exposition(&CapacityReport::of(&admin.leases), &usage, &traffic);
    (StatusCode::OK, kind, text).into_response()
}

/// The text format of Prometheus. No text in it comes from strangers: hashes are letters and digits.
#[derive(Default)]
struct Exposition {
    text: String,
}

impl Exposition {
    fn family<V: Display>(
        &mut self,
        kind: &str,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, V)>,
    ) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.text, "{name}{labels} {value}");
        }
    }

    fn gauge<V: Display>(&mut self, name: &str, help: &str, value: V) {
        self.family("gauge", name, help, [(String::new(), value)]);
    }

    fn of_pods<V: Display>(
        &mut self,
        kind: &str,
        name: &str,
        help: &str,
        usage: &UsageReport,
        value: fn(&PodUsage) -> V,
    ) {
        let samples = usage
            .pods
            .iter()
            .map(|(pod, usage)| (format!("{{pod=\"{pod}\"}}"), value(usage)));
        self.family(kind, name, help, samples);
    }
}

fn exposition(sold: &CapacityReport, usage: &UsageReport, traffic: &TrafficReport) -> String {
    let mut out = Exposition::default();
    capacity(&mut out, sold);
    pods(&mut out, usage);
    networks(&mut out, traffic);
    out.text
}

fn capacity(out: &mut Exposition, sold: &CapacityReport) {
    out.gauge("codius_host_pods", "Pods that have room.", sold.pods.sold);
    out.gauge(
        "codius_host_memory_promised_bytes",
        "Memory promised to pods, with what the host needs to run each.",
        sold.memory_mib.sold.saturating_mul(MIB),
    );
    out.gauge(
        "codius_host_disk_promised_bytes",
        "Disk promised to pods.",
        sold.disk_mib.sold.saturating_mul(MIB),
    );
    out.gauge(
        "codius_host_vcpus_sold",
        "Virtual processors of all pods.",
        sold.vcpus.sold,
    );
    out.gauge(
        "codius_host_cores",
        "Processors of this machine.",
        sold.cores,
    );
    out.gauge(
        "codius_host_cpu_overcommit_ratio",
        "Virtual processors of all pods for each processor of this machine.",
        sold.cpu_overcommit,
    );
    // A bound that is not there has no sample.
    let mut bound = |name: &str, help: &str, of: Option<u64>, unit: u64| {
        if let Some(of) = of {
            out.gauge(name, help, of.saturating_mul(unit));
        }
    };
    bound("codius_host_pods_limit", "The most pods.", sold.pods.of, 1);
    bound(
        "codius_host_memory_limit_bytes",
        "The most memory that is promised to pods.",
        sold.memory_mib.of,
        MIB,
    );
    bound(
        "codius_host_disk_limit_bytes",
        "The most disk that is promised to pods.",
        sold.disk_mib.of,
        MIB,
    );
    bound(
        "codius_host_vcpus_limit",
        "The most virtual processors that are sold.",
        sold.vcpus.of,
        1,
    );
}

fn pods(out: &mut Exposition, usage: &UsageReport) {
    out.of_pods(
        "counter",
        "codius_pod_cpu_seconds_total",
        "Time of the host's processors that a pod has used.",
        usage,
        |pod| format!("{}.{:03}", pod.cpu_ms / 1000, pod.cpu_ms % 1000),
    );
    out.of_pods(
        "gauge",
        "codius_pod_memory_bytes",
        "Memory of the host that a pod has now.",
        usage,
        |pod| pod.memory_bytes,
    );
    out.of_pods(
        "gauge",
        "codius_pod_memory_peak_bytes",
        "The most memory of the host that a pod had.",
        usage,
        |pod| pod.memory_peak_bytes,
    );
    out.of_pods(
        "gauge",
        "codius_pod_disk_bytes",
        "What a pod's writable disk takes now.",
        usage,
        |pod| pod.disk_bytes,
    );
    out.of_pods(
        "counter",
        "codius_pod_disk_read_bytes_total",
        "Bytes that a pod has read from the host's disks.",
        usage,
        |pod| pod.disk_read_bytes,
    );
    out.of_pods(
        "counter",
        "codius_pod_disk_written_bytes_total",
        "Bytes that a pod has written to the host's disks.",
        usage,
        |pod| pod.disk_written_bytes,
    );
}

fn networks(out: &mut Exposition, report: &TrafficReport) {
    let each = |of: fn(&Count) -> u64| {
        let pods = report.pods.iter();
        let samples = pods.flat_map(move |(pod, traffic)| {
            exchanged(traffic).map(|(with, direction, count)| {
                let labels = format!("{{pod=\"{pod}\",with=\"{with}\",direction=\"{direction}\"}}");
                (labels, of(&count))
            })
        });
        samples.collect::<Vec<_>>()
    };
    out.family(
        "counter",
        "codius_pod_network_bytes_total",
        "Bytes with IP headers that a pod has sent and received.",
        each(|count| count.bytes),
    );
    out.family(
        "counter",
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
    out.family(
        "counter",
        "codius_pod_refused_packets_total",
        "Packets of a pod that were refused or dropped.",
        refused,
    );
    out.family(
        "counter",
        "codius_host_refused_packets_total",
        "Packets of all pods that were refused behind each pod's own rules, such as those to this host.",
        [(String::new(), report.refused_by_host.packets)],
    );
}

fn exchanged(traffic: &Traffic) -> [(&'static str, &'static str, Count); 4] {
    [
        ("internet", "sent", traffic.sent),
        ("internet", "received", traffic.received),
        ("visitors", "sent", traffic.visitors_sent),
        ("visitors", "received", traffic.visitors_received),
    ]
}

#[cfg(test)]
mod tests {
    use codius_pod::Refusal;

    use super::{super::capacity::Bounded, *};

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
        let traffic = TrafficReport {
            pods: [("abc".to_owned(), traffic)].into(),
            refused_by_host: Count {
                packets: 1,
                bytes: 60,
            },
        };
        let used = PodUsage {
            cpu_ms: 12_034,
            memory_bytes: 5,
            memory_peak_bytes: 6,
            disk_bytes: 7,
            disk_read_bytes: 8,
            disk_written_bytes: 9,
        };
        let usage = UsageReport {
            pods: [("abc".to_owned(), used)].into(),
        };
        let bounded = |sold, of| Bounded { sold, of };
        let sold = CapacityReport {
            memory_mib: bounded(2, Some(4)),
            disk_mib: bounded(3, Some(5)),
            vcpus: bounded(3, None),
            pods: bounded(1, Some(100)),
            cores: 2,
            cpu_overcommit: 1.5,
            sizes: Vec::new(),
        };
        let text = exposition(&sold, &usage, &traffic);
        for line in [
            "# TYPE codius_pod_network_bytes_total counter",
            "codius_pod_network_bytes_total{pod=\"abc\",with=\"internet\",direction=\"sent\"} 300",
            "codius_pod_network_packets_total{pod=\"abc\",with=\"internet\",direction=\"sent\"} 2",
            "codius_pod_refused_packets_total{pod=\"abc\",reason=\"port\"} 7",
            "codius_host_refused_packets_total 1",
            "codius_pod_cpu_seconds_total{pod=\"abc\"} 12.034",
            "# TYPE codius_pod_memory_bytes gauge",
            "codius_pod_memory_peak_bytes{pod=\"abc\"} 6",
            "codius_pod_disk_bytes{pod=\"abc\"} 7",
            "codius_pod_disk_written_bytes_total{pod=\"abc\"} 9",
            "codius_host_memory_promised_bytes 2097152",
            "codius_host_disk_limit_bytes 5242880",
            "codius_host_cpu_overcommit_ratio 1.5",
        ] {
            assert!(
                text.lines().any(|it| it == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(!text.contains("vcpus_limit"), "there is none:\n{text}");
        assert!(text.ends_with('\n'));
    }
}
