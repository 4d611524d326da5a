//! What this host sells: sizes of pods, and what each costs. The operator may change the price while the
//! host runs; a lease keeps the rate that it began with, and its extensions are priced by that.
//!
//! ```text
//! price.cost_per_month ──▶ small (this is what `codiusd admin set-price` changes)
//!        └─ in proportion ─▶ other sizes, unless there are prices of parts, or a price of their own
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use anyhow::{Context, Result};
use codius_ledger::{Asset, Cost, InvalidCost, Rate, RateError, Seconds, Tariff, TariffError};
use codius_manifest::{MachineName, Size};
use codius_store::{Batch, Store, StoreError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::{self, SizeOffered};

/// Where the store keeps a price that was set while the host ran.
const META_KEY: &str = "price";
/// Former rates that are remembered, for orders that were priced by them and are not placed yet.
const FORMER_RATES: usize = 16;

/// The prices of this host. Clones are the same prices.
#[derive(Clone)]
pub(crate) struct PriceTag(Arc<Inner>);

struct Inner {
    asset: Asset,
    /// As the configuration has it.
    configured: String,
    parts: Option<Tariff>,
    sizes: Vec<Priced>,
    now: RwLock<Now>,
    /// One change at a time: what is shown is what was written last.
    changing: tokio::sync::Mutex<()>,
}

/// A size, and its own price if it has one.
struct Priced {
    size: Size,
    own: Option<Cost>,
}

struct Now {
    cost_per_month: String,
    offers: Offers,
    /// The latest first.
    former: VecDeque<Offers>,
}

type Offers = BTreeMap<MachineName, Offer>;

/// A size that is sold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) size: Size,
    pub(crate) cost_per_month: Cost,
    pub(crate) rate: Rate,
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
    #[error("size {0}: {1}")]
    Unwritable(MachineName, #[source] TariffError),
    #[error("size {0}: {1}")]
    TooLarge(MachineName, #[source] RateError),
    #[error("the price could not be recorded")]
    Store(#[from] StoreError),
}

impl PriceTag {
    /// The configured prices, with the one of small pods that was set since.
    pub(crate) fn open(
        price: &config::Price,
        sizes: &BTreeMap<MachineName, SizeOffered>,
        asset: &Asset,
        meta: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Self> {
        let configured = &price.cost_per_month;
        let set: Option<SetPrice> = meta
            .get(META_KEY)
            .map(|json| serde_json::from_slice(json))
            .transpose()
            .context("the record of the price cannot be read")?;
        let cost_per_month = match set {
            Some(set) if set.instead_of == *configured => {
                tracing::info!(
                    set = set.cost_per_month,
                    configured,
                    "the price is the one that was set while the host ran"
                );
                set.cost_per_month
            }
            Some(_) | None => configured.to_owned(),
        };
        let parts = parts(price)?;
        let sizes = sizes.iter().map(|(name, size)| {
            Ok(Priced {
                size: Size {
                    name: *name,
                    machine: size.machine(),
                },
                own: size.cost_per_month.as_deref().map(str::parse).transpose()?,
            })
        });
        let sizes = sizes.collect::<Result<Vec<_>, InvalidCost>>()?;
        let offers = offers(&cost_per_month, parts, &sizes, asset).context("[price]")?;
        Ok(Self(Arc::new(Inner {
            asset: asset.clone(),
            configured: configured.to_owned(),
            parts,
            sizes,
            now: RwLock::new(Now {
                cost_per_month,
                offers,
                former: VecDeque::new(),
            }),
            changing: tokio::sync::Mutex::default(),
        })))
    }

    /// Changes the price of a small pod, and what follows from it, for new leases. It is durable when this
    /// returns.
    pub(crate) async fn set(&self, cost_per_month: &str, store: &Store) -> Result<(), PriceError> {
        let Inner {
            asset,
            parts,
            sizes,
            ..
        } = &*self.0;
        let offers = offers(cost_per_month, *parts, sizes, asset)?;
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
        let before = std::mem::replace(&mut now.offers, offers);
        now.former.push_front(before);
        now.former.truncate(FORMER_RATES);
        now.cost_per_month = set.cost_per_month;
        Ok(())
    }

    /// That of a small pod, as the operator wrote it.
    pub(crate) fn cost_per_month(&self) -> String {
        self.now().cost_per_month.clone()
    }

    /// What a size is and costs, if it is sold.
    pub(crate) fn offer(&self, name: MachineName) -> Option<Offer> {
        self.now().offers.get(&name).copied()
    }

    /// Everything that is sold: small first, then the cheaper ones, those with less memory.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        let mut offers: Vec<Offer> = self.now().offers.values().copied().collect();
        offers.sort_by_key(|offer| {
            let Size { name, machine } = offer.size;
            (
                name != MachineName::SMALL,
                offer.rate,
                machine.memory_mib,
                name,
            )
        });
        offers
    }

    /// The size of a name, at the rate by which so much was asked for so long: this one, or a former one, if
    /// the price was changed since. The payer gets the time that was paid for.
    pub(crate) fn offer_of(
        &self,
        name: MachineName,
        duration: Seconds,
        price: u64,
    ) -> Option<Offer> {
        let now = self.now();
        let mut offers = std::iter::once(&now.offers).chain(&now.former);
        let asked = offers.find_map(|offers| {
            let offer = offers.get(&name)?;
            (offer.rate.price(duration) == Ok(price)).then_some(*offer)
        });
        asked.or_else(|| now.offers.get(&name).copied())
    }

    fn now(&self) -> RwLockReadGuard<'_, Now> {
        self.0.now.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Smallest units per second, of a small pod.
impl fmt::Display for PriceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.offer(MachineName::SMALL).map(|offer| offer.rate);
        rate.unwrap_or_default().fmt(f)
    }
}

/// Prices of parts, if the operator has written them.
fn parts(price: &config::Price) -> Result<Option<Tariff>, InvalidCost> {
    let [vcpu, gib_memory, gib_disk] = price.parts().map(|(_, cost)| cost.as_deref());
    let (Some(vcpu), Some(gib_memory), Some(gib_disk)) = (vcpu, gib_memory, gib_disk) else {
        return Ok(None);
    };
    Ok(Some(Tariff::ByPart {
        vcpu: vcpu.parse()?,
        gib_memory: gib_memory.parse()?,
        gib_disk: gib_disk.parse()?,
    }))
}

fn offers(
    cost_per_month: &str,
    parts: Option<Tariff>,
    sizes: &[Priced],
    asset: &Asset,
) -> Result<Offers, PriceError> {
    let small: Cost = cost_per_month.parse()?;
    let tariff = parts.unwrap_or(Tariff::Proportional { small });
    let offer = |size: Size, cost: Cost| {
        let rate = Rate::per_month(cost, asset);
        let rate = rate.map_err(|error| PriceError::TooLarge(size.name, error))?;
        let offer = Offer {
            size,
            cost_per_month: cost,
            rate,
        };
        Ok((size.name, offer))
    };
    let others = sizes.iter().map(|Priced { size, own }| {
        let cost = match own {
            Some(own) => *own,
            None => tariff
                .cost(size.machine)
                .map_err(|error| PriceError::Unwritable(size.name, error))?,
        };
        offer(*size, cost)
    });
    std::iter::once(offer(Size::SMALL, small))
        .chain(others)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Seconds = Seconds(3600);

    fn name(text: &str) -> MachineName {
        text.parse().expect("it is a name")
    }

    fn open(config: &str, meta: &BTreeMap<String, Vec<u8>>) -> Result<PriceTag> {
        let config: config::Config = toml::from_str(config)?;
        config.check()?;
        PriceTag::open(&config.price, &config.sizes, &Asset::new("XRP", 6)?, meta)
    }

    fn hour(tag: &PriceTag, size: &str) -> Result<u64> {
        let offer = tag.offer(name(size)).context("it is not sold")?;
        Ok(offer.rate.price(HOUR)?)
    }

    #[tokio::test]
    async fn a_price_that_was_set_holds_until_the_configuration_says_another() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let store = Store::open(&dir.path().join("codius.db"))?;
        let open = async |configured: &str| -> Result<PriceTag> {
            let config = format!("[price]\ncost_per_month = {configured:?}");
            open(&config, &store.load().await?.meta)
        };
        let tag = open("10").await?;
        assert_eq!(hour(&tag, "small")?, 13_699);
        tag.set("20", &store).await?;
        assert_eq!(hour(&tag, "small")?, 27_398);
        assert_eq!(tag.cost_per_month(), "20");

        assert_eq!(open("10").await?.cost_per_month(), "20");
        assert_eq!(open("11").await?.cost_per_month(), "11");

        tag.set("0", &store).await?;
        assert_eq!(hour(&tag, "small")?, 0);
        assert_eq!(hour(&tag, "large")?, 0);
        for bad in ["-1", "x", "", "1e3", "99999999999999999999999999"] {
            assert!(tag.set(bad, &store).await.is_err(), "{bad}");
        }
        // Of a small pod it could be written, and of one of four times its price it could not.
        assert!(tag.set("999999999999999999", &store).await.is_err());
        assert_eq!(tag.cost_per_month(), "0");
        store.close().await;
        Ok(())
    }

    #[tokio::test]
    async fn an_order_keeps_the_rate_that_it_was_priced_by() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let store = Store::open(&dir.path().join("codius.db"))?;
        let tag = open("", &BTreeMap::new())?;
        for size in ["small", "medium"] {
            let asked = hour(&tag, size)?;
            let of = |price: u64| -> Result<u64> {
                let offer = tag.offer_of(name(size), HOUR, price);
                Ok(offer.context("it is not sold")?.rate.price(HOUR)?)
            };
            tag.set("30", &store).await?;
            assert_eq!(of(asked)?, asked);
            assert_eq!(of(3 * asked - 1)?, hour(&tag, size)?);
            // What nobody was asked for is worth what it is worth now.
            assert_eq!(of(5)?, hour(&tag, size)?);
            tag.set("10", &store).await?;
        }
        assert_eq!(tag.offer_of(name("huge"), HOUR, 5), None);
        store.close().await;
        Ok(())
    }

    #[test]
    fn sizes_cost_what_the_operator_wrote_or_what_follows_from_it() -> Result<()> {
        let per_month = |config: &str| -> Result<Vec<String>> {
            let offers = open(config, &BTreeMap::new())?.offers();
            let told = offers.iter().map(|offer| {
                let (name, cost) = (offer.size.name, offer.cost_per_month);
                format!("{name} {cost}")
            });
            Ok(told.collect())
        };
        let sizes = "[sizes.medium]\nvcpus = 2\nmemory_mib = 1024\ndisk_mib = 2048\n\
                     [sizes.wide]\nvcpus = 1\nmemory_mib = 512\ndisk_mib = 10240\n";
        assert_eq!(per_month("")?, ["small 10", "medium 20", "large 40"]);
        assert_eq!(per_month(sizes)?, ["small 10", "medium 20", "wide 100"]);
        assert_eq!(
            per_month(&format!(
                "[price]\nper_vcpu_month = \"6\"\nper_gib_memory_month = \"2.5\"\n\
                 per_gib_disk_month = \"0\"\n{sizes}"
            ))?,
            ["small 10", "wide 7.25", "medium 14.5"]
        );
        assert_eq!(
            per_month(&format!("{sizes}cost_per_month = \"12\""))?,
            ["small 10", "wide 12", "medium 20"]
        );
        assert_eq!(per_month("[sizes]")?, ["small 10"]);
        Ok(())
    }
}
