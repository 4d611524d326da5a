//! Between a client and its BTP server: passes every byte on and counts the Prepares.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use anyhow::Result;
use bytes::Bytes;
use ilp_btp::Frame;
use ilp_packet::kind;

const MASKED: u8 = 0x80;
const BINARY: u8 = 2;

/// A listener in front of a BTP server.
#[derive(Debug)]
pub struct Tap {
    address: SocketAddr,
    prepares: Arc<AtomicU64>,
}

impl Tap {
    /// Listens on a free port until the process ends.
    pub fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let prepares = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&prepares);
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                // A client that cannot be passed on notices by itself.
                let _ = pass_both(client, server, &counter);
            }
        });
        Ok(Self { address, prepares })
    }

    /// Where to connect instead.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Prepares so far, in both directions, the question for the client's address included.
    #[must_use]
    pub fn prepares(&self) -> u64 {
        self.prepares.load(Ordering::SeqCst)
    }
}

fn pass_both(client: TcpStream, server: SocketAddr, counter: &Arc<AtomicU64>) -> Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        let counter = Arc::clone(counter);
        thread::spawn(move || pass(from, to, &counter));
    }
    Ok(())
}

fn pass(mut from: TcpStream, mut to: TcpStream, counter: &AtomicU64) {
    let mut counting = Counting::default();
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        counter.fetch_add(counting.push(&buffer[..count]), Ordering::SeqCst);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Either end may be gone already.
    let _ = to.shutdown(Shutdown::Write);
}

/// One direction of a WebSocket, from its HTTP head on.
#[derive(Debug, Default)]
struct Counting {
    bytes: Vec<u8>,
    shaken: bool,
}

impl Counting {
    /// Takes what was read and says how many Prepares are complete with it.
    fn push(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.extend_from_slice(bytes);
        if !self.shaken {
            let Some(end) = self.bytes.windows(4).position(|end| end == b"\r\n\r\n") else {
                return 0;
            };
            self.bytes.drain(..end + 4);
            self.shaken = true;
        }
        let mut prepares = 0;
        while let Some((opcode, payload, len)) = frame(&self.bytes) {
            self.bytes.drain(..len);
            prepares += u64::from(opcode == BINARY && is_prepare(payload));
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

fn is_prepare(payload: Vec<u8>) -> bool {
    let Ok(Frame::Message { protocol_data, .. }) = Frame::decode(&Bytes::from(payload)) else {
        return false;
    };
    protocol_data
        .iter()
        .any(|entry| entry.name == ilp_btp::ILP && entry.data.first() == Some(&kind::PREPARE))
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
    fn prepares_are_counted_and_nothing_else_is() {
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
        let mut counting = Counting::default();
        // One byte at a time, as the network may have it.
        let count: u64 = bytes.iter().map(|byte| counting.push(&[*byte])).sum();
        assert_eq!(count, 2);
    }
}
