//! What the tables have counted, as the kernel tells it (netlink, `nf_tables`): no program is started for
//! it, because a host asks for all of its pods at once.
//!
//! One request (`NFT_MSG_GETOBJ` of all counters), one answer of many messages, the last of which says that it
//! is the last. Numbers of the frame are in the machine's order, those of the attributes in the network's.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

use codius_pod::{Count, Refusal, Traffic};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{NETFILTER, SocketAddrNetlink},
    recv, sendto, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use super::{firewall, namespace::inside};
use crate::limits::{MAX_COUNTERS_BYTES, PROGRAM_DEADLINE};

/// The counters by name. Those of a name in several tables are added up.
pub(super) type Counters = BTreeMap<String, Count>;

/// The kernel never sends more at once.
const DATAGRAM_BYTES: usize = 32 * 1024;
/// An answer in the middle of which the rules were changed is asked for again, so often.
const TRIES: usize = 3;

// linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
const HEADER_BYTES: usize = 16;
const FAMILY_BYTES: usize = 4;
const ATTRIBUTE_BYTES: usize = 4;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NFT_MSG_NEWOBJ: u16 = 10 << 8 | 18;
const NFT_MSG_GETOBJ: u16 = 10 << 8 | 19;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
/// The upper bits of a type say of what kind the attribute is.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// Reads all counters of the tables of a namespace. Blocks for as long as the kernel takes.
pub(super) fn in_namespace(namespace: &OwnedFd) -> io::Result<Counters> {
    inside(namespace, || read(None))
}

/// Reads the counters of one table of the host.
pub(super) fn of_host(table: &str) -> io::Result<Counters> {
    read(Some(table))
}

fn read(table: Option<&str>) -> io::Result<Counters> {
    for _ in 0..TRIES {
        if let Some(counters) = ask(table)? {
            return Ok(counters);
        }
    }
    Err(io::Error::other(
        "the firewall's rules are changed all the time",
    ))
}

/// `None` if the tables were changed meanwhile.
fn ask(table: Option<&str>) -> io::Result<Option<Counters>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(NETFILTER),
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PROGRAM_DEADLINE))?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(socket.as_fd(), &request(table), SendFlags::empty(), &kernel)?;
    let mut answer = Answer::default();
    let mut datagram = vec![0; DATAGRAM_BYTES];
    let mut taken = 0;
    while !answer.is_whole {
        let (_, length) = recv(socket.as_fd(), datagram.as_mut_slice(), RecvFlags::empty())?;
        taken += length;
        if length == 0 || taken > MAX_COUNTERS_BYTES {
            return Err(io::Error::other("the kernel tells too much of counters"));
        }
        answer.take(&datagram[..length.min(DATAGRAM_BYTES)])?;
    }
    Ok((!answer.was_interrupted).then_some(answer.counters))
}

fn request(table: Option<&str>) -> Vec<u8> {
    // Of all families.
    let mut body = vec![0; FAMILY_BYTES];
    let mut attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(ATTRIBUTE_BYTES + value.len()).expect("names are short");
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    };
    attribute(NFTA_OBJ_TYPE, &NFT_OBJECT_COUNTER.to_be_bytes());
    if let Some(table) = table {
        attribute(NFTA_OBJ_TABLE, &[table.as_bytes(), b"\0"].concat());
    }
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("names are short");
    let mut request = Vec::new();
    request.extend(length.to_ne_bytes());
    request.extend(NFT_MSG_GETOBJ.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    // Sequence and sender: there is one request on this socket.
    request.extend([0; 8]);
    request.extend(body);
    request
}

/// What has come of an answer.
#[derive(Debug, Default)]
struct Answer {
    counters: Counters,
    is_whole: bool,
    was_interrupted: bool,
}

impl Answer {
    fn take(&mut self, datagram: &[u8]) -> io::Result<()> {
        let mut rest = datagram;
        while !rest.is_empty() && !self.is_whole {
            let length = usize::try_from(u32::from_ne_bytes(array(rest, 0)?)).unwrap_or(usize::MAX);
            let (kind, flags) = (
                u16::from_ne_bytes(array(rest, 4)?),
                u16::from_ne_bytes(array(rest, 6)?),
            );
            let body = rest.get(HEADER_BYTES..length).ok_or_else(unreadable)?;
            self.was_interrupted |= flags & NLM_F_DUMP_INTR != 0;
            match kind {
                NLMSG_DONE => self.is_whole = true,
                NLMSG_ERROR => {
                    let code = i32::from_ne_bytes(array(body, 0)?);
                    return Err(io::Error::from_raw_os_error(-code));
                }
                NFT_MSG_NEWOBJ => self.count(body.get(FAMILY_BYTES..).ok_or_else(unreadable)?)?,
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn count(&mut self, attributes_of_object: &[u8]) -> io::Result<()> {
        let object = attributes(attributes_of_object)?;
        let (Some(name), Some(data)) = (object.get(&NFTA_OBJ_NAME), object.get(&NFTA_OBJ_DATA))
        else {
            return Ok(());
        };
        let data = attributes(data)?;
        let number = |kind: u16| -> io::Result<u64> {
            let value = data.get(&kind).ok_or_else(unreadable)?;
            Ok(u64::from_be_bytes(array(value, 0)?))
        };
        let name = name.strip_suffix(b"\0").unwrap_or(name);
        let name = String::from_utf8_lossy(name).into_owned();
        let sum = self.counters.entry(name).or_default();
        sum.packets = sum.packets.saturating_add(number(NFTA_COUNTER_PACKETS)?);
        sum.bytes = sum.bytes.saturating_add(number(NFTA_COUNTER_BYTES)?);
        Ok(())
    }
}

/// The values by their types.
fn attributes(bytes: &[u8]) -> io::Result<BTreeMap<u16, &[u8]>> {
    let mut found = BTreeMap::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = usize::from(u16::from_ne_bytes(array(rest, 0)?));
        let kind = u16::from_ne_bytes(array(rest, 2)?) & ATTRIBUTE_TYPE;
        let value = rest.get(ATTRIBUTE_BYTES..length).ok_or_else(unreadable)?;
        found.insert(kind, value);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

fn array<const LENGTH: usize>(bytes: &[u8], at: usize) -> io::Result<[u8; LENGTH]> {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().ok_or_else(unreadable)
}

fn unreadable() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer about counters cannot be read",
    )
}

/// What the counters of a pod's namespace say.
pub(super) fn traffic(counters: &Counters) -> Traffic {
    let of = |name: &str| counters.get(name).copied().unwrap_or_default();
    Traffic {
        sent: of(firewall::SENT),
        received: of(firewall::RECEIVED),
        visitors_sent: of(firewall::VISITORS_SENT),
        visitors_received: of(firewall::VISITORS_RECEIVED),
        refused: Refusal::ALL
            .into_iter()
            .map(|refusal| (refusal, of(&firewall::counter_of(refusal))))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(ATTRIBUTE_BYTES + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes
    }

    fn counter(table: &str, name: &str, packets: u64, bytes: u64) -> Vec<u8> {
        let data = [
            attribute(NFTA_COUNTER_BYTES, &bytes.to_be_bytes()),
            attribute(NFTA_COUNTER_PACKETS, &packets.to_be_bytes()),
        ];
        let body = [
            vec![1, 0, 0, 0],
            attribute(NFTA_OBJ_TABLE, format!("{table}\0").as_bytes()),
            attribute(NFTA_OBJ_NAME, format!("{name}\0").as_bytes()),
            attribute(NFTA_OBJ_TYPE, &NFT_OBJECT_COUNTER.to_be_bytes()),
            // Nested.
            attribute(NFTA_OBJ_DATA | 0x8000, &data.concat()),
        ];
        message(NFT_MSG_NEWOBJ, 2, &body.concat())
    }

    #[test]
    fn counters_of_one_name_are_added_up() {
        let first = [
            counter("pod", "refused_spoofed", 2, 84),
            counter("link", "refused_spoofed", 1, 60),
        ];
        let second = [
            counter("pod", "sent", 5, 300),
            message(NLMSG_DONE, 2, &[0; 4]),
        ];
        let mut answer = Answer::default();
        answer.take(&first.concat()).unwrap();
        assert!(!answer.is_whole);
        answer.take(&second.concat()).unwrap();
        assert!(answer.is_whole && !answer.was_interrupted);
        let traffic = traffic(&answer.counters);
        assert_eq!((traffic.sent.packets, traffic.sent.bytes), (5, 300));
        let spoofed = traffic.refused[&Refusal::Spoofed];
        assert_eq!((spoofed.packets, spoofed.bytes), (3, 144));
        assert_eq!(traffic.refused.len(), Refusal::ALL.len());
    }

    #[test]
    fn what_is_cut_off_or_an_error_is_no_answer() {
        let whole = counter("pod", "sent", 5, 300);
        for length in 1..whole.len() {
            let mut answer = Answer::default();
            assert!(answer.take(&whole[..length]).is_err(), "{length}");
        }
        let refused = message(NLMSG_ERROR, 0, &(-1i32).to_ne_bytes());
        let error = Answer::default().take(&refused).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let mut answer = Answer::default();
        answer
            .take(&message(NLMSG_DONE, NLM_F_DUMP_INTR, &[0; 4]))
            .unwrap();
        assert!(answer.was_interrupted);
        // A length of nothing does not go on for ever.
        assert!(Answer::default().take(&[0; 32]).is_err());
    }
}
