//! Eight addresses for each pod.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use codius_address::Ipv4Range;
use codius_guest_protocol::hardware_address;
use thiserror::Error;

/// Length of the network between gateway and guest.
pub(crate) const TAP_PREFIX_LEN: u8 = 30;
const BLOCK_ADDRESSES: u32 = 8;
const BLOCK_PREFIX_LEN: u8 = 29;
/// A larger pool would have more slots than a slot number counts.
const MIN_PREFIX_LEN: u8 = 14;

/// The range that pods get their addresses from, as `10.88.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Pool(Ipv4Range);

impl Ipv4Pool {
    /// How many pods can have addresses at the same time.
    pub fn slots(self) -> u16 {
        u16::try_from(1_u32 << (BLOCK_PREFIX_LEN - self.0.prefix_len())).unwrap_or(u16::MAX)
    }

    /// All of its addresses.
    pub fn range(self) -> Ipv4Range {
        self.0
    }

    /// The addresses of a slot; `slot` is below [`Self::slots`].
    pub(crate) fn block(self, slot: u16) -> Block {
        debug_assert!(slot < self.slots(), "slot {slot} of {self}");
        Block {
            base: u32::from(self.0.network()) + u32::from(slot) * BLOCK_ADDRESSES,
        }
    }
}

impl fmt::Display for Ipv4Pool {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// The text is no such range.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is not an IPv4 range for pods such as 10.88.0.0/16 (prefix length 14 to 29, no host bits)"
)]
pub struct InvalidPool {
    text: String,
}

impl FromStr for Ipv4Pool {
    type Err = InvalidPool;

    fn from_str(text: &str) -> Result<Self, InvalidPool> {
        let range = text.parse::<Ipv4Range>().ok();
        range
            .filter(|range| (MIN_PREFIX_LEN..=BLOCK_PREFIX_LEN).contains(&range.prefix_len()))
            .map(Self)
            .ok_or_else(|| InvalidPool {
                text: text.to_owned(),
            })
    }
}

/// The addresses of one pod: `b+0/31` and `b+1/31` on the link between host and namespace, `b+4/30` the
/// guest's network with the gateway `b+5` and the guest `b+6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    base: u32,
}

impl Block {
    pub(crate) fn host(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base)
    }

    pub(crate) fn uplink(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    pub(crate) fn guest_network(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 4)
    }

    pub(crate) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 5)
    }

    pub(crate) fn guest(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 6)
    }

    /// The guest's hardware address, as text.
    pub(crate) fn hardware(self) -> String {
        let bytes = hardware_address(self.guest()).map(|byte| format!("{byte:02x}"));
        bytes.join(":")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_and_stay_in_the_pool() {
        let pool: Ipv4Pool = "10.88.0.0/16".parse().unwrap();
        assert_eq!(pool.slots(), 8192);
        let block = pool.block(0);
        assert_eq!(block.host(), Ipv4Addr::new(10, 88, 0, 0));
        assert_eq!(block.uplink(), Ipv4Addr::new(10, 88, 0, 1));
        assert_eq!(block.guest_network(), Ipv4Addr::new(10, 88, 0, 4));
        assert_eq!(block.gateway(), Ipv4Addr::new(10, 88, 0, 5));
        assert_eq!(block.guest(), Ipv4Addr::new(10, 88, 0, 6));
        assert_eq!(pool.block(1).host(), Ipv4Addr::new(10, 88, 0, 8));
        assert_eq!(pool.block(8191).guest(), Ipv4Addr::new(10, 88, 255, 254));
    }

    #[test]
    fn only_whole_ranges_are_taken() {
        for bad in [
            "10.88.0.0",
            "10.88.0.1/16",
            "10.0.0.0/8",
            "10.88.0.0/30",
            "10.88.0.0/33",
            "x/16",
            "::/64",
        ] {
            assert!(bad.parse::<Ipv4Pool>().is_err(), "{bad}");
        }
        assert_eq!("10.88.3.0/29".parse::<Ipv4Pool>().unwrap().slots(), 1);
        assert_eq!("10.88.0.0/14".parse::<Ipv4Pool>().unwrap().slots(), 32768);
    }
}
