//! `codius refund`: gets what hosts still owe for programs that have ended.
//!
//! ```text
//! due ─┬─ (no --to) ──▶ over our own Interledger connection, now
//!      └─ --to POINTER ─▶ the host sends it there, and again until it has arrived
//! ```
//! A host sends only what is due to the key that signs. What it says has been sent and what has come are told
//! apart, because between them are connectors.

use std::time::Duration;

use codius_api::v2::{LeaseState, RefundReply, RefundRequest};
use codius_client::{ClientError, HostClient, Listener, Signer, Wallet, default_url};
use codius_manifest::ManifestHash;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::{
    amount, candidates,
    command::RefundArguments,
    failure::{Failure, INTERRUPTED, NOT_PAID, REFUSED, printable},
    key::Key,
    offer::{ASKED_AT_ONCE, QUOTE_TIMEOUT},
    pod_address::PodAddress,
    pod_record, pods,
    purchase::own_asset,
};

/// How long a host may take to send money, for which it takes 15 s at most.
const DRAW_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn refund(arguments: RefundArguments) -> Result<(), Failure> {
    let programs = programs(&arguments)?;
    let signer = Key::open(arguments.key.key_file.as_deref())?.signer();
    let way = match &arguments.to {
        Some(pointer) => Way::Pointer(pointer.clone()),
        None => {
            let url = arguments.ilp.clone().unwrap_or_else(default_url);
            let connected = Wallet::connect(&url).await.map_err(|error| {
                Failure::from(error).note(
                    "Next: start it, or give --to with a payment pointer that hosts send it to.",
                )
            })?;
            Way::Here(connected)
        }
    };
    let (signer, way) = (&signer, &way);
    let drawing = stream::iter(&programs)
        .map(|(hash, host)| async move { (hash, host, draw_at(host, hash, signer, way).await) })
        .buffered(ASKED_AT_ONCE)
        .collect::<Vec<_>>();
    let outcomes = tokio::select! {
        outcomes = drawing => outcomes,
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::new(INTERRUPTED, "interrupted; a part may have come already")
                .note("What has not come stays due. Next: codius refund again."));
        }
    };

    let (mut drawn, mut failures) = (Vec::new(), Vec::new());
    for (hash, host, outcome) in outcomes {
        match outcome {
            Ok(one) => drawn.push(one),
            // Of programs that nobody has named, those are passed over that cannot owe anything.
            Err(Fault { nothing: true, .. }) if arguments.all => {}
            Err(fault) => failures.push((hash, host, fault.failure)),
        }
    }
    let sent_here = matches!(way, Way::Here(_));
    let unsent = drawn
        .iter()
        .find(|one| sent_here && one.reply.owed.0 > 0)
        .map(Drawn::not_sent);
    if arguments.json {
        let failed: Vec<Value> = failures
            .iter()
            .map(|(hash, host, failure)| {
                json!({ "manifestHash": hash, "host": host, "message": failure.message() })
            })
            .collect();
        let hosts: Vec<Value> = drawn.iter().map(Drawn::in_json).collect();
        println!("{:#}", json!({ "hosts": hosts, "failed": failed }));
    } else {
        let told: Vec<String> = drawn.iter().filter_map(|one| one.in_words(way)).collect();
        match (told.is_empty(), failures.is_empty()) {
            (true, true) => println!("nothing is due"),
            _ => print!("{}", told.concat()),
        }
    }
    let several = programs.len() > 1;
    let mut first = None;
    for (_, host, failure) in failures {
        match (&first, several) {
            (None, true) => first = Some(failure.at(host)),
            (None, false) => first = Some(failure),
            (Some(_), _) => eprintln!("codius: {host}: {}", printable(failure.message())),
        }
    }
    first.or(unsent).map_or(Ok(()), Err)
}

/// What may have something due, and where.
fn programs(arguments: &RefundArguments) -> Result<Vec<(ManifestHash, String)>, Failure> {
    if !arguments.all {
        let PodAddress { hash, hosts } = PodAddress::named_or_saved(
            arguments.hash.as_deref(),
            &arguments.host,
            &arguments.state.codius_state_file,
        )?;
        return Ok(hosts.into_iter().map(|host| (hash, host)).collect());
    }
    let only = candidates::origins(&arguments.host)?;
    let mut programs = Vec::new();
    for pod in pods::known() {
        for host in pod.hosts {
            if only.is_empty() || only.contains(&host) {
                programs.push((pod.manifest_hash, host));
            }
        }
    }
    Ok(programs)
}

/// How the money goes.
enum Way {
    Here(Wallet),
    Pointer(String),
}

/// What a host has said, and what has come.
struct Drawn {
    host: String,
    reply: RefundReply,
    /// What the host counts in.
    theirs: codius_api::AssetInfo,
    /// In our own units, counted by ourselves.
    received: u64,
    ours: codius_api::AssetInfo,
}

/// Why nothing was drawn.
struct Fault {
    failure: Failure,
    /// The host owes nothing to this key, as far as it can be asked.
    nothing: bool,
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        let nothing = matches!(&error, ClientError::Refused { body, .. }
            if matches!(body.status_code, 403 | 404));
        Self {
            failure: error.into(),
            nothing,
        }
    }
}

async fn draw_at(
    origin: &str,
    hash: &ManifestHash,
    signer: &Signer,
    way: &Way,
) -> Result<Drawn, Fault> {
    let host = HostClient::new(origin)?
        .answering_within(QUOTE_TIMEOUT)
        .placing_within(DRAW_TIMEOUT);
    let Some(about) = host.host_v2().await? else {
        let text = "this host is of the first generation and keeps nothing that could be drawn";
        return Err(Fault {
            failure: Failure::new(REFUSED, text),
            nothing: true,
        });
    };
    let (reply, received, ours) = match way {
        Way::Pointer(pointer) => {
            let to = RefundRequest {
                refund_to: Some(pointer.clone()),
                ..RefundRequest::default()
            };
            let reply = host.draw(hash, &to, signer).await?;
            (reply, 0, about.asset.clone())
        }
        Way::Here(wallet) => {
            let listener = wallet.listen();
            let reply = draw_to(&host, hash, signer, &listener).await?;
            (reply, listener.received(), own_asset(wallet))
        }
    };
    if reply.refunded.0 > 0 && reply.owed.0 == 0 {
        forget_if_over(&host, hash).await;
    }
    Ok(Drawn {
        host: host.origin().to_owned(),
        reply,
        theirs: about.asset,
        received,
        ours,
    })
}

async fn draw_to(
    host: &HostClient,
    hash: &ManifestHash,
    signer: &Signer,
    listener: &Listener,
) -> Result<RefundReply, ClientError> {
    let to = RefundRequest {
        refund: Some(listener.refund_to()),
        ..RefundRequest::default()
    };
    let attending = async {
        listener.attend().await;
        // The host has closed the connection; its answer is about to come.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        reply = host.draw(hash, &to, signer) => reply,
        () = attending => unreachable!("it waits for ever"),
    }
}

/// `codius stop` keeps in the record what still owes something; that is over now.
async fn forget_if_over(host: &HostClient, hash: &ManifestHash) {
    let lease = host.lease(hash).await;
    if lease.is_ok_and(|lease| lease.state == LeaseState::Ended) {
        pod_record::ended(hash, host.origin());
    }
}

impl Drawn {
    /// None if there is nothing to tell of.
    fn in_words(&self, way: &Way) -> Option<String> {
        let RefundReply {
            manifest_hash,
            refunded,
            owed,
        } = &self.reply;
        if refunded.0 == 0 && owed.0 == 0 && self.received == 0 {
            return None;
        }
        let theirs = |units| amount::format(units, &self.theirs);
        let mut text = format!("refund\n  program     {manifest_hash}\n");
        text += &format!("  host        {}\n", self.host);
        match way {
            Way::Pointer(pointer) => {
                text += &format!(
                    "  due         {}; the host sends it to {pointer} until it has arrived, as codius status shows\n",
                    theirs(owed.0)
                );
            }
            Way::Here(_) => {
                let received = amount::format(self.received, &self.ours);
                let refunded = theirs(refunded.0);
                text += &format!("  came back   {received}\n");
                if received != refunded {
                    text += &format!("  host says   it has sent {refunded}\n");
                }
                if owed.0 > 0 {
                    text += &format!("  still due   {}\n", theirs(owed.0));
                }
            }
        }
        Some(text)
    }

    fn not_sent(&self) -> Failure {
        Failure::new(
            NOT_PAID,
            format!(
                "{} of what is due did not come",
                amount::format(self.reply.owed.0, &self.theirs)
            ),
        )
        .note("It stays due; a connector on the way may carry less, or none of so little.")
        .note("Next: codius refund again, or with --to a payment pointer that the host goes on trying.")
    }

    fn in_json(&self) -> Value {
        json!({
            "manifestHash": self.reply.manifest_hash,
            "host": self.host,
            "refunded": self.reply.refunded,
            "owed": self.reply.owed,
            "asset": self.theirs,
            "received": self.received.to_string(),
        })
    }
}
