//! What must be true, computed from what was seen from outside and from the rows on the disk, by rules of
//! its own: nothing here calls what decides in the host.
//!
//! A lease's *window* is the time in which its pod was ready and neither over nor told to stop: the time
//! that it may cost. It is measured at the pretended pods, by a clock that nobody turns.

use std::collections::{BTreeMap, BTreeSet};

use codius_manifest::ManifestHash;
use codius_store::simulated::rusqlite::{self, Connection};

/// Decimals of a rate.
const RATE_ONE: u128 = 100_000_000_000_000_000_000;
/// Two clocks are read, each to a millisecond.
const ROUNDING_MS: u64 = 3;
/// How often a running lease is charged.
const CHARGED_EVERY_MS: u64 = 10_000;
/// How long money may lie on an order that is answered: never by design, and this long at the most.
const ANSWERED_MS: u64 = 30_000;

#[derive(Debug, Default)]
pub(super) struct Model {
    seen_transaction: i64,
    balances: BTreeMap<String, i64>,
    /// Of each account, what came and what went.
    came: BTreeMap<String, u64>,
    went: BTreeMap<String, u64>,
    /// From `lease:HASH` to `earned`.
    charged: BTreeMap<String, u64>,
    leases: BTreeMap<i64, LeaseSeen>,
    /// Those that have not ended, by hash.
    live: BTreeMap<String, i64>,
    pods: BTreeMap<ManifestHash, PodSeen>,
    /// Something is wrong since then, if it stays so.
    since: BTreeMap<String, u64>,
    write_ms: u64,
    pub(super) ended: u64,
}

/// One lease.
#[derive(Debug)]
struct LeaseSeen {
    hash: String,
    rate: u128,
    state: String,
    reason: Option<String>,
    run_ms: u64,
    charged: u64,
    /// Windows that are over.
    window_ms: u64,
    /// The window that is not.
    open_since: Option<u64>,
    /// Of the windows what will never be counted, because the pod was lost with the host.
    lost_ms: u64,
    frozen: bool,
    /// How often its pod went on: each time is counted from before that was written.
    thaws: u64,
    /// The host died, or the disk failed, while it lived.
    disturbed: bool,
    recorded_at_ms: u64,
}

/// A pod as it was seen.
#[derive(Debug)]
struct PodSeen {
    lease: Option<i64>,
    /// It has been ready, so it can go on at once when it was held still.
    ready: bool,
}

impl LeaseSeen {
    fn observed_ms(&self, now_ms: u64) -> u64 {
        let open = self.open_since.map_or(0, |since| now_ms - since);
        (self.window_ms + open).saturating_sub(self.lost_ms)
    }

    fn close(&mut self, now_ms: u64) {
        if let Some(since) = self.open_since.take() {
            self.window_ms += now_ms - since;
        }
    }

    fn is_live(&self) -> bool {
        self.state != "ended"
    }

    /// What a run costs, without the part below a unit.
    fn cost(&self, run_ms: u64) -> u64 {
        let cost = self.rate * u128::from(run_ms) / (RATE_ONE * 1000);
        u64::try_from(cost).unwrap_or(u64::MAX)
    }

    /// How long an amount lasts.
    fn lasts_ms(&self, amount: u64) -> u64 {
        let ms = u128::from(amount) * RATE_ONE * 1000 / self.rate.max(1);
        u64::try_from(ms).unwrap_or(u64::MAX)
    }
}

/// What the machine shows at one moment.
pub(super) struct Surroundings {
    pub(super) now_ms: u64,
    /// Since when the host answers, if it does.
    pub(super) up_since_ms: Option<u64>,
    /// When the disk last refused a write.
    pub(super) refused_at_ms: Option<u64>,
    pub(super) running: Vec<ManifestHash>,
    /// The longest that a pod may run unpaid.
    pub(super) unpaid_bound_ms: u64,
    pub(super) grace_ms: u64,
    /// The longest that a start takes, with all that can go slow in it.
    pub(super) start_bound_ms: u64,
}

impl Model {
    pub(super) fn expect_writes(&mut self, write_ms: u64) {
        self.write_ms = write_ms;
    }

    pub(super) fn balance(&self, account: &str) -> i64 {
        self.balances.get(account).copied().unwrap_or_default()
    }

    pub(super) fn came(&self, account: &str) -> u64 {
        self.came.get(account).copied().unwrap_or_default()
    }

    pub(super) fn went(&self, account: &str) -> u64 {
        self.went.get(account).copied().unwrap_or_default()
    }

    pub(super) fn live_hashes(&self) -> Vec<String> {
        self.live.keys().cloned().collect()
    }

    /// All leases of the moment live through a fault.
    pub(super) fn disturb(&mut self) {
        for id in self.live.values() {
            if let Some(lease) = self.leases.get_mut(id) {
                lease.disturbed = true;
            }
        }
    }

    pub(super) fn host_died(&mut self) {
        self.disturb();
        self.since.clear();
    }

    fn lease_of_pod(&mut self, hash: &ManifestHash) -> Option<&mut LeaseSeen> {
        let id = self.pods.get(hash)?.lease?;
        self.leases.get_mut(&id)
    }

    /// A pod is started. It must be for a lease that is on the disk.
    pub(super) fn pod_started(&mut self, hash: &ManifestHash) -> Option<String> {
        let lease = self.live.get(&hash.to_string()).copied();
        if let Some(lease) = lease.and_then(|id| self.leases.get_mut(&id)) {
            lease.lost_ms = lease.window_ms.saturating_sub(lease.run_ms);
        }
        self.pods.insert(
            *hash,
            PodSeen {
                lease,
                ready: false,
            },
        );
        lease
            .is_none()
            .then(|| format!("a pod is started for no lease: {hash}"))
    }

    fn can_go_on(&mut self, hash: &ManifestHash) {
        if let Some(pod) = self.pods.get_mut(hash) {
            pod.ready = true;
        }
    }

    pub(super) fn pod_ready(&mut self, hash: &ManifestHash, now_ms: u64) {
        self.can_go_on(hash);
        if let Some(lease) = self.lease_of_pod(hash) {
            lease.open_since.get_or_insert(now_ms);
        }
    }

    /// A new process has found it running, if not ready: it costs from now on. While its lease was paused in
    /// the books it cost nothing, though a process before may have found it, and died before it wrote so.
    pub(super) fn pod_attached(&mut self, hash: &ManifestHash, now_ms: u64) {
        self.can_go_on(hash);
        if let Some(lease) = self.lease_of_pod(hash) {
            if lease.state == "paused" {
                lease.close(now_ms);
                lease.lost_ms = lease.window_ms.saturating_sub(lease.run_ms);
            }
            lease.open_since.get_or_insert(now_ms);
        }
    }

    /// Its programs have ended, or it is told to end.
    pub(super) fn pod_over(&mut self, hash: &ManifestHash, now_ms: u64) {
        if let Some(lease) = self.lease_of_pod(hash) {
            lease.close(now_ms);
        }
    }

    /// It was held still, and goes on.
    pub(super) fn pod_thawed(&mut self, hash: &ManifestHash, now_ms: u64) {
        if let Some(lease) = self.lease_of_pod(hash) {
            lease.open_since = Some(now_ms);
            lease.thaws += 1;
        }
    }

    pub(super) fn pod_told_to_stop(&mut self, hash: &ManifestHash, now_ms: u64) {
        self.pod_over(hash, now_ms);
    }

    pub(super) fn pod_gone(&mut self, hash: &ManifestHash, now_ms: u64) {
        self.pod_over(hash, now_ms);
        self.pods.remove(hash);
    }

    /// What a stop has told its owner. While the rest of its lease was sent to him, the next lease of the
    /// hash may have begun, and even ended.
    pub(super) fn stopped(&self, hash: &ManifestHash, used: u64) -> Option<String> {
        let hash = hash.to_string();
        let of_hash = self.leases.values().filter(|lease| lease.hash == hash);
        let ended: Vec<u64> = of_hash
            .filter(|lease| lease.state == "ended")
            .map(|lease| lease.charged)
            .collect();
        (!ended.contains(&used))
            .then(|| format!("a stop has told that {used} was used, and {ended:?} were charged"))
    }

    /// Takes up what was written, and says what is wrong with it.
    pub(super) fn written(
        &mut self,
        connection: &Connection,
        now_ms: u64,
        note: &mut dyn FnMut(String),
    ) -> rusqlite::Result<Vec<String>> {
        let mut wrong = Vec::new();
        self.movements(connection, note, &mut wrong)?;
        self.lease_rows(connection, now_ms, note, &mut wrong)?;
        self.compare_charges(&mut wrong);
        Ok(wrong)
    }

    fn movements(
        &mut self,
        connection: &Connection,
        note: &mut dyn FnMut(String),
        wrong: &mut Vec<String>,
    ) -> rusqlite::Result<()> {
        let mut select = connection.prepare_cached(
            "SELECT t.id, t.reason, a.name, p.amount
             FROM transactions t JOIN postings p ON p.transaction_id = t.id
             JOIN accounts a ON a.id = p.account
             WHERE t.id > ?1 ORDER BY t.id, p.amount",
        )?;
        let mut rows = select.query([self.seen_transaction])?;
        let mut transactions: BTreeMap<i64, (String, Vec<(String, i64)>)> = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let entry = transactions
                .entry(id)
                .or_insert_with(|| (row.get(1).unwrap_or_default(), Vec::new()));
            entry.1.push((row.get(2)?, row.get(3)?));
        }
        for (id, (reason, postings)) in transactions {
            self.seen_transaction = id;
            let sum: i64 = postings.iter().map(|(_, amount)| amount).sum();
            let [(from, less), (to, more)] = &postings[..] else {
                wrong.push(format!("transaction {id} has {} postings", postings.len()));
                continue;
            };
            if sum != 0 || *less >= 0 {
                wrong.push(format!("transaction {id} sums to {sum}"));
            }
            note(format!("{} ▶ {} {more} {reason}", name(from), name(to)));
            if !may_move(from, to, &reason) {
                wrong.push(format!("{more} has gone from {from} to {to} as {reason}"));
            }
            let amount = more.unsigned_abs();
            *self.went.entry(from.clone()).or_default() += amount;
            // What a lease gives back to its order has come before.
            if reason == "return" && to.starts_with("order:") {
                *self.went.entry(to.clone()).or_default() -= amount;
            } else {
                *self.came.entry(to.clone()).or_default() += amount;
            }
            if to == "earned"
                && let Some(hash) = from.strip_prefix("lease:")
            {
                *self.charged.entry(hash.to_owned()).or_default() += amount;
            }
            for (account, amount) in postings {
                let balance = self.balances.entry(account).or_default();
                *balance += amount;
            }
        }
        // Only what a whole write has left counts.
        for (account, balance) in &self.balances {
            if *balance < 0 && !account.starts_with("local:") {
                wrong.push(format!("{account} is at {balance}"));
            }
        }
        Ok(())
    }

    fn lease_rows(
        &mut self,
        connection: &Connection,
        now_ms: u64,
        note: &mut dyn FnMut(String),
        wrong: &mut Vec<String>,
    ) -> rusqlite::Result<()> {
        let first_unknown = self.leases.keys().last().map_or(0, |last| last + 1);
        let from = self.live.values().min().copied().unwrap_or(first_unknown);
        let mut select = connection.prepare_cached(
            "SELECT id, hash, rate, state, end_reason, run_ms, charged, frozen_ms FROM leases
             WHERE id >= ?1 ORDER BY id",
        )?;
        let mut rows = select.query([from])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let hash: String = row.get(1)?;
            let state: String = row.get(3)?;
            let reason: Option<String> = row.get(4)?;
            let run_ms = unsigned(row.get(5)?);
            let charged = unsigned(row.get(6)?);
            let frozen = row.get::<_, Option<i64>>(7)?.is_some();
            if !self.leases.contains_key(&id) {
                if self.live.contains_key(&hash) && self.leases[&self.live[&hash]].is_live() {
                    wrong.push(format!("two leases of {hash}"));
                }
                self.live.insert(hash.clone(), id);
                let lease = LeaseSeen {
                    hash: hash.clone(),
                    rate: rate(&row.get::<_, String>(2)?),
                    state: String::new(),
                    reason: None,
                    run_ms: 0,
                    charged: 0,
                    window_ms: 0,
                    open_since: None,
                    lost_ms: 0,
                    frozen: false,
                    thaws: 0,
                    disturbed: false,
                    recorded_at_ms: now_ms,
                };
                self.leases.insert(id, lease);
            }
            let balance = self.balance(&format!("lease:{hash}"));
            let lease = self.leases.get_mut(&id).expect("it was put there");
            let known = (lease.state == state && lease.frozen == frozen)
                && (lease.run_ms == run_ms && lease.charged == charged);
            if known {
                continue;
            }
            note(format!(
                "lease {} {state} {}, run {run_ms} ms, charged {charged}",
                &hash[..4],
                reason.as_deref().unwrap_or_default()
            ));
            if !may_follow(&lease.state, &state) {
                wrong.push(format!("lease {hash} was {} and is {state}", lease.state));
            }
            if run_ms < lease.run_ms || charged < lease.charged {
                wrong.push(format!("lease {hash} has run or cost less than before"));
            }
            match (lease.state.as_str(), state.as_str()) {
                // What it runs until it is held still is the host's loss; how long that may take is looked
                // at beside this.
                ("running", "paused") => lease.close(now_ms),
                // One that was started again is paid from when that is written, whoever has started it.
                ("paused", "running") if lease.open_since.is_some() => {
                    lease.open_since = Some(now_ms);
                    lease.thaws += 1;
                }
                _ => {}
            }
            (lease.state, lease.reason) = (state, reason);
            lease.frozen = frozen;
            let before_ms = std::mem::replace(&mut lease.run_ms, run_ms);
            lease.charged = charged;
            lease.recorded_at_ms = now_ms;
            let ran_on = run_ms != before_ms;
            let observed = lease.observed_ms(now_ms);
            // An end is seen at once, and counted when what was being written is.
            let over_ms = match lease.open_since {
                Some(_) => 0,
                // Others may have been at the lease just then.
                None => 4 * self.write_ms,
            } + lease.thaws * self.write_ms;
            if run_ms > observed + over_ms + ROUNDING_MS {
                wrong.push(format!(
                    "lease {hash} is charged for {run_ms} ms, and its pod ran for {observed} ms"
                ));
            }
            let cost = lease.cost(run_ms);
            let ended = !lease.is_live();
            let exact = charged == cost || (ended && charged == cost + 1);
            // A pod that has used up its money ran a little longer than that.
            let used_up = charged < cost && balance == 0;
            // What it ran without money is charged with the next charge, if somebody pays again.
            if (ran_on || ended) && !exact && !used_up {
                wrong.push(format!(
                    "lease {hash} is charged {charged} for a run that costs {cost}, with {balance} left"
                ));
            }
            if ended {
                self.ended += 1;
                let slack = (1 + lease.thaws) * self.write_ms + ROUNDING_MS;
                let clean = !lease.disturbed && lease.reason.as_deref() != Some("start_failed");
                if clean && run_ms + slack < lease.observed_ms(now_ms) {
                    let observed = lease.observed_ms(now_ms);
                    wrong.push(format!(
                        "lease {hash} ended as having run {run_ms} ms, and its pod ran for {observed} ms"
                    ));
                }
                self.live.retain(|_, live| *live != id);
                if balance != 0 {
                    let newer = self.live.contains_key(&hash);
                    if !newer {
                        wrong.push(format!("lease {hash} has ended with {balance} on it"));
                    }
                }
            }
        }
        Ok(())
    }

    /// What the leases say they were charged is what has moved.
    fn compare_charges(&mut self, wrong: &mut Vec<String>) {
        let mut said: BTreeMap<&str, u64> = BTreeMap::new();
        for lease in self.leases.values() {
            *said.entry(&lease.hash).or_default() += lease.charged;
        }
        for (hash, said) in said {
            let moved = self.charged.get(hash).copied().unwrap_or_default();
            if said != moved {
                wrong.push(format!(
                    "leases of {hash} say that {said} was charged, and {moved} was"
                ));
            }
        }
        for (account, balance) in &self.balances {
            if let Some(hash) = account.strip_prefix("lease:")
                && *balance != 0
                && !self.live.contains_key(hash)
            {
                wrong.push(format!("{balance} lies on a lease that is over: {hash}"));
            }
        }
    }

    /// What must be true at any moment, of what runs and what is paid.
    pub(super) fn moment(&mut self, around: &Surroundings) -> Vec<String> {
        let mut wrong = Vec::new();
        let Some(up_since) = around.up_since_ms else {
            self.since.clear();
            return wrong;
        };
        let now = around.now_ms;
        let mut troubled = BTreeSet::new();
        let running: BTreeSet<String> = around.running.iter().map(ToString::to_string).collect();

        for hash in &running {
            let lease = self.live.get(hash).map(|id| &self.leases[id]);
            let unpaid = match lease {
                None => true,
                Some(lease) => {
                    let balance = self.balance(&format!("lease:{hash}")).unsigned_abs();
                    let funded = lease.lasts_ms(lease.charged.saturating_add(balance));
                    let unwritten = lease.thaws * self.write_ms;
                    lease.observed_ms(now) > funded + ROUNDING_MS + unwritten
                }
            };
            if unpaid {
                troubled.insert((format!("unpaid {hash}"), around.unpaid_bound_ms));
            }
        }
        for (hash, id) in &self.live {
            let lease = &self.leases[id];
            if lease.frozen {
                let balance = self.balance(&format!("lease:{hash}")).unsigned_abs();
                let funded = lease.lasts_ms(lease.charged.saturating_add(balance));
                if funded >= lease.run_ms + 1000 {
                    // A pod that was lost meanwhile has to be started.
                    let goes_on_at_once = self
                        .pods
                        .iter()
                        .any(|(pod, seen)| seen.ready && pod.to_string() == *hash);
                    let bound = if goes_on_at_once {
                        around.unpaid_bound_ms + 3000
                    } else {
                        around.start_bound_ms
                    };
                    troubled.insert((format!("paid and frozen {hash}"), bound));
                } else {
                    let bound = around.grace_ms + around.unpaid_bound_ms;
                    troubled.insert((format!("frozen {hash}"), bound));
                }
            } else if !running.contains(hash) {
                troubled.insert((
                    format!("paid and not running {hash} {id}"),
                    around.start_bound_ms,
                ));
            } else if lease.state == "running" {
                let refused = around.refused_at_ms.unwrap_or_default();
                let since = up_since.max(refused).max(lease.open_since.unwrap_or(now));
                let lag = now - lease.recorded_at_ms.max(since).min(now);
                let most = CHARGED_EVERY_MS + 2 * self.write_ms + 2100;
                if lag > most {
                    wrong.push(format!("lease {hash} was not charged for {lag} ms"));
                }
            } else {
                troubled.insert((
                    format!("runs and is {} {hash}", lease.state),
                    around.start_bound_ms,
                ));
            }
        }
        let names: BTreeSet<&String> = troubled.iter().map(|(name, _)| name).collect();
        self.since
            .retain(|name, _| name.starts_with("order: ") || names.contains(name));
        for (name, bound) in &troubled {
            let since = *self.since.entry(name.clone()).or_insert(now);
            let since = since.max(around.refused_at_ms.unwrap_or_default().min(now));
            if now - since > *bound {
                wrong.push(format!("{name}: for {} ms", now - since));
                self.since.insert(name.clone(), now);
            }
        }
        wrong
    }

    /// Adds the whole ledger up from its rows.
    pub(super) fn add_up(&self, connection: &Connection) -> rusqlite::Result<Vec<String>> {
        let mut wrong = Vec::new();
        let mut select = connection.prepare_cached(
            "SELECT a.name, a.balance, coalesce(sum(p.amount), 0) FROM accounts a
             LEFT JOIN postings p ON p.account = a.id GROUP BY a.id",
        )?;
        let mut rows = select.query([])?;
        let mut total = 0;
        while let Some(row) = rows.next()? {
            let (account, balance, sum): (String, i64, i64) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            total += balance;
            if balance != sum || balance != self.balance(&account) {
                wrong.push(format!(
                    "{account} is at {balance}, its postings sum to {sum}, and {} was seen",
                    self.balance(&account)
                ));
            }
        }
        if total != 0 {
            wrong.push(format!("all balances together are {total}"));
        }
        Ok(wrong)
    }

    /// What must be true of orders. The bounds are for what the host has still to do.
    pub(super) fn orders(
        &mut self,
        connection: &Connection,
        around: &Surroundings,
        at_rest: bool,
    ) -> rusqlite::Result<Vec<String>> {
        let mut wrong = Vec::new();
        let mut select =
            connection.prepare_cached("SELECT id, state, price, kind FROM orders ORDER BY id")?;
        let mut rows = select.query([])?;
        let mut late = Vec::new();
        while let Some(row) = rows.next()? {
            let id: String = row.get(0)?;
            let state: String = row.get(1)?;
            let price = unsigned(row.get(2)?);
            let account = format!("order:{id}");
            let (came, went) = (self.came(&account), self.went(&account));
            let rest = self.balance(&account);
            let id = &id[..6];
            if came > price {
                wrong.push(format!("order {id} took {came} for a price of {price}"));
            }
            match state.as_str() {
                "done" if came != price || went != price => wrong.push(format!(
                    "order {id} is done, with {came} of {price} paid and {went} used"
                )),
                "open" if at_rest => wrong.push(format!("order {id} is open")),
                "open" => {
                    let bound = around.start_bound_ms + 60_000;
                    late.push((format!("open order {id}"), bound));
                }
                _ if rest != 0 && at_rest => {
                    wrong.push(format!("{rest} lies on order {id}, which is {state}"));
                }
                // It is answered: its money has gone back, or is owed.
                _ if rest != 0 => late.push((format!("money on order {id}"), ANSWERED_MS)),
                _ => {}
            }
        }
        if around.up_since_ms.is_none() {
            return Ok(wrong);
        }
        for (name, bound) in late {
            let name = format!("order: {name}");
            let since = *self.since.entry(name.clone()).or_insert(around.now_ms);
            let since = since.max(around.refused_at_ms.unwrap_or_default());
            if around.now_ms - since > bound {
                wrong.push(format!("{name}: for {} ms", around.now_ms - since));
                self.since.insert(name, around.now_ms);
            }
        }
        Ok(wrong)
    }
}

fn unsigned(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or_default()
}

/// Which money may go where.
fn may_move(from: &str, to: &str, reason: &str) -> bool {
    let kind = |account: &str| account.split(':').next().unwrap_or_default().to_owned();
    let same_hash = || from.split(':').nth(1) == to.split(':').nth(1);
    match (kind(from).as_str(), kind(to).as_str(), reason) {
        ("local", "order" | "lease", "packet") | ("local", "earned", "gift") => true,
        ("order", "lease", "payment") => true,
        ("owed", "lease", "payment") | ("lease", "owed", "return") => same_hash(),
        ("lease", "earned", "charge") => true,
        ("lease", "order", "return") | ("order", "owed" | "refund", "return") => true,
        // What has not been used is its payer's, in an account of his own, until he has it or it runs his
        // next lease.
        ("lease", "refund", "return") | ("refund", "lease", "payment" | "return") => true,
        ("refund", "refund", "return") => true,
        ("order" | "owed" | "refund", "local", "refund") => true,
        _ => false,
    }
}

fn may_follow(before: &str, after: &str) -> bool {
    match before {
        "" => after == "starting",
        "starting" => after != "paused",
        "running" | "paused" => after != "starting",
        _ => false,
    }
}

/// An account, for people.
fn name(account: &str) -> String {
    match account.split_once(':') {
        Some((kind, id)) => format!("{kind}:{}", id.chars().take(4).collect::<String>()),
        None => account.to_owned(),
    }
}

/// Units × 10^20 a second.
fn rate(text: &str) -> u128 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{fraction:0<20}");
    digits.parse().unwrap_or_default()
}
