//! `codius pods`: all that this person has running, wherever it was uploaded from.

use std::path::Path;

use clap::Args;
use codius_manifest::ManifestHash;
use serde_json::{Value, json};

use crate::{
    candidates,
    failure::Failure,
    pod_record::{self, Pod},
    standing::{Standing, State},
    state_file::{self, StateFile},
    table::Table,
};

#[derive(Debug, Args)]
pub(crate) struct PodsArguments {
    /// Those that have ended, too
    #[arg(short, long)]
    all: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn pods(arguments: PodsArguments) -> Result<(), Failure> {
    let known = known();
    let mut programs = Vec::new();
    for pod in &known {
        for host in &pod.hosts {
            programs.push((pod.manifest_hash, host.clone()));
        }
    }
    let standings = Standing::of_all(programs).await;
    let mut shown: Vec<(&Pod, &Standing)> = Vec::new();
    for standing in &standings {
        let gone = matches!(standing.state, State::Ended(_) | State::NotThere);
        let pod = known.iter().find(|pod| pod.manifest_hash == standing.hash);
        if let Some(pod) = pod
            && (arguments.all || !gone)
        {
            shown.push((pod, standing));
        }
    }
    if arguments.json {
        let pods: Vec<_> = shown
            .iter()
            .map(|(pod, standing)| in_json(pod, standing))
            .collect();
        println!("{:#}", json!({ "pods": pods }));
    } else if shown.is_empty() {
        eprintln!("Nothing runs that this directory or the record of pods knows of.");
    } else {
        print!("{}", in_words(&shown));
    }
    Ok(())
}

/// What state files here and the own record say, each program once.
pub(crate) fn known() -> Vec<Pod> {
    let mut known: Vec<Pod> = Vec::new();
    for path in state_file::all_in(Path::new(".")) {
        match StateFile::read(&path) {
            Ok(state) => {
                let hosts = candidates::origins(&state.hosts()).unwrap_or_default();
                add(&mut known, Pod::of(state.document(), state.hash(), hosts));
            }
            Err(failure) => eprintln!("codius: {}", failure.message()),
        }
    }
    for pod in pod_record::all() {
        add(&mut known, pod);
    }
    known
}

/// The hosts that are known to run a program.
pub(crate) fn hosts_of(hash: &ManifestHash) -> Vec<String> {
    let pod = known().into_iter().find(|pod| pod.manifest_hash == *hash);
    pod.map_or_else(Vec::new, |pod| pod.hosts)
}

fn add(known: &mut Vec<Pod>, pod: Pod) {
    match known
        .iter_mut()
        .find(|one| one.manifest_hash == pod.manifest_hash)
    {
        Some(one) => {
            one.hosts.extend(pod.hosts);
            one.hosts = pod_record::distinct(std::mem::take(&mut one.hosts));
        }
        None => known.push(pod),
    }
}

fn in_words(shown: &[(&Pod, &Standing)]) -> Table {
    let mut table = Table::new(&["NAME", "STATE", "RUNS UNTIL", "PER MONTH", "PROGRAM", ""]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for (pod, standing) in shown {
        let per_month = standing.money.as_ref().and_then(|money| money.per_month());
        table.line(vec![
            format!("{} {}", pod.name, pod.version).trim().to_owned(),
            standing.state.name().to_owned(),
            or_dash(standing.until()),
            or_dash(per_month),
            standing.address(),
            standing.remark().unwrap_or_default(),
        ]);
    }
    table
}

fn in_json(pod: &Pod, standing: &Standing) -> Value {
    let mut whole = standing.in_json();
    whole["name"] = json!(pod.name);
    whole["version"] = json!(pod.version);
    whole
}
