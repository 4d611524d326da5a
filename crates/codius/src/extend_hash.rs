//! `codius extend-hash`: more time for a program that runs, whoever has uploaded it.

use std::collections::VecDeque;

use codius_client::Signer;
use serde_json::{Value, json};

use crate::{
    choice::Wish,
    command::ExtendHashArguments,
    extend::tell,
    failure::Failure,
    offer::{Look, Offer},
    plan::Plan,
    pod_address::PodAddress,
    pod_record::{self, Pod},
    project::{machine_of, title},
    purchase::{Order, Placed, buy},
};

pub(crate) async fn extend_hash(arguments: ExtendHashArguments) -> Result<(), Failure> {
    let payment = &arguments.payment;
    let PodAddress { hash, hosts } = PodAddress::new(&arguments.manifest_hash, &arguments.host)?;
    let ceiling = payment.ceiling(None);
    // Nobody owns a lease for having paid for more of it.
    let signer = Signer::new(codius_client::Key::from_seed(rand::random()));
    let wallet = payment.wallet().await?;
    let mut wish = Wish {
        document: Value::Null,
        hash,
        duration_secs: arguments.duration,
        ceiling: &ceiling,
        wallet: &wallet,
        signer: &signer,
        timeout: payment.timeout(),
        extends: true,
        refund_to: None,
    };
    let mut plan = Plan::default();
    let mut offers: Vec<Offer> = Vec::new();
    let mut document = Value::Null;
    for host in &hosts {
        let in_place = |failure: Failure| match hosts.len() {
            1 => failure,
            _ => failure.at(host),
        };
        let look = Look::at(host, arguments.duration).await.map_err(in_place)?;
        let pod = look
            .host
            .pod(&hash)
            .await
            .map_err(|error| in_place(error.into()))?;
        document = json!({ "manifest": pod.manifest, "private": {} });
        wish.document = document.clone();
        if offers.is_empty() {
            plan.line("program", title(&document));
            plan.line("hash", hash.to_string());
        }
        plan.line("runs until", pod.expiry.to_string());
        // If it has no such pods any more, it is quoted all the same.
        let sized = look
            .clone()
            .sized(machine_of(&document), arguments.duration);
        offers.push(
            offer(sized.unwrap_or(look), &wish)
                .await
                .map_err(in_place)?,
        );
    }
    plan.hosts(&offers, &ceiling, arguments.duration, false);
    plan.confirm("Buy this time?", payment.assume_yes).await?;

    let mut record = |placed: &Placed| {
        pod_record::bought(Pod::of(&document, hash, vec![placed.host.clone()]));
    };
    let purchases = buy(Order::Extend, offers, VecDeque::new(), &wish, &mut record).await;
    tell(purchases, &wish, payment.json, None)
}

/// The price of more time. A manifest with private variables cannot be quoted without them; then the
/// published price is taken for it.
async fn offer(look: Look, wish: &Wish<'_>) -> Result<Offer, Failure> {
    let has_private = wish.document["manifest"]["vars"]
        .as_object()
        .is_some_and(|vars| vars.values().any(|var| !var["encoding"].is_null()));
    if !has_private {
        return wish.quote(look).await.map_err(|left_out| left_out.failure);
    }
    let most = wish
        .ceiling
        .allows(look.price, &look.asset, wish.duration_secs)?;
    let price = look.price;
    look.offer(price, most, wish.wallet)
}
