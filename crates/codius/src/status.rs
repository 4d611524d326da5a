//! `codius status`: where a program is and until when.

use codius_api::v2::{LeaseReply, LeaseState};
use codius_client::HostClient;
use serde_json::{Value, json};

use crate::{
    amount,
    command::PodArguments,
    failure::{Failure, printable},
    pod_address::PodAddress,
};

pub(crate) async fn status(arguments: PodArguments) -> Result<(), Failure> {
    let said: Vec<_> = arguments.host.iter().cloned().collect();
    let address = PodAddress::new(&arguments.hash, &said)?;
    let host = HostClient::new(address.only_host()?)?;
    let (shown, lines) = if host.host_v2().await?.is_some() {
        let lease = host.lease(&address.hash).await?;
        (json_of(&lease, host.origin()), lines_of(&lease))
    } else {
        let pod = host.pod(&address.hash).await?;
        let shown = json!({
            "manifestHash": pod.manifest_hash, "url": pod.url, "expiry": pod.expiry,
            "manifest": pod.manifest, "host": host.origin(), "state": LeaseState::Running,
        });
        let lines = vec![
            (None, pod.url),
            (Some("runs until"), pod.expiry.to_string()),
        ];
        (shown, lines)
    };
    if arguments.json {
        println!("{shown:#}");
        return Ok(());
    }
    for (name, value) in lines {
        match name {
            Some(name) => println!("  {name:<11} {}", printable(&value)),
            None => println!("{}", printable(&value)),
        }
    }
    let manifest = &shown["manifest"];
    if manifest.is_object() {
        println!(
            "  name        {} {}",
            text(&manifest["name"]),
            text(&manifest["version"])
        );
    }
    for container in manifest["containers"].as_array().into_iter().flatten() {
        println!(
            "  container   {} ({})",
            text(&container["id"]),
            text(&container["image"])
        );
    }
    Ok(())
}

/// The members of version 1, and beside them those of version 2.
fn json_of(lease: &LeaseReply, host: &str) -> Value {
    json!({
        "manifestHash": lease.manifest_hash,
        "url": lease.url,
        "expiry": lease.expires_at,
        "manifest": lease.manifest,
        "host": host,
        "state": lease.state,
        "created_at": lease.created_at,
        "balance": lease.balance,
        "price_per_second": lease.price_per_second,
        "asset": lease.asset,
        "owner": lease.owner,
        "ended": lease.ended,
    })
}

fn lines_of(lease: &LeaseReply) -> Vec<(Option<&'static str>, String)> {
    let state = match lease.state {
        LeaseState::Starting => "starting",
        LeaseState::Running => "running",
        LeaseState::Paused => "paused: its pod does not run, and nothing is charged",
        LeaseState::Ended => "ended",
    };
    let mut lines = vec![(None, lease.url.clone().unwrap_or_else(|| state.to_owned()))];
    if lease.url.is_some() {
        lines.push((Some("state"), state.to_owned()));
    }
    if let Some(expiry) = lease.expires_at {
        lines.push((Some("runs until"), expiry.to_string()));
    }
    if let Some(ended) = &lease.ended {
        let reason = serde_json::to_value(&ended.reason).unwrap_or_default();
        lines.push((Some("reason"), text(&reason)));
    }
    let balance = amount::format(lease.balance.0, &lease.asset);
    lines.push((Some("balance"), balance));
    if let Some(owner) = &lease.owner {
        lines.push((Some("owner"), owner.clone()));
    }
    lines
}

/// A string of a stranger, without what could move a terminal's cursor.
fn text(value: &Value) -> String {
    printable(value.as_str().unwrap_or_default())
}
