//! Unmodified JavaScript programs (ilp-plugin-btp 1.5.0, as inside a pod) at our server.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod host;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use host::Host;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::process::Command;

/// Exactly these were looked at when the behaviour of the clients was written down.
const PACKAGES: [&str; 3] = [
    "ilp-plugin-btp@1.5.0",
    "ilp-protocol-ildcp@2.2.3",
    "ilp-packet@3.1.3",
];
/// How long the package manager may take, and the script.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(180);
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(60);

async fn run(command: &mut Command, package: &str, limit: Duration) -> anyhow::Result<String> {
    let running = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(limit, running)
        .await
        .with_context(|| format!("{command:?} took longer than {limit:?}"))?
        .with_context(|| format!("{command:?} failed; install the Debian package `{package}`"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{errors}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

async fn install(directory: &Path) -> anyhow::Result<()> {
    std::fs::write(directory.join("package.json"), "{\"private\":true}")?;
    let mut npm = Command::new("npm");
    npm.args([
        "install",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--loglevel=error",
    ])
    .args(PACKAGES)
    .current_dir(directory);
    run(&mut npm, "npm", INSTALL_TIMEOUT).await?;
    Ok(())
}

async fn two_clients(server: SocketAddr) -> anyhow::Result<Value> {
    let directory = tempfile::tempdir()?;
    install(directory.path()).await?;
    let script = directory.path().join("two_clients.js");
    std::fs::write(&script, include_str!("node/two_clients.js"))?;
    let mut node = Command::new("node");
    node.arg(&script)
        .arg(server.to_string())
        .current_dir(directory.path());
    let output = run(&mut node, "nodejs", SCRIPT_TIMEOUT).await?;
    serde_json::from_str(output.trim()).with_context(|| format!("output: {output}"))
}

fn check_replies(result: &Value) {
    let replies = &result["replies"];
    let paid = &replies["paid"];
    assert_eq!(
        (&paid["type"], &paid["data"]),
        (&"ilp_fulfill".into(), &"hello!".into())
    );
    assert_eq!(paid["fulfillment"], "05".repeat(32));
    for (case, code, by) in [
        (
            "refused",
            "F99",
            result["payee"]["clientAddress"].as_str().unwrap(),
        ),
        ("cheated", "F05", "test.host"),
        ("unknown", "F02", "test.host"),
        ("late", "R02", "test.host"),
    ] {
        let reply = &replies[case];
        assert_eq!(
            (&reply["code"], &reply["triggeredBy"]),
            (&code.into(), &by.into()),
            "{reply}"
        );
    }
    assert_eq!(result["inOrder"], true);
    assert_eq!(
        result["count"], 203,
        "one paid, one refused, one cheated, 200 at once"
    );
    let first = &result["seen"][0];
    assert_eq!(first["amount"], "1234");
    let left = first["left"].as_i64().unwrap();
    assert!(
        (15_000..=19_000).contains(&left),
        "one second less than 20: {left} ms"
    );
    for (who, name) in [("payer", "t-"), ("payee", "u-payee")] {
        let account = &result[who];
        assert_eq!(
            (&account["assetCode"], &account["assetScale"]),
            (&"XRP".into(), &9.into())
        );
        let address = account["clientAddress"].as_str().unwrap();
        assert!(
            address.rsplit('.').next().unwrap().starts_with(name),
            "{address}"
        );
    }
}

#[tokio::test]
async fn two_local_clients_pay_each_other() {
    let host = Host::new();
    let address = host.listen_local().await;
    let result = two_clients(address).await.unwrap();
    check_replies(&result);
    let payer = result["payer"]["clientAddress"].as_str().unwrap();
    assert!(payer.starts_with("test.host.local.t-"), "{payer}");
    let rows = host.ledger.0.lock().unwrap().len();
    assert_eq!(rows, 0, "play money of one ledger account does not move");
}

#[tokio::test]
async fn two_programs_of_a_pod_pay_each_other_from_its_balance() {
    let host = Host::new();
    // The script pays 1234 and more, and the pod starts with 1000.
    grant_to_pod(&host, 1000).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    host.server.listen(listener, host.pod.clone());
    let result = two_clients(address).await.unwrap();
    check_replies(&result);
    assert_eq!(host.pod_balance(), 2000, "it stays in the pod");
}

/// Pays the pod from outside, through a program of it that leaves again.
async fn grant_to_pod(host: &Host, amount: u64) {
    let local = host.listen_local().await;
    let payer = host::local_payer(local, "operator").await;
    let program = host.pod_program("grant").await.unwrap();
    let destination = program.configuration().await.unwrap().client_address;
    payer
        .send(host::packet(destination.as_str(), amount))
        .await
        .unwrap()
        .unwrap();
    program.close();
    while host.server.connections() > 1 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
