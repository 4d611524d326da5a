//! `codiusd admin`: asks the host of a data directory through its socket, and prints what it says.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use codius_address::Ipv4Range;
use codius_api::ErrorBody;
use codius_manifest::ManifestHash;
use codius_pod::{Permit, Ports};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{
    SOCKET,
    capacity::{Bounded, CapacityReport, UsageReport},
    egress::{PermitChange, PermitOf},
    house::{ImagesReport, RuleChange, RuleChanged, StopPod, StoppedPod},
    reports::{AccountsReport, PeersReport, PodReport, Pods, Uptime},
};
use crate::{
    egress::{EgressReport, TrafficReport},
    rules::RulesReport,
};

/// How long the host may take.
const TIMEOUT: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// What an operator asks a host that runs.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// The pods that run
    Pods,
    /// One pod
    Pod {
        /// Its manifest hash
        hash: String,
    },
    /// For how long the running pods are paid, and what was earned in all
    Uptime,
    /// The Interledger accounts, and what happened on them
    Accounts,
    /// The other hosts that this one knows
    Peers,
    /// Set what a small pod costs for a month, for new leases
    SetPrice {
        /// In whole units of the asset, such as 10 or 0.5
        price: serde_json::Number,
    },
    /// What is sold of this machine, the sizes of pods, and what each costs
    Capacity,
    /// What each running pod has used of processors, memory and disk
    Usage,
    /// The images that are here, and what they take on disk
    Images,
    /// Who may run what: the rules of the configuration and those made here
    Rules,
    /// Refuse a manifest or images from now on, also after a restart
    Deny {
        /// A manifest hash, or a pattern such as docker.io/team/app, docker.io/team/*, *.example, sha256:…
        rule: String,
    },
    /// Take back what `deny` has said
    Undeny {
        /// As `rules` shows it
        rule: String,
    },
    /// What pods may reach, and what they have sent
    #[command(subcommand)]
    Egress(EgressCommand),
    /// End a pod; what it has not used stays owed to those who paid
    Stop {
        /// Its manifest hash
        hash: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EgressCommand {
    /// What holds for all pods by the configuration, and what single programs may reach besides
    List,
    /// Let one program reach more: at once if it runs, and whenever it is started
    Allow(PermitArguments),
    /// Take back what `allow` has said; without ports and ranges all of it
    Remove(PermitArguments),
    /// What each running pod has sent and received, and what was refused
    Traffic,
}

#[derive(Debug, Args)]
pub(crate) struct PermitArguments {
    /// Its manifest hash
    hash: ManifestHash,
    /// Ports, such as 25/tcp, 137-139/udp, or 25 for both protocols
    #[arg(long = "port")]
    ports: Vec<Ports>,
    /// Addresses, such as 10.1.0.0/16
    #[arg(long = "range")]
    ranges: Vec<Ipv4Range>,
}

impl From<&PermitArguments> for PermitOf {
    fn from(arguments: &PermitArguments) -> Self {
        Self {
            hash: arguments.hash,
            ports: arguments.ports.clone(),
            ranges: arguments.ranges.clone(),
        }
    }
}

/// Asks, and prints a table or JSON.
pub(crate) fn run(command: &AdminCommand, data_dir: &Path, as_json: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let socket = data_dir.join(SOCKET);
    let text = runtime.block_on(async {
        let answered = tokio::time::timeout(TIMEOUT, ask(command, &socket));
        answered.await.context("the host does not answer in time")?
    })?;
    if as_json {
        if !text.is_empty() {
            println!("{text}");
        }
        return Ok(());
    }
    print!("{}", shown(command, &text)?);
    Ok(())
}

/// The body of the host's answer.
async fn ask(command: &AdminCommand, socket: &Path) -> Result<String> {
    let (method, path, body) = match command {
        AdminCommand::Pods => (Method::GET, "/getPods".to_owned(), String::new()),
        AdminCommand::Pod { hash } => {
            let id: String = url::form_urlencoded::byte_serialize(hash.as_bytes()).collect();
            (Method::GET, format!("/getPodInfo?id={id}"), String::new())
        }
        AdminCommand::Uptime => (Method::GET, "/getAllUptime".to_owned(), String::new()),
        AdminCommand::Accounts => (Method::GET, "/accounts".to_owned(), String::new()),
        AdminCommand::Peers => (Method::GET, "/peers".to_owned(), String::new()),
        AdminCommand::SetPrice { price } => {
            let body = format!("{{\"hostCostPerMonth\":{price}}}");
            (Method::POST, "/config".to_owned(), body)
        }
        AdminCommand::Capacity => (Method::GET, "/capacity".to_owned(), String::new()),
        AdminCommand::Usage => (Method::GET, "/usage".to_owned(), String::new()),
        AdminCommand::Images => (Method::GET, "/images".to_owned(), String::new()),
        AdminCommand::Rules => (Method::GET, "/rules".to_owned(), String::new()),
        AdminCommand::Deny { rule } => {
            let body = serde_json::to_string(&RuleChange::Deny(rule.clone()))?;
            (Method::POST, "/rules".to_owned(), body)
        }
        AdminCommand::Undeny { rule } => {
            let body = serde_json::to_string(&RuleChange::Undeny(rule.clone()))?;
            (Method::POST, "/rules".to_owned(), body)
        }
        AdminCommand::Egress(EgressCommand::List) => {
            (Method::GET, "/egress".to_owned(), String::new())
        }
        AdminCommand::Egress(EgressCommand::Traffic) => {
            (Method::GET, "/egress/traffic".to_owned(), String::new())
        }
        AdminCommand::Egress(EgressCommand::Allow(permit)) => {
            let body = serde_json::to_string(&PermitChange::Allow(permit.into()))?;
            (Method::POST, "/egress".to_owned(), body)
        }
        AdminCommand::Egress(EgressCommand::Remove(permit)) => {
            let body = serde_json::to_string(&PermitChange::Remove(permit.into()))?;
            (Method::POST, "/egress".to_owned(), body)
        }
        AdminCommand::Stop { hash } => {
            let body = serde_json::to_string(&StopPod { id: hash.clone() })?;
            (Method::POST, "/stopPod".to_owned(), body)
        }
    };
    call(socket, method, &path, body).await
}

/// The body of the answer to one request through the socket.
pub(crate) async fn call(
    socket: &Path,
    method: Method,
    path: &str,
    body: String,
) -> Result<String> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "no host answers at {}; start codiusd, or name its data directory with --data-dir",
            socket.display()
        )
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let text = String::from_utf8(body.into()).context("the host's answer is no text")?;
    if status.is_success() {
        return Ok(text);
    }
    bail!(refusal(status, &text))
}

fn refusal(status: StatusCode, text: &str) -> String {
    let Ok(error) = serde_json::from_str::<ErrorBody>(text) else {
        return format!("the host answers with status {status}");
    };
    // Where there is no more to say, the detail repeats the message.
    let detail = error.detail.filter(|detail| *detail != error.message);
    let more = [detail, error.next];
    let more = more.into_iter().flatten().map(|more| format!("; {more}"));
    std::iter::once(error.message).chain(more).collect()
}

/// What is sold, then the sizes.
fn capacity(report: CapacityReport, yes: impl Fn(bool) -> String) -> String {
    let of = |bounded: Bounded, unit: &str| match bounded.of {
        Some(of) => format!("{} of {of}{unit}", bounded.sold),
        None => format!("{}{unit}, no limit", bounded.sold),
    };
    let facts = facts(&[
        ("pods", of(report.pods, "")),
        ("memory promised", of(report.memory_mib, " MiB")),
        ("disk promised", of(report.disk_mib, " MiB")),
        ("processors sold", of(report.vcpus, "")),
        ("cores", report.cores.to_string()),
        ("sold per core", format!("{:.2}", report.cpu_overcommit)),
    ]);
    let head = [
        "SIZE",
        "PROCESSORS",
        "MEMORY MIB",
        "DISK MIB",
        "PER MONTH",
        "ROOM",
    ];
    let rows = report.sizes.into_iter().map(|size| {
        vec![
            size.name,
            size.vcpus.to_string(),
            size.memory_mib.to_string(),
            size.disk_mib.to_string(),
            size.cost_per_month,
            yes(size.has_room),
        ]
    });
    format!("{facts}\n{}", table(&head, rows))
}

/// The answer for people.
fn shown(command: &AdminCommand, text: &str) -> Result<String> {
    fn read<T: DeserializeOwned>(text: &str) -> Result<T> {
        serde_json::from_str(text)
            .context("the host's answer cannot be read; is it another version?")
    }
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    Ok(match command {
        AdminCommand::Pods => {
            let pods: Pods = read(text)?;
            table(&["POD"], pods.running.into_iter().map(|hash| vec![hash]))
        }
        AdminCommand::Pod { .. } => {
            let pod: PodReport = read(text)?;
            let address = match (pod.ip, pod.port) {
                (Some(ip), Some(port)) => format!("{ip}:{port}"),
                _ => "none: its manifest has no port".to_owned(),
            };
            facts(&[
                ("pod", pod.id),
                ("started", pod.start.to_string()),
                ("expires", pod.expiry.to_string()),
                ("paid for", format!("{} s", pod.total_uptime)),
                ("memory", format!("{} MiB", pod.memory)),
                ("address", address),
            ])
        }
        AdminCommand::Uptime => {
            let uptime: Uptime = read(text)?;
            let earned = uptime.aggregate_earnings.into_iter();
            let earned: Vec<String> = earned.map(|(code, sum)| format!("{sum} {code}")).collect();
            facts(&[
                (
                    "running pods are paid for",
                    format!("{} s", uptime.aggregate_pod_uptime),
                ),
                ("earned in all", earned.join(", ")),
            ])
        }
        AdminCommand::Accounts => {
            let report: AccountsReport = read(text)?;
            let head = [
                "ACCOUNT",
                "RELATION",
                "CONNECTED",
                "STOPPED",
                "BALANCE",
                "IN FLIGHT",
                "PREPARES IN",
                "FULFILLED",
                "REJECTED",
                "AMOUNT IN",
                "PREPARES OUT",
                "FULFILLED",
                "AMOUNT OUT",
            ];
            table(
                &head,
                report.accounts.into_iter().map(|account| {
                    vec![
                        account.id,
                        account.relation,
                        yes(account.connected),
                        yes(account.stopped),
                        account.balance,
                        account.in_flight.to_string(),
                        account.prepares_from.to_string(),
                        account.fulfills_from.to_string(),
                        account.rejects_from.to_string(),
                        account.amount_from,
                        account.prepares_to.to_string(),
                        account.fulfills_to.to_string(),
                        account.amount_to,
                    ]
                }),
            )
        }
        AdminCommand::Peers => {
            let report: PeersReport = read(text)?;
            let head = [
                "PEER",
                "LISTED",
                "BOOTSTRAP",
                "FAILURES",
                "ANSWERED",
                "NEXT CHECK",
            ];
            table(
                &head,
                report.peers.into_iter().map(|peer| {
                    let answered = peer.seen_secs_ago.map(|secs| format!("{secs} s ago"));
                    vec![
                        peer.url,
                        yes(peer.listed),
                        yes(peer.bootstrap),
                        peer.failures.to_string(),
                        answered.unwrap_or_else(|| "never".to_owned()),
                        format!("in {} s", peer.next_check_secs),
                    ]
                }),
            )
        }
        AdminCommand::Capacity => capacity(read(text)?, yes),
        AdminCommand::Usage => {
            let report: UsageReport = read(text)?;
            let head = [
                "POD",
                "CPU S",
                "MEMORY MIB",
                "PEAK MIB",
                "DISK MIB",
                "READ MIB",
                "WRITTEN MIB",
            ];
            let mib = |bytes: u64| bytes.div_ceil(MIB).to_string();
            let rows = report.pods.into_iter().map(|(pod, used)| {
                vec![
                    pod,
                    format!("{}.{:03}", used.cpu_ms / 1000, used.cpu_ms % 1000),
                    mib(used.memory_bytes),
                    mib(used.memory_peak_bytes),
                    mib(used.disk_bytes),
                    mib(used.disk_read_bytes),
                    mib(used.disk_written_bytes),
                ]
            });
            table(&head, rows)
        }
        AdminCommand::Images => {
            let report: ImagesReport = read(text)?;
            let head = ["IMAGE", "MIB", "LAST USED", "PINNED", "DIGEST"];
            let rows = report.images.into_iter().map(|image| {
                vec![
                    image.reference,
                    image.bytes.div_ceil(MIB).to_string(),
                    image.used.to_string(),
                    yes(image.pinned),
                    image.digest,
                ]
            });
            let taken = report.bytes_taken.div_ceil(MIB);
            format!("{}{taken} MiB in all\n", table(&head, rows))
        }
        AdminCommand::Rules => {
            let report: RulesReport = read(text)?;
            let lists = [
                ("images allow", report.allow),
                ("images deny", report.deny),
                ("images pin", report.pin),
                ("pods allow_hashes", report.allow_hashes),
                ("pods deny_hashes", report.deny_hashes),
                ("denied here", report.denied_here),
            ];
            let rows = lists.into_iter().flat_map(|(list, rules)| {
                rules
                    .into_iter()
                    .map(move |rule| vec![list.to_owned(), rule])
            });
            table(&["LIST", "RULE"], rows)
        }
        AdminCommand::Deny { rule } => {
            let changed: RuleChanged = read(text)?;
            let running = changed.running.into_iter().map(|hash| {
                format!("It runs here, and goes on until: codiusd admin stop {hash}\n")
            });
            let said = format!("{rule} is denied from now on.\n");
            std::iter::once(said).chain(running).collect()
        }
        AdminCommand::Egress(EgressCommand::List) => egress_list(read(text)?),
        AdminCommand::Egress(EgressCommand::Traffic) => traffic_table(read(text)?),
        AdminCommand::Egress(EgressCommand::Allow(permit) | EgressCommand::Remove(permit)) => {
            let report: EgressReport = read(text)?;
            let hash = permit.hash.to_string();
            match report.permits.get(&hash) {
                Some(permit) => {
                    format!("{hash} may reach {} besides, from now on.\n", spelt(permit))
                }
                None => format!("{hash} may reach what every pod may, from now on.\n"),
            }
        }
        AdminCommand::Undeny { rule } => format!("{rule} is not denied any more.\n"),
        AdminCommand::Stop { hash } => {
            let stopped: StoppedPod = read(text)?;
            let owed = stopped.owed;
            format!(
                "{hash} has ended; {owed} (smallest units) are owed to those who paid for it.\n"
            )
        }
        AdminCommand::SetPrice { price } => {
            format!(
                "A small pod costs {price} a month from now on; leases that run keep their price.\n"
            )
        }
    })
}

fn spelt(permit: &Permit) -> String {
    let ports = permit.ports.iter().map(ToString::to_string);
    let ranges = permit.ranges.iter().map(ToString::to_string);
    ports.chain(ranges).collect::<Vec<_>>().join(", ")
}

fn egress_list(report: EgressReport) -> String {
    let lists = [
        ("egress deny_ports", report.deny_ports),
        ("egress allow_ports", report.allow_ports),
        ("egress deny_ranges", report.deny_ranges),
        ("egress allow_ranges", report.allow_ranges),
    ];
    let rows = lists.into_iter().flat_map(|(list, entries)| {
        let entries = entries.into_iter();
        entries.map(move |entry| vec![list.to_owned(), entry])
    });
    let limits = [
        ("max_packets_per_sec", u64::from(report.max_packets_per_sec)),
        ("max_kib_per_sec", report.max_kib_per_sec),
        (
            "max_new_connections_per_sec",
            u64::from(report.max_new_connections_per_sec),
        ),
        (
            "max_open_connections",
            u64::from(report.max_open_connections),
        ),
    ];
    let limits = limits.map(|(name, limit)| vec![format!("egress {name}"), limit.to_string()]);
    let permits = report.permits.iter();
    let permits = permits.map(|(hash, permit)| vec![hash.clone(), spelt(permit)]);
    table(&["LIST OR POD", "WHAT"], rows.chain(limits).chain(permits))
}

fn traffic_table(report: TrafficReport) -> String {
    let head = [
        "POD",
        "SENT",
        "RECEIVED",
        "TO VISITORS",
        "FROM VISITORS",
        "REFUSED PACKETS",
    ];
    let rows = report.pods.into_iter().map(|(hash, traffic)| {
        let refused = traffic.refused.iter();
        let refused = refused.filter(|(_, count)| count.packets > 0);
        let refused =
            refused.map(|(refusal, count)| format!("{} {}", refusal.as_str(), count.packets));
        let refused: Vec<String> = refused.collect();
        vec![
            hash,
            traffic.sent.bytes.to_string(),
            traffic.received.bytes.to_string(),
            traffic.visitors_sent.bytes.to_string(),
            traffic.visitors_received.bytes.to_string(),
            refused.join(", "),
        ]
    });
    let by_host = report.refused_by_host.packets;
    format!(
        "{}{by_host} packets refused behind the pods' own rules, such as those to this host\n",
        table(&head, rows)
    )
}

pub(crate) fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = rows
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}\n"));
    lines.collect()
}

/// Columns as wide as what is in them.
pub(crate) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a", "1"], ["bcdef", "22"]].map(|row| row.map(str::to_owned).to_vec());
        let text = table(&["X", "YY"], rows.into_iter());
        assert_eq!(text, "X      YY\na      1\nbcdef  22\n");
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let error = ErrorBody::new(404, "no pod").with_next("look at the list");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(
            refusal(StatusCode::NOT_FOUND, &text),
            "no pod; look at the list"
        );
    }
}
