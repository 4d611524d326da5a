//! `codiusd ledger`: what was earned and what is owed, every lease, every posting.
//!
//! ```text
//!                    ┌─ a host runs: its admin socket ─▶ Store::books ─┐
//! codiusd ledger ────┤                                                 ├─▶ report.rs ─▶ table, CSV, JSON
//!                    └─ none runs: the database, only read ────────────┘
//! ```
//! Both ways give the same pages, so a host of a million entries is told in little memory, and no page
//! keeps the host from its work. Amounts are integers in the smallest unit, everywhere; whole units
//! stand beside them in tables only.

mod print;
mod report;
mod routes;
mod source;

use std::{
    io::{self, BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use codius_ledger::Account;
use codius_store::{EntryFilter, Period};

pub(crate) use routes::router;

use self::{
    print::{Form, Printer},
    source::Source,
};

/// What is asked of the books.
#[derive(Debug, Args)]
pub(crate) struct LedgerArguments {
    #[command(subcommand)]
    view: Option<View>,
    /// Only from this moment on: RFC 3339, or a day (UTC) such as 2026-11-28
    #[arg(long, value_name = "TIME", value_parser = moment, global = true)]
    since: Option<u64>,
    /// Only before this moment
    #[arg(long, value_name = "TIME", value_parser = moment, global = true)]
    until: Option<u64>,
    /// As comma-separated values (RFC 4180); docs/operator-books.md names the columns
    #[arg(long, global = true, conflicts_with = "json")]
    csv: bool,
    /// As JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum View {
    /// Each lease: paid, charged, not used, sent back, left
    Leases,
    /// Each posting, in the order in which they were written
    Entries {
        /// Only of this account, such as `earned` or `lease:HASH`
        #[arg(long)]
        account: Option<Account>,
    },
    /// Add up every posting again, and say whether all of it is right
    Verify,
}

/// Names the database in a data directory.
pub(crate) const DATABASE: &str = "codius.db";

/// Asks, and prints.
pub(crate) fn run(arguments: &LedgerArguments, data_dir: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let form = match (arguments.csv, arguments.json) {
        (true, _) => Form::Csv,
        (_, true) => Form::Json,
        _ => Form::Table,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = runtime
        .block_on(print_view(arguments, data_dir, form, &mut out))
        .and_then(|()| Ok(out.flush()?));
    match printed {
        // Whoever reads has seen enough, as `head` does.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        printed => printed,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

async fn print_view(
    arguments: &LedgerArguments,
    data_dir: &Path,
    form: Form,
    out: &mut impl Write,
) -> Result<()> {
    let period = Period {
        since_unix_ms: arguments.since,
        until_unix_ms: arguments.until,
    };
    if let (Some(since), Some(until)) = (arguments.since, arguments.until)
        && since >= until
    {
        bail!("--since is not before --until");
    }
    let source = Source::open(data_dir).await?;
    let mut printer = Printer::new(form, out);
    match &arguments.view {
        None => printer.summary(&source.summary(period).await?)?,
        Some(View::Verify) => printer.verified(&source.verify().await?)?,
        Some(View::Leases) => {
            let asset = source.summary(Period::default()).await?.asset;
            printer.leases_head()?;
            let mut after = 0;
            loop {
                let page = source.leases(after).await?;
                let Some(last) = page.last() else { break };
                after = last.id;
                for lease in &page {
                    if lease.is_of(period) {
                        printer.lease(lease, &asset)?;
                    }
                }
            }
        }
        Some(View::Entries { account }) => {
            // What is written from now on is not told, so that the entries sum to zero.
            let summary = source.summary(Period::default()).await?;
            let filter = EntryFilter {
                account: account.clone(),
                period,
                through: summary.through,
            };
            printer.entries_head()?;
            let mut after = 0;
            loop {
                let page = source.entries(after, &filter).await?;
                let Some(last) = page.last() else { break };
                after = last.transaction;
                for entry in &page {
                    printer.entry(entry, &summary.asset)?;
                }
            }
        }
    }
    Ok(())
}

/// A moment as an operator writes it, in milliseconds since 1970.
pub(crate) fn moment(text: &str) -> Result<u64, String> {
    let day = text
        .parse::<jiff::civil::Date>()
        .ok()
        .filter(|_| !text.contains([':', 'T']))
        .map(|day| day.to_datetime(jiff::civil::Time::midnight()))
        .and_then(|day| jiff::tz::TimeZone::UTC.to_timestamp(day).ok());
    let moment = match day {
        Some(day) => day,
        None => text.parse::<jiff::Timestamp>().map_err(|_| {
            "a moment is written as 2026-11-28T18:00:00Z or 2026-11-28T18:00:00+01:00, or as a day"
                .to_owned()
        })?,
    };
    u64::try_from(moment.as_millisecond()).map_err(|_| "a moment is after 1970".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_with_their_offset_and_days_begin_at_midnight() {
        assert_eq!(moment("1970-01-02"), Ok(86_400_000));
        assert_eq!(moment("1970-01-01T00:00:01.5Z"), Ok(1500));
        assert_eq!(moment("1970-01-01T02:00:00+01:00"), Ok(3_600_000));
        for text in [
            "",
            "now",
            "1969-12-31",
            "2026-13-01",
            "12:00",
            "2026-11-28T18:00:00",
        ] {
            assert!(moment(text).is_err(), "{text}");
        }
    }
}
