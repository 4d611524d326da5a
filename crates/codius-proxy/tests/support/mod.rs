//! A proxy on loopback with pods that are programs of the test.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail here"
)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of this"
)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use codius_proxy::{Limits, PodRoutes, Proxy, Route, Scheme, Visitor};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const POD: &str = "hyd2tb5kkhy2akzfs7bewagcc53dirdlausb5ngulr73xab3cqya";
pub const OTHER: &str = "vqceouzbwpzzuu436i6i4yf72mydfqdu4azlcsodf6el23bb7x3q";
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub struct Table(Mutex<HashMap<String, Route>>, watch::Sender<()>);

impl Table {
    pub fn set(&self, label: &str, route: Route) {
        self.0.lock().unwrap().insert(label.to_owned(), route);
        self.1.send_replace(());
    }
}

impl PodRoutes for Table {
    fn route(&self, label: &str) -> Route {
        let routes = self.0.lock().unwrap();
        routes.get(label).copied().unwrap_or(Route::NotFound)
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.1.subscribe()
    }
}

pub struct Host {
    pub address: SocketAddr,
    pub proxy: Proxy,
    pub table: Arc<Table>,
    pub shutdown: CancellationToken,
    pub serving: JoinHandle<()>,
}

impl Host {
    pub async fn start() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub async fn with_limits(limits: Limits) -> Self {
        let table = Arc::new(Table::default());
        let proxy = Proxy::with_limits(Arc::clone(&table) as _, limits, Vec::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (serve, stop) = (proxy.clone(), shutdown.clone());
        let serving = tokio::spawn(async move {
            let api = service_fn(|request: Request<Incoming>| async move {
                let visitor = request.extensions().get::<Visitor>().unwrap();
                let text = format!("api {} {}", request.uri().path(), visitor.address.ip());
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            let unfinished = serve.serve(listener, Scheme::Http, api, stop).await;
            unfinished.finish(Duration::ZERO).await;
        });
        Self {
            address,
            proxy,
            table,
            shutdown,
            serving,
        }
    }

    /// A pod whose every connection is handled by `program`.
    pub async fn raw_pod<F, R>(&self, program: F) -> SocketAddr
    where
        F: Fn(TcpStream) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(program(stream));
            }
        });
        self.table.set(POD, Route::Pod(address));
        address
    }

    /// A pod that answers every request on its first line of bytes, whatever they are.
    pub async fn canned_pod(&self, reply: &'static str) -> SocketAddr {
        self.raw_pod(move |mut stream| async move {
            let mut buffer = vec![0; 64 * 1024];
            while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                if stream.write_all(reply.as_bytes()).await.is_err() {
                    return;
                }
            }
        })
        .await
    }

    /// A pod that is an HTTP server.
    pub async fn http_pod<F, R, B>(&self, program: F) -> SocketAddr
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
        R: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.raw_pod(move |stream| {
            let program = program.clone();
            async move {
                let service = service_fn(move |request| {
                    let reply = program(request);
                    async move { Ok::<_, Infallible>(reply.await) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            }
        })
        .await
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and returns everything until the proxy closes.
    pub async fn talk(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read_to_end(&mut stream).await
    }

    /// One GET request of a visitor that leaves afterwards.
    pub async fn visit(&self, host: &str, path: &str) -> String {
        self.talk(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ))
        .await
    }
}

pub async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    within(async {
        // A reset after the reply is an end as well.
        let _ = stream.read_to_end(&mut bytes).await;
    })
    .await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until `text` has come.
pub async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut bytes = Vec::new();
    within(async {
        while !String::from_utf8_lossy(&bytes).contains(text) {
            match stream.read_u8().await {
                Ok(byte) => bytes.push(byte),
                Err(error) => panic!(
                    "{error}; wanted {text:?}, have {:?}",
                    String::from_utf8_lossy(&bytes)
                ),
            }
        }
    })
    .await;
    String::from_utf8_lossy(&bytes).into_owned()
}

pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("should not take this long")
}

pub fn status(reply: &str) -> u16 {
    reply
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no status in {reply:?}"))
}

pub fn body(reply: &str) -> &str {
    reply.split_once("\r\n\r\n").expect("a head").1
}
