//! The whole host in one thread, with time that is only pretended: what docs/simulation.md says is
//! simulated, on seeded schedules, looked at by a model of its own.
//!
//! ```text
//! seed ──▶ Plan ──▶ schedule: one action after the other, with pauses
//!                      │  clients ◀─lines─▶ Host (real) ──▶ disk (real SQL), pods (pretended)
//!                      ▼                      ▲
//!                 model, checks          keeper: starts it again
//! ```
//!
//! The same seed gives the same schedule and the same trace. What keeps it so:
//! - One thread, and tokio's clock, which stands still while anyone has something to do.
//! - Every `select!` on the way is `biased`.
//! - Chance comes from `dice.rs`. What the host takes from the operating system (keys, packet ids) is
//!   no part of the trace, and decides nothing.

mod check;
mod client;
mod dice;
mod driver;
mod faults;
mod host;
mod model;
mod network;
mod plan;
mod schedule;
mod world;

use std::{
    cell::RefCell,
    process::ExitCode,
    sync::Once,
    time::{Duration, Instant},
};

use codius_store::simulated::Disk;

/// What one schedule has come to.
#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    /// Equal for equal schedules.
    pub trace: u64,
    pub violations: Vec<String>,
    /// Leases that have come to their end: a schedule without any has tried little.
    pub leases: u64,
}

thread_local! {
    /// Panics of tasks, which tokio keeps to itself.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Runs one schedule; `shown` prints what happens.
///
/// # Panics
/// If the operating system has nothing left for a runtime.
#[must_use]
pub fn run(seed: u64, shown: bool) -> Outcome {
    note_panics();
    PANICS.take();
    // Nothing is sent by TLS here, but a host has what it takes. It is chosen once for the process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without sockets can be made");
    let outcome = runtime.block_on(async {
        let disk = Disk::new().expect("there is memory for a database");
        schedule::run(seed, disk, shown).await
    });
    // Tasks that nobody has ended are dropped here.
    drop(runtime);
    let mut outcome = outcome;
    outcome.violations.extend(PANICS.take());
    outcome
}

/// So many schedules run in one process: a host that was killed is not taken apart and stays in memory,
/// and so does some of each schedule.
const PIECE: u64 = 2500;

fn note_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(format!("panic: {info}")));
            before(info);
        }));
    });
}

/// `codius-sim [--schedules N] [--seed S] [--first S] [--threads N]`: what `cargo xtask sim` runs.
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut schedules, mut first, mut only, mut threads) = (2000, 0, None, 1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse().ok());
        let Some(value) = value else {
            eprintln!("{name} needs a number");
            return ExitCode::from(2);
        };
        match name.as_str() {
            "--schedules" => schedules = value,
            "--first" => first = value,
            "--seed" => only = Some(value),
            "--threads" => threads = value.max(1),
            _ => {
                eprintln!(
                    "there is no {name}; use --schedules N, --seed S, --first S, --threads N"
                );
                return ExitCode::from(2);
            }
        }
    }
    if let Some(seed) = only {
        // What the host logs, too, if `RUST_LOG` says so.
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .without_time()
            .init();
        let outcome = run(seed, true);
        println!("trace {:016x}", outcome.trace);
        return report(1, &[outcome], 1);
    }
    let began = Instant::now();
    if schedules > PIECE {
        return run_in_pieces(first, schedules, threads);
    }
    let (done, failed, leases) = run_many(first, schedules, threads);
    eprintln!("{leases} leases in {:.1} s", began.elapsed().as_secs_f64());
    report(done, &failed, leases)
}

/// Runs schedules piece by piece, each in a process of its own, and adds up what they say.
fn run_in_pieces(first: u64, schedules: u64, threads: u64) -> ExitCode {
    let (mut done, mut violations) = (0, 0);
    for begin in (first..first + schedules).step_by(usize::try_from(PIECE).unwrap_or(1)) {
        let piece = PIECE.min(first + schedules - begin);
        match run_piece(begin, piece, threads) {
            Ok(found) => violations += found,
            Err(error) => {
                println!("schedules {begin} to {}: {error}", begin + piece - 1);
                return ExitCode::FAILURE;
            }
        }
        done += piece;
        eprintln!("… {done} schedules, {violations} violations");
    }
    println!("{done} schedules, {violations} violations");
    if violations == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// How many schedules of a piece have failed; the process has said which.
fn run_piece(first: u64, schedules: u64, threads: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = std::process::Command::new(program)
        .args(["--first", &first.to_string()])
        .args(["--schedules", &schedules.to_string()])
        .args(["--threads", &threads.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let found = last
        .strip_prefix(&format!("{schedules} schedules, "))
        .and_then(|rest| rest.strip_suffix(" violations")?.parse().ok());
    match found {
        // Without a violation there may have been no lease, and then nothing was shown.
        Some(0) if !output.status.success() => Err("no lease has begun".to_owned()),
        Some(found) => Ok(found),
        None => Err(format!("not finished, {}: {last:?}", output.status)),
    }
}

/// Runs schedules in several threads, each of which has a simulation of its own. Those that fail come back.
fn run_many(first: u64, schedules: u64, threads: u64) -> (u64, Vec<Outcome>, u64) {
    let workers: Vec<_> = (0..threads)
        .map(|worker| {
            std::thread::spawn(move || {
                let (mut failed, mut leases, mut done) = (Vec::new(), 0, 0_u64);
                let mut told = Instant::now();
                for seed in (first + worker..first + schedules)
                    .step_by(usize::try_from(threads).unwrap_or(1))
                {
                    let outcome = run(seed, false);
                    done += 1;
                    leases += outcome.leases;
                    if !outcome.violations.is_empty() {
                        if failed.len() < 20 {
                            eprintln!("seed {seed}: {}", outcome.violations[0]);
                        }
                        failed.push(outcome);
                    }
                    if worker == 0 && told.elapsed() > Duration::from_secs(30) {
                        told = Instant::now();
                        eprintln!("… {} schedules", done * threads);
                    }
                }
                (done, failed, leases)
            })
        })
        .collect();
    let (mut done, mut failed, mut leases) = (0, Vec::new(), 0);
    for worker in workers {
        let (one, more, some) = worker.join().expect("a worker catches what panics");
        done += one;
        leases += some;
        failed.extend(more);
    }
    failed.sort_by_key(|outcome| outcome.seed);
    (done, failed, leases)
}

fn report(schedules: u64, outcomes: &[Outcome], leases: u64) -> ExitCode {
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|outcome| !outcome.violations.is_empty())
        .collect();
    if let Some(first) = failed.first() {
        for violation in &first.violations {
            println!("{violation}");
        }
        println!("first failing seed: {}", first.seed);
    }
    println!("{schedules} schedules, {} violations", failed.len());
    if failed.is_empty() && leases > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests;
