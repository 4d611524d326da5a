//! What a host would do for us, found out without paying: first a look at what it publishes, then a
//! quote for the program.
//!
//! Only the quote shows the program, and its private values, to a host; so it is asked of those hosts
//! only that are about to be paid.

use std::time::Duration;

use codius_api::{AssetInfo, QuoteReply, Units};
use codius_client::{ClientError, HostClient, Wallet};
use codius_manifest::ManifestHash;
use futures_util::{StreamExt, stream};
use serde_json::Value;

use crate::{
    amount,
    ceiling::Ceiling,
    failure::{Failure, NOT_PAID, REFUSED},
    monthly_rate::MonthlyRate,
};

/// How long a host may take for a look or for a quote.
pub(crate) const QUOTE_TIMEOUT: Duration = Duration::from_secs(10);
/// Hosts that are asked at the same time.
pub(crate) const ASKED_AT_ONCE: usize = 30;
/// Hosts of the first generation do not say what they count in until they are paid; this is what they
/// did.
const FIRST_GENERATION_SCALE: u8 = 9;
/// Prices are compared in units of 10⁻¹⁸.
const COMPARED_SCALE: u8 = 18;

/// A host, and what it publishes.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) host: HostClient,
    pub(crate) asset: AssetInfo,
    /// Of the wanted duration, as its published rate makes it; what counts is the quote.
    pub(crate) price: u64,
    pub(crate) accepts: bool,
    /// One minute's load for each of its processors.
    pub(crate) load: f64,
    /// What holds pods back, if it says so.
    pub(crate) isolation: Option<String>,
}

/// A host that has said what the program costs there.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) look: Look,
    pub(crate) price: u64,
    /// The most that will be paid, in the host's units: the quoted price, or if the wallet's units are
    /// larger the next of them.
    pub(crate) limit: u64,
    /// The wallet for this host.
    pub(crate) purse: Wallet,
}

/// A host that was not taken, and why.
#[derive(Debug)]
pub(crate) struct LeftOut {
    pub(crate) host: String,
    pub(crate) failure: Failure,
}

impl Look {
    /// Asks one host what it is.
    pub(crate) async fn at(origin: &str, duration_secs: u64) -> Result<Self, Failure> {
        let host = HostClient::new(origin)?.answering_within(QUOTE_TIMEOUT);
        let info = host.info().await?;
        let rate = MonthlyRate::from_json(&Value::Number(info.cost_per_month));
        let (asset, isolation) = match info.host {
            Some(host) => (host.asset, Some(host.isolation)),
            None => (
                AssetInfo {
                    code: info.currency,
                    scale: FIRST_GENERATION_SCALE,
                },
                None,
            ),
        };
        let price = rate.and_then(|rate| rate.price(duration_secs, asset.scale));
        Ok(Self {
            price: price.ok_or_else(|| Failure::new(REFUSED, "its price is not a number"))?,
            accepts: info.accepting_uploads && !info.full_mem,
            load: info.avg_load,
            host,
            asset,
            isolation,
        })
    }

    /// Asks many, in any order.
    pub(crate) async fn at_all(
        origins: &[String],
        duration_secs: u64,
    ) -> (Vec<Self>, Vec<LeftOut>) {
        let answers: Vec<_> = stream::iter(origins.iter().enumerate())
            .map(|(index, origin)| async move { (index, Self::at(origin, duration_secs).await) })
            .buffer_unordered(ASKED_AT_ONCE)
            .collect()
            .await;
        let (mut looks, mut left_out) = (Vec::new(), Vec::new());
        for (index, answer) in answers {
            match answer {
                Ok(look) => looks.push((index, look)),
                Err(failure) => left_out.push(LeftOut {
                    host: origins[index].clone(),
                    failure,
                }),
            }
        }
        // As they were named, so that the same hosts give the same order.
        looks.sort_by_key(|(index, _)| *index);
        (looks.into_iter().map(|(_, look)| look).collect(), left_out)
    }

    /// The best first: cheapest, then the least loaded.
    pub(crate) fn rank(looks: &mut [Self]) {
        looks.sort_by(|one, other| {
            let price = |look: &Self| {
                let finer = COMPARED_SCALE.saturating_sub(look.asset.scale);
                u128::from(look.price).saturating_mul(10_u128.pow(finer.into()))
            };
            price(one)
                .cmp(&price(other))
                .then(one.load.total_cmp(&other.load))
        });
    }

    pub(crate) fn origin(&self) -> &str {
        self.host.origin()
    }

    /// Asks for the price of the program, after all that is known without asking.
    pub(crate) async fn quote(
        mut self,
        document: &str,
        hash: &ManifestHash,
        duration_secs: u64,
        ceiling: &Ceiling,
        wallet: &Wallet,
    ) -> Result<Offer, Failure> {
        if !self.accepts {
            return Err(Failure::new(REFUSED, "it takes no uploads now")
                .note("Next: try again later, or take another host."));
        }
        self.same_asset(wallet)?;
        ceiling.at(&self.asset, duration_secs)?;
        let QuoteReply {
            manifest_hash,
            price: Units(price),
        } = match self.host.quote(document, duration_secs).await {
            Err(ClientError::Refused { body, .. })
                if matches!(body.status_code, 400 | 402) && body.message.contains("Pay") =>
            {
                // Only a host of the first generation wants to be paid nothing for a quote.
                let answer = self
                    .host
                    .quote_by_payment(document, duration_secs, &wallet.purse(self.asset.scale))
                    .await?;
                if let Some(asset) = answer.asset {
                    self.asset = asset;
                    self.same_asset(wallet)?;
                }
                answer.reply
            }
            other => other?,
        };
        if manifest_hash != *hash {
            return Err(Failure::new(
                REFUSED,
                format!("it has computed another hash, {manifest_hash}"),
            )
            .note("Next: take another host; this one would run something else."));
        }
        let most = ceiling.allows(price, &self.asset, duration_secs)?;
        self.offer(price, most, wallet)
    }

    /// An offer at a price that is within `most`.
    pub(crate) fn offer(self, price: u64, most: u64, wallet: &Wallet) -> Result<Offer, Failure> {
        let purse = wallet.purse(self.asset.scale);
        let own = wallet.asset();
        // In whole units of the wallet, which may be larger than those of the host.
        let limit = purse.cost(price).and_then(|cost| {
            let back = codius_client::scale::up(cost, own.scale, self.asset.scale)?;
            (back.max(price) <= most).then_some(back.max(price))
        });
        let Some(limit) = limit else {
            return Err(Failure::new(
                NOT_PAID,
                format!(
                    "the price of {} cannot be paid in units of {} without going over the limit",
                    amount::format(price, &self.asset),
                    crate::state_file::units_of(&own.code, own.scale)
                ),
            )
            .note("Next: raise the limit, or give --ilp with a connection of finer units."));
        };
        Ok(Offer {
            look: self,
            price,
            limit,
            purse,
        })
    }

    fn same_asset(&self, wallet: &Wallet) -> Result<(), Failure> {
        let own = wallet.asset();
        if own.code == self.asset.code {
            return Ok(());
        }
        Err(Failure::new(
            NOT_PAID,
            format!(
                "your connection counts in {} and the host in {}",
                own.code, self.asset.code
            ),
        )
        .note("Next: give --ilp with a connection in the host's asset."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(host: &str, price: u64, scale: u8, load: f64) -> Look {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Look {
            host: HostClient::new(host).unwrap(),
            asset: AssetInfo {
                code: "XRP".into(),
                scale,
            },
            price,
            accepts: true,
            load,
            isolation: None,
        }
    }

    #[test]
    fn the_cheapest_host_comes_first_and_of_equal_ones_the_idle_one() {
        let mut looks = [
            look("a.example", 2_000, 9, 0.1),
            look("b.example", 1, 6, 0.9),
            look("c.example", 1_000, 9, 0.2),
            look("d.example", 1_000, 9, f64::NAN),
        ];
        Look::rank(&mut looks);
        let order: Vec<_> = looks.iter().map(Look::origin).collect();
        assert_eq!(
            order,
            [
                "https://c.example",
                "https://b.example",
                "https://d.example",
                "https://a.example"
            ]
        );
    }
}
