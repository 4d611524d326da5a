//! The program that a host uploads to itself, to see that everything works that a visitor needs.
//!
//! It answers every request with what the first Codius host's test looks for: `imageUploaded` over
//! HTTP, `websocketEnabled` over WebSocket. It listens on `0.0.0.0:$PORT` (3000).

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tungstenite::Message;

/// The port without `PORT`, as the original's image has it.
const DEFAULT_PORT: u16 = 3000;
/// The longest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// How long a visitor may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for the rest of a head that has begun to arrive.
const PAUSE: Duration = Duration::from_millis(5);

fn main() -> io::Result<()> {
    let port = std::env::var("PORT")
        .ok()
        .and_then(|text| text.parse().ok());
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port.unwrap_or(DEFAULT_PORT)))?;
    loop {
        // A visitor who is gone already is no reason to end.
        if let Ok((stream, _)) = listener.accept() {
            thread::spawn(move || answer(stream));
        }
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (head, length) = head(&stream)?;
    if head.to_ascii_lowercase().contains("upgrade: websocket") {
        let mut websocket = tungstenite::accept(stream).map_err(io::Error::other)?;
        let text = json!({ "websocketEnabled": true }).to_string();
        websocket
            .send(Message::text(text))
            .map_err(io::Error::other)?;
        // Until the visitor has said goodbye or is gone.
        while websocket.read().is_ok() {}
        return Ok(());
    }
    // What is left unread when a connection is closed breaks it before the answer is read.
    io::copy(&mut (&stream).take(length as u64), &mut io::sink())?;
    let body = json!({ "imageUploaded": true }).to_string();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The head of the request and the bytes that it takes, with what came after it. All is left where it
/// is for whoever answers.
fn head(stream: &TcpStream) -> io::Result<(String, usize)> {
    let mut bytes = vec![0; MAX_HEAD_BYTES];
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let length = stream.peek(&mut bytes)?;
        let head = String::from_utf8_lossy(&bytes[..length]);
        if head.contains("\r\n\r\n") {
            return Ok((head.into_owned(), length));
        }
        if length == 0 || length == bytes.len() {
            break;
        }
        thread::sleep(PAUSE);
    }
    Err(io::ErrorKind::InvalidData.into())
}
