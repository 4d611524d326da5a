//! `codius tail`: what a program writes, on all its hosts at once, until it ends.

use codius_client::HostClient;
use codius_manifest::ManifestHash;
use futures_util::{StreamExt, stream::FuturesUnordered};

use crate::{
    command::TailArguments,
    failure::{Failure, INTERRUPTED, printable},
    pod_address::PodAddress,
    raw_log::{Printer, copy},
};

pub(crate) async fn tail(arguments: TailArguments) -> Result<(), Failure> {
    let PodAddress { hash, hosts } = PodAddress::named_or_saved(
        arguments.manifest_hash.as_deref(),
        &arguments.host,
        &arguments.state.codius_state_file,
    )?;
    follow(&hosts, &hash, arguments.json).await
}

/// Follows all of them. One that fails is told and the others go on; if all fail, so does this.
pub(crate) async fn follow(
    hosts: &[String],
    hash: &ManifestHash,
    json: bool,
) -> Result<(), Failure> {
    let mut streams: FuturesUnordered<_> = hosts
        .iter()
        .map(|host| async move {
            let client = HostClient::new(host)?;
            let response = client.logs(hash, true).await?;
            let mut printer = if json {
                Printer::json(host)
            } else {
                Printer::labelled(host)
            };
            copy(response, &mut printer).await
        })
        .collect();
    let (mut ended, mut last) = (false, None);
    loop {
        // Nobody else listens for it once there was a question.
        let outcome = tokio::select! {
            outcome = streams.next() => outcome,
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::new(INTERRUPTED, "interrupted; the program goes on"));
            }
        };
        let Some(outcome) = outcome else {
            break;
        };
        match outcome {
            Ok(()) => ended = true,
            Err(failure) if hosts.len() > 1 => {
                eprintln!("codius: {}", printable(failure.message()));
                last = Some(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    match last {
        Some(failure) if !ended => Err(failure),
        _ => Ok(()),
    }
}
