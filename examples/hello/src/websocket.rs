//! A WebSocket (RFC 6455) to a neighbour who is trusted to be one: binary messages only, in one
//! frame each.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// The longest message that is read, in bytes.
const MAX_MESSAGE_BYTES: u64 = 64 * 1024;

/// The longest answer to the handshake, in bytes.
const MAX_HANDSHAKE_BYTES: u64 = 8 * 1024;

/// Other frames that may come before the one that is waited for.
const MAX_OTHER_FRAMES: usize = 16;

const BINARY_MESSAGE: u8 = 0x82;
const MASKED: u8 = 0x80;

pub(crate) struct WebSocket {
    stream: BufReader<TcpStream>,
}

impl WebSocket {
    /// Connects; each step, then and later, may take as long as `patience`.
    pub(crate) fn connect(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        // The key shows that the other side is no web server that was tricked into answering. Here
        // nobody tricks anyone, so that a constant does, and the answer to it is not checked.
        write!(
            stream,
            "GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: aGVsbG8sIGludGVybGVkZw==\r\n\r\n"
        )?;
        let mut stream = BufReader::new(stream);
        read_handshake(&mut stream)?;
        Ok(Self { stream })
    }

    pub(crate) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let mut frame = vec![BINARY_MESSAGE];
        match (u8::try_from(message.len()), u16::try_from(message.len())) {
            (Ok(length @ ..126), _) => frame.push(MASKED | length),
            (_, Ok(length)) => {
                frame.push(MASKED | 126);
                frame.extend_from_slice(&length.to_be_bytes());
            }
            (_, Err(_)) => return Err(io::ErrorKind::InvalidInput.into()),
        }
        let mask: [u8; 4] = random()?;
        frame.extend_from_slice(&mask);
        frame.extend(
            message
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
        self.stream.get_mut().write_all(&frame)
    }

    /// The next binary message.
    pub(crate) fn receive(&mut self) -> io::Result<Vec<u8>> {
        read_message(&mut self.stream)
    }
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn read_handshake(stream: &mut impl BufRead) -> io::Result<()> {
    let mut head = stream.take(MAX_HANDSHAKE_BYTES);
    let mut status = String::new();
    head.read_line(&mut status)?;
    if !status.starts_with("HTTP/1.1 101 ") {
        return Err(invalid("the other side does not speak WebSocket"));
    }
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

fn read_message(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    for _ in 0..MAX_OTHER_FRAMES {
        let mut start = [0; 2];
        stream.read_exact(&mut start)?;
        let length = match start[1] {
            126 => {
                let mut length = [0; 2];
                stream.read_exact(&mut length)?;
                u64::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                stream.read_exact(&mut length)?;
                u64::from_be_bytes(length)
            }
            short @ ..126 => u64::from(short),
            _ => return Err(invalid("a server's frames are not masked")),
        };
        if length > MAX_MESSAGE_BYTES {
            return Err(invalid("the message is too long"));
        }
        let mut message = Vec::new();
        stream.take(length).read_to_end(&mut message)?;
        if message.len() as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match start[0] {
            BINARY_MESSAGE => return Ok(message),
            0x88 => return Err(io::ErrorKind::ConnectionAborted.into()),
            // A ping would want a pong; a conversation of two questions is over before that.
            0x89 | 0x8a => {}
            _ => return Err(invalid("neither a binary message nor a ping")),
        }
    }
    Err(invalid("too many pings"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_every_length_are_read_and_pings_are_passed_over() {
        let frame = |head: &[u8], length: usize| [head, &vec![7; length]].concat();
        for stream in [
            frame(&[0x82, 125], 125),
            frame(&[0x82, 126, 0, 126], 126),
            frame(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0], 65_536),
            [frame(&[0x89, 2], 2), frame(&[0x82, 3], 3)].concat(),
        ] {
            let message = read_message(&mut &stream[..]).unwrap();
            assert!(message.iter().all(|byte| *byte == 7) && message.len() >= 3);
        }
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let pings = [0x89, 0].repeat(100);
        for stream in [
            &[][..],
            &[0x82, 5, 1],
            &[0x82, 0x81, 0, 0, 0, 0, 0],
            &[0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0],
            &[0x88, 0],
            &[0x81, 1, b'a'],
            &[0x02, 1, 0],
            &pings,
        ] {
            assert!(read_message(&mut &stream[..]).is_err(), "{stream:?}");
        }
    }

    #[test]
    fn the_handshake_has_to_succeed() {
        read_handshake(&mut &b"HTTP/1.1 101 Switching Protocols\r\nA: b\r\n\r\n"[..]).unwrap();
        for answer in ["", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 101 x\r\nA: b\r\n"] {
            assert!(read_handshake(&mut answer.as_bytes()).is_err(), "{answer}");
        }
    }
}
