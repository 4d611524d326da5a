//! `codius upload` and `codius extend-hash`: quote, ask, pay, wait, tell.

use std::{
    future::Future,
    io::{IsTerminal, Write, stderr, stdin},
    path::{Path, PathBuf},
    time::Duration,
};

use codius_api::{AssetInfo, LeaseEvent, PodReply};
use codius_client::{ClientError, HostClient, PaidAnswer, Wallet, default_url};
use codius_manifest::{ManifestHash, parse_document, source};
use serde_json::{Value, json};

use crate::{
    amount,
    command::{ExtendArguments, PaymentArguments, UploadArguments},
    failure::{Failure, INTERRUPTED, NOT_PAID, USAGE},
    manifest::{invalid, read},
    progress::{Display, name},
};

/// How long to wait before asking again for the events of a lease that the host does not know yet.
const EVENTS_RETRY: Duration = Duration::from_millis(50);
/// Where variables are looked for if nobody says.
const VARS_FILE: &str = "codiusvars.json";
/// Hosts of the first generation do not say what they count in; this is what they did.
const FIRST_GENERATION_SCALE: u8 = 9;

pub(crate) async fn upload(arguments: UploadArguments) -> Result<(), Failure> {
    let document = document(&arguments)?;
    let payment = &arguments.payment;
    let host = HostClient::new(&payment.host)?;
    let asset = asset(&host).await?;
    let quote = host.quote(&document, payment.duration).await?;
    let hash = quote.manifest_hash;
    let limit = limit(payment, quote.price.0, &asset)?;
    let shown = [
        ("program", program(&document)),
        ("hash", hash.to_string()),
        ("host", host.origin().to_owned()),
        ("time", format!("{} s", payment.duration)),
        ("price", amount::format(quote.price.0, &asset)),
    ];
    confirm(
        payment,
        "Upload this program?",
        &shown,
        "The manifest is public; private variables are not.",
    )
    .await?;
    let wallet = wallet(payment, &asset).await?;
    let buying = host.upload(&document, payment.duration, &wallet, limit);
    finish(payment, &host, hash, &asset, &wallet, buying).await
}

pub(crate) async fn extend(arguments: ExtendArguments) -> Result<(), Failure> {
    let payment = &arguments.payment;
    let host = HostClient::new(&payment.host)?;
    let asset = asset(&host).await?;
    let pod = host.pod(&arguments.hash).await?;
    let document = json!({ "manifest": pod.manifest, "private": {} }).to_string();
    // A manifest with private variables cannot be quoted without them; then the limit has to be given.
    let price = match host.quote(&document, payment.duration).await {
        Ok(quote) => quote.price.0,
        Err(error) if payment.max_price.is_none() => {
            return Err(Failure::from(error).note("Give --max-price."));
        }
        Err(_) => 0,
    };
    let limit = limit(payment, price, &asset)?;
    let shown = [
        ("program", arguments.hash.to_string()),
        ("host", host.origin().to_owned()),
        ("runs until", pod.expiry.to_string()),
        ("more time", format!("{} s", payment.duration)),
        (
            "price",
            if price > 0 {
                amount::format(price, &asset)
            } else {
                format!("at most {}", amount::format(limit, &asset))
            },
        ),
    ];
    confirm(payment, "Buy this time?", &shown, "").await?;
    let wallet = wallet(payment, &asset).await?;
    let buying = host.extend(&arguments.hash, payment.duration, &wallet, limit);
    finish(payment, &host, arguments.hash, &asset, &wallet, buying).await
}

/// What is posted, from the files that people write.
fn document(arguments: &UploadArguments) -> Result<String, Failure> {
    let codius = parse(&arguments.codius_file)?;
    let vars_file = match &arguments.codius_vars_file {
        Some(file) => Some(file.clone()),
        None => Some(PathBuf::from(VARS_FILE)).filter(|file| file.is_file()),
    };
    let vars = vars_file.as_deref().map(parse).transpose()?;
    let mut nonce = || {
        rand::random::<[u8; source::NONCE_BYTES]>()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    let mut generated = source::generate(&codius, vars.as_ref(), &mut nonce).map_err(|errors| {
        let failure = Failure::new(
            USAGE,
            format!("{} is not valid", arguments.codius_file.display()),
        );
        errors.iter().fold(failure, |failure, error| {
            failure.note(format!("{error} ({})", error.next_step))
        })
    })?;
    if arguments.debug {
        generated.set_debug();
    }
    Ok(generated.to_json())
}

fn parse(file: &Path) -> Result<Value, Failure> {
    parse_document(&read(file)?)
        .map_err(|error| invalid(error).note(format!("in {}", file.display())))
}

/// Name and version, for the question.
fn program(document: &str) -> String {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let text = |member: &str| {
        document["manifest"][member]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    format!("{} {}", text("name"), text("version"))
}

async fn asset(host: &HostClient) -> Result<AssetInfo, Failure> {
    let info = host.info().await?;
    Ok(match info.host {
        Some(host) => host.asset,
        None => AssetInfo {
            code: info.currency,
            scale: FIRST_GENERATION_SCALE,
        },
    })
}

/// The most that may be paid. It is never more than was shown or said.
fn limit(payment: &PaymentArguments, price: u64, asset: &AssetInfo) -> Result<u64, Failure> {
    let Some(text) = &payment.max_price else {
        return Ok(price);
    };
    let limit = amount::parse(text, asset).ok_or_else(|| {
        Failure::new(
            USAGE,
            format!(
                "--max-price {text} is not an amount of {} with {} decimals",
                asset.code, asset.scale
            ),
        )
    })?;
    if price > limit {
        let (price, limit) = (amount::format(price, asset), amount::format(limit, asset));
        return Err(Failure::new(
            NOT_PAID,
            format!("the price is {price}, over the limit of {limit}"),
        )
        .note("Nothing was paid. Next: buy less time, raise --max-price, or take another host."));
    }
    Ok(limit)
}

/// Shows what is about to happen and asks, unless told not to.
async fn confirm(
    payment: &PaymentArguments,
    question: &str,
    shown: &[(&str, String)],
    warning: &str,
) -> Result<(), Failure> {
    for (name, value) in shown {
        eprintln!("  {name:<11} {value}");
    }
    if payment.assume_yes {
        return Ok(());
    }
    if !stdin().is_terminal() {
        return Err(Failure::new(
            USAGE,
            "there is nobody to ask; give -y to go on without a question",
        ));
    }
    if !warning.is_empty() {
        eprintln!("  {warning}");
    }
    eprint!("{question} [y/N] ");
    let _ = stderr().flush();
    let asked = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = tokio::select! {
        answer = asked => answer,
        _ = tokio::signal::ctrl_c() => return Err(Failure::new(INTERRUPTED, "interrupted; nothing was paid")),
    };
    match answer {
        Ok(Ok(answer)) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::new(1, "not confirmed; nothing was paid")),
    }
}

async fn wallet(payment: &PaymentArguments, asset: &AssetInfo) -> Result<Wallet, Failure> {
    let url = payment.ilp.clone().unwrap_or_else(default_url);
    let wallet = Wallet::connect(&url).await?;
    let own = wallet.asset();
    if own.code != asset.code || own.scale != asset.scale {
        let (mine, theirs) = (
            format!("{}/{}", own.code, own.scale),
            format!("{}/{}", asset.code, asset.scale),
        );
        return Err(Failure::new(
            NOT_PAID,
            format!("your connection counts in {mine} and the host in {theirs}"),
        )
        .note("Nothing was paid. Next: give --ilp with a connection in the host's asset."));
    }
    Ok(wallet)
}

/// Waits for the order, showing its progress, and tells the result.
async fn finish(
    payment: &PaymentArguments,
    host: &HostClient,
    hash: ManifestHash,
    asset: &AssetInfo,
    wallet: &Wallet,
    buying: impl Future<Output = Result<PaidAnswer<PodReply>, ClientError>>,
) -> Result<(), Failure> {
    let mut display = Display::new();
    display.say("Paying");
    let outcome = {
        let watching = watch(host, &hash, &mut display);
        tokio::pin!(buying, watching);
        tokio::select! {
            outcome = &mut buying => Some(outcome),
            // All was told; the answer is about to come.
            () = &mut watching => tokio::select! {
                outcome = &mut buying => Some(outcome),
                _ = tokio::signal::ctrl_c() => None,
            },
            _ = tokio::signal::ctrl_c() => None,
        }
    };
    let phases = display.end();
    let Some(outcome) = outcome else {
        return Err(interrupted(host, &hash, asset, wallet));
    };
    let PaidAnswer { reply, receipt } = outcome?;
    let paid = receipt.paid.saturating_sub(receipt.refunded);
    if payment.json {
        let result = json!({
            "manifestHash": reply.manifest_hash,
            "url": reply.url,
            "expiry": reply.expiry,
            "host": host.origin(),
            "paid": receipt.paid.to_string(),
            "refunded": receipt.refunded.to_string(),
            "paid_display": amount::format(paid, asset),
            "asset": asset,
            "phases": phases.iter().map(phase).collect::<Vec<_>>(),
        });
        println!("{result:#}");
    } else {
        println!("{}", reply.url);
        println!("  hash        {}", reply.manifest_hash);
        println!("  runs until  {}", reply.expiry);
        println!("  paid        {}", amount::format(paid, asset));
    }
    Ok(())
}

/// A phase as `--json` has it.
fn phase(event: &LeaseEvent) -> Value {
    json!({ "phase": name(&event.kind), "at": event.at, "elapsed_ms": event.elapsed_ms })
}

/// Follows the events of a lease, which begins when the host has seen the order.
async fn watch(host: &HostClient, hash: &ManifestHash, display: &mut Display) {
    let mut events = loop {
        match host.events(hash).await {
            Ok(events) => break events,
            // Not yet; or a host of the first generation, which never knows.
            Err(_) => tokio::time::sleep(EVENTS_RETRY).await,
        }
    };
    while let Some(event) = events.next().await {
        let last = event.kind.is_last();
        display.event(event);
        if last {
            return;
        }
    }
}

fn interrupted(
    host: &HostClient,
    hash: &ManifestHash,
    asset: &AssetInfo,
    wallet: &Wallet,
) -> Failure {
    let moved = wallet.moved();
    let paid = moved.paid.saturating_sub(moved.refunded);
    if paid == 0 {
        return Failure::new(INTERRUPTED, "interrupted; nothing was paid");
    }
    Failure::new(INTERRUPTED, format!("interrupted after {} had been paid", amount::format(paid, asset)))
        .note("The host goes on with the order; if it fails, it owes the money to the next upload of this manifest.")
        .note(format!("Next: codius status {hash} --host {}", host.origin()))
}
