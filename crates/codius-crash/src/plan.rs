//! What is done to a host, drawn from a seed.
//!
//! A blow waits for its moment and then kills something: each one is counted as one kill, whatever
//! else it does. The same seed gives the same blows; what the processes do meanwhile is theirs.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// The longest pause before a blow, in milliseconds: some pods are ready again by then, and some not.
const MAX_PAUSE_MS: u64 = 8_000;
/// How far into what a client does a blow may come, in milliseconds: an upload under emulation takes
/// seconds, everything else much less.
const MAX_INTO_UPLOAD_MS: u64 = 8_000;
const MAX_INTO_OTHERS_MS: u64 = 150;
/// How long a host may have been starting or ending when it is killed, in milliseconds.
const MAX_INTO_START_MS: u64 = 2_500;
const MAX_INTO_SHUTDOWN_MS: u64 = 1_500;
/// How long a trouble lasts, in milliseconds.
const TROUBLE_MS: std::ops::Range<u64> = 1_500..5_000;
/// The most times that one start is cut off.
const MAX_CUT_STARTS: usize = 3;

/// One event of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// From 1.
    pub number: u32,
    /// Before the moment is waited for.
    pub pause: Duration,
    pub moment: Moment,
    pub blow: Blow,
}

/// When a blow comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// At once, whatever happens then.
    Any,
    /// So long after a client began to do this.
    During(Doing, Duration),
}

/// What a client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Doing {
    Uploading,
    /// A packet with money is on its way.
    Paying,
    Extending,
    ToppingUp,
    Stopping,
}

/// What happens to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blow {
    /// `kill -9` of these, all at once.
    Kill(Victims),
    /// SIGTERM, and `kill -9` so much later.
    CutShutdown { after: Duration },
    /// `kill -9`, and again so long after each new start.
    CutStarts { after: Vec<Duration> },
    /// SIGSTOP, SIGCONT so much later; in the middle something is killed.
    Suspend { lasting: Duration, victims: Victims },
    /// A file takes all the room of the disk; in the middle something is killed.
    FillDisk { lasting: Duration, victims: Victims },
    /// The file system finds an error and becomes read-only, as `errors=remount-ro` makes it. The host
    /// and all pods are killed then, and it is repaired, as an operator would.
    BreakDisk {
        lasting: Duration,
        /// Whether the host is started while nothing can be written.
        start_meanwhile: bool,
    },
}

/// Whom a `kill -9` hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victims {
    Host,
    /// One machine, by its place among those that run; the host if none runs.
    Pod {
        place: usize,
    },
    /// All machines; the host if none runs.
    Pods,
    HostAndPod {
        place: usize,
    },
    HostAndPods,
}

impl Victims {
    pub fn host(self) -> bool {
        matches!(
            self,
            Self::Host | Self::HostAndPod { .. } | Self::HostAndPods
        )
    }
}

impl Blow {
    /// Whether what comes after it should be looked at in peace: trouble with the disk leaves the most
    /// behind.
    pub fn is_trouble(&self) -> bool {
        matches!(self, Self::FillDisk { .. } | Self::BreakDisk { .. })
    }
}

/// The events of a run of `kills` kills.
pub fn plan(seed: u64, kills: u32) -> Vec<Event> {
    let mut random = StdRng::seed_from_u64(seed);
    (1..=kills)
        .map(|number| Event {
            number,
            pause: millis(&mut random, 0..MAX_PAUSE_MS),
            moment: moment(&mut random),
            blow: blow(&mut random),
        })
        .collect()
}

fn moment(random: &mut StdRng) -> Moment {
    let doing = match random.random_range(0..100) {
        0..40 => return Moment::Any,
        40..60 => Doing::Uploading,
        60..75 => Doing::Paying,
        75..83 => Doing::Extending,
        83..91 => Doing::ToppingUp,
        _ => Doing::Stopping,
    };
    let most = match doing {
        Doing::Uploading => MAX_INTO_UPLOAD_MS,
        Doing::Paying | Doing::Extending | Doing::ToppingUp | Doing::Stopping => MAX_INTO_OTHERS_MS,
    };
    Moment::During(doing, millis(random, 0..most))
}

fn blow(random: &mut StdRng) -> Blow {
    match random.random_range(0..100) {
        0..32 => Blow::Kill(Victims::Host),
        32..44 => Blow::Kill(Victims::Pod {
            place: random.random_range(0..4),
        }),
        44..50 => Blow::Kill(Victims::Pods),
        50..57 => Blow::Kill(Victims::HostAndPod {
            place: random.random_range(0..4),
        }),
        57..63 => Blow::Kill(Victims::HostAndPods),
        63..71 => Blow::CutShutdown {
            after: millis(random, 0..MAX_INTO_SHUTDOWN_MS),
        },
        71..82 => {
            let times = random.random_range(1..=MAX_CUT_STARTS);
            Blow::CutStarts {
                after: (0..times)
                    .map(|_| millis(random, 0..MAX_INTO_START_MS))
                    .collect(),
            }
        }
        82..89 => Blow::Suspend {
            lasting: millis(random, TROUBLE_MS),
            victims: victims(random),
        },
        89..96 => Blow::FillDisk {
            lasting: millis(random, TROUBLE_MS),
            victims: victims(random),
        },
        _ => Blow::BreakDisk {
            lasting: millis(random, TROUBLE_MS),
            start_meanwhile: random.random_bool(0.5),
        },
    }
}

fn victims(random: &mut StdRng) -> Victims {
    match random.random_range(0..4) {
        0 | 1 => Victims::Host,
        2 => Victims::Pod {
            place: random.random_range(0..4),
        },
        _ => Victims::HostAndPods,
    }
}

fn millis(random: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        assert_eq!(plan(7, 50), plan(7, 50));
        assert_ne!(plan(7, 50), plan(8, 50));
        // A longer run begins as the shorter one.
        assert_eq!(plan(7, 50)[..20], plan(7, 20));
    }

    #[test]
    fn a_long_run_does_everything() {
        let plan = plan(1, 200);
        let some = |what: fn(&Event) -> bool| plan.iter().any(what);
        assert_eq!(plan.len(), 200);
        assert!(some(|it| it.blow == Blow::Kill(Victims::Host)));
        assert!(some(|it| matches!(
            it.blow,
            Blow::Kill(Victims::Pod { .. })
        )));
        assert!(some(|it| it.blow == Blow::Kill(Victims::Pods)));
        assert!(some(|it| it.blow == Blow::Kill(Victims::HostAndPods)));
        assert!(some(|it| matches!(it.blow, Blow::CutShutdown { .. })));
        assert!(some(
            |it| matches!(&it.blow, Blow::CutStarts { after } if after.len() > 1)
        ));
        assert!(some(|it| matches!(it.blow, Blow::Suspend { .. })));
        assert!(some(|it| matches!(it.blow, Blow::FillDisk { .. })));
        assert!(some(|it| matches!(it.blow, Blow::BreakDisk { .. })));
        for doing in [
            Doing::Uploading,
            Doing::Paying,
            Doing::Extending,
            Doing::ToppingUp,
            Doing::Stopping,
        ] {
            let there = plan
                .iter()
                .any(|it| matches!(it.moment, Moment::During(of, _) if of == doing));
            assert!(there, "{doing:?}");
        }
    }
}
