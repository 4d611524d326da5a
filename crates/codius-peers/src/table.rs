//! The table itself.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use crate::{
    PeerUrl, Reach,
    limits::{Limits, Pace, jittered},
};

/// All peers that a host knows of. Times are since any fixed moment, such as the start of the host.
#[derive(Debug)]
pub struct PeerTable {
    /// This host, which is no peer of itself. None if no peer could reach it.
    own: Option<PeerUrl>,
    reach: Reach,
    limits: Limits,
    pace: Pace,
    peers: BTreeMap<PeerUrl, Peer>,
    names: HashMap<String, usize>,
    listed: usize,
    /// Something that is remembered has changed since it was last asked for.
    changed: bool,
}

/// What is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerOverview {
    pub url: PeerUrl,
    pub is_listed: bool,
    /// The operator has named it.
    pub is_bootstrap: bool,
    /// In a row, since it was listed or named.
    pub failures: u32,
    /// How long ago it last answered as itself, or was remembered by an earlier process; none if it
    /// never did.
    pub seen: Option<Duration>,
    /// When it is asked again.
    pub next_check: Duration,
}

#[derive(Debug)]
struct Peer {
    state: State,
    /// The operator has named it: it is never forgotten.
    is_bootstrap: bool,
    /// It has answered as itself at some time.
    has_answered: bool,
    /// When it last answered as itself, or was first named.
    seen_at: Duration,
    check_at: Duration,
    /// Somebody is asking it now.
    is_checked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Listed,
    Candidate { failures: u32 },
}

impl PeerTable {
    #[must_use]
    pub fn new(own: Option<PeerUrl>, reach: Reach, limits: Limits, pace: Pace) -> Self {
        Self {
            own,
            reach,
            limits,
            pace,
            peers: BTreeMap::new(),
            names: HashMap::new(),
            listed: 0,
            changed: false,
        }
    }

    /// A peer that the operator has named. It is tried at once, and never forgotten.
    pub fn bootstrap(&mut self, url: PeerUrl, now: Duration) {
        if self.own.as_ref() == Some(&url) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&url) {
            peer.is_bootstrap = true;
            return;
        }
        // The operator's word goes beyond the limits.
        self.add(url, now, true);
    }

    /// Peers that strangers have named: those that are new and valid become candidates, as far as
    /// there is room. How many did.
    pub fn offer<'a>(&mut self, texts: impl IntoIterator<Item = &'a str>, now: Duration) -> usize {
        let mut added = 0;
        for text in texts.into_iter().take(self.limits.listed) {
            if added == self.limits.offered {
                break;
            }
            let Ok(url) = PeerUrl::parse(text, self.reach) else {
                continue;
            };
            if self.own.as_ref() == Some(&url) || self.peers.contains_key(&url) {
                continue;
            }
            let of_name = self.names.get(url.name()).copied().unwrap_or_default();
            if of_name >= self.limits.per_name || !self.make_room() {
                continue;
            }
            self.add(url, now, false);
            added += 1;
        }
        added
    }

    /// Peers that an earlier process remembered. They are tried at once, and listed when they answer.
    pub fn restore<'a>(&mut self, texts: impl IntoIterator<Item = &'a str>, now: Duration) {
        for text in texts.into_iter().take(self.limits.listed) {
            self.offer([text], now);
            let known = PeerUrl::parse(text, self.reach).ok();
            if let Some(peer) = known.and_then(|url| self.peers.get_mut(&url)) {
                peer.has_answered = true;
            }
        }
    }

    /// Up to `most` peers whose time to be checked has come, the longest waiting first. They are not
    /// given out again before [`PeerTable::answered`] or [`PeerTable::failed`] says what came of it.
    pub fn due(&mut self, now: Duration, most: usize) -> Vec<PeerUrl> {
        self.forget(now);
        let mut due: Vec<(Duration, PeerUrl)> = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.is_checked && peer.check_at <= now)
            .map(|(url, peer)| (peer.check_at, url.clone()))
            .collect();
        due.sort();
        due.truncate(most);
        let due: Vec<PeerUrl> = due.into_iter().map(|(_, url)| url).collect();
        for url in &due {
            if let Some(peer) = self.peers.get_mut(url) {
                peer.is_checked = true;
            }
        }
        due
    }

    /// A peer has answered as itself: it is listed, if there is room.
    pub fn answered(&mut self, url: &PeerUrl, now: Duration, random: u64) {
        let Some(peer) = self.peers.get_mut(url) else {
            return;
        };
        peer.is_checked = false;
        peer.seen_at = now;
        peer.check_at = now + jittered(self.pace.check, random);
        if peer.state == State::Listed {
            return;
        }
        if self.listed < self.limits.listed {
            peer.state = State::Listed;
            peer.has_answered = true;
            self.listed += 1;
            self.changed = true;
        } else {
            peer.state = State::Candidate { failures: 0 };
        }
    }

    /// A peer that was due did not answer, or not as itself: it is not listed (any more), and tried
    /// again later.
    pub fn failed(&mut self, url: &PeerUrl, now: Duration, random: u64) {
        if let Some(peer) = self.peers.get_mut(url) {
            peer.is_checked = false;
        }
        self.lost(url, now, random);
    }

    /// Something else went wrong with a peer, such as an exchange: as [`PeerTable::failed`], but
    /// whoever is checking it now goes on.
    pub fn lost(&mut self, url: &PeerUrl, now: Duration, random: u64) {
        let Some(peer) = self.peers.get_mut(url) else {
            return;
        };
        let failures = match peer.state {
            State::Listed => {
                self.listed -= 1;
                1
            }
            State::Candidate { failures } => failures.saturating_add(1),
        };
        peer.state = State::Candidate { failures };
        peer.check_at = now + jittered(self.pace.wait(failures), random);
    }

    /// Every peer, for the operator.
    #[must_use]
    pub fn overview(&self, now: Duration) -> Vec<PeerOverview> {
        let peers = self.peers.iter().map(|(url, peer)| PeerOverview {
            url: url.clone(),
            is_listed: peer.state == State::Listed,
            is_bootstrap: peer.is_bootstrap,
            failures: match peer.state {
                State::Listed => 0,
                State::Candidate { failures } => failures,
            },
            seen: peer.has_answered.then(|| now.saturating_sub(peer.seen_at)),
            next_check: peer.check_at.saturating_sub(now),
        });
        peers.collect()
    }

    /// How many peers are listed.
    #[must_use]
    pub fn listed(&self) -> usize {
        self.listed
    }

    /// Up to `most` listed peers in random order.
    pub fn sample(&self, most: usize, mut random: impl FnMut() -> u64) -> Vec<PeerUrl> {
        let mut all: Vec<&PeerUrl> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.state == State::Listed)
            .map(|(url, _)| url)
            .collect();
        let count = most.min(all.len());
        // The first steps of a Fisher-Yates shuffle.
        for i in 0..count {
            let left = u64::try_from(all.len() - i).expect("a length fits");
            // The bias of a remainder of 64 bits is far below what anyone could see.
            let step = usize::try_from(random() % left).expect("it is below a length");
            all.swap(i, i + step);
        }
        all.truncate(count);
        all.into_iter().cloned().collect()
    }

    /// What the next process should know, if it has changed since it was last asked for: those that
    /// have answered as themselves, the listed ones first.
    pub fn remembered(&mut self) -> Option<Vec<PeerUrl>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let known = |listed: bool| {
            self.peers
                .iter()
                .filter(move |(_, peer)| {
                    peer.has_answered && (peer.state == State::Listed) == listed
                })
                .map(|(url, _)| url.clone())
        };
        Some(
            known(true)
                .chain(known(false))
                .take(self.limits.listed)
                .collect(),
        )
    }

    fn add(&mut self, url: PeerUrl, now: Duration, is_bootstrap: bool) {
        *self.names.entry(url.name().to_owned()).or_default() += 1;
        let peer = Peer {
            state: State::Candidate { failures: 0 },
            is_bootstrap,
            has_answered: false,
            seen_at: now,
            check_at: now,
            is_checked: false,
        };
        self.peers.insert(url, peer);
    }

    /// Makes sure that there is room for a candidate. A stranger's that has never answered and has
    /// failed most often gives way.
    fn make_room(&mut self) -> bool {
        if self.peers.len() - self.listed < self.limits.candidates {
            return true;
        }
        let worst = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.has_answered && !peer.is_bootstrap && !peer.is_checked)
            .filter_map(|(url, peer)| match peer.state {
                State::Listed | State::Candidate { failures: 0 } => None,
                State::Candidate { failures } => Some((failures, url)),
            })
            .max()
            .map(|(_, url)| url.clone());
        let Some(worst) = worst else { return false };
        self.remove(&worst);
        true
    }

    fn forget(&mut self, now: Duration) {
        let old: Vec<PeerUrl> = self
            .peers
            .iter()
            .filter(|(_, peer)| {
                !matches!(peer.state, State::Listed)
                    && !peer.is_bootstrap
                    && !peer.is_checked
                    && now.saturating_sub(peer.seen_at) >= self.pace.forget
            })
            .map(|(url, _)| url.clone())
            .collect();
        for url in &old {
            self.remove(url);
        }
    }

    fn remove(&mut self, url: &PeerUrl) {
        let Some(peer) = self.peers.remove(url) else {
            return;
        };
        self.changed |= peer.has_answered;
        if peer.state == State::Listed {
            self.listed -= 1;
        }
        if let Some(count) = self.names.get_mut(url.name()) {
            *count -= 1;
            if *count == 0 {
                self.names.remove(url.name());
            }
        }
    }
}
