//! `codius extend`: the program of a state file is posted again to every host in it.

use std::collections::VecDeque;

use crate::{
    choice::{Candidates, Wish, choose},
    command::ExtendArguments,
    failure::{Failure, USAGE},
    key::Key,
    plan::Plan,
    project::title,
    purchase::{Order, Placed, Purchases, buy, own_asset},
    report,
    state_file::{Options, StateFile, units_of},
    upload::remember,
};

pub(crate) async fn extend(arguments: ExtendArguments) -> Result<(), Failure> {
    let payment = &arguments.payment;
    let mut state = StateFile::open(&arguments.state.codius_state_file)?;
    let options = state.options();
    let duration_secs = arguments.duration.unwrap_or(options.duration_secs);
    let hosts = crate::candidates::origins(&state.hosts())?;
    if hosts.is_empty() {
        return Err(
            Failure::new(USAGE, format!("{} names no host", state.path().display()))
                .note("Next: upload again with -o."),
        );
    }
    StateFile::check_place(state.path(), true)?;
    let ceiling = payment.ceiling(Some(&options));
    let signer = Key::open(arguments.key.key_file.as_deref())?.signer();
    let wallet = payment.wallet().await?;
    let wish = Wish {
        document: state.document().clone(),
        hash: state.hash(),
        duration_secs,
        ceiling: &ceiling,
        wallet: &wallet,
        signer: &signer,
        timeout: payment.timeout(),
        extends: true,
        refund_to: None,
    };
    let candidates = Candidates { hosts, count: None };
    let choice = choose(&candidates, &wish).await?;

    let mut plan = Plan::default();
    plan.line("program", title(state.document()));
    plan.line("hash", wish.hash.to_string());
    for offer in &choice.chosen {
        if let Some(expiration) = state.expiration(offer.look.origin()) {
            plan.line(
                "runs until",
                format!("{expiration}  {}", offer.look.origin()),
            );
        }
    }
    plan.hosts(&choice.chosen, &ceiling, duration_secs, false);
    plan.confirm("Buy this time?", payment.assume_yes).await?;

    if let Some(first) = choice.chosen.first() {
        let (rate, units) = ceiling.as_rate(&first.look.asset, duration_secs);
        state.set_options(&Options {
            rate,
            units,
            duration_secs,
        });
    }
    let own = own_asset(&wallet);
    let units = units_of(&own.code, own.scale);
    let mut record = |placed: &Placed| remember(&mut state, placed, &units);
    let purchases = buy(
        Order::Upload,
        choice.chosen,
        VecDeque::new(),
        &wish,
        &mut record,
    )
    .await;
    tell(purchases, &wish, payment.json, Some(state.path()))
}

/// Tells what was bought, and fails if something was not.
pub(crate) fn tell(
    mut purchases: Purchases,
    wish: &Wish<'_>,
    json: bool,
    state_file: Option<&std::path::Path>,
) -> Result<(), Failure> {
    if json {
        let whole = report::in_json(&wish.hash, &purchases, &[], wish.wallet, state_file);
        println!("{whole:#}");
    } else {
        report::in_words(&purchases, wish.wallet);
    }
    match purchases.failure(&wish.hash, wish.wallet) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}
