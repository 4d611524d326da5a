//! `codius status`: where a program is, until when, and what it costs.

use codius_api::v2::{ContainerReply, ContainerState, MachineSize};
use serde_json::{Value, json};

use crate::{
    amount,
    command::PodArguments,
    failure::{Failure, REFUSED, one_line},
    key::Key,
    pod_address::PodAddress,
    standing::{self, Money, Standing, State},
};

pub(crate) async fn status(arguments: PodArguments) -> Result<(), Failure> {
    let PodAddress { hash, hosts } = PodAddress::known(&arguments.hash, &arguments.host)?;
    let programs = hosts.into_iter().map(|host| (hash, host)).collect();
    let mut standings = Standing::of_all(programs).await;
    // To look needs no key, and makes none.
    if let Some(key) = Key::existing(arguments.key.key_file.as_deref())? {
        let signer = key.signer();
        for standing in &mut standings {
            standing.ask_as_owner(&signer).await;
        }
    }
    if arguments.json {
        println!("{:#}", in_json(&standings));
    } else {
        for standing in &standings {
            print!("{}", in_words(standing));
        }
    }
    outcome(standings)
}

/// A host knows about it, if only that it has ended; else the first reason why not.
fn outcome(standings: Vec<Standing>) -> Result<(), Failure> {
    let several = standings.len() > 1;
    let (mut known, mut first) = (false, None);
    for standing in standings {
        let failure = match standing.state {
            State::Starting | State::Running | State::Paused | State::Frozen | State::Ended(_) => {
                known = true;
                continue;
            }
            State::Unknown(failure) => failure,
            State::NotThere => Failure::new(REFUSED, "it does not run there")
                .note("Next: check hash and host; codius pods shows what you have running."),
        };
        let failure = if several {
            failure.at(&standing.host)
        } else {
            failure
        };
        if first.is_none() {
            first = Some(failure);
        } else {
            eprintln!("codius: {}", one_line(failure.message()));
        }
    }
    match first {
        Some(failure) if known => {
            eprintln!("codius: {}", one_line(failure.message()));
            Ok(())
        }
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

fn in_words(standing: &Standing) -> String {
    if matches!(standing.state, State::Unknown(_) | State::NotThere) {
        return String::new();
    }
    let manifest = standing.manifest.as_ref().unwrap_or(&Value::Null);
    let text = |value: &Value| one_line(value.as_str().unwrap_or_default());
    let mut lines = vec![
        ("hash", standing.hash.to_string()),
        ("host", standing.host.clone()),
        ("state", standing.state.name().to_owned()),
    ];
    if let Some(until) = standing.frozen_until {
        let next = "unless it is paid, as by codius run or extend-hash";
        lines.push(("ends at", format!("{until}, {next}")));
    } else {
        if let Some(reason) = standing.remark() {
            lines.push(("reason", reason));
        }
        if let Some(until) = standing.until() {
            lines.push(("runs until", until));
        }
    }
    if let Some(money) = &standing.money {
        lines.push(("balance", money.left()));
        if let Some(per_month) = money.per_month() {
            lines.push(("costs", format!("{per_month} a month")));
        }
    }
    if let Some(machine) = &standing.machine {
        lines.push(("machine", in_short(machine)));
    }
    lines.extend(money_back(standing));
    if let Some(owner) = &standing.owner {
        lines.push(("owner", owner.clone()));
    }
    let name = format!("{} {}", text(&manifest["name"]), text(&manifest["version"]));
    if manifest.is_object() {
        lines.push(("name", name.trim().to_owned()));
    }
    for container in manifest["containers"].as_array().into_iter().flatten() {
        let container = format!("{} ({})", text(&container["id"]), text(&container["image"]));
        lines.push(("container", container));
    }
    // That all run as they were started is no news.
    let all_run = |container: &ContainerReply| {
        container.state == ContainerState::Running && container.restarts == 0
    };
    if !standing.containers.iter().all(all_run) {
        let states = standing.containers.iter().map(standing::in_words);
        lines.extend(states.map(|state| ("program", state)));
    }
    let mut whole = format!("{}\n", standing.address());
    for (name, value) in lines {
        whole += &format!("  {name:<11} {value}\n");
    }
    whole
}

/// A size in a few words.
fn in_short(machine: &MachineSize) -> String {
    let MachineSize {
        name,
        vcpus,
        memory_mib,
        disk_mib,
    } = machine;
    let processors = if *vcpus == 1 {
        "processor"
    } else {
        "processors"
    };
    format!("{name}: {vcpus} {processors}, {memory_mib} MiB of memory, {disk_mib} MiB of disk")
}

/// What the host still owes, whose it is and how he gets it; and what has gone back.
fn money_back(standing: &Standing) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let Some(Money { asset, .. }) = &standing.money else {
        return lines;
    };
    let amount = |units| amount::format(units, asset);
    if let Some(refund) = &standing.refund {
        if refund.sent.0 > 0 {
            lines.push(("went back", amount(refund.sent.0)));
        }
        if refund.due.0 > 0 {
            let to = refund.to.as_deref().unwrap_or("the payer's pointer");
            let how = match refund.next_try {
                Some(next) => format!("the host sends it to {to}, next at {next}"),
                None => "codius refund gets it, or the owner's next upload uses it".to_owned(),
            };
            lines.push(("due", format!("{}; {how}", amount(refund.due.0))));
            if let Some(trouble) = &refund.trouble {
                lines.push(("last try", trouble.clone()));
            }
        }
    }
    if let Some(owed @ 1..) = standing.owed {
        let owed = amount(owed);
        lines.push((
            "owed",
            format!("{owed}; the next upload of this manifest uses it, whosever it is"),
        ));
    }
    lines
}

/// The members of the first host stand at the top as well.
fn in_json(standings: &[Standing]) -> Value {
    let hosts: Vec<_> = standings.iter().map(Standing::in_json).collect();
    let mut whole = hosts.first().cloned().unwrap_or_default();
    whole["manifest"] = json!(standings.iter().find_map(|one| one.manifest.as_ref()));
    whole["hosts"] = hosts.into();
    whole
}
