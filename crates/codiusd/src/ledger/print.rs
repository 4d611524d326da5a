//! The books for people and for programs: a table, CSV (RFC 4180) or JSON, line by line.

use std::io::{self, Write};

use anyhow::Result;
use codius_api::AssetInfo;
use codius_ledger::Asset;
use serde::Serialize;

use super::report::{EntryLine, LeaseLine, Summary, VerifiedReport};
use crate::admin::{facts, table};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Table,
    Csv,
    Json,
}

pub(super) struct Printer<'a, W> {
    form: Form,
    out: &'a mut W,
}

/// What a kind of account is, for people.
const KINDS: &[(&str, &str)] = &[
    ("order", "paid for orders that have no answer yet"),
    ("lease", "not used yet of leases"),
    ("owed", "owed to programs, for who paid and got no time"),
    ("refund", "refunds that are due"),
    ("pod", "the programs' own money"),
    ("earned", "earned by the operator"),
    (
        "local",
        "local clients (play money); negative: what they have spent",
    ),
    ("parent", "the parent; negative: what it owes this host"),
];

const LEASE_COLUMNS: &str = "manifest_hash,created_at,state,end_reason,money_moved_at,ran_ms,\
     price_per_second_units,paid_units,carried_units,charged_units,unused_units,refunded_units,\
     balance_units,asset_code,asset_scale";
const ENTRY_COLUMNS: &str = "transaction,at,account,reason,amount_units,packets,reference,\
     asset_code,asset_scale";

impl<'a, W: Write> Printer<'a, W> {
    pub(super) fn new(form: Form, out: &'a mut W) -> Self {
        Self { form, out }
    }

    pub(super) fn summary(&mut self, summary: &Summary) -> Result<()> {
        match self.form {
            Form::Json => self.json(summary),
            Form::Csv => {
                self.head("sum,accounts,amount_units,asset_code,asset_scale")?;
                let asset = columns_of(summary.asset.as_ref());
                let mut line = |name: &str, accounts: String, amount: &str| {
                    let [code, scale] = asset.clone();
                    self.csv(&[name.to_owned(), accounts, amount.to_owned(), code, scale])
                };
                line("earned", String::new(), &summary.earned)?;
                for (reason, amount) in &summary.earned_in_period {
                    line(
                        &format!("earned_in_period_by_{reason}"),
                        String::new(),
                        amount,
                    )?;
                }
                for (kind, sum) in &summary.balances {
                    line(
                        &format!("balance_{kind}"),
                        sum.accounts.to_string(),
                        &sum.balance,
                    )?;
                }
                line("balance_all", String::new(), &summary.sum)?;
                Ok(())
            }
            Form::Table => {
                let text = summary_text(summary);
                Ok(self.out.write_all(text.as_bytes())?)
            }
        }
    }

    pub(super) fn verified(&mut self, verified: &VerifiedReport) -> Result<()> {
        match self.form {
            Form::Json => self.json(verified),
            Form::Csv => {
                self.head("accounts,transactions,packets,postings")?;
                let VerifiedReport {
                    accounts,
                    transactions,
                    packets,
                    postings,
                } = verified;
                let numbers = [accounts, transactions, packets, postings];
                Ok(self.csv(&numbers.map(u64::to_string))?)
            }
            Form::Table => Ok(writeln!(
                self.out,
                "All of it adds up: {} postings in {} transactions, {} accounts.",
                verified.postings, verified.transactions, verified.accounts
            )?),
        }
    }

    pub(super) fn leases_head(&mut self) -> Result<()> {
        match self.form {
            Form::Json => Ok(()),
            Form::Csv => Ok(self.head(LEASE_COLUMNS)?),
            Form::Table => Ok(writeln!(
                self.out,
                "{:52}  {:24}  {:20}  {:>10}  {:>14}  {:>14}  {:>14}  {:>14}  {:>14}",
                "LEASE OF",
                "CREATED",
                "STATE",
                "RAN s",
                "PAID",
                "CHARGED",
                "UNUSED",
                "REFUNDED",
                "LEFT"
            )?),
        }
    }

    pub(super) fn lease(&mut self, lease: &LeaseLine, asset: &Option<AssetInfo>) -> Result<()> {
        let end_reason = lease.end_reason.clone().unwrap_or_default();
        match self.form {
            Form::Json => self.json(lease),
            Form::Csv => {
                let moved = lease.money_moved_at.map(|at| at.to_string());
                let [code, scale] = columns_of(asset.as_ref());
                let columns = [
                    lease.manifest_hash.to_string(),
                    lease.created_at.to_string(),
                    lease.state.clone(),
                    end_reason,
                    moved.unwrap_or_default(),
                    lease.ran_ms.to_string(),
                    lease.price_per_second.clone(),
                    lease.paid.clone(),
                    lease.carried.clone(),
                    lease.charged.clone(),
                    lease.unused.clone(),
                    lease.refunded.clone(),
                    lease.balance.clone(),
                    code,
                    scale,
                ];
                Ok(self.csv(&columns)?)
            }
            Form::Table => {
                let state = if end_reason.is_empty() {
                    lease.state.clone()
                } else {
                    format!("{}: {end_reason}", lease.state)
                };
                Ok(writeln!(
                    self.out,
                    "{:52}  {:24}  {state:20}  {:>10}  {:>14}  {:>14}  {:>14}  {:>14}  {:>14}",
                    lease.manifest_hash.to_string(),
                    lease.created_at.to_string(),
                    format!("{}.{:03}", lease.ran_ms / 1000, lease.ran_ms % 1000),
                    lease.paid,
                    lease.charged,
                    lease.unused,
                    lease.refunded,
                    lease.balance
                )?)
            }
        }
    }

    pub(super) fn entries_head(&mut self) -> Result<()> {
        match self.form {
            Form::Json => Ok(()),
            Form::Csv => Ok(self.head(ENTRY_COLUMNS)?),
            Form::Table => Ok(writeln!(
                self.out,
                "{:>11}  {:24}  {:8}  {:>16}  {:>7}  ACCOUNT",
                "TRANSACTION", "AT", "REASON", "AMOUNT", "PACKETS"
            )?),
        }
    }

    pub(super) fn entry(&mut self, entry: &EntryLine, asset: &Option<AssetInfo>) -> Result<()> {
        match self.form {
            Form::Json => self.json(entry),
            Form::Csv => {
                let [code, scale] = columns_of(asset.as_ref());
                let columns = [
                    entry.transaction.to_string(),
                    entry.at.to_string(),
                    entry.account.clone(),
                    entry.reason.clone(),
                    entry.amount.clone(),
                    entry.packets.to_string(),
                    entry.reference.clone().unwrap_or_default(),
                    code,
                    scale,
                ];
                Ok(self.csv(&columns)?)
            }
            Form::Table => Ok(writeln!(
                self.out,
                "{:>11}  {:24}  {:8}  {:>16}  {:>7}  {}",
                entry.transaction,
                entry.at.to_string(),
                entry.reason,
                entry.amount,
                entry.packets,
                entry.account
            )?),
        }
    }

    fn json<T: Serialize>(&mut self, line: &T) -> Result<()> {
        serde_json::to_writer(&mut *self.out, line).map_err(io::Error::from)?;
        Ok(self.out.write_all(b"\n")?)
    }

    fn head(&mut self, columns: &str) -> io::Result<()> {
        write!(self.out, "{columns}\r\n")
    }

    fn csv(&mut self, columns: &[String]) -> io::Result<()> {
        let columns: Vec<String> = columns.iter().map(|text| quoted(text)).collect();
        write!(self.out, "{}\r\n", columns.join(","))
    }
}

/// RFC 4180, section 2.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

fn columns_of(asset: Option<&AssetInfo>) -> [String; 2] {
    match asset {
        Some(asset) => [asset.code.clone(), asset.scale.to_string()],
        None => [String::new(), String::new()],
    }
}

fn summary_text(summary: &Summary) -> String {
    let asset = summary
        .asset
        .as_ref()
        .and_then(|asset| Asset::new(&asset.code, asset.scale).ok());
    let whole = |units: &str| in_whole(units, asset.as_ref());
    let mut rows = Vec::new();
    if let Some(asset) = &asset {
        let unit = format!("10^-{} {}", asset.scale(), asset.code());
        rows.push(("a unit is", unit));
    }
    rows.push((
        "earned in all",
        format!("{}  ({})", summary.earned, whole(&summary.earned)),
    ));
    if summary.since.is_some() || summary.until.is_some() {
        let bound = |moment: &Option<codius_api::UnixMillis>, without: &str| {
            moment.map_or_else(|| without.to_owned(), |moment| moment.to_string())
        };
        let from = bound(&summary.since, "the beginning");
        let to = bound(&summary.until, "now");
        rows.push(("between", format!("{from} and {to}")));
        if summary.earned_in_period.is_empty() {
            rows.push(("  earned", "0".to_owned()));
        }
        for (reason, amount) in &summary.earned_in_period {
            let by = format!("{amount}  ({}) by {reason}", whole(amount));
            rows.push(("  earned", by));
        }
    }
    if let Some(draining) = &summary.draining {
        rows.push(("draining", draining.to_string()));
    }
    let mut lines = vec![];
    let known = KINDS.iter().map(|(kind, _)| *kind);
    let others = summary.balances.keys().map(String::as_str);
    let others = others.filter(|kind| !KINDS.iter().any(|(known, _)| known == kind));
    for kind in known.chain(others) {
        let Some(sum) = summary.balances.get(kind) else {
            continue;
        };
        let means = KINDS.iter().find(|(known, _)| *known == kind);
        lines.push(vec![
            kind.to_owned(),
            sum.accounts.to_string(),
            sum.balance.clone(),
            whole(&sum.balance),
            means.map_or("", |(_, means)| *means).to_owned(),
        ]);
    }
    let proof = if summary.sum == "0" {
        "sums to zero"
    } else {
        "DOES NOT SUM TO ZERO: stop the host and restore a backup"
    };
    lines.push(vec![
        "all".to_owned(),
        String::new(),
        summary.sum.clone(),
        String::new(),
        proof.to_owned(),
    ]);
    let head = ["KIND", "ACCOUNTS", "UNITS", "WHOLE", "WHAT"];
    format!("{}\n{}", facts(&rows), table(&head, lines.into_iter()))
}

/// Whole units of the asset, for people.
fn in_whole(units: &str, asset: Option<&Asset>) -> String {
    let (sign, digits) = match units.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", units),
    };
    match (asset, digits.parse()) {
        (Some(asset), Ok(units)) => format!("{sign}{}", asset.format(units)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_quoted_where_it_has_to_be() {
        assert_eq!(quoted("plain text"), "plain text");
        assert_eq!(quoted("a,b"), "\"a,b\"");
        assert_eq!(quoted("say \"x\"\n"), "\"say \"\"x\"\"\n\"");
        let mut out = Vec::new();
        Printer::new(Form::Csv, &mut out)
            .csv(&["1".to_owned(), "a,b".to_owned()])
            .unwrap();
        assert_eq!(out, b"1,\"a,b\"\r\n");
    }

    #[test]
    fn whole_units_are_exact_and_keep_their_sign() {
        let asset = Asset::new("XRP", 6).unwrap();
        assert_eq!(in_whole("-1500000", Some(&asset)), "-1.5 XRP");
        assert_eq!(in_whole("1", Some(&asset)), "0.000001 XRP");
        assert_eq!(in_whole("1", None), "");
    }
}
