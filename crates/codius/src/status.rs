//! `codius status`: where a program is, until when, and what it costs.

use codius_manifest::ManifestHash;
use serde_json::{Value, json};

use crate::{
    command::PodArguments,
    failure::{Failure, REFUSED, one_line},
    pod_address::PodAddress,
    standing::{Standing, State},
};

pub(crate) async fn status(arguments: PodArguments) -> Result<(), Failure> {
    let PodAddress { hash, hosts } = PodAddress::known(&arguments.hash, &arguments.host)?;
    let programs = hosts.into_iter().map(|host| (hash, host)).collect();
    let standings = Standing::of_all(programs).await;
    if arguments.json {
        println!("{:#}", in_json(&hash, &standings));
    } else {
        for standing in standings.iter().filter(|one| one.state.is_alive()) {
            print!("{}", in_words(standing));
        }
    }
    outcome(standings)
}

/// It runs somewhere, or the first reason why not.
fn outcome(standings: Vec<Standing>) -> Result<(), Failure> {
    let several = standings.len() > 1;
    let alive = standings.iter().any(|one| one.state.is_alive());
    let mut first = None;
    for standing in standings {
        let failure = match standing.state {
            State::Starting | State::Running | State::Paused => continue,
            State::Unknown(failure) => failure,
            State::Ended(reason) => Failure::new(REFUSED, format!("it has ended ({reason})"))
                .note("Next: codius upload runs it again; what is owed to it is used."),
            State::NotThere => Failure::new(REFUSED, "it does not run there")
                .note("Next: check hash and host; codius pods shows what you have running."),
        };
        let failure = if several {
            failure.at(&standing.host)
        } else {
            failure
        };
        if alive {
            eprintln!("codius: {}", one_line(failure.message()));
        } else if first.is_none() {
            first = Some(failure);
        }
    }
    first.map_or(Ok(()), Err)
}

fn in_words(standing: &Standing) -> String {
    let manifest = standing.manifest.as_ref().unwrap_or(&Value::Null);
    let text = |value: &Value| one_line(value.as_str().unwrap_or_default());
    let mut lines = vec![
        ("hash", standing.hash.to_string()),
        ("host", standing.host.clone()),
        ("state", standing.state.name().to_owned()),
    ];
    if let Some(until) = standing.until() {
        lines.push(("runs until", until));
    }
    if let Some(money) = &standing.money {
        lines.push(("left", money.left()));
        if let Some(per_month) = money.per_month() {
            lines.push(("costs", format!("{per_month} a month")));
        }
    }
    let name = format!("{} {}", text(&manifest["name"]), text(&manifest["version"]));
    lines.push(("name", name.trim().to_owned()));
    for container in manifest["containers"].as_array().into_iter().flatten() {
        let container = format!("{} ({})", text(&container["id"]), text(&container["image"]));
        lines.push(("container", container));
    }
    let mut whole = format!("{}\n", standing.address());
    for (name, value) in lines {
        whole += &format!("  {name:<11} {value}\n");
    }
    whole
}

fn in_json(hash: &ManifestHash, standings: &[Standing]) -> Value {
    let manifest = standings.iter().find_map(|one| one.manifest.as_ref());
    json!({
        "manifest_hash": hash,
        "manifest": manifest,
        "pods": standings.iter().map(Standing::in_json).collect::<Vec<_>>(),
    })
}
