//! WebSocket frames (RFC 6455), as far as BTP uses them: whole binary messages, pings and closes.
//!
//! Frames of a client must be masked. The mask here is zero, which is valid and costs the client
//! nothing; the server still has to undo it.

use anyhow::{Result, bail, ensure};

/// Longest message that is read; far more than any BTP frame.
const MAX_MESSAGE: usize = 128 * 1024;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Which end writes: clients mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// A frame that was received.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
    Close,
}

/// Writes a binary message behind `out`.
pub fn write_binary(out: &mut Vec<u8>, role: Role, payload: &[u8]) {
    write(out, role, BINARY, payload);
}

/// Answers a ping.
pub fn write_pong(out: &mut Vec<u8>, role: Role, payload: &[u8]) {
    write(out, role, PONG, payload);
}

/// Says goodbye.
pub fn write_close(out: &mut Vec<u8>, role: Role) {
    write(out, role, CLOSE, &1000_u16.to_be_bytes());
}

fn write(out: &mut Vec<u8>, role: Role, opcode: u8, payload: &[u8]) {
    let masked = match role {
        Role::Client => MASKED,
        Role::Server => 0,
    };
    out.push(FIN | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(len), _) if len < 126 => out.push(masked | len),
        (_, Ok(len)) => {
            out.push(masked | 126);
            out.extend_from_slice(&len.to_be_bytes());
        }
        _ => {
            out.push(masked | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    if role == Role::Client {
        out.extend_from_slice(&[0; 4]);
    }
    out.extend_from_slice(payload);
}

/// Reads one frame from the start of `bytes`, and how long it is; nothing if it is incomplete.
pub fn read(bytes: &[u8]) -> Result<Option<(Received<'_>, usize)>> {
    let [first, second, rest @ ..] = bytes else {
        return Ok(None);
    };
    ensure!(
        first & FIN != 0,
        "a message in several frames is not expected here"
    );
    let (len, rest, mut head) = match second & 0x7f {
        126 => match rest {
            [a, b, rest @ ..] => (usize::from(u16::from_be_bytes([*a, *b])), rest, 4),
            _ => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((len, rest)) => (usize::try_from(u64::from_be_bytes(*len))?, rest, 10),
            None => return Ok(None),
        },
        len => (usize::from(len), rest, 2),
    };
    ensure!(len <= MAX_MESSAGE, "a message of {len} bytes is too long");
    let rest = if second & MASKED == 0 {
        rest
    } else {
        let Some((mask, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        ensure!(*mask == [0; 4], "only masks of zero are expected here");
        head += 4;
        rest
    };
    let Some(payload) = rest.get(..len) else {
        return Ok(None);
    };
    let received = match first & 0x0f {
        BINARY => Received::Binary(payload),
        PING => Received::Ping(payload),
        PONG => Received::Pong,
        CLOSE => Received::Close,
        opcode => bail!("frame with opcode {opcode} is not expected here"),
    };
    Ok(Some((received, head + len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_any_length_is_read_as_it_was_written() {
        for role in [Role::Client, Role::Server] {
            for len in [0, 1, 125, 126, 65_535, 65_536] {
                let payload = vec![7; len];
                let mut bytes = Vec::new();
                write_binary(&mut bytes, role, &payload);
                let whole = bytes.len();
                bytes.extend_from_slice(b"next");
                let (received, used) = read(&bytes).unwrap().unwrap();
                assert_eq!(received, Received::Binary(&payload));
                assert_eq!(used, whole);
                for cut in [0, 1, 2, 3, whole - 1] {
                    let short = &bytes[..cut.min(whole - 1)];
                    assert_eq!(read(short).unwrap(), None, "{len} cut to {cut}");
                }
            }
        }
    }

    #[test]
    fn what_a_benchmark_does_not_expect_is_an_error() {
        for bytes in [
            // A fragment, a text, a mask that is not zero, a message that is too long.
            &[0x02, 0][..],
            &[0x81, 0],
            &[0x82, 0x80, 1, 2, 3, 4],
            &[0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0],
        ] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }
}
