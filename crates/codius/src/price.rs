//! `codius price`: what a program costs at several hosts, the cheapest first. Nothing is paid.
//!
//! Hosts are asked for a quote of the program if there is one here, without the values of its private
//! variables: its manifest is public anyway, and its secrets are only for the host that is chosen. Where
//! that cannot be quoted the published price counts, which is that of any pod of its size.

use std::path::PathBuf;

use clap::Args;
use codius_api::Units;
use codius_client::ClientError;
use codius_manifest::MachineName;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::{
    amount,
    failure::{Failure, REFUSED},
    host_view::{HostView, by_price, failed_in_json, tell_failed},
    known_hosts::KnownHosts,
    offer::{ASKED_AT_ONCE, LeftOut},
    project::{CODIUS_FILE, Nonces, Project, SMALL, machine_of},
    table::Table,
};

#[derive(Debug, Args)]
pub(crate) struct PriceArguments {
    /// For how long
    #[arg(short, long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    duration: u64,
    #[command(flatten)]
    hosts: KnownHosts,
    /// The program, if it is there; a small pod otherwise
    #[arg(long, value_name = "FILE", default_value = CODIUS_FILE)]
    codius_file: PathBuf,
    /// Its variables [default: codiusvars.json if it is there]
    #[arg(long, value_name = "FILE")]
    codius_vars_file: Option<PathBuf>,
    /// Show the program to nobody: the prices that hosts publish for any small pod
    #[arg(long)]
    published: bool,
    /// The prices that hosts publish for a pod of this size, such as medium; the program is shown to nobody
    #[arg(long, value_name = "SIZE")]
    machine: Option<MachineName>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What one host asks.
#[derive(Debug)]
struct Asked {
    view: HostView,
    /// In its smallest units, for the whole time.
    price: u64,
    basis: Basis,
    /// What a month of such a pod costs, for people.
    per_month: String,
    has_room: bool,
}

/// Where a price is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Basis {
    /// The host has said it for this program.
    Quote,
    /// It follows from what the host publishes.
    Published,
}

pub(crate) async fn price(arguments: PriceArguments) -> Result<(), Failure> {
    let program = program(&arguments)?;
    let machine = match &arguments.machine {
        Some(machine) => machine.as_str(),
        None => program.as_ref().map_or(SMALL, machine_of),
    };
    let duration_secs = arguments.duration;
    let origins = arguments.hosts.all().await?;
    let (views, mut left_out) = HostView::of_all(&origins).await;
    let answers: Vec<_> = stream::iter(views)
        .map(|view| ask(view, program.as_ref(), machine, duration_secs))
        .buffer_unordered(ASKED_AT_ONCE)
        .collect()
        .await;
    let mut asked = Vec::new();
    for answer in answers {
        match answer {
            Ok(one) => asked.push(one),
            Err(one) => left_out.push(one),
        }
    }
    asked.sort_by(|one, other| {
        // What cannot be bought now comes last of its asset.
        let full = |one: &Asked| (one.view.asset.code.clone(), !one.has_room);
        full(one)
            .cmp(&full(other))
            .then_with(|| by_price((&one.view, one.price), (&other.view, other.price)))
            .then_with(|| one.view.origin().cmp(other.view.origin()))
    });
    if arguments.json {
        let hosts: Vec<_> = asked.iter().map(in_json).collect();
        let whole = json!({
            "duration_seconds": duration_secs,
            "machine": machine,
            "hosts": hosts,
            "failed": failed_in_json(&left_out),
        });
        println!("{whole:#}");
    } else {
        print!("{}", in_words(&asked));
    }
    tell_failed(left_out, asked.is_empty(), arguments.json)
}

/// What is posted to be quoted, if there is a program here.
fn program(arguments: &PriceArguments) -> Result<Option<Value>, Failure> {
    if arguments.published || arguments.machine.is_some() {
        return Ok(None);
    }
    let project = Project {
        codius_file: arguments.codius_file.clone(),
        vars_file: arguments.codius_vars_file.clone(),
    };
    let named = arguments.codius_file.as_os_str() != CODIUS_FILE;
    if !named && !project.codius_file.exists() {
        return Ok(None);
    }
    // Nothing is uploaded, so that no key is needed: the nonces decide about the hash alone.
    let generated = project.generate(&Nonces::Random)?;
    let mut public = json!({ "manifest": generated.manifest(), "private": {} });
    // Without that member a host takes it that the right values would come; hosts of the first generation
    // need one.
    if generated.document()["private"]["vars"].is_object() {
        public = json!({ "manifest": generated.manifest() });
    }
    Ok(Some(public))
}

async fn ask(
    view: HostView,
    program: Option<&Value>,
    machine: &str,
    duration_secs: u64,
) -> Result<Asked, LeftOut> {
    let Some(size) = view.size(machine) else {
        let failure = Failure::new(REFUSED, format!("it has no machine {machine:?}"));
        return Err(LeftOut {
            host: view.origin().to_owned(),
            failure,
        });
    };
    let (rate, has_room) = (size.rate, size.has_room);
    let (price, basis) = match quoted(&view, program, duration_secs).await {
        Ok(Some(price)) => (Some(price), Basis::Quote),
        Ok(None) => {
            let published = rate.price(duration_secs, view.asset.scale);
            (published, Basis::Published)
        }
        Err(failure) => {
            let host = view.origin().to_owned();
            return Err(LeftOut { host, failure });
        }
    };
    match price {
        Some(price) => Ok(Asked {
            per_month: format!("{rate} {}", view.asset.code),
            has_room,
            view,
            price,
            basis,
        }),
        None => Err(LeftOut {
            host: view.origin().to_owned(),
            failure: Failure::new(REFUSED, "its price is more than an amount can be"),
        }),
    }
}

/// What the host says about the program; `None` if it says nothing without being paid, or without the
/// private variables.
async fn quoted(
    view: &HostView,
    program: Option<&Value>,
    duration_secs: u64,
) -> Result<Option<u64>, Failure> {
    if let Some(most) = view.max_secs.filter(|most| duration_secs > *most) {
        return Err(Failure::new(
            REFUSED,
            format!("it sells at most {most} s at once"),
        ));
    }
    let Some(program) = program else {
        return Ok(None);
    };
    let answer = if view.has_v2 {
        let quote = view.client.quote_v2(program, duration_secs).await;
        quote.map(|reply| reply.price)
    } else {
        let quote = view.client.quote(&program.to_string(), duration_secs).await;
        quote.map(|reply| reply.price)
    };
    match answer {
        Ok(Units(price)) => Ok(Some(price)),
        Err(ClientError::Refused { body, paid }) => match body.status_code {
            // Of the first generation: it quotes those only who show that they can pay.
            400 | 402 if body.message.contains("Pay") => Ok(None),
            422 if body.message.contains("private") => Ok(None),
            500 => Ok(None),
            _ => Err(ClientError::Refused { body, paid }.into()),
        },
        Err(error) => Err(error.into()),
    }
}

fn in_words(asked: &[Asked]) -> Table {
    let mut table = Table::new(&["HOST", "PRICE", "PER MONTH", "ISOLATION", ""]);
    for one in asked {
        let remark = match (one.has_room, one.basis) {
            (false, _) => "full",
            (true, Basis::Quote) => "",
            (true, Basis::Published) => "published",
        };
        table.line(vec![
            one.view.origin().to_owned(),
            amount::format(one.price, &one.view.asset),
            one.per_month.clone(),
            one.view.isolation_kind().to_owned(),
            remark.to_owned(),
        ]);
    }
    table
}

fn in_json(one: &Asked) -> Value {
    let view = &one.view;
    json!({
        "host": view.origin(),
        "price": one.price.to_string(),
        "price_display": amount::format(one.price, &view.asset),
        "per_month_display": one.per_month,
        "asset": view.asset,
        "basis": match one.basis {
            Basis::Quote => "quote",
            Basis::Published => "published",
        },
        "accepting_uploads": one.has_room,
        "isolation": view.isolation.as_ref().map(|(kind, _)| kind),
    })
}
