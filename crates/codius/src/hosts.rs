//! `codius hosts`: which hosts there are, what they are like, and which of them are in `codiushosts.json`.

use clap::Args;
use serde_json::{Value, json};

use crate::{
    candidates,
    discovery::{self, ENOUGH},
    failure::{Failure, REFUSED},
    host_view::{HostView, by_price, failed_in_json, tell_failed},
    hosts_file::HostsFile,
    known_hosts::KnownHosts,
    offer::LeftOut,
    table::Table,
};

const MIB: u64 = 1024 * 1024;

#[derive(Debug, Args)]
pub(crate) struct HostsArguments {
    #[command(flatten)]
    known: KnownHosts,
    /// Do not ask these hosts for others
    #[arg(long)]
    no_discovery: bool,
    /// Show the sizes of pods that each host has, and what they cost
    #[arg(long, conflicts_with_all = ["add", "remove"])]
    sizes: bool,
    /// Put a host into the file of hosts; can be repeated
    #[arg(long, value_name = "URL", conflicts_with_all = ["host", "bootstrap"])]
    add: Vec<String>,
    /// Take a host out of the file of hosts; can be repeated
    #[arg(long, value_name = "URL", conflicts_with_all = ["host", "bootstrap"])]
    remove: Vec<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn hosts(arguments: HostsArguments) -> Result<(), Failure> {
    if arguments.add.is_empty() && arguments.remove.is_empty() {
        list(&arguments).await
    } else {
        edit(&arguments)
    }
}

async fn list(arguments: &HostsArguments) -> Result<(), Failure> {
    let known = arguments.known.all().await?;
    let origins = if arguments.no_discovery {
        known.clone()
    } else {
        discovery::discover(&known, ENOUGH.max(known.len() + 1)).await?
    };
    let (views, mut left_out) = HostView::of_all(&origins).await;
    let mut hosts = Vec::new();
    for view in views {
        // Who was named may be reached at another address; a stranger must be who others say he is.
        if known.iter().any(|host| host == view.origin()) || view.uri == view.origin() {
            hosts.push(view);
        } else {
            left_out.push(LeftOut {
                host: view.origin().to_owned(),
                failure: Failure::new(REFUSED, format!("it calls itself {}", view.uri)),
            });
        }
    }
    let monthly = |view: &HostView| {
        let month = crate::monthly_rate::MONTH_SECS;
        view.rate.price(month, view.asset.scale).unwrap_or(u64::MAX)
    };
    hosts.sort_by(|one, other| {
        by_price((one, monthly(one)), (other, monthly(other)))
            .then_with(|| one.origin().cmp(other.origin()))
    });
    if arguments.json {
        let whole = json!({
            "hosts": hosts.iter().map(in_json).collect::<Vec<_>>(),
            "failed": failed_in_json(&left_out),
        });
        println!("{whole:#}");
    } else if arguments.sizes {
        print!("{}", sizes_in_words(&hosts));
    } else {
        print!("{}", in_words(&hosts));
    }
    tell_failed(left_out, hosts.is_empty(), arguments.json)
}

fn in_words(hosts: &[HostView]) -> Table {
    let mut table = Table::new(&[
        "HOST",
        "PER MONTH",
        "ISOLATION",
        "LOAD",
        "ROOM",
        "PEERS",
        "VERSION",
    ]);
    for view in hosts {
        let room = match view.accepts_uploads {
            true => format!("{} MiB", view.free_memory_bytes / MIB),
            false => "full".to_owned(),
        };
        table.line(vec![
            view.origin().to_owned(),
            view.per_month(),
            view.isolation_kind().to_owned(),
            format!("{:.2}", view.load),
            room,
            view.peers.to_string(),
            view.version.clone(),
        ]);
    }
    table
}

fn sizes_in_words(hosts: &[HostView]) -> Table {
    let mut table = Table::new(&[
        "HOST",
        "SIZE",
        "PROCESSORS",
        "MEMORY",
        "DISK",
        "PER MONTH",
        "ROOM",
    ]);
    for view in hosts {
        for size in &view.sizes {
            let disk = size.disk_mib.map(|mib| format!("{mib} MiB"));
            table.line(vec![
                view.origin().to_owned(),
                size.name.clone(),
                size.vcpus.to_string(),
                format!("{} MiB", size.memory_mib),
                disk.unwrap_or_else(|| "-".to_owned()),
                format!("{} {}", size.rate, view.asset.code),
                if size.has_room { "yes" } else { "full" }.to_owned(),
            ]);
        }
    }
    table
}

fn in_json(view: &HostView) -> Value {
    json!({
        "host": view.origin(),
        "uri": view.uri,
        "version": view.version,
        "asset": view.asset,
        "per_month_display": view.per_month(),
        "machines": view.sizes.iter().map(|size| size.in_json(&view.asset)).collect::<Vec<_>>(),
        "isolation": view.isolation.as_ref().map(|(kind, _)| kind),
        "isolation_reason": view.isolation.as_ref().map(|(_, reason)| reason),
        "accepting_uploads": view.accepts_uploads,
        "free_memory_bytes": view.free_memory_bytes,
        "running_pods": view.running_pods,
        "load_1m_per_core": view.load,
        "uptime_seconds": view.uptime_secs,
        "peers": view.peers,
    })
}

/// Changes the file of hosts, all of it or nothing.
fn edit(arguments: &HostsArguments) -> Result<(), Failure> {
    let mut file = HostsFile::open(&arguments.known.codius_hosts_file)?;
    for host in candidates::origins(&arguments.remove)? {
        file.remove(&host)?;
    }
    for host in candidates::origins(&arguments.add)? {
        file.add(&host);
    }
    file.write()?;
    if arguments.json {
        let whole =
            json!({ "hosts_file": file.path().display().to_string(), "hosts": file.hosts() });
        println!("{whole:#}");
    } else {
        for host in file.hosts() {
            println!("{host}");
        }
    }
    Ok(())
}
