//! The rules with real packets: a test holds the tap device as QEMU would, and sends whatever it likes.
//!
//! ```text
//!   test ── tap0 ── pod's namespace ── veth ── a namespace as the host ── wan ── one as the internet
//! ```
//!
//! Nothing of this machine's own network is touched. Needs root.

mod frame;
mod stage;

use std::{collections::BTreeMap, net::Ipv4Addr};

use codius_address::{Ipv4Range, NOT_PUBLIC_V4};
use codius_manifest::ManifestHash;
use codius_pod::{
    ABUSED_PORTS, Count, EgressLimits, EgressPolicy, Permit, Ports, Protocol, Refusal, Traffic,
    Verdict,
};

use self::{
    frame::{Frame, checksum},
    stage::{HOST_PUBLIC, OUTSIDE, POOL, Stage, ip},
};
use crate::programs::run;

fn limits_out_of_the_way() -> EgressLimits {
    EgressLimits {
        packets_per_sec: 1_000_000,
        bytes_per_sec: 1 << 30,
        new_connections_per_sec: 1_000_000,
        open_connections: 1_000_000,
    }
}

/// What an operator may have said, with exceptions of exceptions.
fn elaborate_policy() -> (EgressPolicy, Permit) {
    let ports = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| text.parse::<Ports>().unwrap())
            .collect()
    };
    let ranges = |texts: &[&str]| {
        let ranges = texts.iter().map(|text| text.parse::<Ipv4Range>().unwrap());
        ranges.collect()
    };
    let policy = EgressPolicy {
        deny_ports: ports(&["22/tcp", "6000-6010", "6005-6020/udp", "123/udp"]),
        deny_ranges: ranges(&["8.8.0.0/16", "8.8.8.0/24", "10.1.1.0/24"]),
        permit: Permit {
            ports: ports(&["587", "123/udp"]),
            ranges: ranges(&["10.1.0.0/16", "10.1.2.0/24"]),
        },
        limits: limits_out_of_the_way(),
    };
    let own = Permit {
        ports: ports(&["25/tcp", "6007"]),
        ranges: ranges(&["8.8.8.8/32", "192.168.4.0/24"]),
    };
    (policy, own)
}

/// Both ends and the neighbours of every range, and every port that is spoken of, over what is open.
fn samples() -> Vec<(Ipv4Addr, Protocol, u16)> {
    let mut addresses: Vec<Ipv4Addr> = Vec::new();
    let pool: Ipv4Range = POOL.parse().unwrap();
    let mut ranges: Vec<Ipv4Range> = NOT_PUBLIC_V4.iter().map(|special| special.range).collect();
    ranges.extend([pool]);
    for text in [
        "8.8.0.0/16",
        "8.8.8.8/32",
        "10.1.0.0/16",
        "10.1.1.0/24",
        "192.168.4.0/24",
    ] {
        ranges.push(text.parse().unwrap());
    }
    for range in ranges {
        let (first, last) = (range.network().to_bits(), range.last().to_bits());
        let around = [
            first.checked_sub(1),
            Some(first),
            Some(last),
            last.checked_add(1),
        ];
        addresses.extend(around.into_iter().flatten().map(Ipv4Addr::from));
    }
    addresses.sort_unstable();
    addresses.dedup();
    let mut samples: Vec<_> = addresses
        .into_iter()
        // The kernel itself drops these, before any rule or after: they never leave a machine.
        .filter(|address| !has_no_route(*address))
        .map(|address| (address, Protocol::Tcp, 443))
        .collect();
    let named = [
        "1",
        "21",
        "22",
        "24",
        "26",
        "53",
        "80",
        "443",
        "6000-6021",
        "65535",
    ];
    let named = named.map(|text| text.parse::<Ports>().unwrap());
    for ports in ABUSED_PORTS.iter().map(|(ports, _)| *ports).chain(named) {
        let (first, last) = ports.ends();
        for port in [first - 1, first, last, last.saturating_add(1)] {
            for protocol in Protocol::ALL {
                samples.push((OUTSIDE, protocol, port.max(1)));
            }
        }
    }
    samples.push((Ipv4Addr::new(8, 8, 8, 8), Protocol::Tcp, 25));
    samples.push((Ipv4Addr::new(8, 8, 8, 9), Protocol::Tcp, 25));
    samples.push((Ipv4Addr::new(10, 1, 2, 3), Protocol::Udp, 161));
    samples.sort_unstable();
    samples.dedup();
    samples
}

/// Whether the kernel takes such a packet for wrong ("martian") or for its own.
fn has_no_route(address: Ipv4Addr) -> bool {
    let own = 10 << 24 | 88 << 16 | 24;
    address.octets()[0] == 0
        || address.is_loopback()
        || address.is_multicast()
        || address.octets()[0] >= 240
        || (own..own + 8).contains(&address.to_bits())
}

#[test]
fn the_rules_do_what_the_policy_decides_and_the_host_agrees() {
    let (policy, own) = elaborate_policy();
    let stage = Stage::new(policy.clone());
    stage.rules.permit(stage.pod, own.clone()).unwrap();
    let pool = POOL.parse().unwrap();
    let (mut passed, mut kinds) = (0, BTreeMap::new());
    let samples = samples();
    for &(address, protocol, port) in &samples {
        let expected = policy.decide(&own, pool, address, protocol, port);
        let verdict = stage.verdict(&stage.frame(protocol, address, port).bytes());
        assert_eq!(verdict, expected, "{address} {} {port}", protocol.as_str());
        passed += u64::from(verdict == Verdict::Passes);
        *kinds.entry(format!("{verdict:?}")).or_insert(0) += 1;
    }
    // Each kind of decision was made, and not by chance.
    assert!(
        kinds.len() == 3 && kinds.values().all(|count| *count > 10),
        "{kinds:?}"
    );
    // What the pod's table lets through, the host's does, too, and nothing else has arrived.
    stage.wait_arrived(passed);
    let sent = stage.traffic().sent;
    assert_eq!(sent.packets, passed);

    // The host's table alone refuses the same.
    let open = "flush chain inet pod leave\nadd rule inet pod leave counter name sent accept\n";
    run(
        &stage.programs.nft,
        &["-f", "-"],
        open,
        Some(&stage.namespace),
    )
    .unwrap();
    for &(address, protocol, port) in &samples {
        let frame = Frame {
            source_port: 41_000,
            ..stage.frame(protocol, address, port)
        };
        stage.send(&frame.bytes());
    }
    stage.wait_arrived(passed * 2);
    let refused = u64::try_from(samples.len()).unwrap() - passed;
    // What names other pods is for no host to route, but refused all the same.
    assert_eq!(stage.rules.refused_by_host().unwrap().packets, refused);
}

#[test]
fn a_permit_is_in_force_at_once_and_ends_at_once_and_is_of_one_pod() {
    let policy = EgressPolicy {
        limits: limits_out_of_the_way(),
        ..EgressPolicy::default()
    };
    let stage = Stage::new(policy);
    let mail = stage.frame(Protocol::Tcp, OUTSIDE, 25).bytes();
    let lan = stage
        .frame(Protocol::Tcp, Ipv4Addr::new(192, 168, 1, 1), 80)
        .bytes();
    stage.assert_refused("mail", &mail, Refusal::Port);
    stage.assert_refused("a private network", &lan, Refusal::Range);
    let before = stage.traffic();

    let permit = Permit {
        ports: ["25/tcp".parse().unwrap()].into(),
        ranges: ["192.168.0.0/16".parse().unwrap()].into(),
    };
    let other = ManifestHash::from_bytes([8; 32]);
    stage.rules.permit(other, permit.clone()).unwrap();
    stage.assert_refused("another pod's permit", &mail, Refusal::Port);
    stage.rules.permit(stage.pod, permit).unwrap();
    assert_eq!(stage.verdict(&mail), Verdict::Passes);
    assert_eq!(stage.verdict(&lan), Verdict::Passes);
    stage.wait_arrived(2);
    // What was counted before is not forgotten.
    assert!(
        stage.traffic().refused[&Refusal::Range].packets >= before.refused[&Refusal::Range].packets
    );

    // The same packets, so of connections that are known: they end, too.
    stage.rules.permit(stage.pod, Permit::default()).unwrap();
    stage.assert_refused("mail again", &mail, Refusal::Port);
    stage.assert_refused("a private network again", &lan, Refusal::Range);

    // The next pod in its place has nothing of it.
    let permit = Permit {
        ports: ["25".parse().unwrap()].into(),
        ..Permit::default()
    };
    stage.rules.permit(stage.pod, permit).unwrap();
    stage.rules.forget(&stage.pod);
    let next = ManifestHash::from_bytes([9; 32]);
    stage
        .rules
        .renew(&stage.namespace, &next, stage.slot)
        .unwrap();
    let refused = |traffic: Traffic| traffic.refused[&Refusal::Port].packets;
    let before = refused(stage.rules.traffic(&[next]).remove(&next).unwrap());
    stage.send(&mail);
    assert_eq!(
        refused(stage.rules.traffic(&[next]).remove(&next).unwrap()),
        before + 1
    );
    assert!(stage.rules.traffic(&[stage.pod]).is_empty());
}

#[test]
fn nobody_sends_as_another() {
    let stage = Stage::new(EgressPolicy::default());
    let honest = stage.frame(Protocol::Udp, OUTSIDE, 4000);
    assert_eq!(stage.verdict(&honest.bytes()), Verdict::Passes);
    let neighbour = Ipv4Addr::from(stage.guest.to_bits() + 8);
    let other_mac = [0x52, 0x54, 0, 1, 2, 3];
    for source in [
        neighbour,
        stage.common.pool.block(stage.slot).gateway(),
        stage.common.pool.block(stage.slot).host(),
        HOST_PUBLIC,
        OUTSIDE,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::UNSPECIFIED,
    ] {
        let frame = Frame {
            source,
            ..honest.clone()
        };
        stage.assert_refused(&source.to_string(), &frame.bytes(), Refusal::Spoofed);
    }
    let frame = Frame {
        source_mac: other_mac,
        ..honest.clone()
    };
    stage.assert_refused("hardware address", &frame.bytes(), Refusal::Spoofed);
    let own_mac = honest.source_mac;
    for (what, mac, source) in [
        ("ARP for a neighbour", own_mac, neighbour),
        ("ARP with another hardware address", other_mac, stage.guest),
    ] {
        stage.assert_refused(what, &honest.arp(mac, source), Refusal::Spoofed);
    }
    // IPv6 and what carries something else inside.
    for (what, kind) in [
        ("IPv6", 0x86dd),
        ("VLAN", 0x8100),
        ("PPPoE", 0x8864),
        ("a bridge's", 0x88cc),
    ] {
        stage.assert_refused(what, &honest.ethernet(kind, &[0x60; 64]), Refusal::NotIpv4);
    }
    stage.wait_arrived(1);
}

#[test]
fn a_port_is_not_hidden_in_fragments() {
    let stage = Stage::new(EgressPolicy::default());
    for (protocol, port) in [(Protocol::Udp, 161), (Protocol::Tcp, 25)] {
        let frame = Frame {
            padding: 64,
            ..stage.frame(protocol, OUTSIDE, port)
        };
        // The ports are in the first, and what decides about the connection in the second.
        let [first, second] = frame.fragments();
        let before = stage.traffic();
        stage.send(&second);
        assert_eq!(stage.traffic(), before, "half a packet is none");
        stage.assert_refused(protocol.as_str(), &first, Refusal::Port);
    }
    let frame = Frame {
        padding: 64,
        ..stage.frame(Protocol::Udp, OUTSIDE, 4000)
    };
    let [first, second] = frame.fragments();
    stage.send(&first);
    assert_eq!(stage.verdict(&second), Verdict::Passes);
}

#[test]
fn only_tcp_udp_and_echo_requests_leave() {
    let stage = Stage::new(EgressPolicy::default());
    let frame = stage.frame(Protocol::Udp, OUTSIDE, 4000);
    let icmp = |kind: u8| {
        let mut message = vec![kind, 0, 0, 0, 0, 1, 0, 1];
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        frame.packet(1, &message)
    };
    assert_eq!(stage.verdict(&icmp(8)), Verdict::Passes);
    // A tunnel, GRE, IPsec, SCTP, OSPF.
    for protocol in [4, 41, 47, 50, 89, 103, 132] {
        let packet = frame.packet(protocol, &[0; 32]);
        let verdict = stage.verdict(&packet);
        // Some of these have a connection tracker that finds this one wrong.
        let refused = [Refusal::Protocol, Refusal::Invalid].map(Verdict::Refused);
        assert!(
            refused.contains(&verdict),
            "protocol {protocol}: {verdict:?}"
        );
    }
    let timestamp = stage.verdict(&icmp(13));
    assert_eq!(timestamp, Verdict::Refused(Refusal::Protocol));
    stage.wait_arrived(1);
}

#[test]
fn the_host_is_closed_at_each_of_its_addresses_also_at_new_ones() {
    let stage = Stage::new(EgressPolicy::default());
    let before = stage.rules.refused_by_host().unwrap().packets;
    // The pod's own table cannot know that these are the host's.
    let at_start = stage.frame(Protocol::Tcp, HOST_PUBLIC, 443).bytes();
    assert_eq!(stage.verdict(&at_start), Verdict::Passes);
    let new: Ipv4Addr = "77.0.0.1".parse().unwrap();
    let to_new = stage.frame(Protocol::Tcp, new, 443).bytes();
    assert_eq!(stage.verdict(&to_new), Verdict::Passes);
    stage.wait_arrived(1);
    ip(
        &stage.programs,
        &format!("addr add {new}/32 dev wan\n"),
        None,
    );
    // As a container engine sends a port of the host elsewhere: before it is known whose the packet is.
    let forward = "table ip forwarding { chain forwarding { type nat hook prerouting priority -100;
        fib daddr type local tcp dport 8080 dnat to 45.0.0.9\n }\n }\n";
    run(&stage.programs.nft, &["-f", "-"], forward, None).unwrap();
    let again = Frame {
        source_port: 42_000,
        ..stage.frame(Protocol::Tcp, new, 443)
    };
    let forwarded = stage.frame(Protocol::Tcp, HOST_PUBLIC, 8080);
    for frame in [again, forwarded] {
        assert_eq!(stage.verdict(&frame.bytes()), Verdict::Passes);
    }
    let refused = stage.rules.refused_by_host().unwrap().packets - before;
    assert_eq!(refused, 3);
    stage.wait_arrived(1);
}

#[test]
fn what_is_over_a_limit_is_dropped_and_counted() {
    let policy = EgressPolicy {
        limits: EgressLimits {
            packets_per_sec: 50,
            ..limits_out_of_the_way()
        },
        ..EgressPolicy::default()
    };
    let sent = 2000;
    let stage = Stage::new(policy);
    let frame = stage.frame(Protocol::Udp, OUTSIDE, 4000).bytes();
    (0..sent).for_each(|_| stage.send(&frame));
    let traffic = stage.traffic();
    assert_adds_up(&traffic, Refusal::PacketRate, sent);

    let policy = EgressPolicy {
        limits: EgressLimits {
            bytes_per_sec: 64 * 1024,
            ..limits_out_of_the_way()
        },
        ..EgressPolicy::default()
    };
    let stage = Stage::new(policy);
    let frame = Frame {
        padding: 1400,
        ..stage.frame(Protocol::Udp, OUTSIDE, 4000)
    };
    (0..sent).for_each(|_| stage.send(&frame.bytes()));
    assert_adds_up(&stage.traffic(), Refusal::ByteRate, sent);
}

#[test]
fn connections_are_counted_as_they_open_and_while_they_are_open() {
    let connect = |limits: EgressLimits, count: u16| {
        let stage = Stage::new(EgressPolicy {
            limits,
            ..EgressPolicy::default()
        });
        for port in 0..count {
            let frame = Frame {
                source_port: 10_000 + port,
                ..stage.frame(Protocol::Tcp, OUTSIDE, 443)
            };
            stage.send(&frame.bytes());
        }
        stage.traffic()
    };
    let open = EgressLimits {
        open_connections: 20,
        ..limits_out_of_the_way()
    };
    let traffic = connect(open, 100);
    assert_eq!(traffic.sent.packets, 20, "{traffic:?}");
    assert_eq!(
        traffic.refused[&Refusal::Connections].packets,
        80,
        "{traffic:?}"
    );

    let new = EgressLimits {
        new_connections_per_sec: 5,
        ..limits_out_of_the_way()
    };
    let traffic = connect(new, 1000);
    assert_adds_up(&traffic, Refusal::Connections, 1000);
}

/// Some passed, most did not, and nothing was lost without being counted.
#[track_caller]
fn assert_adds_up(traffic: &Traffic, refusal: Refusal, sent: u64) {
    let Count { packets, .. } = traffic.refused[&refusal];
    assert_eq!(traffic.sent.packets + packets, sent, "{traffic:?}");
    assert!(
        traffic.sent.packets > 0 && packets > sent / 2,
        "{traffic:?}"
    );
}
