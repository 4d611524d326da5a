//! What new leases cost. The operator may change it while the host runs; a lease keeps the rate that it
//! began with, and its extensions are priced by that.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use anyhow::{Context, Result};
use codius_ledger::{Asset, Cost, InvalidCost, Rate, RateError, Seconds};
use codius_store::{Batch, Store, StoreError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where the store keeps a price that was set while the host ran.
const META_KEY: &str = "price";
/// Former rates that are remembered, for orders that were priced by them and are not placed yet.
const FORMER_RATES: usize = 16;

/// The price of this host. Clones are the same price.
#[derive(Clone)]
pub(crate) struct PriceTag(Arc<Inner>);

struct Inner {
    asset: Asset,
    /// As the configuration has it.
    configured: String,
    now: RwLock<Now>,
    /// One change at a time: what is shown is what was written last.
    changing: tokio::sync::Mutex<()>,
}

struct Now {
    cost_per_month: String,
    rate: Rate,
    /// The latest first.
    former: VecDeque<Rate>,
}

/// A price that was set while the host ran. It holds until it is set again, or until the operator
/// writes another price into the configuration than was there when it was set.
#[derive(Debug, Serialize, Deserialize)]
struct SetPrice {
    cost_per_month: String,
    instead_of: String,
}

/// Why a price was not changed.
#[derive(Debug, Error)]
pub(crate) enum PriceError {
    #[error(transparent)]
    Invalid(#[from] InvalidCost),
    #[error(transparent)]
    TooLarge(#[from] RateError),
    #[error("the price could not be recorded")]
    Store(#[from] StoreError),
}

impl PriceTag {
    /// The configured price, or the one that was set since.
    pub(crate) fn open(
        configured: &str,
        asset: &Asset,
        meta: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Self> {
        let set: Option<SetPrice> = meta
            .get(META_KEY)
            .map(|json| serde_json::from_slice(json))
            .transpose()
            .context("the record of the price cannot be read")?;
        let cost_per_month = match set {
            Some(set) if set.instead_of == configured => {
                tracing::info!(
                    set = set.cost_per_month,
                    configured,
                    "the price is the one that was set while the host ran"
                );
                set.cost_per_month
            }
            Some(_) | None => configured.to_owned(),
        };
        let rate = rate(&cost_per_month, asset).context("price.cost_per_month")?;
        Ok(Self(Arc::new(Inner {
            asset: asset.clone(),
            configured: configured.to_owned(),
            now: RwLock::new(Now {
                cost_per_month,
                rate,
                former: VecDeque::new(),
            }),
            changing: tokio::sync::Mutex::default(),
        })))
    }

    /// Changes it for new leases. It is durable when this returns.
    pub(crate) async fn set(&self, cost_per_month: &str, store: &Store) -> Result<(), PriceError> {
        let rate = rate(cost_per_month, &self.0.asset)?;
        let _one = self.0.changing.lock().await;
        let set = SetPrice {
            cost_per_month: cost_per_month.to_owned(),
            instead_of: self.0.configured.clone(),
        };
        let json = serde_json::to_vec(&set).expect("strings are JSON");
        store
            .commit(Batch::new().meta(META_KEY, Some(json)))
            .await?;
        let mut now = self.0.now.write().unwrap_or_else(PoisonError::into_inner);
        let before = now.rate;
        now.former.push_front(before);
        now.former.truncate(FORMER_RATES);
        (now.rate, now.cost_per_month) = (rate, set.cost_per_month);
        Ok(())
    }

    /// As the operator wrote it.
    pub(crate) fn cost_per_month(&self) -> String {
        self.now().cost_per_month.clone()
    }

    /// What a new lease costs.
    pub(crate) fn rate(&self) -> Rate {
        self.now().rate
    }

    /// The rate by which so much was asked for so long: this one, or a former one, if the price was
    /// changed since. The payer gets the time that was paid for.
    pub(crate) fn rate_of(&self, duration: Seconds, price: u64) -> Rate {
        let now = self.now();
        let mut rates = std::iter::once(&now.rate).chain(&now.former);
        let asked = rates.find(|rate| rate.price(duration) == Ok(price));
        *asked.unwrap_or(&now.rate)
    }

    fn now(&self) -> RwLockReadGuard<'_, Now> {
        self.0.now.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Smallest units per second.
impl fmt::Display for PriceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.now().rate.fmt(f)
    }
}

fn rate(cost_per_month: &str, asset: &Asset) -> Result<Rate, PriceError> {
    Ok(Rate::per_month(cost_per_month.parse::<Cost>()?, asset)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Seconds = Seconds(3600);

    #[tokio::test]
    async fn a_price_that_was_set_holds_until_the_configuration_says_another() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let store = Store::open(&dir.path().join("codius.db"))?;
        let asset = Asset::new("XRP", 6)?;
        let open = async |configured: &str| -> Result<PriceTag> {
            PriceTag::open(configured, &asset, &store.load().await?.meta)
        };
        let tag = open("10").await?;
        assert_eq!(tag.rate().price(HOUR)?, 13_699);
        tag.set("20", &store).await?;
        assert_eq!(tag.rate().price(HOUR)?, 27_398);
        assert_eq!(tag.cost_per_month(), "20");

        assert_eq!(open("10").await?.cost_per_month(), "20");
        assert_eq!(open("11").await?.cost_per_month(), "11");

        tag.set("0", &store).await?;
        assert_eq!(tag.rate().price(HOUR)?, 0);
        for bad in ["-1", "x", "", "1e3", "99999999999999999999999999"] {
            assert!(tag.set(bad, &store).await.is_err(), "{bad}");
        }
        assert_eq!(tag.cost_per_month(), "0");
        store.close().await;
        Ok(())
    }

    #[tokio::test]
    async fn an_order_keeps_the_rate_that_it_was_priced_by() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let store = Store::open(&dir.path().join("codius.db"))?;
        let tag = PriceTag::open("10", &Asset::new("XRP", 6)?, &BTreeMap::new())?;
        let asked = tag.rate().price(HOUR)?;
        tag.set("30", &store).await?;
        assert_eq!(tag.rate_of(HOUR, asked).price(HOUR)?, asked);
        assert_eq!(
            tag.rate_of(HOUR, 3 * asked - 1).price(HOUR)?,
            tag.rate().price(HOUR)?
        );
        // What nobody was asked for is worth what it is worth now.
        assert_eq!(tag.rate_of(HOUR, 5).price(HOUR)?, tag.rate().price(HOUR)?);
        store.close().await;
        Ok(())
    }
}
