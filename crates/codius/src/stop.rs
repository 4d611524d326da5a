//! `codius stop`: ends a program before its time; what was not used comes back.

use std::time::Duration;

use codius_api::v2::StopRequest;
use codius_client::{HostClient, Signer, Wallet, default_url};
use codius_manifest::ManifestHash;
use serde_json::{Value, json};

use crate::{
    amount,
    command::StopArguments,
    failure::{Failure, INTERRUPTED, REFUSED, printable},
    key::Key,
    pod_address::PodAddress,
    pod_record,
    purchase::own_asset,
    question,
};

/// How long a host may take to end a pod and to send money back, for which it takes 15 s at most.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) async fn stop(arguments: StopArguments) -> Result<(), Failure> {
    let PodAddress { hash, hosts } = PodAddress::named_or_saved(
        arguments.hash.as_deref(),
        &arguments.host,
        &arguments.state.codius_state_file,
    )?;
    let signer = Key::open(arguments.key.key_file.as_deref())?.signer();
    let wallet = match arguments.no_refund {
        true => None,
        false => {
            let url = arguments.ilp.clone().unwrap_or_else(default_url);
            let connected = Wallet::connect(&url).await.map_err(|error| {
                Failure::from(error)
                    .note("Next: start it, or give --no-refund: what was not used stays yours, and codius refund gets it later.")
            })?;
            Some(connected)
        }
    };
    eprintln!("  program     {hash}");
    for host in &hosts {
        eprintln!("  host        {host}");
    }
    question::ask("Stop this program?", arguments.assume_yes).await?;

    let (mut stopped, mut failures) = (Vec::new(), Vec::new());
    for host in &hosts {
        let stopping = stop_at(host, &hash, &signer, wallet.as_ref());
        let outcome = tokio::select! {
            outcome = stopping => outcome,
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::new(INTERRUPTED, "interrupted; the host may have stopped it already")
                    .note("What did not come back stays yours.")
                    .note(format!("Next: codius status {hash} --host {host} shows what is due, codius refund gets it.")));
            }
        };
        match outcome {
            Ok(one) => {
                // What still owes something is kept, for `codius refund --all`.
                if one.owed == 0 {
                    pod_record::ended(&hash, host);
                }
                if !arguments.json {
                    tell(&one);
                }
                stopped.push(one);
            }
            Err(failure) => failures.push((host, failure)),
        }
    }
    if arguments.json {
        let stopped: Vec<_> = stopped.into_iter().map(Stopped::into_json).collect();
        let failed: Vec<Value> = failures
            .iter()
            .map(|(host, failure)| json!({ "host": host, "message": failure.message() }))
            .collect();
        let whole = json!({ "manifestHash": hash, "hosts": stopped, "failed": failed });
        println!("{whole:#}");
    }
    let Some((host, first)) = failures.pop() else {
        return Ok(());
    };
    for (host, failure) in failures {
        eprintln!("codius: {host}: {}", printable(failure.message()));
    }
    Err(if hosts.len() > 1 {
        first.at(host)
    } else {
        first
    })
}

/// What a host has said, and what has come.
struct Stopped {
    host: String,
    used: String,
    refunded: String,
    owed: u64,
    owed_display: String,
    /// In our own units, counted by ourselves.
    received: String,
    raw: Value,
}

impl Stopped {
    fn into_json(self) -> Value {
        self.raw
    }
}

async fn stop_at(
    origin: &str,
    hash: &ManifestHash,
    signer: &Signer,
    wallet: Option<&Wallet>,
) -> Result<Stopped, Failure> {
    let host = HostClient::new(origin)?.placing_within(STOP_TIMEOUT);
    let Some(about) = host.host_v2().await? else {
        return Err(
            Failure::new(REFUSED, "this host cannot stop a program on request")
                .note("Nothing was changed. The program ends when its time is used up."),
        );
    };
    let listener = wallet.map(Wallet::listen);
    let request = StopRequest {
        refund: listener.as_ref().map(codius_client::Listener::refund_to),
    };
    let stopping = host.stop(hash, &request, signer);
    let reply = match &listener {
        None => stopping.await,
        Some(listener) => {
            let attending = async {
                listener.attend().await;
                // The host has closed the connection; its answer is about to come.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                reply = stopping => reply,
                () = attending => unreachable!("it waits for ever"),
            }
        }
    }?;
    let theirs = |units: u64| amount::format(units, &about.asset);
    let received = listener
        .as_ref()
        .map_or(0, codius_client::Listener::received);
    let own = wallet.map_or_else(|| about.asset.clone(), own_asset);
    Ok(Stopped {
        host: origin.to_owned(),
        used: theirs(reply.used.0),
        refunded: theirs(reply.refunded.0),
        owed: reply.owed.0,
        owed_display: theirs(reply.owed.0),
        received: amount::format(received, &own),
        raw: json!({
            "host": origin,
            "used": reply.used,
            "refunded": reply.refunded,
            "owed": reply.owed,
            "received": received.to_string(),
            "asset": about.asset,
        }),
    })
}

fn tell(stopped: &Stopped) {
    println!("stopped");
    println!("  host        {}", stopped.host);
    println!("  used        {}", stopped.used);
    println!("  came back   {}", stopped.received);
    if stopped.received != stopped.refunded {
        println!("  host says   it has sent {}", stopped.refunded);
    }
    if stopped.owed > 0 {
        println!(
            "  owed        {}; what is yours of it goes to the upload's --refund-to; without one, codius refund gets \
             it, or your next upload of this manifest uses it",
            stopped.owed_display
        );
    }
}
