//! The table against a small model of what each peer last did, over random histories.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use codius_peers::{Limits, Pace, PeerTable, PeerUrl, Reach};
use proptest::{collection::vec, prelude::*};

const LIMITS: Limits = Limits {
    listed: 4,
    candidates: 6,
    offered: 3,
    per_name: 2,
};
const CHECK: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(30);
const OWN: &str = "https://own.example";

fn pace() -> Pace {
    Pace::new(CHECK, RETRY)
}

fn url(text: &str) -> PeerUrl {
    PeerUrl::parse(text, Reach::Public).expect(text)
}

fn table(limits: Limits) -> PeerTable {
    PeerTable::new(Some(url(OWN)), Reach::Public, limits, pace())
}

fn listed(table: &PeerTable) -> BTreeSet<String> {
    let sample = table.sample(usize::MAX, || 0);
    sample.iter().map(ToString::to_string).collect()
}

/// What happens to a table.
#[derive(Debug, Clone)]
enum Event {
    Offer(Vec<String>),
    /// So many seconds pass, then so many peers are checked; `bool`: whether they answer.
    Check(u64, Vec<bool>),
    /// An exchange with the n-th listed peer fails.
    ExchangeFails(usize),
}

fn a_url() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (0..9u8, 0..4u16).prop_map(|(n, port)| format!("https://h{n}.example:{}", 1000 + port)),
        1 => Just(OWN.to_owned()),
        1 => Just("https://10.0.0.1".to_owned()),
        1 => Just("http://h1.example".to_owned()),
        1 => ".*",
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        vec(a_url(), 0..8).prop_map(Event::Offer),
        (0..100_000u64, vec(any::<bool>(), 0..6))
            .prop_map(|(secs, answers)| Event::Check(secs, answers)),
        (0..4usize).prop_map(Event::ExchangeFails),
    ]
}

proptest! {
    /// Only who answered last time is listed; nothing exceeds its bound; no stranger gets in that may
    /// not; every listed peer is due again within the interval.
    #[test]
    fn only_who_answers_as_itself_is_listed(events in vec(event(), 0..60), random: u64) {
        let mut table = table(LIMITS);
        let mut now = Duration::ZERO;
        // When each peer last answered; gone when it has failed since.
        let mut model: BTreeMap<PeerUrl, Duration> = BTreeMap::new();
        for event in events {
            match event {
                Event::Offer(urls) => {
                    let added = table.offer(urls.iter().map(String::as_str), now);
                    prop_assert!(added <= LIMITS.offered);
                }
                Event::Check(secs, answers) => {
                    now += Duration::from_secs(secs);
                    let due = table.due(now, answers.len());
                    prop_assert!(due.len() <= answers.len());
                    if secs % 2 == 0 {
                        for url in table.due(now, usize::MAX) {
                            prop_assert!(!due.contains(&url), "{} is asked twice", url);
                            table.failed(&url, now, random);
                            model.remove(&url);
                        }
                    }
                    for (url, answers) in due.iter().zip(answers) {
                        prop_assert!(url.as_str() != OWN);
                        if answers {
                            table.answered(url, now, random);
                            model.insert(url.clone(), now);
                        } else {
                            table.failed(url, now, random);
                            model.remove(url);
                        }
                    }
                }
                Event::ExchangeFails(n) => {
                    if let Some(url) = table.sample(usize::MAX, || 0).get(n) {
                        table.lost(url, now, random);
                        model.remove(url);
                    }
                }
            }
            let listed = table.sample(usize::MAX, || random);
            prop_assert_eq!(listed.len(), table.listed());
            prop_assert!(listed.len() <= LIMITS.listed);
            for url in &listed {
                prop_assert!(model.contains_key(url), "{} has not answered", url);
            }
        }
        // All that was left in somebody's hands comes back; then every listed peer is due in time.
        let before: BTreeSet<PeerUrl> = table.sample(usize::MAX, || 0).into_iter().collect();
        for url in &before {
            table.answered(url, now, random);
        }
        let due: BTreeSet<PeerUrl> = table.due(now + CHECK, usize::MAX).into_iter().collect();
        prop_assert!(before.is_subset(&due));
        prop_assert!(due.len() <= LIMITS.listed + LIMITS.candidates);
    }

    #[test]
    fn a_sample_is_some_of_the_listed_each_once(count in 0..30usize, most in 0..40usize, seed: u64) {
        let mut table = table(Limits { per_name: 100, ..Limits::default() });
        let urls: Vec<String> = (0..count).map(|n| format!("https://h{n}.example")).collect();
        table.offer(urls.iter().map(String::as_str), Duration::ZERO);
        for url in table.due(Duration::ZERO, usize::MAX) {
            table.answered(&url, Duration::ZERO, 0);
        }
        let mut state = seed;
        let sample = table.sample(most, || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 11
        });
        let distinct: BTreeSet<&PeerUrl> = sample.iter().collect();
        prop_assert_eq!(sample.len(), most.min(count));
        prop_assert_eq!(distinct.len(), sample.len());
    }

    /// What is read once is read the same again, and is an origin.
    #[test]
    fn a_peer_url_is_stable(text in prop_oneof![
        ".*",
        "https?://[a-zA-Z0-9.@:/?#\\[\\]-]{0,40}",
        "https://[a-z]{1,9}\\.[a-z]{2,5}(:[0-9]{1,5})?/?",
    ]) {
        for reach in [Reach::Public, Reach::Any] {
            let Ok(peer) = PeerUrl::parse(&text, reach) else { continue };
            prop_assert_eq!(&PeerUrl::parse(peer.as_str(), reach).unwrap(), &peer);
            let rest = peer.as_str().split_once("://").unwrap().1;
            prop_assert!(rest.starts_with(peer.name()));
            prop_assert!(!rest.contains(['/', '?', '#', '@']), "{}", peer);
        }
    }
}

#[test]
fn a_peer_that_fails_waits_longer_each_time_and_returns_when_it_answers() {
    let mut table = table(LIMITS);
    let peer = url("https://h1.example");
    table.offer([peer.as_str()], Duration::ZERO);
    let mut now = Duration::ZERO;
    for wait in [30, 60, 120, 240, 480, 960, 1920, 3600, 3600] {
        assert_eq!(table.due(now, 9), std::slice::from_ref(&peer));
        table.failed(&peer, now, 0);
        let next = now + Duration::from_secs(wait);
        assert!(
            table.due(next - Duration::from_millis(1), 9).is_empty(),
            "{wait}"
        );
        now = next;
    }
    assert_eq!(table.due(now, 9), std::slice::from_ref(&peer));
    table.answered(&peer, now, u64::MAX);
    assert_eq!(table.listed(), 1);
    // A quarter earlier at most.
    assert!(
        table
            .due(now + CHECK / 4 * 3 - Duration::from_secs(1), 9)
            .is_empty()
    );
    assert_eq!(table.due(now + CHECK, 9).len(), 1);
    table.failed(&peer, now + CHECK, 0);
    assert_eq!(table.listed(), 0);
}

#[test]
fn who_does_not_answer_for_a_day_is_forgotten_unless_the_operator_named_it() {
    let day = Duration::from_secs(24 * 3600);
    let mut table = table(LIMITS);
    table.bootstrap(url("https://boot.example"), Duration::ZERO);
    table.offer(["https://h1.example"], Duration::ZERO);
    for url in table.due(Duration::ZERO, 9) {
        table.failed(&url, Duration::ZERO, 0);
    }
    assert_eq!(table.due(day, 9), [url("https://boot.example")]);
}

#[test]
fn the_full_table_gives_up_who_never_answered_first() {
    let mut table = table(Limits {
        listed: 9,
        offered: 9,
        ..LIMITS
    });
    let texts: Vec<String> = (0..6).map(|n| format!("https://h{n}.example")).collect();
    assert_eq!(
        table.offer(texts.iter().map(String::as_str), Duration::ZERO),
        6
    );
    // Full, and nobody has failed yet.
    assert_eq!(table.offer(["https://new.example"], Duration::ZERO), 0);
    let due = table.due(Duration::ZERO, 2);
    for url in &due {
        table.failed(url, Duration::ZERO, 0);
    }
    assert_eq!(table.offer(["https://new.example"], Duration::ZERO), 1);
    assert!(
        table
            .due(Duration::ZERO, 9)
            .contains(&url("https://new.example"))
    );
}

#[test]
fn one_name_is_not_many_peers() {
    let mut table = table(LIMITS);
    let texts = [
        "https://h.example:1",
        "https://h.example:2",
        "https://h.example:3",
    ];
    assert_eq!(table.offer(texts, Duration::ZERO), LIMITS.per_name);
}

#[test]
fn what_is_remembered_are_peers_that_have_answered() {
    let mut first = table(LIMITS);
    first.offer(
        [
            "https://h1.example",
            "https://h2.example",
            "https://h3.example",
        ],
        Duration::ZERO,
    );
    assert_eq!(first.remembered(), None, "nobody has answered");
    for peer in first.due(Duration::ZERO, 9) {
        match peer.as_str() {
            "https://h3.example" => first.failed(&peer, Duration::ZERO, 0),
            _ => first.answered(&peer, Duration::ZERO, 0),
        }
    }
    first.failed(&url("https://h1.example"), Duration::ZERO, 0);
    let remembered = first.remembered().expect("it has changed");
    assert_eq!(
        remembered,
        [url("https://h2.example"), url("https://h1.example")]
    );
    assert_eq!(first.remembered(), None);

    // The next process lists nobody before they answer.
    let mut next = table(LIMITS);
    next.restore(remembered.iter().map(PeerUrl::as_str), Duration::ZERO);
    assert!(listed(&next).is_empty());
    assert_eq!(next.due(Duration::ZERO, 9).len(), 2);
}
