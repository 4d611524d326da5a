use super::*;

/// Two thousand schedules in CI, in four parts that run beside each other.
const SCHEDULES: u64 = 2000;
const PARTS: u64 = 4;

fn part(part: u64) {
    let (done, failed, leases) = run_many(part * SCHEDULES / PARTS, SCHEDULES / PARTS, 1);
    assert_eq!(done, SCHEDULES / PARTS);
    assert!(leases > done, "schedules that run nothing try nothing");
    if let Some(first) = failed.first() {
        panic!(
            "{} schedules failed; `cargo xtask sim --seed {}` shows the first: {:#?}",
            failed.len(),
            first.seed,
            first.violations
        );
    }
}

#[test]
fn first_part_of_the_schedules() {
    part(0);
}

#[test]
fn second_part_of_the_schedules() {
    part(1);
}

#[test]
fn third_part_of_the_schedules() {
    part(2);
}

#[test]
fn fourth_part_of_the_schedules() {
    part(3);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..40 {
        let (one, other) = (run(seed, false), run(seed, false));
        assert_eq!(one.trace, other.trace, "seed {seed}");
        assert_eq!(one.violations, other.violations, "seed {seed}");
    }
    assert_ne!(run(1, false).trace, run(2, false).trace);
}
