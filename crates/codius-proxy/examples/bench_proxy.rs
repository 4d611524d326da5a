//! Small responses through the proxy against the same hop through nginx.
//!
//! `wrk` loads a small native web server through one and then the other, alternating, with the
//! same headers added and two worker threads each. Everything shares the machine, so only the
//! ratio means something. Prints one JSON line.
//!
//! `bench_proxy [--runs N] [--seconds S] [--connections C]`; build it with `--release`.
//! Needs the Debian packages `nginx` and `wrk`.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use codius_proxy::{PodRoutes, Proxy, Route, Scheme};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const WORKERS: usize = 2;
const BODY: &str = "Hello from a program in a pod. This is a small response of some words.\n";
const LABEL: &str = "hyd2tb5kkhy2akzfs7bewagcc53dirdlausb5ngulr73xab3cqya";
const AIM: f64 = 0.6;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("--as-pod") => runtime()?.block_on(pod()),
        Some("--as-proxy") => {
            let pod = arguments.next().context("address of the pod")?.parse()?;
            runtime()?.block_on(proxy(pod))
        }
        first => compare(&Load::parse(
            first.map(str::to_owned).into_iter().chain(arguments),
        )?),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?)
}

/// Tells the parent the address. From now on this process ends when the parent does.
async fn announce(address: SocketAddr) -> Result<()> {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    println!("{address}");
    std::io::stdout().flush()?;
    Ok(())
}

async fn pod() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    announce(listener.local_addr()?).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(
                    BODY.as_bytes(),
                ))))
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

struct OnePod(SocketAddr);

impl PodRoutes for OnePod {
    fn route(&self, label: &str) -> Route {
        if label == LABEL {
            Route::Pod(self.0)
        } else {
            Route::NotFound
        }
    }

    fn changes(&self) -> watch::Receiver<()> {
        watch::Sender::new(()).subscribe()
    }
}

async fn proxy(pod: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    announce(listener.local_addr()?).await?;
    let api = service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
    });
    Proxy::new(Arc::new(OnePod(pod)))
        .serve(listener, Scheme::Http, api, CancellationToken::new())
        .await
        .finish(Duration::ZERO)
        .await;
    Ok(())
}

struct Load {
    runs: usize,
    seconds: u64,
    connections: usize,
}

impl Load {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut load = Self {
            runs: 7,
            seconds: 3,
            connections: 64,
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().context("a number after each option")?;
            match name.as_str() {
                "--runs" => load.runs = value.parse()?,
                "--seconds" => load.seconds = value.parse()?,
                "--connections" => load.connections = value.parse()?,
                _ => bail!("unknown option {name}"),
            }
        }
        ensure!(load.runs > 0 && load.seconds > 0, "nothing to measure");
        Ok(load)
    }
}

/// A child process that does not outlive this one.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(arguments: &[&str]) -> Result<(Server, SocketAddr)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().context("stdout of the child")?;
    let server = Server(child);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok((server, line.trim().parse()?))
}

fn start_nginx(directory: &Path, pod: SocketAddr) -> Result<(Server, SocketAddr)> {
    // nginx cannot choose a free port itself; this one was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = directory.join("nginx.conf");
    std::fs::write(
        &config,
        format!(
            "daemon off; worker_processes {WORKERS}; pid {dir}/pid; error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000000;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  upstream pod {{ server {pod}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen {address} backlog=4096;
    location / {{
      proxy_pass http://pod; proxy_http_version 1.1;
      proxy_set_header Connection \"\"; proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;
    }}
  }}
}}
",
            dir = directory.display()
        ),
    )?;
    let child = Command::new("nginx")
        .arg("-c")
        .arg(&config)
        .arg("-p")
        .arg(directory)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run nginx; install the Debian package nginx")?;
    let server = Server(child);
    for _ in 0..100 {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok((server, address));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("nginx does not listen at {address}")
}

/// Requests per second that `wrk` gets through.
fn measure(load: &Load, target: SocketAddr) -> Result<f64> {
    let output = Command::new("wrk")
        .arg("-t1")
        .arg(format!("-c{}", load.connections))
        .arg(format!("-d{}s", load.seconds))
        .arg("-H")
        .arg(format!("Host: {LABEL}.host.example"))
        .arg(format!("http://{target}/"))
        .output()
        .context("cannot run wrk; install the Debian package wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        !text.contains("Non-2xx") && !text.contains("Socket errors"),
        "wrk met errors:\n{text}"
    );
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:"))
        .with_context(|| format!("no result from wrk:\n{text}"))?;
    Ok(line.trim().parse()?)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

fn compare(load: &Load) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (_pod, pod) = start(&["--as-pod"])?;
    let (_proxy, ours) = start(&["--as-proxy", &pod.to_string()])?;
    let (_nginx, nginx) = start_nginx(directory.path(), pod)?;

    let warm_up = Load {
        seconds: 1,
        ..*load
    };
    measure(&warm_up, ours)?;
    measure(&warm_up, nginx)?;
    let (mut rates, mut peer_rates, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..load.runs {
        // Whoever goes first in a pair changes, so that drift of the machine hits both alike.
        let (rate, peer) = if run % 2 == 0 {
            let rate = measure(load, ours)?;
            (rate, measure(load, nginx)?)
        } else {
            let peer = measure(load, nginx)?;
            (measure(load, ours)?, peer)
        };
        rates.push(rate);
        peer_rates.push(peer);
        ratios.push(rate / peer);
    }
    let ratio = median(&mut ratios);
    println!(
        "{}",
        serde_json::json!({
            "name": "proxy/small",
            "unit": "requests/s",
            "median": median(&mut rates).round(),
            "peer": "nginx",
            "peer_median": median(&mut peer_rates).round(),
            "ratio": (ratio * 1000.0).round() / 1000.0,
            "aim": format!(">= {AIM}"),
            "met": ratio >= AIM,
            "runs": load.runs,
        })
    );
    Ok(())
}
