//! A figure of a benchmark, as one JSON line.

use serde_json::{Value, json};

use super::median;

/// One line of the report.
pub(super) struct Figure {
    line: Value,
    values: Vec<f64>,
    ratio: Option<f64>,
}

impl Figure {
    pub(super) fn new(name: &str, unit: &str, values: &[f64]) -> Self {
        let line = json!({
            "name": name,
            "unit": unit,
            "median": rounded(median(values)),
        });
        Self {
            line,
            values: values.to_vec(),
            ratio: None,
        }
    }

    /// Beside somebody who was measured in the same runs; each pair gives one ratio.
    pub(super) fn peer(mut self, peer: &str, values: &[f64]) -> Self {
        let pairs = self.values.iter().zip(values);
        let ratios: Vec<f64> = pairs.map(|(ours, theirs)| ours / theirs).collect();
        self.line["peer"] = peer.into();
        self.line["peer_median"] = rounded(median(values)).into();
        self.ratio = Some(median(&ratios));
        self
    }

    /// Beside a number.
    pub(super) fn limit(mut self, name: &str, value: f64) -> Self {
        self.line["peer"] = name.into();
        self.ratio = Some(median(&self.values) / value);
        self
    }

    pub(super) fn at_least(self, aim: f64) -> Self {
        let met = self.ratio.is_some_and(|ratio| ratio >= aim);
        self.aim(format!(">= {aim}"), met)
    }

    pub(super) fn at_most(self, aim: f64) -> Self {
        let met = self.ratio.is_some_and(|ratio| ratio <= aim);
        self.aim(format!("<= {aim}"), met)
    }

    /// Of all runs, not of the median.
    pub(super) fn none_at_all(mut self) -> Self {
        let worst = self.values.iter().copied().fold(0.0, f64::max);
        self.line["worst"] = worst.into();
        self.aim("0".to_owned(), worst == 0.0)
    }

    fn aim(mut self, aim: String, met: bool) -> Self {
        self.line["aim"] = aim.into();
        self.line["met"] = met.into();
        self
    }

    pub(super) fn print(mut self) {
        self.line["ratio"] = self.ratio.map(rounded).into();
        self.line["runs"] = self.values.len().into();
        println!("{}", self.line);
    }
}

/// Says why a figure is not there.
pub(super) fn left_out(name: &str, peer: &str, reason: &str) {
    let line = json!({
        "name": name, "median": null, "peer": peer, "ratio": null, "left_out": reason,
    });
    println!("{line}");
}

pub(super) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_judged_by_the_ratios_of_its_pairs() {
        let figure = Figure::new("n", "u", &[10.0, 90.0, 30.0]);
        let figure = figure.peer("p", &[1.0, 100.0, 1.0]).at_least(10.0);
        assert_eq!(figure.ratio, Some(10.0));
        assert_eq!(figure.line["met"], true);
        let figure = Figure::new("n", "u", &[16.0])
            .limit("15", 15.0)
            .at_most(1.0);
        assert_eq!(figure.line["met"], false);
    }

    #[test]
    fn one_failure_in_any_run_is_one_too_many() {
        let figure = Figure::new("n", "failures", &[0.0, 1.0, 0.0]).none_at_all();
        assert_eq!(figure.line["met"], false);
        assert_eq!(figure.line["median"], 0.0);
    }
}
