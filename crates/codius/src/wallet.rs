//! `codius wallet`: what the Interledger connection says of itself, and how well it answers. Nothing is paid.

use std::time::{Duration, Instant};

use clap::Args;
use codius_client::{ClientError, Wallet, setting};
use serde_json::{Value, json};

use crate::{
    amount,
    failure::{Failure, one_line},
    purchase::own_asset,
};

/// The middle one of so many answers counts.
const ROUND_TRIPS: usize = 3;
/// BTP has no question for it, and no host answers one.
const NOT_TOLD: &str = "not told by this connection";

#[derive(Debug, Args)]
pub(crate) struct WalletArguments {
    /// Interledger connection (BTP) [default: ILP_BTP_SERVER, ILP_CREDENTIALS or btp+ws://localhost:7768]
    #[arg(long, value_name = "URL")]
    ilp: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What was found out.
#[derive(Debug)]
struct Check {
    wallet: Wallet,
    connect: Duration,
    round_trip: Duration,
    max_packet_amount: Option<u64>,
}

pub(crate) async fn wallet(arguments: WalletArguments) -> Result<(), Failure> {
    let (url, source) = match arguments.ilp {
        Some(url) => (url, "--ilp".to_owned()),
        None => {
            let (url, source) = setting();
            (url, source.to_string())
        }
    };
    let shown = without_token(&url);
    let checked = check(&url, &shown).await;
    if arguments.json {
        let whole = in_json(&shown, &source, &checked);
        println!("{whole:#}");
    }
    let check = checked?;
    if !arguments.json {
        print!("{}", in_words(&shown, &source, &check));
    }
    Ok(())
}

async fn check(url: &str, shown: &str) -> Result<Check, Failure> {
    let start = Instant::now();
    let wallet = match Wallet::connect(url).await {
        Err(error @ ClientError::InvalidWallet(_)) => {
            return Err(Failure::from(error).note("Next: give it like btp+ws://localhost:7768."));
        }
        other => other?,
    };
    let connect = start.elapsed();
    let mut round_trips = Vec::new();
    for _ in 0..ROUND_TRIPS {
        round_trips.push(wallet.round_trip(shown).await?);
    }
    round_trips.sort_unstable();
    let max_packet_amount = wallet.max_packet_amount().await;
    Ok(Check {
        connect,
        round_trip: round_trips[ROUND_TRIPS / 2],
        max_packet_amount,
        wallet,
    })
}

fn in_words(url: &str, source: &str, check: &Check) -> String {
    let asset = own_asset(&check.wallet);
    let most = match check.max_packet_amount {
        Some(most) => amount::format(most, &asset),
        None => NOT_TOLD.to_owned(),
    };
    let address = check.wallet.address().to_string();
    let scale = format!("{}, {} decimals", one_line(&asset.code), asset.scale);
    let lines = [
        ("connection", format!("{url} ({source})")),
        ("address", address),
        ("asset", scale),
        (
            "latency",
            format!(
                "{:.1} ms; connecting took {:.1} ms",
                millis(check.round_trip),
                millis(check.connect)
            ),
        ),
        ("max packet", most),
        ("balance", NOT_TOLD.to_owned()),
    ];
    let lines = lines.map(|(name, value)| format!("{name:<11} {value}\n"));
    lines.concat()
}

fn in_json(url: &str, source: &str, checked: &Result<Check, Failure>) -> Value {
    let mut whole = json!({ "url": url, "source": source, "reachable": checked.is_ok() });
    match checked {
        Ok(check) => {
            let asset = own_asset(&check.wallet);
            whole["address"] = check.wallet.address().to_string().into();
            whole["asset"] = json!(asset);
            whole["connect_ms"] = millis(check.connect).into();
            whole["round_trip_ms"] = millis(check.round_trip).into();
            whole["max_packet_amount"] =
                json!(check.max_packet_amount.map(|most| most.to_string()));
            whole["balance"] = Value::Null;
            whole["balance_reason"] = NOT_TOLD.into();
        }
        Err(failure) => whole["message"] = failure.message().into(),
    }
    whole
}

/// In milliseconds, to a tenth.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

/// The URL without its secret, which a person may not want on the screen.
fn without_token(url: &str) -> String {
    let Ok(mut parsed) = url::Url::parse(url.strip_prefix("btp+").unwrap_or(url)) else {
        return "an address that is not a URL".to_owned();
    };
    // Both cannot fail for an address that has a host; without one there is nothing to hide.
    let _ = parsed.set_password(None);
    let _ = parsed.set_username("");
    let prefix = if url.starts_with("btp+") { "btp+" } else { "" };
    format!("{prefix}{}", parsed.as_str().trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_a_connection_is_not_shown() {
        assert_eq!(
            without_token("btp+ws://me:secret@host.example:7768"),
            "btp+ws://host.example:7768"
        );
        assert_eq!(without_token("secret"), "an address that is not a URL");
    }
}
