//! What was bought, on standard output: a few lines, or JSON (docs/codius-json.md).

use codius_api::{AssetInfo, LeaseEvent};
use codius_client::Wallet;
use codius_manifest::ManifestHash;
use serde_json::{Map, Value, json};

use crate::{
    amount,
    failure::printable,
    offer::LeftOut,
    progress::name,
    purchase::{Failed, Placed, Purchases, own_asset},
};

/// As people read it.
pub(crate) fn in_words(purchases: &Purchases, wallet: &Wallet) {
    let own = own_asset(wallet);
    let several = purchases.placed.len() > 1;
    for placed in &purchases.placed {
        match &placed.run.url {
            Some(url) => println!("{}", printable(url)),
            None => println!("running"),
        }
        if several {
            println!("  host        {}", placed.host);
        }
        println!("  hash        {}", placed.run.hash);
        println!("  runs until  {}", placed.run.expiry);
        println!("  paid        {}", amount::format(net(placed), &own));
    }
    if several {
        let sum = purchases
            .placed
            .iter()
            .map(net)
            .fold(0, u64::saturating_add);
        println!(
            "{} hosts, {} in all",
            purchases.placed.len(),
            amount::format(sum, &own)
        );
    }
}

/// As programs read it. The members of a placed host stand at the top as well, for the first host.
pub(crate) fn in_json(
    hash: &ManifestHash,
    purchases: &Purchases,
    before: &[LeftOut],
    wallet: &Wallet,
    state_file: Option<&std::path::Path>,
) -> Value {
    let own = own_asset(wallet);
    let hosts: Vec<_> = purchases
        .placed
        .iter()
        .map(|one| placed(one, &own))
        .collect();
    let mut whole = match hosts.first() {
        Some(Value::Object(first)) => first.clone(),
        _ => Map::new(),
    };
    whole.insert("manifestHash".to_owned(), hash.to_string().into());
    whole.insert("hosts".to_owned(), hosts.into());
    let failed: Vec<_> = purchases.failed.iter().map(failed).collect();
    whole.insert("failed".to_owned(), failed.into());
    let left_out = before.iter().chain(&purchases.left_out);
    let left_out: Vec<_> = left_out
        .map(|one| json!({ "host": one.host, "message": one.failure.message() }))
        .collect();
    whole.insert("left_out".to_owned(), left_out.into());
    if let Some(file) = state_file {
        whole.insert("state_file".to_owned(), file.display().to_string().into());
    }
    Value::Object(whole)
}

/// What it has cost, in the payer's units.
pub(crate) fn net(placed: &Placed) -> u64 {
    placed.receipt.paid.saturating_sub(placed.receipt.refunded)
}

fn placed(one: &Placed, own: &AssetInfo) -> Value {
    json!({
        "manifestHash": one.run.hash,
        "url": one.run.url,
        "expiry": one.run.expiry,
        "host": one.host,
        "paid": one.receipt.paid.to_string(),
        "refunded": one.receipt.refunded.to_string(),
        "paid_display": amount::format(net(one), own),
        "asset": own,
        "phases": one.phases.iter().map(phase).collect::<Vec<_>>(),
    })
}

fn failed(one: &Failed) -> Value {
    json!({
        "host": one.host,
        "message": one.failure.message(),
        "notes": one.failure.notes(),
        "exit_code": one.failure.code(),
        "paid": one.receipt.paid.to_string(),
        "refunded": one.receipt.refunded.to_string(),
    })
}

fn phase(event: &LeaseEvent) -> Value {
    json!({ "phase": name(&event.kind), "at": event.at, "elapsed_ms": event.elapsed_ms })
}
