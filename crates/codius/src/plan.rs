//! What is about to be done, shown on standard error before the question.

use codius_api::AssetInfo;

use crate::{
    amount,
    ceiling::Ceiling,
    failure::{Failure, printable},
    offer::Offer,
    question,
};

/// Lines of a name and a value, and what to beware of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    lines: Vec<(&'static str, String)>,
    warnings: Vec<&'static str>,
}

impl Plan {
    pub(crate) fn line(&mut self, name: &'static str, value: impl Into<String>) {
        self.lines.push((name, value.into()));
    }

    pub(crate) fn warn(&mut self, warning: &'static str) {
        self.warnings.push(warning);
    }

    /// The hosts, what each of them gets, and the most that all of them together can get.
    pub(crate) fn hosts(
        &mut self,
        offers: &[Offer],
        ceiling: &Ceiling,
        duration_secs: u64,
        spare: bool,
    ) {
        let [only] = offers else {
            for offer in offers {
                let isolation = offer.look.isolation.as_deref();
                let isolation = isolation.map_or(String::new(), |kind| format!(", {kind}"));
                self.line(
                    "host",
                    format!(
                        "{}  {}{isolation}",
                        offer.look.origin(),
                        amount::format(offer.price, &offer.look.asset)
                    ),
                );
            }
            self.line("time", format!("{duration_secs} s"));
            self.total(offers, ceiling, duration_secs, spare);
            return;
        };
        self.line("host", only.look.origin());
        if let Some(isolation) = &only.look.isolation {
            self.line("isolation", isolation.clone());
        }
        self.line("time", format!("{duration_secs} s"));
        self.line("price", amount::format(only.price, &only.look.asset));
        if spare {
            self.total(offers, ceiling, duration_secs, spare);
        }
    }

    fn total(&mut self, offers: &[Offer], ceiling: &Ceiling, duration_secs: u64, spare: bool) {
        let Some(first) = offers.first() else {
            return;
        };
        // Amounts of several scales are added in the finest of them.
        let finest = offers.iter().map(|offer| offer.look.asset.scale).max();
        let asset = AssetInfo {
            code: first.look.asset.code.clone(),
            scale: finest.unwrap_or_default(),
        };
        let sum = |of: &dyn Fn(&Offer) -> u64| {
            offers.iter().try_fold(0_u64, |sum, offer| {
                let units =
                    codius_client::scale::up(of(offer), offer.look.asset.scale, asset.scale)?;
                sum.checked_add(units)
            })
        };
        if offers.len() > 1
            && let Some(price) = sum(&|offer| offer.price)
        {
            self.line("price", format!("{} in all", amount::format(price, &asset)));
        }
        if spare {
            let most = sum(&|offer| {
                ceiling
                    .at(&offer.look.asset, duration_secs)
                    .unwrap_or(u64::MAX)
            });
            if let Some(most) = most {
                self.line(
                    "at most",
                    format!(
                        "{}, if other hosts have to take their place",
                        amount::format(most, &asset)
                    ),
                );
            }
        }
    }

    pub(crate) async fn confirm(&self, question: &str, assume_yes: bool) -> Result<(), Failure> {
        eprint!("{self}");
        question::ask(question, assume_yes).await
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, value) in &self.lines {
            writeln!(out, "  {name:<11} {}", printable(value))?;
        }
        for warning in &self.warnings {
            writeln!(out, "  {warning}")?;
        }
        Ok(())
    }
}
