//! The rules, as text for `nft -f -`.
//!
//! Two tables decide for a pod, and a third holds for all pods once more:
//!
//! ```text
//!  guest ─▶ tap0 ─ netdev pod: its own addresses only ─ inet pod: limits, ranges, ports ─▶ up0 ─ veth ─▶
//!        ─ inet codius_IIII: not to this host, not to other pods, ranges, ports again ─▶ the internet
//! ```
//!
//! What is refused is answered, so that programs fail at once; what is spoofed or over a limit is dropped.
//! Everything is counted by name. What passes is [`EgressPolicy::decide`]; `tests.rs` compares the two with
//! real packets.
//!
//! Traps:
//! * Rules are replaced with `flush table`, which keeps counters, in one transaction. So sets have no names.
//! * The policy is asked for every packet, not only for the first of a connection: what is no longer
//!   permitted ends.
//! * The limits of packets and bytes come before connection tracking, so that a flood does not fill it.

use std::{fmt::Write as _, net::Ipv4Addr};

use codius_address::{Ipv4Range, NOT_PUBLIC_V4};
use codius_guest_protocol::INTERLEDGER_PORT;
use codius_pod::{ABUSED_PORTS, EgressLimits, EgressPolicy, Permit, Ports, Protocol, Refusal};

use super::{Block, Ipv4Pool, QEMU_MAC, TAP, UPLINK};
use crate::Instance;

/// The pod's table is always named so: each is in a namespace of its own.
pub(super) const POD_TABLE: &str = "pod";
/// The names of counters besides those of [`Refusal`], which are `refused_REASON`.
pub(super) const SENT: &str = "sent";
pub(super) const RECEIVED: &str = "received";
pub(super) const VISITORS_SENT: &str = "visitors_sent";
pub(super) const VISITORS_RECEIVED: &str = "visitors_received";
/// A burst of bytes is at least this long: a few of the largest segments that a guest hands over.
const MIN_BURST_BYTES: u64 = 256 * 1024;
/// A burst is what may come in this part of a second.
const BURST_PART: u32 = 5;
/// What a pod is answered when something is refused.
const REFUSE: &str = "reject with icmp admin-prohibited";

pub(super) fn counter_of(refusal: Refusal) -> String {
    format!("refused_{}", refusal.as_str())
}

/// What the rules of all pods of a host have in common.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    pub(crate) policy: EgressPolicy,
    pub(crate) pool: Ipv4Pool,
    pub(crate) nameservers: Vec<Ipv4Addr>,
}

/// The tables inside of a pod's namespace, in place of whatever was in them. Counters go on.
pub(super) fn pod_rules(block: Block, common: &Common, permit: &Permit) -> String {
    let (host, gateway, guest) = (block.host(), block.gateway(), block.guest());
    let count = |refusal| format!("counter name \"{}\"", counter_of(refusal));
    let spoofed = count(Refusal::Spoofed);
    let hardware = format!("{{ {QEMU_MAC}, {} }}", block.hardware());
    let not_ipv4 = count(Refusal::NotIpv4);
    let to_gateway = count(Refusal::Gateway);
    let invalid = count(Refusal::Invalid);
    let too_many_packets = count(Refusal::PacketRate);
    let too_many_bytes = count(Refusal::ByteRate);
    let too_many_connections = count(Refusal::Connections);
    let EgressLimits {
        packets_per_sec,
        bytes_per_sec,
        new_connections_per_sec,
        open_connections,
    } = common.policy.limits;
    let packet_burst = (packets_per_sec / BURST_PART).max(1);
    let byte_burst = (bytes_per_sec / u64::from(BURST_PART)).max(MIN_BURST_BYTES);
    let over_bytes =
        format!("limit rate over {bytes_per_sec} bytes/second burst {byte_burst} bytes");
    let refused = |refusal| format!("{} {REFUSE}", count(refusal));
    let range_refused = refused(Refusal::Range);
    let decisions = decisions(
        common,
        &[("", permit)],
        [Refusal::Range, Refusal::Port, Refusal::Protocol].map(refused),
        "goto connections",
    );
    let mut counters = String::new();
    for name in [SENT, RECEIVED, VISITORS_SENT, VISITORS_RECEIVED] {
        let _ = writeln!(counters, "  counter {name} {{ }}");
    }
    for refusal in Refusal::ALL {
        let _ = writeln!(counters, "  counter {} {{ }}", counter_of(refusal));
    }
    let link_counters = format!(
        "  counter {} {{ }}\n  counter {} {{ }}\n",
        counter_of(Refusal::Spoofed),
        counter_of(Refusal::NotIpv4)
    );
    format!(
        r#"add table netdev {POD_TABLE}
flush table netdev {POD_TABLE}
table netdev {POD_TABLE} {{
{link_counters}
  chain ingress {{
    type filter hook ingress device "{TAP}" priority 0; policy drop;
    ether saddr != {hardware} {spoofed} drop
    meta protocol ip ip saddr != {guest} {spoofed} drop
    meta protocol ip accept
    meta protocol arp arp saddr ether != {hardware} {spoofed} drop
    meta protocol arp arp saddr ip != {guest} {spoofed} drop
    meta protocol arp accept
    {not_ipv4} drop
  }}
}}
add table inet {POD_TABLE}
flush table inet {POD_TABLE}
table inet {POD_TABLE} {{
{counters}
  chain source {{
    type filter hook prerouting priority -300; policy accept;
    meta nfproto != ipv4 {not_ipv4} drop
    iifname "{TAP}" ip saddr != {guest} {spoofed} drop
    iifname "{TAP}" ip daddr {host} accept
    iifname "{TAP}" limit rate over {packets_per_sec}/second burst {packet_burst} packets {too_many_packets} drop
    iifname "{TAP}" {over_bytes} {too_many_bytes} drop
  }}
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname "{TAP}" ip daddr {gateway} tcp dport {INTERLEDGER_PORT} accept
    iifname "{TAP}" {to_gateway} reject
  }}
  chain connections {{
    ct state new limit rate over {new_connections_per_sec}/second burst {new_connections_per_sec} packets {too_many_connections} drop
    ct state new ct count over {open_connections} {too_many_connections} drop
    counter name "{SENT}" accept
  }}
{decisions}
  chain receive {{
    {over_bytes} {too_many_bytes} drop
    counter name "{RECEIVED}" accept
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    iifname "{TAP}" ct state invalid {invalid} drop
    ct state invalid drop
    iifname "{UPLINK}" oifname "{TAP}" ip saddr {host} ip daddr {guest} counter name "{VISITORS_RECEIVED}" accept
    iifname "{TAP}" oifname "{UPLINK}" ip daddr {host} ct state established,related counter name "{VISITORS_SENT}" accept
    iifname "{UPLINK}" oifname "{TAP}" ct state established,related goto receive
    iifname "{TAP}" oifname "{UPLINK}" goto leave
    iifname "{TAP}" {range_refused}
  }}
}}
"#
    )
}

/// The chains `leave` and `ports`. Each permit is preceded by what it holds for; `refused` is what becomes
/// of a range, a port and a protocol, `passes` of all else.
fn decisions(
    common: &Common,
    permits: &[(&str, &Permit)],
    refused: [String; 3],
    passes: &str,
) -> String {
    let Common {
        policy,
        pool,
        nameservers,
    } = common;
    let [range_refused, port_refused, protocol_refused] = refused;
    let mut leave = Rules::default();
    leave.push(nameserver_rule(nameservers, passes));
    let never = codius_pod::never_permitted().chain([pool.range()]);
    leave.push(range_rule("", never, &range_refused));
    for (of, permit) in permits {
        leave.push(range_rule(of, permit.ranges.iter().copied(), "goto ports"));
    }
    leave.push(range_rule(
        "",
        policy.deny_ranges.iter().copied(),
        &range_refused,
    ));
    leave.push(range_rule(
        "",
        policy.permit.ranges.iter().copied(),
        "goto ports",
    ));
    let not_public = NOT_PUBLIC_V4.iter().map(|special| special.range);
    leave.push(range_rule("", not_public, &range_refused));
    leave.push("goto ports".to_owned());

    let mut ports = Rules::default();
    for (of, permit) in permits {
        ports.push(port_rules(of, permit.ports.iter().copied(), passes));
    }
    ports.push(port_rules(
        "",
        policy.deny_ports.iter().copied(),
        &port_refused,
    ));
    ports.push(port_rules("", policy.permit.ports.iter().copied(), passes));
    let abused = ABUSED_PORTS.iter().map(|(ports, _)| *ports);
    ports.push(port_rules("", abused, &port_refused));
    ports.push(format!("icmp type echo-request {passes}"));
    // "Nobody listens any more", to whom the pod has spoken.
    ports.push(format!("meta l4proto icmp ct state related {passes}"));
    ports.push(format!("meta l4proto != {{ tcp, udp }} {protocol_refused}"));
    ports.push(passes.to_owned());
    format!(
        "  chain ports {{\n{}  }}\n  chain leave {{\n{}  }}",
        ports.0, leave.0
    )
}

/// Lines of a chain.
#[derive(Default)]
struct Rules(String);

impl Rules {
    fn push(&mut self, rules: String) {
        for rule in rules.lines().map(str::trim).filter(|rule| !rule.is_empty()) {
            let _ = writeln!(self.0, "    {rule}");
        }
    }
}

/// Lets name servers through even if they are private; nothing if there are none.
fn nameserver_rule(nameservers: &[Ipv4Addr], passes: &str) -> String {
    if nameservers.is_empty() {
        return String::new();
    }
    let addresses: Vec<_> = nameservers.iter().map(Ipv4Addr::to_string).collect();
    let addresses = addresses.join(", ");
    format!("ip daddr {{ {addresses} }} meta l4proto {{ tcp, udp }} th dport 53 {passes}")
}

/// Nothing if there is no range.
fn range_rule(of: &str, ranges: impl IntoIterator<Item = Ipv4Range>, then: &str) -> String {
    let ranges = apart(ranges);
    if ranges.is_empty() {
        return String::new();
    }
    let texts: Vec<_> = ranges.iter().map(Ipv4Range::to_string).collect();
    format!("{of} ip daddr {{ {} }} {then}", texts.join(", "))
}

/// One rule for each protocol that has ports among them.
fn port_rules(of: &str, ports: impl IntoIterator<Item = Ports>, then: &str) -> String {
    let ports: Vec<Ports> = ports.into_iter().collect();
    let mut rules = String::new();
    for protocol in Protocol::ALL {
        let merged = merged(ports.iter().copied().filter(|ports| ports.is_of(protocol)));
        if merged.is_empty() {
            continue;
        }
        let texts: Vec<_> = merged
            .into_iter()
            .map(|(first, last)| {
                if first == last {
                    first.to_string()
                } else {
                    format!("{first}-{last}")
                }
            })
            .collect();
        let _ = writeln!(
            rules,
            "{of} {} dport {{ {} }} {then}",
            protocol.as_str(),
            texts.join(", ")
        );
    }
    rules
}

/// Without those that lie within others: `nft` takes no elements that overlap.
fn apart(ranges: impl IntoIterator<Item = Ipv4Range>) -> Vec<Ipv4Range> {
    let mut sorted: Vec<Ipv4Range> = ranges.into_iter().collect();
    // Of two that begin at the same address the wider one first.
    sorted.sort_by_key(|range| (range.network(), range.prefix_len()));
    let mut apart: Vec<Ipv4Range> = Vec::new();
    for range in sorted {
        if !apart.last().is_some_and(|last| last.overlaps(range)) {
            apart.push(range);
        }
    }
    apart
}

/// First and last ports, with none that overlap or touch.
fn merged(ports: impl IntoIterator<Item = Ports>) -> Vec<(u16, u16)> {
    let mut sorted: Vec<(u16, u16)> = ports.into_iter().map(Ports::ends).collect();
    sorted.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            Some(_) | None => merged.push((first, last)),
        }
    }
    merged
}

/// What of the host's table is there already when it is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// Perhaps one of another version of this program: it is removed.
    Unknown,
    /// One of this process: its counters go on.
    Ours,
}

/// The host's table for all pods of an instance. It holds even if a pod's own table failed or its QEMU was
/// taken over. Other tables are not touched and the policies of the hooks stay `accept`: a rule here only
/// ever concerns the interfaces of this instance. `permits` are those of single pods, by slot.
pub(super) fn host_rules(
    instance: &Instance,
    common: &Common,
    permits: &[(u16, &Permit)],
    before: Before,
) -> String {
    let pods = format!("\"{}*\"", instance.pod_prefix());
    let pool = common.pool;
    let name = table_name(instance);
    let permits: Vec<(String, &Permit)> = permits
        .iter()
        .map(|(slot, permit)| (format!("iifname \"{}\"", instance.pod_name(*slot)), *permit))
        .collect();
    let permits: Vec<(&str, &Permit)> = permits
        .iter()
        .map(|(of, permit)| (of.as_str(), *permit))
        .collect();
    let refused = || format!("counter name \"{HOST_REFUSED}\" {REFUSE}");
    let decisions = decisions(
        common,
        &permits,
        [refused(), refused(), refused()],
        "accept",
    );
    let removed = match before {
        Before::Unknown => "delete",
        Before::Ours => "flush",
    };
    format!(
        r#"add table inet {name}
{removed} table inet {name}
table inet {name} {{
  counter {HOST_REFUSED} {{ }}
{decisions}
  chain source {{
    type filter hook prerouting priority -300; policy accept;
    iifname {pods} meta nfproto != ipv4 counter name "{HOST_REFUSED}" drop
    iifname {pods} fib saddr . iif oif missing counter name "{HOST_REFUSED}" drop
  }}
  chain own {{
    type filter hook prerouting priority -150; policy accept;
    iifname {pods} ct state established,related accept
    iifname {pods} fib daddr type != unicast counter name "{HOST_REFUSED}" {REFUSE}
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname {pods} ct state established,related accept
    iifname {pods} counter name "{HOST_REFUSED}" {REFUSE}
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    oifname {pods} ct state established,related accept
    oifname {pods} iifname {pods} counter name "{HOST_REFUSED}" {REFUSE}
    oifname {pods} drop
    iifname {pods} goto leave
  }}
  chain outward {{
    type nat hook postrouting priority 100; policy accept;
    iifname {pods} oifname != {pods} ip saddr {pool} masquerade
  }}
}}
"#
    )
}

/// What the host's table has refused, of all pods together: what no pod's own table saw.
pub(super) const HOST_REFUSED: &str = "refused";

/// Removes the host's table, if there is one.
pub(super) fn no_host_rules(instance: &Instance) -> String {
    let name = table_name(instance);
    format!("table inet {name}\ndelete table inet {name}\n")
}

pub(super) fn table_name(instance: &Instance) -> String {
    format!("codius_{instance}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(nameservers: &[Ipv4Addr]) -> Common {
        Common {
            policy: EgressPolicy::default(),
            pool: "10.88.0.0/16".parse().unwrap(),
            nameservers: nameservers.to_vec(),
        }
    }

    #[test]
    fn no_rule_of_the_host_is_about_other_interfaces() {
        let instance: Instance = "ab12".parse().unwrap();
        let permit = Permit {
            ports: ["25".parse().unwrap()].into(),
            ranges: ["10.1.0.0/16".parse().unwrap()].into(),
        };
        let common = common(&[Ipv4Addr::new(192, 168, 1, 1)]);
        let rules = host_rules(&instance, &common, &[(3, &permit)], Before::Unknown);
        let verdicts = ["accept", "drop", "reject", "masquerade", "goto", "jump"];
        let mut checked = 0;
        for chain in rules.split("chain ").skip(1) {
            // A chain without a hook is only reached from rules of the others.
            if !chain.contains("hook") {
                continue;
            }
            for rule in chain.lines().filter(|line| !line.contains("policy")) {
                if verdicts.iter().any(|verdict| rule.contains(verdict)) {
                    assert!(rule.contains("\"cdab12-*\""), "{rule}");
                    checked += 1;
                }
            }
        }
        assert!(checked > 8, "{rules}");
        // A permit is for one pod.
        let of_one: Vec<&str> = rules
            .lines()
            .filter(|rule| rule.contains("10.1.0.0/16"))
            .collect();
        assert_eq!(
            of_one,
            ["    iifname \"cdab12-3\" ip daddr { 10.1.0.0/16 } goto ports"]
        );
    }

    #[test]
    fn no_name_server_is_no_hole() {
        let common = common(&[]);
        let rules = pod_rules(common.pool.block(0), &common, &Permit::default());
        assert!(!rules.contains("dport 53"));
    }

    #[test]
    fn what_overlaps_is_said_once() {
        let ranges = ["10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/24", "11.0.0.0/8"];
        let apart = apart(ranges.map(|text| text.parse().unwrap()));
        let texts: Vec<String> = apart.iter().map(Ipv4Range::to_string).collect();
        assert_eq!(texts, ["10.0.0.0/8", "11.0.0.0/8"]);
        let ports = ["30-40", "20-29", "25", "50", "60-65535", "65535"];
        let merged = merged(ports.map(|text| text.parse().unwrap()));
        assert_eq!(merged, [(20, 40), (50, 50), (60, 65535)]);
    }
}
