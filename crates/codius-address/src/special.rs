//! The tables: what of the address space is not the public internet, and why.
//!
//! They hold what the IANA special-purpose address registries list, and what is refused here besides. A
//! range is refused as a whole even where the registry calls a single address in it globally reachable (the
//! anycast addresses of PCP and TURN in 192.0.0.0/24): no program needs these through a host's network.

use crate::{Ipv4Range, Ipv6Range};

/// A range with its name and the document that sets it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Special<R> {
    pub range: R,
    pub name: &'static str,
    pub source: &'static str,
}

const fn v4(
    octets: [u8; 4],
    length: u8,
    name: &'static str,
    source: &'static str,
) -> Special<Ipv4Range> {
    Special {
        range: Ipv4Range::of(octets, length),
        name,
        source,
    }
}

const fn v6(
    segments: [u16; 8],
    length: u8,
    name: &'static str,
    source: &'static str,
) -> Special<Ipv6Range> {
    Special {
        range: Ipv6Range::of(segments, length),
        name,
        source,
    }
}

/// IPv4 that is not public. In ascending order; no two overlap.
pub const NOT_PUBLIC_V4: &[Special<Ipv4Range>] = &[
    v4([0, 0, 0, 0], 8, "this network", "RFC 791"),
    v4([10, 0, 0, 0], 8, "private use", "RFC 1918"),
    v4(
        [100, 64, 0, 0],
        10,
        "shared address space (carrier NAT)",
        "RFC 6598",
    ),
    v4([127, 0, 0, 0], 8, "loopback", "RFC 1122"),
    v4(
        [169, 254, 0, 0],
        16,
        "link local, cloud metadata services",
        "RFC 3927",
    ),
    v4([172, 16, 0, 0], 12, "private use", "RFC 1918"),
    v4([192, 0, 0, 0], 24, "IETF protocol assignments", "RFC 6890"),
    v4([192, 0, 2, 0], 24, "documentation (TEST-NET-1)", "RFC 5737"),
    v4(
        [192, 31, 196, 0],
        24,
        "AS112 (private reverse names)",
        "RFC 7535",
    ),
    v4(
        [192, 52, 193, 0],
        24,
        "automatic multicast tunneling",
        "RFC 7450",
    ),
    v4([192, 88, 99, 0], 24, "6to4 relays, withdrawn", "RFC 7526"),
    v4([192, 168, 0, 0], 16, "private use", "RFC 1918"),
    v4(
        [192, 175, 48, 0],
        24,
        "AS112 (private reverse names)",
        "RFC 7534",
    ),
    v4([198, 18, 0, 0], 15, "benchmarking", "RFC 2544"),
    v4(
        [198, 51, 100, 0],
        24,
        "documentation (TEST-NET-2)",
        "RFC 5737",
    ),
    v4(
        [203, 0, 113, 0],
        24,
        "documentation (TEST-NET-3)",
        "RFC 5737",
    ),
    v4([224, 0, 0, 0], 4, "multicast", "RFC 5771"),
    v4([240, 0, 0, 0], 4, "reserved, broadcast", "RFC 1112"),
];

/// What of IPv6 is assigned to the public internet; all else is local, multicast or unassigned.
pub const GLOBAL_UNICAST_V6: Ipv6Range = Ipv6Range::of([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// IPv6 within [`GLOBAL_UNICAST_V6`] that is not public.
pub const NOT_PUBLIC_V6: &[Special<Ipv6Range>] = &[
    v6(
        [0x2001, 0, 0, 0, 0, 0, 0, 0],
        23,
        "IETF protocol assignments, with Teredo (2001::/32)",
        "RFC 2928, RFC 4380",
    ),
    v6(
        [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0],
        32,
        "documentation",
        "RFC 3849",
    ),
    v6(
        [0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0],
        48,
        "AS112 (private reverse names)",
        "RFC 7534",
    ),
    v6(
        [0x3fff, 0, 0, 0, 0, 0, 0, 0],
        20,
        "documentation",
        "RFC 9637",
    ),
];

/// How many bits of an IPv6 address stand before the IPv4 address that it leads to.
pub const EMBEDDED_V4: &[(Special<Ipv6Range>, u8)] = &[
    (
        v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, "IPv4-mapped", "RFC 4291"),
        96,
    ),
    (
        v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, "NAT64", "RFC 6052"),
        96,
    ),
    (
        v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "6to4", "RFC 3056"),
        16,
    ),
];
