//! `cargo xtask fuzz`: every parser and every state machine against input that a fuzzer makes up.
//!
//! The targets are in `fuzz/`, laid out for `cargo fuzz`, but that tool and its nightly compiler are
//! not needed: the targets are built here with the same coverage flags and without a sanitizer, which
//! the stable compiler can do. What would be a finding of a sanitizer cannot happen in these crates,
//! since they forbid unsafe code; panics, overflows, memory and time are found without one.
//!
//! New inputs are kept below `target/fuzz/corpus`, so that the next run goes on from there; the
//! committed ones in `fuzz/corpus` are read and never changed.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use cargo_metadata::{MetadataCommand, TargetKind};

use crate::build;

/// What the coverage of libFuzzer needs, as `cargo fuzz` gives it to the compiler.
const RUSTFLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg",
    "fuzzing",
];

/// An input that takes longer is a finding. Inputs take microseconds; the rest is for slow machines.
const INPUT_TIMEOUT_SECS: u32 = 20;
/// A target that ever uses more is a finding.
const MEMORY_MIB: u32 = 512;
/// And an allocation that would take more than this in all fails, even if it is never written to.
const ADDRESS_SPACE_KIB: u32 = 2 * 1024 * 1024;
/// Longest input. Every frame and packet of Interledger can be reached with less.
const MAX_INPUT_BYTES: u32 = 4096;

/// How one target ended.
struct Run {
    executions: u64,
    crash: Option<PathBuf>,
}

pub(crate) fn run(seconds: u32, only: &[String]) -> Result<()> {
    let fuzz = build::workspace().join("fuzz");
    let mut targets = targets(&fuzz)?;
    if let Some(unknown) = only.iter().find(|name| !targets.contains(name)) {
        bail!("no target {unknown}; there are {}", targets.join(", "));
    }
    targets.retain(|name| only.is_empty() || only.contains(name));
    let programs = build(&fuzz, &targets)?;
    let (mut executions, mut crashes) = (0, Vec::new());
    for target in &targets {
        println!("== {target}, {seconds} s");
        let run = run_target(&fuzz, &programs, target, seconds)
            .with_context(|| format!("fuzzing {target}"))?;
        executions += run.executions;
        if let Some(input) = run.crash {
            println!("{target} crashed on {}", input.display());
            println!(
                "replay: {} {}",
                programs.join(target).display(),
                input.display()
            );
            crashes.push(target);
        }
    }
    println!(
        "{} targets, {executions} executions, {} crashes",
        targets.len(),
        crashes.len()
    );
    if !crashes.is_empty() {
        // The summary stays the last line.
        process::exit(1);
    }
    Ok(())
}

/// The names of all targets, as they stand in the manifest.
fn targets(fuzz: &Path) -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(fuzz.join("Cargo.toml"))
        .no_deps()
        .exec()?;
    Ok(metadata
        .packages
        .iter()
        .flat_map(|package| &package.targets)
        .filter(|target| target.kind.contains(&TargetKind::Bin))
        .map(|target| target.name.clone())
        .collect())
}

/// Builds the targets and returns the directory that they are in.
fn build(fuzz: &Path, targets: &[String]) -> Result<PathBuf> {
    // With a target triple the flags do not reach build scripts, which could not be linked with them.
    let triple = host_triple()?;
    let directory = build::target_dir().join("fuzz");
    let status = build::cargo_command()
        .args(["build", "--release", "--locked", "--target", &triple])
        .arg("--manifest-path")
        .arg(fuzz.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&directory)
        .args(targets.iter().flat_map(|name| ["--bin", name]))
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\u{1f}"))
        .status()?;
    if !status.success() {
        bail!("the fuzz targets could not be built ({status}); a C++ compiler is needed");
    }
    Ok(directory.join(triple).join("release"))
}

fn host_triple() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output()?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say its host")?.to_owned())
}

fn run_target(fuzz: &Path, programs: &Path, target: &str, seconds: u32) -> Result<Run> {
    let kept = build::target_dir().join("fuzz/corpus").join(target);
    let artifacts = build::target_dir().join("fuzz/artifacts").join(target);
    let committed = fuzz.join("corpus").join(target);
    for directory in [&kept, &artifacts, &committed] {
        fs::create_dir_all(directory)?;
    }
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(format!(r#"ulimit -v {ADDRESS_SPACE_KIB} && exec "$@""#))
        .arg(target)
        .arg(programs.join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_TIMEOUT_SECS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-max_len={MAX_INPUT_BYTES}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-reload=0"])
        .args([&kept, &committed])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let output = child.stderr.take().context("standard error is a pipe")?;
    let mut run = Run {
        executions: 0,
        crash: None,
    };
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            run.executions = count.trim().parse()?;
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            run.crash = Some(path.into());
        }
        if is_worth_showing(&line) {
            println!("{line}");
        }
    }
    let status = child.wait()?;
    if !status.success() && run.crash.is_none() {
        bail!("the target ended with {status} and left no input");
    }
    Ok(run)
}

/// What a panic says, and the summary with the coverage; not each new input, nor advice.
fn is_worth_showing(line: &str) -> bool {
    let noise = ["INFO: ", "WARNING: ", "stat::", "###### ", "\""];
    let progress = line.starts_with('#') && !line.contains("DONE ");
    !progress && !noise.iter().any(|prefix| line.starts_with(prefix))
}
