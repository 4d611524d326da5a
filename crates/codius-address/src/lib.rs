//! Which addresses belong to the public internet, and so may be connected to on behalf of strangers.
//!
//! Registries that uploaders name, peers that other hosts name, and whatever the program of a stranger wants
//! to reach: without this check they could make the host speak to its own network. There is one table
//! ([`special`]), for the host's own connections as well as for the firewall of its pods.

#![forbid(unsafe_code)]

mod range;
mod special;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use range::{InvalidRange, Ipv4Range, Ipv6Range};
pub use special::{EMBEDDED_V4, GLOBAL_UNICAST_V6, NOT_PUBLIC_V4, NOT_PUBLIC_V6, Special};

/// Whether an address is one of the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// As [`is_public`].
pub fn is_public_v4(address: Ipv4Addr) -> bool {
    !NOT_PUBLIC_V4
        .iter()
        .any(|special| special.range.contains(address))
}

/// As [`is_public`]. Of an address that leads to an IPv4 address, that one counts.
pub fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(inner) = embedded_v4(address) {
        return is_public_v4(inner);
    }
    GLOBAL_UNICAST_V6.contains(address)
        && !NOT_PUBLIC_V6
            .iter()
            .any(|special| special.range.contains(address))
}

/// The IPv4 address that a packet to this IPv6 address may end up at.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (_, before) = EMBEDDED_V4
        .iter()
        .find(|(special, _)| special.range.contains(address))?;
    let shifted = address.to_bits() >> (128 - 32 - u32::from(*before));
    u32::try_from(shifted & u128::from(u32::MAX))
        .ok()
        .map(Ipv4Addr::from_bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.1.1",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "2002:a00:1::1",
            "2002:7f00:1::1",
            "2001:0:a00:1::1",
            "2620:4f:8000::1",
            "100::1",
            "5f00::1",
            "::ffff:0:10.0.0.1",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "64:ff9b:1::1",
        ] {
            assert!(!is_public(text.parse().expect(text)), "{text}");
        }
    }

    #[test]
    fn ordinary_addresses_are_public() {
        for text in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
            "2001:200::1",
            "3fff:1000::1",
        ] {
            assert!(is_public(text.parse().expect(text)), "{text}");
        }
    }

    #[test]
    fn both_ends_of_every_range_are_refused_in_every_form() {
        for special in NOT_PUBLIC_V4 {
            for inside in [special.range.network(), special.range.last()] {
                for address in forms(inside) {
                    assert!(!is_public(address), "{address} of {}", special.name);
                }
            }
        }
    }

    #[test]
    fn the_neighbours_of_every_range_are_public_unless_another_range_begins_there() {
        let mut public = 0;
        for special in NOT_PUBLIC_V4 {
            let before = special.range.network().to_bits().checked_sub(1);
            let after = special.range.last().to_bits().checked_add(1);
            for address in [before, after].into_iter().flatten().map(Ipv4Addr::from) {
                let other = NOT_PUBLIC_V4
                    .iter()
                    .any(|other| other.range.contains(address));
                for form in forms(address) {
                    assert_eq!(is_public(form), !other, "{form} beside {}", special.name);
                }
                public += usize::from(!other);
            }
        }
        assert!(public > NOT_PUBLIC_V4.len(), "{public}");
    }

    #[test]
    fn the_table_is_in_order_and_nothing_in_it_overlaps() {
        for pair in NOT_PUBLIC_V4.windows(2) {
            assert!(pair[0].range.last() < pair[1].range.network(), "{pair:?}");
        }
    }

    /// An IPv4 address as itself and as whatever leads to it.
    fn forms(address: Ipv4Addr) -> [IpAddr; 4] {
        let [a, b, c, d] = address.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        [
            address.into(),
            address.to_ipv6_mapped().into(),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into(),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1).into(),
        ]
    }
}
