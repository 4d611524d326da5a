//! A socket that never blocks, with what was read and what waits to be written.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::websocket::{self, Received, Role};

/// Room for what was read and not yet taken: any BTP frame and many small ones.
const INPUT_LEN: usize = 256 * 1024;
/// How long the other end may take during the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Any 16 bytes; we do not check what the server makes of them.
const REQUEST_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAA==";
const MAX_HEAD: usize = 8 * 1024;

/// One WebSocket.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    role: Role,
    input: Box<[u8]>,
    /// Where in `input` that begins which was read and not yet taken, and where it ends.
    start: usize,
    end: usize,
    /// What waits to be written.
    output: Vec<u8>,
    /// What of `output` has been written.
    written: usize,
}

impl Connection {
    /// Connects and shakes hands.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("nobody listens on {address}"))?;
        let mut connection = Self::new(stream, Role::Client)?;
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {REQUEST_KEY}\r\n\r\n"
        );
        connection.stream.write_all(request.as_bytes())?;
        let head = connection.head()?;
        ensure!(
            head.starts_with("HTTP/1.1 101 "),
            "{address} is no WebSocket server: {head}"
        );
        Ok(connection)
    }

    /// Takes a connection in.
    pub fn accept(stream: TcpStream) -> Result<Self> {
        let mut connection = Self::new(stream, Role::Server)?;
        let head = connection.head()?;
        let key = head
            .lines()
            .find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("sec-websocket-key")
                    .then(|| value.trim())
            })
            .with_context(|| format!("no WebSocket client: {head}"))?;
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            accept_key(key)
        );
        connection.stream.write_all(answer.as_bytes())?;
        Ok(connection)
    }

    fn new(stream: TcpStream, role: Role) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
        Ok(Self {
            stream,
            role,
            input: vec![0; INPUT_LEN].into(),
            start: 0,
            end: 0,
            output: Vec::new(),
            written: 0,
        })
    }

    /// Reads the head of an HTTP message.
    fn head(&mut self) -> Result<String> {
        loop {
            let read = &self.input[self.start..self.end];
            if let Some(len) = read.windows(4).position(|end| end == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&read[..len]).into_owned();
                self.start += len + 4;
                return Ok(head);
            }
            ensure!(read.len() < MAX_HEAD, "no end of the HTTP head");
            let before = read.len();
            ensure!(self.fill()?, "the connection was closed in its handshake");
            ensure!(
                self.end - self.start > before,
                "the other end does not shake hands"
            );
        }
    }

    /// From now on, nothing waits.
    pub fn set_nonblocking(&self) -> Result<()> {
        Ok(self.stream.set_nonblocking(true)?)
    }

    /// The socket, to wait for.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether something waits to be written.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.written < self.output.len()
    }

    /// Reads what there is. False at the end of the stream.
    pub fn fill(&mut self) -> Result<bool> {
        self.input.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let free = &mut self.input[self.end..];
        ensure!(!free.is_empty(), "a message is too long");
        loop {
            match self.stream.read(free) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("a connection broke"),
            }
        }
    }

    /// The next message that is there. Pings are answered.
    pub fn next_message(&mut self) -> Result<Option<&[u8]>> {
        loop {
            let read = &self.input[self.start..self.end];
            let Some((received, len)) = websocket::read(read)? else {
                return Ok(None);
            };
            self.start += len;
            match received {
                Received::Binary(payload) => {
                    // Taken from the buffer anew, at the end of its frame: see rust-lang/rust#54663.
                    let payload = self.start - payload.len()..self.start;
                    return Ok(Some(&self.input[payload]));
                }
                Received::Ping(payload) => {
                    websocket::write_pong(&mut self.output, self.role, payload);
                }
                Received::Pong => {}
                Received::Close => bail!("the other end closed the connection"),
            }
        }
    }

    /// Waits for a message, before [`Connection::set_nonblocking`].
    pub fn wait_message(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(message) = self.next_message()? {
                return Ok(message.to_vec());
            }
            self.flush()?;
            let before = self.end - self.start;
            ensure!(self.fill()?, "the other end closed the connection");
            // A blocking socket reports its time-out as one that would block.
            ensure!(
                self.end - self.start > before,
                "the other end does not answer"
            );
        }
    }

    /// Puts a message behind what waits to be written.
    pub fn queue(&mut self, message: &[u8]) {
        websocket::write_binary(&mut self.output, self.role, message);
    }

    /// Puts a goodbye behind what waits to be written.
    pub fn queue_close(&mut self) {
        websocket::write_close(&mut self.output, self.role);
    }

    /// Writes what can be written.
    pub fn flush(&mut self) -> Result<()> {
        while self.has_output() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(0) => bail!("the other end takes nothing any more"),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("a connection broke"),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }
}

/// What proves that a server has understood the handshake (RFC 6455 section 4.2.2).
fn accept_key(key: &str) -> String {
    const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let text = format!("{key}{GUID}");
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    data_encoding::BASE64.encode(digest.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_is_that_of_the_rfc() {
        assert_eq!(
            accept_key("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }
}
