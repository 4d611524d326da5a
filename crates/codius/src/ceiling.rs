//! The most that may be paid to one host, as the person has said it.

use codius_api::AssetInfo;

use crate::{
    amount,
    failure::{Failure, NOT_PAID, USAGE},
    monthly_rate::MonthlyRate,
};

/// The asset of `--max-monthly-rate` when nobody says.
pub(crate) const DEFAULT_UNITS: &str = "XRP";

/// What one order at one host may cost. Nothing that a host says can raise it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ceiling {
    /// `--max-monthly-rate` and `--units`: the original's way.
    Rate { rate: MonthlyRate, units: String },
    /// `--max-price`, in whole units of the host's asset.
    Price(String),
}

impl Default for Ceiling {
    fn default() -> Self {
        Self::Rate {
            rate: MonthlyRate::DEFAULT,
            units: DEFAULT_UNITS.to_owned(),
        }
    }
}

impl Ceiling {
    /// In the smallest units of a host.
    pub(crate) fn at(&self, asset: &AssetInfo, duration_secs: u64) -> Result<u64, Failure> {
        match self {
            Self::Rate { units, .. } if *units != asset.code => Err(Failure::new(
                NOT_PAID,
                format!(
                    "the limit is in {units} and the host asks for {}; no exchange rate is looked up",
                    asset.code
                ),
            )
            .note(format!(
                "Next: give -m and -u {code}, or --max-price in {code}.",
                code = asset.code
            ))),
            Self::Rate { rate, .. } => rate.limit(duration_secs, asset.scale).ok_or_else(|| {
                Failure::new(
                    USAGE,
                    format!("--max-monthly-rate {rate} is more than can be paid"),
                )
            }),
            Self::Price(text) => amount::parse(text, asset).ok_or_else(|| {
                Failure::new(
                    USAGE,
                    format!(
                        "--max-price {text} is not an amount of {} with {} decimals",
                        asset.code, asset.scale
                    ),
                )
            }),
        }
    }

    /// Whether a price is within it, as a sentence if not.
    pub(crate) fn allows(
        &self,
        price: u64,
        asset: &AssetInfo,
        duration_secs: u64,
    ) -> Result<u64, Failure> {
        let limit = self.at(asset, duration_secs)?;
        if price <= limit {
            return Ok(limit);
        }
        let next = match self {
            Self::Rate { .. } => "raise -m/--max-monthly-rate",
            Self::Price(_) => "raise --max-price",
        };
        let (price, limit) = (amount::format(price, asset), amount::format(limit, asset));
        Err(Failure::new(
            NOT_PAID,
            format!("the price is {price}, over the limit of {limit}"),
        )
        .note(format!(
            "Next: buy less time, {next}, or take another host."
        )))
    }

    /// As the state file has it: rate and units, of the same order.
    pub(crate) fn as_rate(&self, asset: &AssetInfo, duration_secs: u64) -> (MonthlyRate, String) {
        match self {
            Self::Rate { rate, units } => (*rate, units.clone()),
            Self::Price(text) => {
                let rate = amount::parse(text, asset)
                    .and_then(|units| MonthlyRate::of_price(units, duration_secs, asset.scale));
                (rate.unwrap_or(MonthlyRate::DEFAULT), asset.code.clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xrp(scale: u8) -> AssetInfo {
        AssetInfo {
            code: "XRP".into(),
            scale,
        }
    }

    #[test]
    fn a_rate_bounds_a_price_in_its_own_asset_only() {
        let ceiling = Ceiling::default();
        assert_eq!(ceiling.at(&xrp(9), 600).unwrap(), 2_284_933);
        assert!(ceiling.allows(2_284_933, &xrp(9), 600).is_ok());
        assert!(ceiling.allows(2_284_934, &xrp(9), 600).is_err());
        let usd = AssetInfo {
            code: "USD".into(),
            scale: 2,
        };
        let refused = ceiling.at(&usd, 600).unwrap_err();
        assert_eq!(
            refused.message(),
            "the limit is in XRP and the host asks for USD; no exchange rate is looked up"
        );
    }

    #[test]
    fn a_price_is_in_the_assets_of_each_host() {
        let ceiling = Ceiling::Price("0.005".into());
        assert_eq!(ceiling.at(&xrp(9), 600).unwrap(), 5_000_000);
        assert_eq!(ceiling.at(&xrp(6), 600).unwrap(), 5_000);
        assert!(ceiling.at(&xrp(2), 600).is_err());
        let (rate, units) = ceiling.as_rate(&xrp(9), 600);
        assert_eq!((rate.to_string(), units.as_str()), ("21.9".into(), "XRP"));
    }
}
