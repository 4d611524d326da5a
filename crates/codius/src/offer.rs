//! What a host would do for us, found out without paying: first a look at what it publishes, then a
//! quote for the program.
//!
//! Only the quote shows the program, and its private values, to a host; so it is asked of those hosts
//! only that are about to be paid.

use std::time::Duration;

use codius_api::{
    AssetInfo, QuoteReply,
    v2::{HostReply, LeaseReply, LeaseState, MachineInfo},
};
use codius_client::{ClientError, HostClient, Wallet};
use codius_manifest::ManifestHash;
use futures_util::{StreamExt, stream};
use serde_json::Value;

use crate::{
    amount,
    choice::Wish,
    failure::{Failure, NOT_PAID, REFUSED},
    monthly_rate::MonthlyRate,
    project::SMALL,
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
    /// It has version 2 of the API.
    pub(crate) has_v2: bool,
    /// Sizes that it names with their prices.
    machines: Vec<MachineInfo>,
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
    /// The program runs there already, as far as the host says: paying makes it longer.
    pub(crate) runs: bool,
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
        match host.host_v2().await? {
            Some(about) => Self::of_v2(host, about, duration_secs),
            None => Self::of_v1(host, duration_secs).await,
        }
    }

    fn of_v2(host: HostClient, about: HostReply, duration_secs: u64) -> Result<Self, Failure> {
        let rate: Option<MonthlyRate> = about.price.per_month.parse().ok();
        let price = rate.and_then(|rate| rate.price(duration_secs, about.asset.scale));
        let most = about.duration.max_seconds;
        if duration_secs > most {
            return Err(
                Failure::new(REFUSED, format!("the host sells at most {most} s at once"))
                    .note("Next: buy less with -d; codius extend buys more later."),
            );
        }
        Ok(Self {
            price: price.ok_or_else(no_price)?,
            accepts: about.capacity.accepting_uploads,
            load: about.load_1m_per_core,
            host,
            asset: about.asset,
            isolation: Some(about.isolation.kind),
            has_v2: true,
            machines: about.machines,
        })
    }

    async fn of_v1(host: HostClient, duration_secs: u64) -> Result<Self, Failure> {
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
            price: price.ok_or_else(no_price)?,
            accepts: info.accepting_uploads && !info.full_mem,
            load: info.avg_load,
            host,
            asset,
            isolation,
            has_v2: false,
            machines: Vec::new(),
        })
    }

    /// The same for a pod of another size than small, if the host has such pods.
    pub(crate) fn sized(mut self, machine: &str, duration_secs: u64) -> Result<Self, Failure> {
        if machine == SMALL {
            return Ok(self);
        }
        let offered = self.machines.iter().find(|one| one.name == machine);
        let Some((offered, price)) = offered.and_then(|one| Some((one, one.price.as_ref()?)))
        else {
            return Err(
                Failure::new(REFUSED, format!("the host has no machine {machine:?}")).note(
                    "Next: take another host, or another size; codius hosts --sizes shows what they have.",
                ),
            );
        };
        let rate: Option<MonthlyRate> = price.per_month.parse().ok();
        let price = rate.and_then(|rate| rate.price(duration_secs, self.asset.scale));
        self.price = price.ok_or_else(no_price)?;
        self.accepts &= offered.has_room.unwrap_or(true);
        Ok(self)
    }

    /// Asks many, in any order.
    pub(crate) async fn at_all(
        origins: &[String],
        machine: &str,
        duration_secs: u64,
    ) -> (Vec<Self>, Vec<LeftOut>) {
        let look = async |origin: &str| {
            let look = Self::at(origin, duration_secs).await?;
            look.sized(machine, duration_secs)
        };
        let answers: Vec<_> = stream::iter(origins.iter().enumerate())
            .map(|(index, origin)| async move { (index, look(origin).await) })
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

    /// The best first: those with room, the cheapest, the least loaded.
    pub(crate) fn rank(looks: &mut [Self]) {
        looks.sort_by(|one, other| {
            let price = |look: &Self| {
                let finer = COMPARED_SCALE.saturating_sub(look.asset.scale);
                u128::from(look.price).saturating_mul(10_u128.pow(finer.into()))
            };
            (!one.accepts, price(one))
                .cmp(&(!other.accepts, price(other)))
                .then(one.load.total_cmp(&other.load))
        });
    }

    pub(crate) fn origin(&self) -> &str {
        self.host.origin()
    }

    /// Asks for the price of the program, after all that is known without asking.
    pub(crate) async fn quote(mut self, wish: &Wish<'_>) -> Result<Offer, Failure> {
        let Wish {
            duration_secs,
            ceiling,
            wallet,
            ..
        } = *wish;
        if !self.accepts && !wish.extends && !self.runs(&wish.hash).await {
            return Err(Failure::new(REFUSED, "the host takes no uploads now")
                .note("Next: try again later, or take another host."));
        }
        self.same_asset(wallet)?;
        ceiling.at(&self.asset, duration_secs)?;
        let (hash, price, runs) = if self.has_v2 {
            let reply = self.host.quote_v2(&wish.document, duration_secs).await?;
            if reply.asset != self.asset {
                return Err(Failure::new(
                    REFUSED,
                    "the host has changed its asset meanwhile",
                ));
            }
            (reply.manifest_hash, reply.price.0, reply.runs)
        } else {
            let reply = self.quote_v1(wish).await?;
            (reply.manifest_hash, reply.price.0, false)
        };
        if hash != wish.hash {
            return Err(Failure::new(
                REFUSED,
                format!("the host has computed another hash, {hash}"),
            )
            .note("Next: take another host; this one would run something else."));
        }
        let most = ceiling.allows(price, &self.asset, duration_secs)?;
        let offer = self.offer(price, most, wallet)?;
        Ok(Offer { runs, ..offer })
    }

    /// Whether the program runs there, asked without showing it.
    async fn runs(&self, hash: &ManifestHash) -> bool {
        let ended = |lease: LeaseReply| lease.state == LeaseState::Ended;
        self.has_v2 && self.host.lease(hash).await.is_ok_and(|lease| !ended(lease))
    }

    async fn quote_v1(&mut self, wish: &Wish<'_>) -> Result<QuoteReply, Failure> {
        let text = wish.document.to_string();
        Ok(match self.host.quote(&text, wish.duration_secs).await {
            Err(ClientError::Refused { body, .. })
                if matches!(body.status_code, 400 | 402) && body.message.contains("Pay") =>
            {
                // Only a host of the first generation wants to be paid nothing for a quote.
                let answer = self
                    .host
                    .quote_by_payment(
                        &text,
                        wish.duration_secs,
                        &wish.wallet.purse(self.asset.scale),
                    )
                    .await?;
                if let Some(asset) = answer.asset {
                    self.asset = asset;
                    self.same_asset(wish.wallet)?;
                }
                answer.reply
            }
            other => other?,
        })
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
            runs: false,
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

fn no_price() -> Failure {
    Failure::new(REFUSED, "the host's price is not a number")
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
            has_v2: true,
            machines: Vec::new(),
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
