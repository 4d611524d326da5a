//! `codius run`: uploads a program for a few seconds, and then pays for it by the second as long as it is
//! wanted, over one connection. Or goes on paying for one that runs already.
//!
//! ```text
//! upload for AHEAD seconds ──▶ session: pay, show ──▶ stop or end ──▶ the rest comes back
//! named by its hash        ──▶    └ pace, payer, hearing, show, ending
//! ```

mod ending;
mod hearing;
mod pace;
mod payer;
mod session;
mod show;

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use clap::Args;
use codius_api::{
    AssetInfo,
    v2::{LeaseReply, LeaseState},
};
use codius_client::{HostClient, Receipt, Wallet, default_url};
use codius_ledger::{Rate, Seconds};
use codius_manifest::source::Generated;

use self::{pace::Pace, session::Session, show::Show};
use crate::{
    amount,
    candidates::{Said, candidates},
    ceiling::Ceiling,
    choice::{Wish, choose},
    command::{KeyArguments, PaymentArguments},
    failure::{Failure, NOT_PAID, REFUSED, USAGE},
    hosts_file::HOSTS_FILE,
    key::Key,
    offer::{Offer, QUOTE_TIMEOUT},
    plan::Plan,
    pod_address::PodAddress,
    pod_record::{self, Pod},
    project::{CODIUS_FILE, Nonces, Project, title},
    purchase::{Order, Placed, buy},
};

/// Less would be used up before a slow host has heard of the next second.
const MIN_AHEAD_SECS: u64 = 5;
/// Who wants more than a day at once buys it with `codius upload`.
const MAX_AHEAD_SECS: u64 = 24 * 60 * 60;

#[derive(Debug, Args)]
#[command(after_help = "What each side can lose:\n  \
    The money flows a second at a time, and --ahead is all that the host ever has of it in advance. If this\n  \
    tool, its network or its wallet fails, the program runs on for at most --ahead, is then frozen (held\n  \
    still, with its memory) for the host's grace, and then ended. If the money comes back in time it goes\n  \
    on where it was. So you lose the money of --ahead at most, and at a clean end nothing: what was not\n  \
    used comes back over the connection that paid. The host loses nothing but a grace of memory.\n\n\
Exit codes:\n  \
    0    the program ended by itself, or was stopped by codius stop\n  \
    1    failed, or not confirmed\n  \
    2    wrong usage, or a file that is not valid\n  \
    3    not paid: over a limit, or the program ended because its money was used up\n  \
    4    the host said no, lost the program or ended it\n  \
    5    the host or the Interledger connection does not answer\n  \
    130  Ctrl-C, SIGTERM or SIGHUP: the program was stopped and the rest came back. A second Ctrl-C leaves\n       \
         at once, and says how to stop it later")]
pub(crate) struct RunArguments {
    /// Go on paying for this program instead of uploading one: its hash, HASH.host, or its URL
    #[arg(value_name = "HASH", conflicts_with_all = ["codius_file", "codius_vars_file", "bootstrap", "debug"])]
    hash: Option<String>,
    /// How far ahead it is paid, like 10, 10s or 5m: the most that you can lose [5s to 24h]
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = ahead)]
    ahead: u64,
    /// The most to pay in all, in whole units of the host's asset such as 0.05 [default: no limit but the rate]
    #[arg(long, value_name = "AMOUNT")]
    max: Option<String>,
    #[command(flatten)]
    payment: PaymentArguments,
    /// The host, like https://host.example [default: the best that is found or listed]
    #[arg(long, value_name = "URL")]
    host: Option<String>,
    /// A host that knows others, to find one from; see `codius upload`
    #[arg(
        long,
        value_name = "URL",
        env = "CODIUS_BOOTSTRAP",
        hide_env_values = true,
        value_delimiter = ','
    )]
    bootstrap: Vec<String>,
    /// The program
    #[arg(long, value_name = "FILE", default_value = CODIUS_FILE)]
    codius_file: PathBuf,
    /// Its variables [default: codiusvars.json if it is there]
    #[arg(long, value_name = "FILE")]
    codius_vars_file: Option<PathBuf>,
    /// The hosts to choose from, if there is such a file
    #[arg(long, value_name = "FILE", default_value = HOSTS_FILE)]
    codius_hosts_file: PathBuf,
    /// Publish what the program writes; you see it in any case
    #[arg(long)]
    debug: bool,
    #[command(flatten)]
    key: KeyArguments,
}

/// Seconds, or a number of `s`, `m` or `h`.
fn ahead(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let factor = match unit {
        "m" => 60,
        "h" => 3600,
        _ => 1,
    };
    let seconds = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "not a time like 10s or 5m".to_owned())?;
    if (MIN_AHEAD_SECS..=MAX_AHEAD_SECS).contains(&seconds) {
        return Ok(seconds);
    }
    Err(format!("it must be {MIN_AHEAD_SECS} s to 24 h"))
}

pub(crate) async fn run(arguments: RunArguments) -> Result<(), Failure> {
    let key = Key::open(arguments.key.key_file.as_deref())?;
    let session = match &arguments.hash {
        Some(text) => resumed(&arguments, text, &key).await?,
        None => uploaded(&arguments, key).await?,
    };
    session.stay().await
}

/// Uploads the program, for as long as it is to be paid ahead.
async fn uploaded(arguments: &RunArguments, key: Key) -> Result<Session, Failure> {
    let payment = &arguments.payment;
    let project = Project {
        codius_file: arguments.codius_file.clone(),
        vars_file: arguments.codius_vars_file.clone(),
    };
    project.offer_example(payment.assume_yes).await?;
    let signer = Arc::new(key.signer());
    let mut generated: Generated = project.generate(&Nonces::Derived(key))?;
    if arguments.debug {
        generated.set_debug();
    }
    let hosts: Vec<_> = arguments.host.iter().cloned().collect();
    let candidates = candidates(Said {
        hosts: &hosts,
        count: Some(1),
        hosts_file: &arguments.codius_hosts_file,
        bootstrap: &arguments.bootstrap,
    })
    .await?;
    let ceiling = payment.ceiling(None);
    let wallet = payment.wallet().await?;
    let wish = Wish {
        document: generated.document().clone(),
        hash: generated.hash(),
        duration_secs: arguments.ahead,
        ceiling: &ceiling,
        wallet: &wallet,
        signer: &signer,
        timeout: payment.timeout(),
        extends: false,
        // What is not used comes back over the connection that pays.
        refund_to: None,
    };
    let mut choice = choose(&candidates, &wish).await?;
    let Some(offer) = choice.chosen.pop() else {
        return Err(Failure::new(REFUSED, "no host can be paid"));
    };
    check(&offer)?;
    let (host, asset, quoted) = (
        offer.look.host.clone(),
        offer.look.asset.clone(),
        offer.limit,
    );
    let most = arguments.most(&asset)?;
    if offer.price > most {
        return Err(Failure::new(
            NOT_PAID,
            format!(
                "{} s cost {}, over the limit of {}",
                arguments.ahead,
                amount::format(offer.price, &asset),
                amount::format(most, &asset)
            ),
        )
        .note("Nothing was paid. Next: raise --max, or take another host."));
    }

    let mut plan = Plan::default();
    plan.line("program", title(generated.document()));
    plan.line("hash", wish.hash.to_string());
    plan.line("host", host.origin());
    if let Some(isolation) = &offer.look.isolation {
        plan.line("isolation", isolation.clone());
    }
    plan.line("ahead", format!("{} s", arguments.ahead));
    let price = amount::format(offer.price, &asset);
    plan.line("price", format!("{price} for these, then by the second"));
    plan.line("at most", limit_in_words(most, &asset));
    if offer.runs {
        plan.warn("It runs there already: this goes on paying for it.");
    }
    plan.warn("The manifest is public; private variables are not.");
    plan.confirm("Run this program?", payment.assume_yes)
        .await?;

    let mut record = |placed: &Placed| {
        let hosts = vec![placed.host.clone()];
        pod_record::bought(Pod::of(generated.document(), generated.hash(), hosts));
    };
    let mut purchases = buy(
        Order::Upload,
        vec![offer],
        VecDeque::new(),
        &wish,
        &mut record,
    )
    .await;
    let before = purchases.placed.first().map(|placed| placed.receipt);
    let before = match (before, purchases.failure(&wish.hash, &wallet)) {
        (Some(before), None) => before,
        (_, Some(failure)) => return Err(failure),
        (None, None) => return Err(Failure::new(REFUSED, "the host has not answered")),
    };
    let lease = host.lease(&wish.hash).await?;
    let purse = wallet.purse(asset.scale);
    let paid = purse.most(before.paid.saturating_sub(before.refunded));
    let pace = arguments.pace(&lease, most.saturating_sub(paid))?;
    let cost = pace.cost(pace.ahead_ms);
    if cost > quoted {
        return Err(changed_price(&lease));
    }
    Ok(Session {
        host,
        hash: wish.hash,
        asset,
        wallet: purse,
        wallet_url: arguments.wallet_url(),
        signer: Arc::clone(&signer),
        lease,
        pace,
        before,
        show: Show::new(payment.json),
    })
}

/// Goes on with one that runs, or is frozen.
async fn resumed(arguments: &RunArguments, text: &str, key: &Key) -> Result<Session, Failure> {
    let payment = &arguments.payment;
    let said: Vec<_> = arguments.host.iter().cloned().collect();
    let address = PodAddress::known(text, &said)?;
    let host = HostClient::new(address.only_host()?)?;
    let lease = host.clone().answering_within(QUOTE_TIMEOUT);
    let lease = lease.lease(&address.hash).await?;
    if lease.state == LeaseState::Ended {
        return Err(Failure::new(REFUSED, "this program has ended")
            .note("Next: leave the hash out to upload it again."));
    }
    let asset = lease.asset.clone();
    let wallet = payment.wallet().await?;
    same_asset(&wallet, &asset)?;
    let most = arguments.most(&asset)?;
    let pace = arguments.pace(&lease, most)?;
    let cost = pace.cost(pace.ahead_ms);
    let ceiling = payment.ceiling(None);
    if let Ceiling::Rate { .. } = ceiling {
        ceiling.allows(cost, &asset, arguments.ahead)?;
    }
    let mut plan = Plan::default();
    let empty = serde_json::Value::Null;
    let manifest = lease.manifest.as_ref().unwrap_or(&empty);
    plan.line(
        "program",
        title(&serde_json::json!({ "manifest": manifest })),
    );
    plan.line("hash", address.hash.to_string());
    plan.line("host", host.origin());
    plan.line("balance", amount::format(lease.balance.0, &asset));
    let price = amount::format(cost, &asset);
    plan.line("price", format!("{price} for {} s", arguments.ahead));
    plan.line("at most", limit_in_words(most, &asset));
    plan.confirm("Pay for this program?", payment.assume_yes)
        .await?;
    Ok(Session {
        host,
        hash: address.hash,
        wallet: wallet.purse(asset.scale),
        asset,
        wallet_url: arguments.wallet_url(),
        signer: Arc::new(key.signer()),
        lease,
        pace,
        before: Receipt::default(),
        show: Show::new(payment.json),
    })
}

impl RunArguments {
    fn wallet_url(&self) -> String {
        self.payment.ilp.clone().unwrap_or_else(default_url)
    }

    /// The most to pay in all, in the host's units.
    fn most(&self, asset: &AssetInfo) -> Result<u64, Failure> {
        let amount = |name: &str, text: &Option<String>| match text {
            None => Ok(u64::MAX),
            Some(text) => amount::parse(text, asset).ok_or_else(|| {
                let AssetInfo { code, scale } = asset;
                let text =
                    format!("{name} {text} is not an amount of {code} with {scale} decimals");
                Failure::new(USAGE, text)
            }),
        };
        let most = amount("--max", &self.max)?;
        Ok(most.min(amount("--max-price", &self.payment.max_price)?))
    }

    fn pace(&self, lease: &LeaseReply, most: u64) -> Result<Pace, Failure> {
        let rate: Rate = lease
            .price_per_second
            .parse()
            .map_err(|_| Failure::new(REFUSED, "the host's price is not a number"))?;
        if rate.is_free() || rate.price(Seconds(self.ahead)).is_err() {
            return Err(changed_price(lease));
        }
        Ok(Pace {
            rate,
            ahead_ms: self.ahead.saturating_mul(1000),
            funded: lease.balance.0,
            most,
        })
    }
}

/// What this command needs of a host.
fn check(offer: &Offer) -> Result<(), Failure> {
    let (problem, next) = if !offer.look.has_v2 {
        (
            "this host cannot be paid by the second",
            "take another host, or buy time with codius upload",
        )
    } else if offer.price == 0 {
        (
            "this host takes no money",
            "use codius upload, which asks for time",
        )
    } else {
        return Ok(());
    };
    Err(Failure::new(REFUSED, problem)
        .note("Nothing was paid.")
        .note(format!("Next: {next}.")))
}

fn changed_price(lease: &LeaseReply) -> Failure {
    let price = crate::failure::one_line(&lease.price_per_second);
    let text = format!("the host asks for {price} units a second, which is not what was agreed");
    Failure::new(REFUSED, text)
        .note("No more is paid; what was paid is used up, and then the program ends.")
        .note(format!("Next: codius stop {}", lease.manifest_hash))
}

fn same_asset(wallet: &Wallet, asset: &AssetInfo) -> Result<(), Failure> {
    let own = wallet.asset();
    if own.code == asset.code {
        return Ok(());
    }
    let text = format!(
        "your connection counts in {} and the host in {}",
        own.code, asset.code
    );
    Err(Failure::new(NOT_PAID, text)
        .note("Next: give --ilp with a connection in the host's asset."))
}

fn limit_in_words(most: u64, asset: &AssetInfo) -> String {
    match most {
        u64::MAX => "what its time costs; --max sets a limit".to_owned(),
        most => amount::format(most, asset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_bounds() {
        for (text, seconds) in [("10", 10), ("10s", 10), ("5m", 300), ("24h", 86_400)] {
            assert_eq!(ahead(text), Ok(seconds), "{text}");
        }
        for text in [
            "",
            "s",
            "4s",
            "25h",
            "1d",
            "-5",
            "1.5m",
            "99999999999999999999h",
        ] {
            assert!(ahead(text).is_err(), "{text}");
        }
    }
}
