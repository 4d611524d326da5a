//! `codiusd` with nothing but the environment of the original: a host below its Interledger parent.

mod support;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use codius_testkit::{Background, Listen};
use serde_json::Value;
use support::{Settings, World};

const PATIENCE: Duration = Duration::from_secs(60);

/// Without what the test itself was started with.
fn codiusd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codiusd"));
    command.env_clear();
    for name in ["PATH", "HOME"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_of_the_original_is_enough() -> Result<()> {
    // A host in local mode is a parent as good as moneyd.
    let parent = World::start(Settings::default())?;
    let root = tempfile::Builder::new().prefix("codius-env-").tempdir()?;
    let server = parent.interledger.replace("btp+ws://", "btp+ws://:secret@");
    // A port that is free: the host cannot say which one it got.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = codiusd();
    // The public name leads nowhere, so that a test of itself would keep the host closed.
    command.arg("--no-self-test");
    command
        .env("CODIUS_PUBLIC_URI", "https://host.example")
        .env("CODIUS_ROOT", root.path())
        // The command line says another.
        .env("CODIUS_PORT", "1")
        .env("CODIUS_XRP_PER_MONTH", "7")
        .env("CODIUS_COST_PER_MONTH", "2.5")
        .env("CODIUS_ADDITIONAL_HOST_INFO", "false")
        .env("CODIUS_BOOTSTRAP_PEERS", r#"["https://codius.invalid"]"#)
        .env("CODIUS_ADMIN_API", "true")
        .env("CODIUS_ADMIN_PORT", "0")
        .env("CODIUS_HYPER_SOCKET", "/var/run/hyper.sock")
        .env("ILP_CREDENTIALS", format!("{{\"server\":\"{server}\"}}"))
        .args(["--listen", &address.to_string()]);
    let host = Background::start(&command, Listen::Errors)?;
    let remark = host.line_with("CODIUS_HYPER_SOCKET", PATIENCE)?;
    ensure!(remark.contains("is ignored"), "{remark}");
    let admin = host.line_with("admin API on a TCP port", PATIENCE)?;
    let admin = admin
        .rsplit("address=")
        .next()
        .context("no address")?
        .trim();
    let token = fs::read_to_string(root.path().join("admin.token"))?;

    let info = info(address).await?;
    ensure!(info["uri"] == "https://host.example", "{info}");
    ensure!(
        info["costPerMonth"] == 2.5 && info["currency"] == "XRP",
        "{info}"
    );
    ensure!(info.get("runningContracts").is_none(), "{info}");

    let client = reqwest::Client::new();
    let request = client
        .get(format!("http://{admin}/peers"))
        .bearer_auth(token.trim());
    let peers: Value = request.send().await?.json().await?;
    ensure!(
        peers["peers"][0]["url"] == "https://codius.invalid",
        "{peers}"
    );
    let request = client
        .get(format!("http://{admin}/accounts"))
        .bearer_auth(token.trim());
    let accounts: Value = request.send().await?.json().await?;
    ensure!(
        accounts["accounts"][0]["relation"] == "parent",
        "{accounts}"
    );

    // `codiusd admin` finds the same data directory.
    let output = codiusd()
        .env("CODIUS_ROOT", root.path())
        .args(["admin", "pods"])
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// `/info`, once the host answers.
async fn info(address: SocketAddr) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(reply) = reqwest::get(format!("http://{address}/info")).await {
            return Ok(reply.json().await?);
        }
        ensure!(Instant::now() < deadline, "no host answers at {address}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn what_is_missing_or_wrong_is_named() -> Result<()> {
    let says = |command: &mut Command| -> Result<(Option<i32>, String)> {
        let output = command.output()?;
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    };
    let (code, text) = says(&mut codiusd())?;
    ensure!(
        code == Some(2) && text.contains("CODIUS_PUBLIC_URI"),
        "{code:?} {text}"
    );
    let mut wrong = codiusd();
    wrong
        .env("CODIUS_PUBLIC_URI", "https://host.example")
        .env("CODIUS_PORT", "http");
    let (code, text) = says(&mut wrong)?;
    ensure!(
        code == Some(2) && text.contains("CODIUS_PORT"),
        "{code:?} {text}"
    );
    Ok(())
}
