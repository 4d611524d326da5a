//! Reading `/proc/net/tcp` and `/proc/net/tcp6`: who listens on a port, and for whom.
//!
//! The format is the kernel's `Documentation/networking/proc_net_tcp.rst`: the second column is the
//! local address, in words of the machine's byte order (little-endian here), the fourth the state.

use std::net::{Ipv4Addr, Ipv6Addr};

const STATE_LISTEN: &str = "0A";

/// From where a port can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// Nobody listens.
    Nowhere,
    /// Only from inside the pod.
    Loopback,
    /// From the host too.
    Host,
}

/// How far `port` reaches according to one of the two tables. `address` is the pod's own.
pub(crate) fn reach(table: &str, port: u16, address: Option<Ipv4Addr>) -> Reach {
    table
        .lines()
        .skip(1)
        .filter_map(listener)
        .filter(|(_, listening)| *listening == port)
        .map(|(local, _)| match local.to_ipv4_mapped() {
            Some(v4) if v4.is_unspecified() || Some(v4) == address => Reach::Host,
            Some(v4) if v4.is_loopback() => Reach::Loopback,
            Some(_) => Reach::Nowhere,
            None if local.is_unspecified() => Reach::Host,
            None if local.is_loopback() => Reach::Loopback,
            None => Reach::Nowhere,
        })
        .max()
        .unwrap_or(Reach::Nowhere)
}

/// The local address of a line that is a listening socket. IPv4 addresses come out mapped.
fn listener(line: &str) -> Option<(Ipv6Addr, u16)> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let (address, port) = columns.next()?.split_once(':')?;
    if columns.nth(1)? != STATE_LISTEN {
        return None;
    }
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        u32::from_str_radix(address.get(at..at + 8)?, 16)
            .ok()
            .map(u32::to_le_bytes)
    };
    let address = match address.len() {
        8 => Ipv4Addr::from(word(0)?).to_ipv6_mapped(),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index * 8)?);
            }
            Ipv6Addr::from(bytes)
        }
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const HEADING: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n";

    fn table(local: &str, state: &str) -> String {
        format!("{HEADING}   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000\n")
    }

    #[test]
    fn addresses_are_told_apart() {
        let own = Some(Ipv4Addr::new(10, 0, 2, 15));
        for (local, expected) in [
            ("00000000:1F90", Reach::Host),
            ("0F02000A:1F90", Reach::Host),
            ("0100007F:1F90", Reach::Loopback),
            ("0200007F:1F90", Reach::Loopback),
            ("0100000A:1F90", Reach::Nowhere),
            ("00000000:1F91", Reach::Nowhere),
            ("00000000000000000000000000000000:1F90", Reach::Host),
            ("00000000000000000000000001000000:1F90", Reach::Loopback),
            ("0000000000000000FFFF00000F02000A:1F90", Reach::Host),
            ("0000000000000000FFFF00000100007F:1F90", Reach::Loopback),
            ("000080FE000000000000000001000000:1F90", Reach::Nowhere),
        ] {
            assert_eq!(reach(&table(local, "0A"), 8080, own), expected, "{local}");
            assert_eq!(
                reach(&table(local, "01"), 8080, own),
                Reach::Nowhere,
                "{local}"
            );
        }
        let both = table("0100007F:1F90", "0A") + &table("00000000:1F90", "0A");
        assert_eq!(reach(&both, 8080, own), Reach::Host);
    }

    #[test]
    fn odd_lines_are_passed_over() {
        for line in [
            "",
            "0:",
            "0: x",
            "0: 0:1 0:0 0A",
            "0: ééééé:1F90 0:0 0A",
            "0: 00000000:1F90 0:0",
        ] {
            assert_eq!(
                reach(&format!("{HEADING}{line}\n"), 8080, None),
                Reach::Nowhere,
                "{line}"
            );
        }
    }

    #[test]
    fn the_running_kernel_writes_what_is_read_here() {
        let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = loopback.local_addr().unwrap().port();
        let _connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        assert_eq!(reach(&table, port, None), Reach::Loopback);
        let wildcard = TcpListener::bind("[::]:0").unwrap();
        let port = wildcard.local_addr().unwrap().port();
        let table = std::fs::read_to_string("/proc/net/tcp6").unwrap();
        assert_eq!(reach(&table, port, None), Reach::Host);
    }
}
