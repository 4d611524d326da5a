//! Between a client and its BTP server: passes every byte on and notes the Prepares.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::Result;
use bytes::Bytes;
use ilp_btp::Frame;
use ilp_packet::Packet;

const MASKED: u8 = 0x80;
const BINARY: u8 = 2;

/// A listener in front of a BTP server.
#[derive(Debug)]
pub struct Tap {
    address: SocketAddr,
    prepares: Notes,
}

/// What was noted, in order.
type Notes = Arc<Mutex<Vec<String>>>;

impl Tap {
    /// Listens on a free port until the process ends.
    pub fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let prepares = Notes::default();
        let notes = Arc::clone(&prepares);
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                // A client that cannot be passed on notices by itself.
                let _ = pass_both(client, server, &notes);
            }
        });
        Ok(Self { address, prepares })
    }

    /// Where to connect instead.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Prepares so far, in both directions, the question for the client's address included: who sent
    /// it, its amount and the length of its data.
    #[must_use]
    pub fn prepares(&self) -> Vec<String> {
        self.prepares
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn pass_both(client: TcpStream, server: SocketAddr, notes: &Notes) -> Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    for (name, from, to) in [
        ("client", client.try_clone()?, server.try_clone()?),
        ("server", server, client),
    ] {
        let notes = Arc::clone(notes);
        thread::spawn(move || pass(name, from, to, &notes));
    }
    Ok(())
}

fn pass(name: &str, mut from: TcpStream, mut to: TcpStream, notes: &Notes) {
    let mut noting = Noting::default();
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        for prepare in noting.push(&buffer[..count]) {
            let note = format!("{name} {prepare}");
            notes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(note);
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Either end may be gone already.
    let _ = to.shutdown(Shutdown::Write);
}

/// One direction of a WebSocket, from its HTTP head on.
#[derive(Debug, Default)]
struct Noting {
    bytes: Vec<u8>,
    shaken: bool,
}

impl Noting {
    /// Takes what was read and tells the Prepares that are complete with it.
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.bytes.extend_from_slice(bytes);
        if !self.shaken {
            let Some(end) = self.bytes.windows(4).position(|end| end == b"\r\n\r\n") else {
                return Vec::new();
            };
            self.bytes.drain(..end + 4);
            self.shaken = true;
        }
        let mut prepares = Vec::new();
        while let Some((opcode, payload, len)) = frame(&self.bytes) {
            self.bytes.drain(..len);
            if opcode == BINARY {
                prepares.extend(prepare(payload));
            }
        }
        prepares
    }
}

/// Opcode, unmasked payload and length of the first frame, once it is there.
fn frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let [first, second, ..] = *bytes else {
        return None;
    };
    let (len, head) = match second & 0x7f {
        126 => {
            let len = u16::from_be_bytes(*bytes[2..].first_chunk()?);
            (usize::from(len), 4)
        }
        127 => {
            let len = u64::from_be_bytes(*bytes[2..].first_chunk()?);
            (usize::try_from(len).ok()?, 10)
        }
        len => (usize::from(len), 2),
    };
    let (mask, head) = if second & MASKED == 0 {
        ([0; 4], head)
    } else {
        (*bytes.get(head..)?.first_chunk::<4>()?, head + 4)
    };
    let payload = bytes.get(head..head.checked_add(len)?)?;
    let payload = payload.iter().zip(mask.iter().cycle());
    let payload = payload.map(|(byte, mask)| byte ^ mask).collect();
    Some((first & 0x0f, payload, head + len))
}

fn prepare(payload: Vec<u8>) -> Option<String> {
    let Ok(Frame::Message { protocol_data, .. }) = Frame::decode(&Bytes::from(payload)) else {
        return None;
    };
    let ilp = protocol_data
        .iter()
        .find(|entry| entry.name == ilp_btp::ILP)?;
    match Packet::decode(ilp.data.clone()) {
        Ok(Packet::Prepare(prepare)) => Some(format!(
            "amount {} data {}",
            prepare.amount,
            prepare.data.len()
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ilp_btp::RequestId;

    use super::*;
    use crate::{
        frames,
        websocket::{Role, write_binary},
    };

    #[test]
    fn prepares_are_noted_and_nothing_else_is() {
        let prepare = frames::address_request(7, ilp_packet::Timestamp::from_millis(0)).unwrap();
        let hello = frames::hello(1, "token").unwrap();
        let fulfill = Frame::ilp_response(RequestId(7), Bytes::from_static(&[13, 0]));
        let mut bytes = b"GET / HTTP/1.1\r\n\r\n".to_vec();
        for payload in [
            &hello,
            &prepare,
            &fulfill.encode().unwrap().to_vec(),
            &prepare,
        ] {
            write_binary(&mut bytes, Role::Client, payload);
        }
        let mut noting = Noting::default();
        // One byte at a time, as the network may have it.
        let noted: Vec<_> = bytes
            .iter()
            .flat_map(|byte| noting.push(&[*byte]))
            .collect();
        assert_eq!(noted, ["amount 0 data 0"; 2]);
    }
}
