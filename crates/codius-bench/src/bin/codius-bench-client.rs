//! Our own client extends a pod, again and again. A program of its own, so that what an HTTP client
//! needs is not part of the process that is measured as a host.

#![forbid(unsafe_code)]

use std::{
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use codius_bench::tap::Tap;
use codius_client::{HostClient, Wallet};
use serde_json::json;

/// What may be paid for one extension.
const LIMIT: u64 = 1_000_000;

#[derive(Debug, Parser)]
struct Options {
    /// Origin of the host's API
    #[arg(long)]
    host: String,
    /// Address of the host's BTP server
    #[arg(long)]
    interledger: SocketAddr,
    /// Manifest hash of a pod that runs
    #[arg(long)]
    pod: String,
    /// Seconds that each request buys
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Requests that are timed
    #[arg(long, default_value_t = 20)]
    requests: u32,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("codius-bench-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        bail!("TLS was set up twice");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let begin = Instant::now();
        let client = HostClient::new(&options.host)?;
        let set_up = millis(begin.elapsed());
        // The first is not timed but looked into; it is also the one that warms up.
        let tap = Tap::start(options.interledger)?;
        extend(options, &client, tap.address()).await?;
        let prepares = tap.prepares();
        let (mut times, mut connecting) = (Vec::new(), Vec::new());
        for _ in 0..options.requests {
            let (time, connected) = extend(options, &client, options.interledger).await?;
            times.push(millis(time));
            connecting.push(millis(connected));
        }
        println!(
            "{}",
            json!({
                "millis": times,
                "connect_millis": connecting,
                "set_up_millis": set_up,
                "prepares": prepares,
            })
        );
        Ok(())
    })
}

/// One paid request over a new BTP connection, in the client's HTTP connection; and how much of the
/// time the BTP connection took.
async fn extend(
    options: &Options,
    client: &HostClient,
    interledger: SocketAddr,
) -> Result<(Duration, Duration)> {
    let hash = options.pod.parse().context("no manifest hash")?;
    let begin = Instant::now();
    let wallet = Wallet::connect(&format!("btp+ws://{interledger}")).await?;
    let connected = begin.elapsed();
    let answer = client
        .extend(&hash, options.seconds, &wallet, LIMIT)
        .await?;
    let time = begin.elapsed();
    ensure!(answer.receipt.paid > 0, "nothing was paid");
    Ok((time, connected))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
