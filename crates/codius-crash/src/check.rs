//! What has to be true of a host, as functions of what was read: each gives a line for whatever is
//! not as it should be.
//!
//! Money and time are checked at any moment. Machines, files and networks are checked when the host is
//! up and nobody asks it for anything; they may take a while to come right, so whoever calls tries again
//! within a bound.

use std::collections::{BTreeMap, BTreeSet};

use codius_ledger::Rate;

use crate::{
    books::Books,
    machines::{Machine, PodNote},
    tally::{Tally, Told},
};

/// The account of all local clients.
pub const CLIENTS: &str = "local:clients";
const EARNED: &str = "earned";
/// How much longer a machine may be counted than it was seen to live, in milliseconds: a tick of the
/// process table, and the time from its end until the host hears of it.
const LIFE_SLACK_MS: u64 = 500;

/// The ledger adds up, whoever has an account has what the postings say, and nobody owes who may not.
pub fn ledger(books: &Books) -> Vec<String> {
    let mut wrong = Vec::new();
    let total: i64 = books.balances.values().sum();
    if total != 0 {
        wrong.push(format!("all balances together are {total}, not 0"));
    }
    for (transaction, sum) in &books.unbalanced {
        wrong.push(format!("transaction {transaction} sums to {sum}, not 0"));
    }
    for (account, balance) in &books.balances {
        let sum = books.sums.get(account).copied().unwrap_or(0);
        if *balance != sum {
            wrong.push(format!("{account} has {balance}, its postings {sum}"));
        }
        if *balance < 0 && !account.starts_with("local:") && account != "parent" {
            wrong.push(format!("{account} has {balance}, below 0"));
        }
    }
    wrong
}

/// What each lease was charged is what it has cost, and what was paid for it is there.
pub fn leases(books: &Books) -> Vec<String> {
    let mut wrong = Vec::new();
    for lease in &books.leases {
        let Ok(rate) = lease.rate.parse::<Rate>() else {
            wrong.push(format!("lease {}: no rate {:?}", lease.hash, lease.rate));
            continue;
        };
        let cost = rate.earned(lease.run_ms).saturating_add(1);
        if lease.charged > cost {
            wrong.push(format!(
                "lease {}: charged {} for {} ms, which cost {cost} at most",
                lease.hash, lease.charged, lease.run_ms
            ));
        }
        // The other way round only at the end: until then it is charged from time to time. One whose money
        // is used up may have run for a moment longer; then nothing was returned. (The ledger does not
        // tell leases of the same hash apart.)
        let due = rate.earned(lease.run_ms);
        let of_hash = books.leases.iter().filter(|one| one.hash == lease.hash);
        if lease.has_ended() && lease.charged < due && of_hash.count() == 1 {
            let account = format!("lease:{}", lease.hash);
            if books.out_of_account(&account, |to| to != EARNED) > 0 {
                wrong.push(format!(
                    "lease {}: charged {} for {} ms, which cost {due}, and something was returned",
                    lease.hash, lease.charged, lease.run_ms
                ));
            }
        }
    }
    for hash in hashes(books) {
        let account = format!("lease:{hash}");
        let of_hash = || books.leases.iter().filter(|lease| lease.hash == hash);
        let charged: u64 = of_hash().map(|lease| lease.charged).sum();
        let paid = books.into_account(&account, |_| true);
        let earned = books.out_of_account(&account, |to| to == EARNED);
        let returned = books.out_of_account(&account, |to| to != EARNED);
        let balance = books.balance(&account);
        if i64::try_from(charged) != Ok(earned) {
            wrong.push(format!(
                "lease {hash}: charged {charged} by its record, {earned} by the ledger"
            ));
        }
        if paid - returned != earned + balance {
            wrong.push(format!(
                "lease {hash}: paid {paid} - returned {returned} is not charged {earned} + balance {balance}"
            ));
        }
        if balance != 0 && of_hash().all(crate::books::LeaseRow::has_ended) {
            wrong.push(format!("lease {hash} is over and still has {balance}"));
        }
    }
    wrong
}

/// No lease has run for longer than its machines have lived. `most_ms` says how long that was.
pub fn lives(books: &Books, most_ms: impl Fn(&str) -> u64) -> Vec<String> {
    let mut wrong = Vec::new();
    for hash in hashes(books) {
        let of_hash = books.leases.iter().filter(|lease| lease.hash == hash);
        let (mut ran, mut times) = (0, 0);
        for lease in of_hash {
            ran += lease.run_ms;
            times += 1;
        }
        let lived = most_ms(hash);
        if ran > lived + LIFE_SLACK_MS * times {
            wrong.push(format!(
                "lease {hash}: has run for {ran} ms, and its machines have lived for {lived} ms at most"
            ));
        }
    }
    wrong
}

/// What the clients know of their money agrees with the books. They must have been heard to the end.
pub fn clients(books: &Books, tally: &Tally) -> Vec<String> {
    let paid = books.out_of_account(CLIENTS, |_| true);
    let received = books.into_account(CLIENTS, |_| true);
    let mut wrong = Vec::new();
    let mut within = |what: &str, found: i64, surely: u64, perhaps: u64| {
        let found = u64::try_from(found).unwrap_or(0);
        if found < surely || found > surely + perhaps {
            wrong.push(format!(
                "clients have {what} {surely}, and perhaps {perhaps} more; the books say {found}"
            ));
        }
    };
    within("paid", paid, tally.paid, tally.perhaps_paid);
    within("got back", received, tally.received, tally.perhaps_received);
    wrong
}

/// What clients were told is in the books.
pub fn told(books: &Books, told: &[Told]) -> Vec<String> {
    let mut wrong = Vec::new();
    for said in told {
        let (hash, found) = match said {
            Told::Placed { hash } => {
                let ran = books.leases.iter().any(|lease| {
                    lease.hash == *hash && lease.end_reason.as_deref() != Some("start_failed")
                });
                (hash, ran)
            }
            Told::Stopped { hash, used } => {
                let over = books.leases.iter().any(|lease| {
                    lease.hash == *hash && lease.has_ended() && lease.charged == *used
                });
                (hash, over)
            }
        };
        if !found {
            wrong.push(format!(
                "a client was told {said:?}, and the leases of {hash} are {:?}",
                books
                    .leases
                    .iter()
                    .filter(|lease| lease.hash == *hash)
                    .collect::<Vec<_>>()
            ));
        }
    }
    wrong
}

/// What is left of what was on its way, when nothing is on its way: nobody asks, and no lease starts.
pub fn settled(books: &Books) -> Vec<String> {
    let mut wrong = Vec::new();
    for order in &books.orders {
        if order.state == "open" {
            wrong.push(format!(
                "order {} is open, and nobody waits for it",
                order.id
            ));
            continue;
        }
        let held = books.balance(&format!("order:{}", order.id));
        if held != 0 {
            wrong.push(format!(
                "order {} is {} and holds {held}",
                order.id, order.state
            ));
        }
    }
    for lease in books
        .leases
        .iter()
        .filter(|lease| lease.state == "starting")
    {
        wrong.push(format!(
            "lease {} is starting, and nobody waits for it",
            lease.hash
        ));
    }
    wrong
}

/// Every lease that runs has one machine, and no machine is without such a lease.
pub fn machines(books: &Books, machines: &[Machine], notes: &[PodNote]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut of_hash: BTreeMap<&str, u32> = BTreeMap::new();
    for machine in machines {
        let pid = machine.process.pid;
        let noted = notes
            .iter()
            .find(|note| note.process == Some(machine.process));
        let Some(note) = noted else {
            wrong.push(format!(
                "machine {pid} (slot {}) has no record",
                machine.slot
            ));
            continue;
        };
        *of_hash.entry(&note.hash).or_default() += 1;
        match books.live(&note.hash) {
            None => wrong.push(format!(
                "machine {pid} runs {}, which has no lease",
                note.hash
            )),
            Some(lease) if lease.state == "running" && machine.state == 'T' => wrong.push(format!(
                "machine {pid} of {} is stopped, and its lease runs",
                note.hash
            )),
            Some(lease) if lease.frozen && machine.state != 'T' => wrong.push(format!(
                "machine {pid} of {} runs, and its lease is frozen",
                note.hash
            )),
            Some(_) => {}
        }
    }
    for (hash, count) in &of_hash {
        if *count > 1 {
            wrong.push(format!("{count} machines run {hash}"));
        }
    }
    for lease in books.leases.iter().filter(|lease| !lease.has_ended()) {
        if !of_hash.contains_key(lease.hash.as_str()) {
            wrong.push(format!(
                "lease {} is {} and has no machine",
                lease.hash, lease.state
            ));
        }
    }
    wrong
}

/// Things of pods outside of the database, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Things {
    /// Slots of network namespaces.
    pub namespaces: Vec<String>,
    /// Network interfaces on the host's side.
    pub interfaces: Vec<String>,
    /// Firewall tables of this host.
    pub tables: usize,
    /// Directories of pods, by hash.
    pub pod_dirs: Vec<String>,
    /// Files among the pods' records.
    pub record_files: Vec<String>,
    /// Whatever else lies in the pods' directory.
    pub strange: Vec<String>,
}

/// What there is of pods is of pods that have a record and a lease.
pub fn things(books: &Books, things: &Things, notes: &[PodNote], prefix: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let names: BTreeSet<String> = notes
        .iter()
        .map(|note| format!("{prefix}{}", note.slot))
        .collect();
    for (what, found) in [
        ("network namespace", &things.namespaces),
        ("network interface", &things.interfaces),
    ] {
        for name in found {
            if !names.contains(name) {
                wrong.push(format!("{what} {name} is of no pod"));
            }
        }
        for name in &names {
            if !found.contains(name) {
                wrong.push(format!("{what} {name} is missing"));
            }
        }
    }
    if things.tables != 1 {
        wrong.push(format!("the host has {} firewall tables", things.tables));
    }
    for hash in &things.pod_dirs {
        if !notes.iter().any(|note| note.hash == *hash) {
            wrong.push(format!("the directory of pod {hash} is of no pod"));
        }
    }
    for file in &things.record_files {
        let known = file
            .strip_suffix(".json")
            .is_some_and(|hash| notes.iter().any(|note| note.hash == hash));
        if !known {
            wrong.push(format!("record {file} is of no pod"));
        }
    }
    for note in notes {
        if books.live(&note.hash).is_none() {
            wrong.push(format!("pod {} is noted and has no lease", note.hash));
        }
    }
    for name in &things.strange {
        wrong.push(format!("{name} is nothing that belongs there"));
    }
    wrong
}

/// The files of the image store, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFiles {
    pub images: Vec<String>,
    pub temporary: Vec<String>,
}

/// Every image has a record, every record an image, and nothing is half made.
pub fn images(files: &ImageFiles) -> Vec<String> {
    let mut wrong = Vec::new();
    for name in &files.temporary {
        wrong.push(format!("image store: {name} is half made"));
    }
    for name in &files.images {
        let partner = match (name.strip_suffix(".json"), name.strip_suffix(".squashfs")) {
            (Some(stem), _) => format!("{stem}.squashfs"),
            (_, Some(stem)) => format!("{stem}.json"),
            (None, None) => {
                wrong.push(format!("image store: {name} is nothing that belongs there"));
                continue;
            }
        };
        if !files.images.contains(&partner) {
            wrong.push(format!("image store: {name} is there without {partner}"));
        }
    }
    wrong
}

/// At the end: all leases are over, and nothing of any pod is left.
pub fn nothing(books: &Books, machines: &[Machine], things: &Things) -> Vec<String> {
    let mut wrong = Vec::new();
    for lease in books.leases.iter().filter(|lease| !lease.has_ended()) {
        wrong.push(format!(
            "lease {} is {} at the end",
            lease.hash, lease.state
        ));
    }
    for (account, balance) in &books.balances {
        let may_hold = account == CLIENTS
            || account == EARNED
            || account.starts_with("owed:")
            || account.starts_with("refund:")
            || account.starts_with("pod:");
        if *balance != 0 && !may_hold {
            wrong.push(format!("{account} has {balance} at the end"));
        }
    }
    for machine in machines {
        wrong.push(format!("machine {} runs at the end", machine.process.pid));
    }
    let Things {
        namespaces,
        interfaces,
        tables,
        pod_dirs,
        record_files,
        strange,
    } = things;
    if *tables > 0 {
        wrong.push("the firewall table is there at the end".to_owned());
    }
    for name in [namespaces, interfaces, pod_dirs, record_files, strange]
        .into_iter()
        .flatten()
    {
        wrong.push(format!("{name} is there at the end"));
    }
    wrong
}

fn hashes(books: &Books) -> BTreeSet<&str> {
    books
        .leases
        .iter()
        .map(|lease| lease.hash.as_str())
        .collect()
}

#[cfg(test)]
mod tests;
