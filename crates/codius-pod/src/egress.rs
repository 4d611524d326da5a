//! What the programs of a pod may reach, and how much: the decision, and the trait of what carries it out.
//!
//! ```text
//!   destination ─▶ pods, never to be reached ─▶ refused
//!                ─▶ ranges: permitted? ─ not public, or denied ─▶ refused
//!                ─▶ ports:  permitted? ─ abused, or denied ─────▶ refused
//!                ─▶ limits: packets, bytes, connections ────────▶ dropped
//!                ─▶ the internet
//! ```
//!
//! A [`Permit`] of one pod is above what the operator denies to all, and that is above what he permits to
//! all: the narrower word counts. IPv4 only: pods have no IPv6.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    str::FromStr,
};

use async_trait::async_trait;
use codius_address::{Ipv4Range, NOT_PUBLIC_V4, is_public_v4};
use codius_manifest::ManifestHash;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::DriverError;

/// Carries a policy out for the pods of a driver.
#[async_trait]
pub trait Egress: Send + Sync + 'static {
    /// What one pod may reach beyond the policy, from now on: at once if it runs, and when it is started. An
    /// empty permit takes back what was permitted.
    async fn permit(&self, pod: ManifestHash, permit: Permit) -> Result<(), DriverError>;

    /// What running pods have sent and received since they were started, and what was refused; those that do
    /// not run are left out.
    async fn traffic(
        &self,
        pods: &[ManifestHash],
    ) -> Result<BTreeMap<ManifestHash, Traffic>, DriverError>;

    /// What was refused of all pods together in a second place, behind the rules of each pod: packets to
    /// this host's own public addresses, for one.
    async fn refused_by_host(&self) -> Result<Count, DriverError>;
}

/// What has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Some ports, as `25/tcp`, `137-139/udp`, or `111` for both protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ports {
    first: u16,
    last: u16,
    /// Without one, both are meant.
    protocol: Option<Protocol>,
}

impl Ports {
    const fn of(first: u16, last: u16, protocol: Option<Protocol>) -> Self {
        Self {
            first,
            last,
            protocol,
        }
    }

    pub fn contains(self, port: u16, protocol: Protocol) -> bool {
        self.is_of(protocol) && (self.first..=self.last).contains(&port)
    }

    pub fn is_of(self, protocol: Protocol) -> bool {
        self.protocol.is_none_or(|own| own == protocol)
    }

    /// The first and the last of them.
    pub fn ends(self) -> (u16, u16) {
        (self.first, self.last)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.first)?;
        if self.last != self.first {
            write!(out, "-{}", self.last)?;
        }
        match self.protocol {
            Some(protocol) => write!(out, "/{}", protocol.as_str()),
            None => Ok(()),
        }
    }
}

/// The text names no ports.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} names no ports; write 25, 25/tcp or 137-139/udp, with ports from 1 to 65535")]
pub struct InvalidPorts {
    text: String,
}

/// Characters of a wrong text that its error repeats.
const MAX_QUOTED_CHARS: usize = 64;

impl FromStr for Ports {
    type Err = InvalidPorts;

    fn from_str(text: &str) -> Result<Self, InvalidPorts> {
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let port: u16 = digits.then(|| text.parse().ok()).flatten()?;
            (port > 0).then_some(port)
        };
        let parse = || {
            let (ports, protocol) = match text.split_once('/') {
                Some((ports, "tcp")) => (ports, Some(Protocol::Tcp)),
                Some((ports, "udp")) => (ports, Some(Protocol::Udp)),
                Some(_) => return None,
                None => (text, None),
            };
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            let (first, last) = (port(first)?, port(last)?);
            (first <= last).then_some(Self::of(first, last, protocol))
        };
        parse().ok_or_else(|| InvalidPorts {
            text: text.chars().take(MAX_QUOTED_CHARS).collect(),
        })
    }
}

impl TryFrom<String> for Ports {
    type Error = InvalidPorts;

    fn try_from(text: String) -> Result<Self, InvalidPorts> {
        text.parse()
    }
}

impl From<Ports> for String {
    fn from(ports: Ports) -> Self {
        ports.to_string()
    }
}

const TCP: Option<Protocol> = Some(Protocol::Tcp);
const UDP: Option<Protocol> = Some(Protocol::Udp);

/// Ports that are refused unless the operator permits them, each with what it is abused for. What ordinary
/// programs need is not among them: 22, 53, 80, 443 and whatever is not listed. Because no pod sends with
/// an address that is not its own, it cannot use a reflector against others; but who looks for reflectors
/// is what other networks complain of to the operator.
pub const ABUSED_PORTS: &[(Ports, &str)] = &[
    (Ports::of(7, 7, None), "echo: reflection"),
    (Ports::of(17, 17, None), "quote of the day: reflection"),
    (Ports::of(19, 19, None), "character generator: reflection"),
    (Ports::of(23, 23, TCP), "telnet: worms that try passwords"),
    (
        Ports::of(25, 25, TCP),
        "mail to other people's servers: spam",
    ),
    (Ports::of(69, 69, UDP), "TFTP: reflection"),
    (
        Ports::of(111, 111, None),
        "port mapper: reflection, way to NFS",
    ),
    (
        Ports::of(123, 123, UDP),
        "NTP: reflection; a pod's clock is set by its host",
    ),
    (Ports::of(135, 135, None), "Windows RPC: worms"),
    (Ports::of(137, 139, None), "NetBIOS: reflection, worms"),
    (
        Ports::of(161, 162, UDP),
        "SNMP: reflection, reading routers",
    ),
    (
        Ports::of(389, 389, UDP),
        "LDAP without a connection: reflection",
    ),
    (Ports::of(427, 427, None), "service location: reflection"),
    (Ports::of(445, 445, None), "Windows file sharing: worms"),
    (
        Ports::of(465, 465, TCP),
        "mail submission: spam with stolen accounts",
    ),
    (Ports::of(520, 520, UDP), "RIP: reflection"),
    (
        Ports::of(587, 587, TCP),
        "mail submission: spam with stolen accounts",
    ),
    (Ports::of(623, 623, UDP), "IPMI: taking over servers"),
    (
        Ports::of(1434, 1434, UDP),
        "SQL Server browser: reflection, worms",
    ),
    (Ports::of(1900, 1900, UDP), "SSDP: reflection"),
    (
        Ports::of(2323, 2323, TCP),
        "telnet: worms that try passwords",
    ),
    (
        Ports::of(2375, 2375, TCP),
        "Docker without TLS: worms that mine",
    ),
    (
        Ports::of(3389, 3389, None),
        "remote desktop: tried passwords, reflection",
    ),
    (
        Ports::of(3702, 3702, UDP),
        "web service discovery: reflection",
    ),
    (
        Ports::of(5060, 5061, None),
        "SIP: calls at other people's cost",
    ),
    (Ports::of(5353, 5353, UDP), "multicast DNS: reflection"),
    (Ports::of(5555, 5555, TCP), "Android debugging: worms"),
    (Ports::of(5683, 5683, UDP), "CoAP: reflection"),
    (
        Ports::of(11211, 11211, None),
        "memcached: reflection, reading what it holds",
    ),
    (Ports::of(37810, 37810, UDP), "video recorders: reflection"),
];

/// Ranges that no permit opens: they lead to the host itself, or to no single machine.
const NEVER: [[u8; 4]; 5] = [
    [0, 0, 0, 0],
    [127, 0, 0, 0],
    [169, 254, 0, 0],
    [224, 0, 0, 0],
    [240, 0, 0, 0],
];

/// What no permit opens.
pub fn never_permitted() -> impl Iterator<Item = Ipv4Range> {
    let ranges = NOT_PUBLIC_V4.iter().map(|special| special.range);
    ranges.filter(|range| NEVER.contains(&range.network().octets()))
}

fn is_never(range: Ipv4Range) -> bool {
    never_permitted().any(|never| never.overlaps(range))
}

/// What may be reached although it is not public, or although its port is abused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permit {
    #[serde(default)]
    pub ports: BTreeSet<Ports>,
    #[serde(default)]
    pub ranges: BTreeSet<Ipv4Range>,
}

/// A permit cannot be given. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidPermit {
    #[error(
        "{range} cannot be permitted: it holds addresses of this host itself, metadata services, \
         multicast or broadcast"
    )]
    Never { range: Ipv4Range },
    #[error("{range} cannot be permitted: it holds addresses of other pods ({pool})")]
    Pods { range: Ipv4Range, pool: Ipv4Range },
}

impl Permit {
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.ranges.is_empty()
    }

    /// Refuses what no operator may open by a slip.
    pub fn check(&self, pool: Ipv4Range) -> Result<(), InvalidPermit> {
        for &range in &self.ranges {
            if is_never(range) {
                return Err(InvalidPermit::Never { range });
            }
            if range.overlaps(pool) {
                return Err(InvalidPermit::Pods { range, pool });
            }
        }
        Ok(())
    }

    fn has_address(&self, address: Ipv4Addr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    fn has_port(&self, port: u16, protocol: Protocol) -> bool {
        self.ports
            .iter()
            .any(|ports| ports.contains(port, protocol))
    }
}

/// How much a pod may send and receive. Traffic between the host's proxy and the pod is not counted: the
/// proxy has limits of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EgressLimits {
    /// Packets sent in a second, after a burst of a fifth of it.
    pub packets_per_sec: u32,
    /// Bytes in a second, each way, after a burst of a fifth of it and at least 256 KiB.
    pub bytes_per_sec: u64,
    /// Connections opened in a second, after a burst of the same; an exchange by UDP is one, too.
    pub new_connections_per_sec: u32,
    /// Connections open at the same time; an exchange by UDP is open until the kernel forgets it.
    pub open_connections: u32,
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self {
            packets_per_sec: 20_000,
            bytes_per_sec: 12_800 * 1024,
            new_connections_per_sec: 100,
            open_connections: 1024,
        }
    }
}

/// What the operator says of all pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    /// Besides [`ABUSED_PORTS`].
    pub deny_ports: BTreeSet<Ports>,
    /// Besides what is not public.
    pub deny_ranges: BTreeSet<Ipv4Range>,
    pub permit: Permit,
    pub limits: EgressLimits,
}

/// What becomes of a packet, the limits aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Passes,
    Refused(Refusal),
}

impl EgressPolicy {
    /// What becomes of a packet of a pod with this permit. `pool` is where the pods of this host are. This
    /// is the meaning of the policy; a driver's rules have to do the same, which its tests compare.
    pub fn decide(
        &self,
        own: &Permit,
        pool: Ipv4Range,
        address: Ipv4Addr,
        protocol: Protocol,
        port: u16,
    ) -> Verdict {
        let range_is_open = if pool.contains(address) || is_never(address.into()) {
            false
        } else if own.has_address(address) {
            true
        } else if self.deny_ranges.iter().any(|range| range.contains(address)) {
            false
        } else {
            self.permit.has_address(address) || is_public_v4(address)
        };
        if !range_is_open {
            return Verdict::Refused(Refusal::Range);
        }
        let abused = || {
            let mut abused = ABUSED_PORTS.iter();
            abused.any(|(ports, _)| ports.contains(port, protocol))
        };
        let denied =
            |ports: &BTreeSet<Ports>| ports.iter().any(|ports| ports.contains(port, protocol));
        let port_is_open = own.has_port(port, protocol)
            || !denied(&self.deny_ports) && (self.permit.has_port(port, protocol) || !abused());
        if port_is_open {
            Verdict::Passes
        } else {
            Verdict::Refused(Refusal::Port)
        }
    }
}

/// Why packets of a pod were refused or dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The sender's address or hardware address is not the pod's.
    Spoofed,
    /// IPv6, or anything else that is neither IPv4 nor ARP.
    NotIpv4,
    /// The destination is not public, or denied.
    Range,
    /// The port is abused, or denied.
    Port,
    /// Neither TCP nor UDP nor an ICMP echo request.
    Protocol,
    /// To the pod's own gateway, beside the Interledger port.
    Gateway,
    /// Part of no connection.
    Invalid,
    /// More packets than the limit.
    PacketRate,
    /// More bytes than the limit, sent or received.
    ByteRate,
    /// More new or open connections than the limits.
    Connections,
}

impl Refusal {
    pub const ALL: [Self; 10] = [
        Self::Spoofed,
        Self::NotIpv4,
        Self::Range,
        Self::Port,
        Self::Protocol,
        Self::Gateway,
        Self::Invalid,
        Self::PacketRate,
        Self::ByteRate,
        Self::Connections,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spoofed => "spoofed",
            Self::NotIpv4 => "not_ipv4",
            Self::Range => "range",
            Self::Port => "port",
            Self::Protocol => "protocol",
            Self::Gateway => "gateway",
            Self::Invalid => "invalid",
            Self::PacketRate => "packet_rate",
            Self::ByteRate => "byte_rate",
            Self::Connections => "connections",
        }
    }
}

/// Packets, and their bytes with IP headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// What went through a pod's network since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// To the internet.
    pub sent: Count,
    /// From the internet.
    pub received: Count,
    /// To the host's proxy, and so to visitors.
    pub visitors_sent: Count,
    /// From the host's proxy.
    pub visitors_received: Count,
    /// What did not pass. Each reason is there, also with nothing.
    pub refused: BTreeMap<Refusal, Count>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str = "10.88.0.0/16";

    fn ports(texts: &[&str]) -> BTreeSet<Ports> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ranges(texts: &[&str]) -> BTreeSet<Ipv4Range> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[track_caller]
    fn assert_decided(policy: &EgressPolicy, own: &Permit, cases: &[(&str, &str, Verdict)]) {
        let pool = POOL.parse().unwrap();
        for (address, ports, expected) in cases {
            let ports: Ports = ports.parse().unwrap();
            for protocol in Protocol::ALL.into_iter().filter(|it| ports.is_of(*it)) {
                let verdict =
                    policy.decide(own, pool, address.parse().unwrap(), protocol, ports.first);
                assert_eq!(verdict, *expected, "{address} {ports} {protocol:?}");
            }
        }
    }

    const PASSES: Verdict = Verdict::Passes;
    const RANGE: Verdict = Verdict::Refused(Refusal::Range);
    const PORT: Verdict = Verdict::Refused(Refusal::Port);

    #[test]
    fn unasked_a_pod_reaches_the_internet_and_no_abused_port() {
        assert_decided(
            &EgressPolicy::default(),
            &Permit::default(),
            &[
                ("1.1.1.1", "443", PASSES),
                ("1.1.1.1", "22/tcp", PASSES),
                ("1.1.1.1", "53", PASSES),
                ("1.1.1.1", "50000", PASSES),
                ("1.1.1.1", "25/tcp", PORT),
                ("1.1.1.1", "25/udp", PASSES),
                ("1.1.1.1", "138", PORT),
                ("192.168.0.1", "443", RANGE),
                ("169.254.169.254", "80", RANGE),
                ("10.88.3.6", "80", RANGE),
            ],
        );
        for (ports, why) in ABUSED_PORTS {
            let denied = ports.to_string();
            assert_decided(
                &EgressPolicy::default(),
                &Permit::default(),
                &[("8.8.8.8", &denied, PORT)],
            );
            assert!(!why.is_empty(), "{ports}");
        }
    }

    #[test]
    fn the_narrower_word_counts() {
        let policy = EgressPolicy {
            deny_ports: ports(&["22/tcp", "123/udp"]),
            deny_ranges: ranges(&["9.9.0.0/16", "10.1.1.0/24"]),
            permit: Permit {
                ports: ports(&["123/udp", "587"]),
                ranges: ranges(&["10.1.0.0/16"]),
            },
            ..EgressPolicy::default()
        };
        assert_decided(
            &policy,
            &Permit::default(),
            &[
                ("1.1.1.1", "22/tcp", PORT),
                ("1.1.1.1", "587/tcp", PASSES),
                // Denied and permitted to all: denied.
                ("1.1.1.1", "123/udp", PORT),
                ("10.1.1.1", "80", RANGE),
                ("10.1.2.1", "80", PASSES),
                ("10.1.2.1", "25/tcp", PORT),
                ("9.9.9.9", "53", RANGE),
            ],
        );
        let own = Permit {
            ports: ports(&["22", "25"]),
            ranges: ranges(&["9.9.9.9/32"]),
        };
        assert_decided(
            &policy,
            &own,
            &[
                ("9.9.9.9", "53", PASSES),
                ("9.9.9.8", "53", RANGE),
                ("9.9.9.9", "22/tcp", PASSES),
                ("1.1.1.1", "25/tcp", PASSES),
                ("1.1.1.1", "445", PORT),
            ],
        );
    }

    #[test]
    fn no_permit_opens_the_host_its_metadata_or_other_pods() {
        let pool: Ipv4Range = POOL.parse().unwrap();
        for text in [
            "0.0.0.0/0",
            "127.0.0.1",
            "169.254.169.254/32",
            "224.0.0.251",
            "255.255.255.255",
            "10.0.0.0/8",
            "10.88.1.0/24",
        ] {
            let permit = Permit {
                ranges: ranges(&[text]),
                ..Permit::default()
            };
            permit.check(pool).unwrap_err();
            // Not even if it came past the check.
            let policy = EgressPolicy::default();
            for address in ["127.0.0.1", "169.254.169.254", "10.88.1.6", "224.0.0.251"] {
                assert_decided(&policy, &permit, &[(address, "80", RANGE)]);
            }
        }
        let fine = Permit {
            ranges: ranges(&["10.0.0.0/10", "192.168.0.0/16"]),
            ports: ports(&["25"]),
        };
        fine.check(pool).unwrap();
    }

    #[test]
    fn ports_are_what_they_print() {
        for text in ["25", "25/tcp", "137-139/udp", "1-65535"] {
            assert_eq!(text.parse::<Ports>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "0",
            "x",
            "25/sctp",
            "9-8",
            "65536",
            "+5",
            "1-",
            "1-2-3",
            "25/tcp/udp",
        ] {
            let error = text.parse::<Ports>().unwrap_err().to_string();
            assert!(error.contains("25/tcp"), "{error}");
        }
    }

    #[test]
    fn the_documentation_has_every_range_port_reason_and_limit() {
        let text = include_str!("../../../docs/egress.md");
        let has = |line: &str| assert!(text.lines().any(|it| it.starts_with(line)), "{line}");
        for special in NOT_PUBLIC_V4 {
            has(&format!(
                "| {} | {} | {} |",
                special.range, special.name, special.source
            ));
        }
        for special in codius_address::NOT_PUBLIC_V6 {
            let (range, name, source) = (special.range, special.name, special.source);
            has(&format!("| {range} | {name} | {source} | not public |"));
        }
        for (special, _) in codius_address::EMBEDDED_V4 {
            let (range, name, source) = (special.range, special.name, special.source);
            has(&format!("| {range} | {name} | {source} | judged by"));
        }
        for (ports, why) in ABUSED_PORTS {
            has(&format!("| {ports} | {why} |"));
        }
        for refusal in Refusal::ALL {
            assert!(
                text.contains(&format!("`{}`", refusal.as_str())),
                "{refusal:?}"
            );
        }
        let limits = EgressLimits::default();
        assert_eq!(limits.packets_per_sec, 20_000);
        assert_eq!(limits.bytes_per_sec, 12_800 * 1024);
        has("| packets sent in a second | 20,000;");
        has("| KiB sent in a second, and received in a second | 12,800 ");
        let (new, open) = (limits.new_connections_per_sec, limits.open_connections);
        assert_eq!(open, 1024);
        has(&format!(
            "| new connections in a second | {new}; at once {new} |"
        ));
        has("| open connections | 1,024 |");
    }

    #[test]
    fn every_reason_is_counted_under_its_own_name() {
        let names: BTreeSet<&str> = Refusal::ALL.iter().map(|it| it.as_str()).collect();
        assert_eq!(names.len(), Refusal::ALL.len());
        for refusal in Refusal::ALL {
            let json = serde_json::to_value(refusal).unwrap();
            assert_eq!(json, refusal.as_str());
        }
    }
}
