//! The program that the demo uploads: a small web server with one page about itself.
//!
//! It shows what a program finds in a pod: its name and manifest in the environment, a kernel of its
//! own, a memory limit, and an Interledger account at `localhost:7768`.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the page |
//! | `GET /facts` | the same as JSON |
//! | `GET /health` | `ok` |
//! | `POST /echo` | what was sent, while it is being sent |
//!
//! It listens on `0.0.0.0:$PORT` (8080), and writes one line for each request to standard output.

mod facts;
mod http;
mod interledger;
mod page;
mod websocket;

use std::{
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use facts::Facts;
use http::{Body, Connection, Request, Response};
use interledger::Account;

/// The port without `PORT`.
const DEFAULT_PORT: u16 = 8080;

/// The most visitors at a time; further ones are told to come back later.
const MAX_CONNECTIONS: usize = 64;

/// Bytes of a connection's stack.
const STACK_BYTES: usize = 256 * 1024;

struct Server {
    facts: Facts,
    account: Account,
    requests: AtomicU64,
    connections: AtomicUsize,
}

fn main() -> io::Result<()> {
    let port = match std::env::var("PORT") {
        Ok(text) => text.parse().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("PORT is not a port: {text:?}"),
            )
        })?,
        Err(_) => DEFAULT_PORT,
    };
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let server = Arc::new(Server {
        facts: Facts::of_this_process(),
        account: Account::default(),
        requests: AtomicU64::new(0),
        connections: AtomicUsize::new(0),
    });
    log(&format!("listening on {}", listener.local_addr()?));
    let asking = Arc::clone(&server);
    thread::Builder::new()
        .name("interledger".to_owned())
        .spawn(move || asking.account.ask_until_answered())?;
    loop {
        // A visitor who is gone before being greeted, or a moment without file descriptors, is no
        // reason to end.
        if let Ok((stream, _)) = listener.accept() {
            serve(&server, stream);
        }
    }
}

/// Gives a connection a thread of its own.
fn serve(server: &Arc<Server>, stream: TcpStream) {
    let Ok(mut connection) = Connection::new(stream) else {
        return;
    };
    if server.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        server.connections.fetch_sub(1, Ordering::Relaxed);
        let _ = connection.refuse(
            "503 Service Unavailable",
            "too many visitors at the moment\n",
        );
        return;
    }
    let serving = Arc::clone(server);
    let spawned = thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // The end of a connection, tidy or not, is no news.
            let _ = serving.converse(&mut connection);
            serving.connections.fetch_sub(1, Ordering::Relaxed);
        });
    if spawned.is_err() {
        server.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    fn converse(&self, connection: &mut Connection) -> io::Result<()> {
        while let Some(request) = connection.request()? {
            let count = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
            let status = self.answer(connection, &request, count)?;
            // The path is the visitor's: quoted, so that it cannot begin a line of its own.
            log(&format!("{} {:?} {status}", request.method, request.path));
            if !request.keep_alive {
                break;
            }
        }
        Ok(())
    }

    fn answer(
        &self,
        connection: &mut Connection,
        request: &Request,
        count: u64,
    ) -> io::Result<&'static str> {
        if request.method == "POST" && request.path == "/echo" {
            connection.echo(request)?;
            return Ok("200 OK");
        }
        let response = match (request.method.as_str(), request.path.as_str()) {
            ("GET" | "HEAD", "/") => {
                Response::html(page::render(&self.facts.now(&self.account, count)))
            }
            ("GET" | "HEAD", "/facts") => {
                let facts = self.facts.now(&self.account, count);
                Response::json(serde_json::to_string(&facts).unwrap_or_default())
            }
            ("GET" | "HEAD", "/health") => Response::text("200 OK", "ok\n"),
            (_, "/" | "/facts" | "/health" | "/echo") => {
                Response::text("405 Method Not Allowed", "not in this way\n")
            }
            _ => Response::text("404 Not Found", "there is nothing here; try /\n"),
        };
        if !matches!(request.body, Body::None) {
            connection.discard(request)?;
        }
        connection.respond(request, &response)?;
        Ok(response.status)
    }
}

/// One line for the logs. Nobody may be reading them.
fn log(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
