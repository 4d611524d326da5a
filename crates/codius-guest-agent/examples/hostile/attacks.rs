//! Taking as much as there is, without an end. Each says one line when it has hit a limit for the first time.

use std::{
    fs,
    io::{self, Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use crate::calls::call;

/// A pause where there is nothing to take at the moment.
const PAUSE: Duration = Duration::from_millis(20);
const PIECE_BYTES: usize = 1 << 20;

/// Every process that it starts starts more.
pub(crate) fn processes() {
    let mut told = false;
    loop {
        match call(libc::SYS_fork, &[]) {
            Ok(0) => told = true,
            Ok(_) => {}
            Err(error) => {
                if !told {
                    println!("no more processes: {error}");
                    told = true;
                }
                // The processor is taken as well, by all of them.
                for _ in 0..1_000_000 {
                    std::hint::spin_loop();
                }
            }
        }
    }
}

/// Of the heap, which ends in being killed.
pub(crate) fn memory() {
    let mut pieces = Vec::new();
    loop {
        // Written to, so that it is really there.
        pieces.push(vec![pieces.len().to_le_bytes()[0] | 1; PIECE_BYTES]);
    }
}

pub(crate) fn files(directory: &str) {
    let piece = vec![7; PIECE_BYTES];
    let mut told = false;
    loop {
        let mut number = 0_u64;
        loop {
            let path = format!("{directory}/{number}");
            let written = fs::File::create(&path).and_then(|mut file| {
                for _ in 0..8 {
                    file.write_all(&piece)?;
                }
                Ok(())
            });
            number += 1;
            let Err(error) = written else { continue };
            if !told {
                println!("no more room: {:?}", error.kind());
                told = true;
            }
            break;
        }
        for number in 0..number {
            let _ = fs::remove_file(format!("{directory}/{number}"));
        }
        thread::sleep(PAUSE);
    }
}

/// Long lines, empty ones, bytes that are no text, and the words of the agent's own protocol.
pub(crate) fn flood() {
    let forged =
        b"\n{\"type\":\"stopped\"}\n{\"type\":\"failed\",\"container\":0,\"message\":\"x\"}\n";
    let mut piece = vec![b'x'; 8 * 1024];
    piece.extend_from_slice(forged);
    piece.extend((0..=255).cycle().take(8 * 1024));
    piece.extend_from_slice(&[b'\n'; 4096]);
    piece.extend_from_slice(b"\x1b[2J\x1b]0;title\x07\0");
    loop {
        let _ = io::stdout().write_all(&piece);
        let _ = io::stderr().write_all(&piece);
    }
}

/// To the host's Interledger port: no handshake, half a handshake, an endless header, then frames that claim to be
/// larger than anything, over more connections than there may be.
pub(crate) fn nonsense() {
    const HANDSHAKE: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost:7768\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    // A binary frame that says it has 2^62 bytes.
    const HUGE_FRAME: &[u8] = &[
        0x82, 0xff, 0x3f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4,
    ];
    let mut held = Vec::new();
    let mut round = 0_usize;
    let mut told = false;
    loop {
        round += 1;
        let Ok(mut connection) = TcpStream::connect(("localhost", 7768)) else {
            thread::sleep(PAUSE);
            continue;
        };
        let _ = connection.set_write_timeout(Some(PAUSE));
        let _ = connection.set_read_timeout(Some(PAUSE));
        let noise: Vec<u8> = (0..4096_usize)
            .map(|at| (at.wrapping_mul(round * 31 + 7) >> 3).to_le_bytes()[0])
            .collect();
        let _ = match round % 5 {
            0 => connection.write_all(&noise),
            1 => connection.write_all(&HANDSHAKE[..40]),
            2 => connection
                .write_all(b"GET / HTTP/1.1\r\nX: ")
                .and_then(|()| (0..64).try_for_each(|_| connection.write_all(&noise))),
            3 => connection
                .write_all(HANDSHAKE)
                .and_then(|()| connection.read(&mut [0; 512]))
                .and_then(|_| connection.write_all(HUGE_FRAME))
                .and_then(|()| (0..64).try_for_each(|_| connection.write_all(&noise))),
            _ => connection
                .write_all(HANDSHAKE)
                .and_then(|()| connection.read(&mut [0; 512]))
                // A text frame, a ping and a binary frame with a BTP header that claims too much.
                .and_then(|_| {
                    connection.write_all(&[0x81, 0x80, 0, 0, 0, 0, 0x89, 0x80, 0, 0, 0, 0])
                })
                .and_then(|()| {
                    connection.write_all(&[0x82, 0x86, 0, 0, 0, 0, 6, 0, 0, 0, 1, 0xff])
                }),
        };
        held.push(connection);
        if held.len() > 300 {
            if !told {
                println!("enough nonsense");
                told = true;
            }
            held.drain(..200);
        }
    }
}
