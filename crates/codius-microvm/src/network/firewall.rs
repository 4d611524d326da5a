//! The rules, as text for `nft -f -`.
//!
//! A pod reaches public IPv4 addresses, its name servers, and the Interledger port of its gateway. It is
//! reached by its own host. Everything else is refused: with an answer to the pod, so that its programs
//! fail at once, and silently to all others.

use std::net::Ipv4Addr;

use codius_guest_protocol::INTERLEDGER_PORT;

use super::{Block, Ipv4Pool, TAP, UPLINK};
use crate::Instance;

/// IPv4 addresses that are not public (RFC 6890), and multicast (RFC 5771).
const NOT_PUBLIC: [&str; 12] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
];

/// Mail to other people's servers is the first thing that a rented machine is abused for.
const SMTP_PORT: u16 = 25;

fn not_public(pool: Ipv4Pool) -> String {
    format!(
        "set not_public {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {}, {pool} }} }}",
        NOT_PUBLIC.join(", ")
    )
}

/// Lets name servers through even if they are private; nothing if there are none.
fn nameserver_rule(interfaces: &str, nameservers: &[Ipv4Addr]) -> String {
    if nameservers.is_empty() {
        return String::new();
    }
    let addresses: Vec<_> = nameservers.iter().map(Ipv4Addr::to_string).collect();
    format!(
        "{interfaces} ip daddr {{ {} }} meta l4proto {{ tcp, udp }} th dport 53 accept",
        addresses.join(", ")
    )
}

/// The table inside of a pod's namespace.
pub(super) fn pod_rules(block: Block, pool: Ipv4Pool, nameservers: &[Ipv4Addr]) -> String {
    let (host, gateway, guest) = (block.host(), block.gateway(), block.guest());
    let not_public = not_public(pool);
    let nameservers = nameserver_rule(
        &format!("iifname \"{TAP}\" oifname \"{UPLINK}\""),
        nameservers,
    );
    format!(
        r#"table inet pod {{
  {not_public}
  chain source {{
    type filter hook prerouting priority -300; policy accept;
    meta nfproto != ipv4 drop
    iifname "{TAP}" ip saddr != {guest} drop
  }}
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname "{TAP}" ip daddr {gateway} tcp dport {INTERLEDGER_PORT} accept
    iifname "{TAP}" reject
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state invalid drop
    ct state established,related accept
    iifname "{UPLINK}" oifname "{TAP}" ip saddr {host} ip daddr {guest} accept
    {nameservers}
    iifname "{TAP}" ip daddr @not_public reject with icmp admin-prohibited
    iifname "{TAP}" tcp dport {SMTP_PORT} reject with icmp admin-prohibited
    iifname "{TAP}" oifname "{UPLINK}" accept
  }}
}}
"#
    )
}

/// The host's table for all pods of an instance. It holds even if a pod's own table failed or its QEMU was
/// taken over. Other tables are not touched and the policies of the hooks stay `accept`: a rule here only
/// ever concerns the interfaces of this instance.
pub(super) fn host_rules(instance: &Instance, pool: Ipv4Pool, nameservers: &[Ipv4Addr]) -> String {
    let pods = format!("\"{}*\"", instance.pod_prefix());
    let not_public = not_public(pool);
    let nameservers = nameserver_rule(&format!("iifname {pods}"), nameservers);
    let name = table_name(instance);
    format!(
        r#"table inet {name}
delete table inet {name}
table inet {name} {{
  {not_public}
  chain source {{
    type filter hook prerouting priority -300; policy accept;
    iifname {pods} meta nfproto != ipv4 drop
    iifname {pods} fib saddr . iif oif missing drop
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname {pods} ct state established,related accept
    iifname {pods} reject with icmp admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    oifname {pods} ct state established,related accept
    oifname {pods} iifname {pods} reject with icmp admin-prohibited
    oifname {pods} drop
    {nameservers}
    iifname {pods} ip daddr @not_public reject with icmp admin-prohibited
    iifname {pods} tcp dport {SMTP_PORT} reject with icmp admin-prohibited
  }}
  chain leave {{
    type nat hook postrouting priority 100; policy accept;
    iifname {pods} oifname != {pods} ip saddr {pool} masquerade
  }}
}}
"#
    )
}

/// Removes the host's table, if there is one.
pub(super) fn no_host_rules(instance: &Instance) -> String {
    let name = table_name(instance);
    format!("table inet {name}\ndelete table inet {name}\n")
}

fn table_name(instance: &Instance) -> String {
    format!("codius_{instance}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rule_of_the_host_is_about_other_interfaces() {
        let instance: Instance = "ab12".parse().unwrap();
        let rules = host_rules(
            &instance,
            "10.88.0.0/16".parse().unwrap(),
            &[Ipv4Addr::new(192, 168, 1, 1)],
        );
        let verdicts = ["accept", "drop", "reject", "masquerade"];
        for rule in rules.lines().filter(|line| !line.contains("policy")) {
            if verdicts.iter().any(|verdict| rule.contains(verdict)) {
                assert!(rule.contains("\"cdab12-*\""), "{rule}");
            }
        }
    }

    #[test]
    fn no_name_server_is_no_hole() {
        let block = "10.88.0.0/16".parse::<Ipv4Pool>().unwrap().block(0);
        assert!(!pod_rules(block, "10.88.0.0/16".parse().unwrap(), &[]).contains("dport 53"));
    }
}
