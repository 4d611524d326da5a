//! The host under test: connector, BTP server and durable ledger as `codiusd` wires them, and no
//! more, so that what it uses is what Interledger uses.
//!
//! Each child is a pod: prepaid, with a ledger account of its own and a listener of its own. (Clients
//! of one local gate share a ledger account, so that packets between them need no record.)

use std::{io::Read, path::PathBuf, sync::Arc};

use anyhow::{Context, Result, ensure};
use clap::Args;
use codius_ledger::{Account, Reason, Transaction};
use codius_manifest::ManifestHash;
use codius_store::Store;
use ilp_connector::{AccountConfig, AccountId, Connector, ConnectorConfig, SystemClock};
use ilp_link::{BtpServer, PodGate};
use serde_json::json;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

/// What every child has at the start.
const FUNDS: u64 = 1_000_000_000_000;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where the ledger is made; it must be empty
    #[arg(long)]
    dir: PathBuf,
    /// Number of children
    #[arg(long, default_value_t = 2)]
    children: u32,
    /// Largest amount of one packet
    #[arg(long, default_value_t = u64::MAX)]
    max_packet_amount: u64,
}

/// Serves until standard input ends.
pub(crate) fn run(options: &Options) -> Result<()> {
    // As codiusd does it: what spans cost is part of the costs.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: &Options) -> Result<()> {
    let store = Store::open(&options.dir.join("codius.db"))?;
    let connector = Connector::new(
        ConnectorConfig::new("private.codius".parse()?, "XRP", 9),
        Arc::new(store.clone()),
        Arc::new(SystemClock),
    );
    let server = BtpServer::new(connector.clone());
    let mut children = Vec::new();
    let mut ports = Vec::new();
    for number in 0..options.children {
        let (account, port) = open_child(options, &store, &connector, &server, number).await?;
        children.push(account);
        ports.push(port);
    }
    println!("{}", json!({ "ports": ports }));

    // A thread of its own, because the runtime cannot interrupt a blocked read at its end.
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    });
    end.await?;

    connector.drain().await;
    server.shutdown().await;
    let mut moved = 0;
    for account in children {
        let in_memory = connector
            .balance(&AccountId::new(account.to_string()))
            .context("a child's account is gone")?;
        let balance = store.balance(&account).await?;
        ensure!(
            i128::from(balance) == in_memory,
            "{account} has {balance} in the ledger and {in_memory} in the connector"
        );
        moved += u64::try_from(balance)?.saturating_sub(FUNDS);
    }
    let verified = store.verify().await?;
    store.close().await;
    println!(
        "{}",
        json!({
            "moved": moved,
            "packets": verified.packets - u64::from(options.children),
        })
    );
    Ok(())
}

/// A child with money, and the port at which it is the one that connects.
async fn open_child(
    options: &Options,
    store: &Store,
    connector: &Connector,
    server: &BtpServer,
    number: u32,
) -> Result<(Account, u16)> {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    let hash = ManifestHash::from_bytes(bytes);
    let account = Account::Pod(hash);
    let funding = Account::Local("funding".parse()?);
    let funds = Transaction::transfer(0, Reason::Packet, funding, account.clone(), FUNDS)?;
    store.commit(funds).await?;
    let id = AccountId::new(account.to_string());
    let mut config = AccountConfig::child(id.clone(), format!("pod.{hash}"), account.to_string());
    config.max_packet_amount = options.max_packet_amount;
    connector.open_account(config.with_balance(FUNDS.into()))?;
    let gate = PodGate::new(connector, id, PodGate::DEFAULT_MAX_CLIENTS)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    server.listen(listener, Arc::new(gate));
    Ok((account, port))
}
