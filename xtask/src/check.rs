//! `cargo xtask test`: everything that has to hold before a change lands.

use std::process::Command;

use anyhow::Result;

use crate::{
    build::{self, cargo},
    guest, layers, packages,
};

/// Test programs that run JavaScript peers.
const INTEROP: &[&str] = &[
    "differential",
    "fetch",
    "interop",
    "javascript",
    "javascript_stream",
    "original",
    "program",
    "scenario",
    "spsp",
    "tls",
    "uplink",
];

/// Every test, including those that boot pods; the runner's summary is the last thing printed.
pub(crate) fn test(yes: bool, filter: &[String]) -> Result<()> {
    packages::require_root("testing with real pods")?;
    packages::ensure(&[packages::HOST, packages::TEST, packages::JAVASCRIPT], yes)?;
    if filter.is_empty() {
        step("rustfmt", || cargo(&["fmt", "--all", "--check"]))?;
        step("layers", layers::check)?;
        step("clippy", || {
            cargo(&[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "--deny",
                "warnings",
            ])
        })?;
    }
    step("guest image", || {
        let dir = guest::default_dir();
        guest::build(&dir, &guest::Options::default())?;
        // What the tests of the whole host upload.
        guest::build_static(&dir, "codius-example-hello")?;
        // What tests of the pod's walls run in it.
        guest::build_hostile(&dir).map(drop)
    })?;
    // Tests of the whole host run these programs; they are built once, here.
    step("programs", || {
        build::programs(build::Profile::Dev).map(drop)
    })?;
    println!("== tests");
    let mut args = if has_nextest() {
        vec!["nextest", "run", "--workspace", "--no-fail-fast"]
    } else {
        vec!["test", "--workspace", "--no-fail-fast"]
    };
    args.extend(filter.iter().map(String::as_str));
    cargo(&args)
}

/// The tests with the original programs and libraries from npm, alone. They are part of [`test`], too.
pub(crate) fn interop(yes: bool) -> Result<()> {
    packages::require_root("testing with real peers")?;
    packages::ensure(&[packages::HOST, packages::TEST, packages::JAVASCRIPT], yes)?;
    let dir = guest::default_dir();
    guest::build(&dir, &guest::Options::default())?;
    guest::build_static(&dir, "codius-example-hello")?;
    build::programs(build::Profile::Dev)?;
    let mut args = if has_nextest() {
        vec!["nextest", "run", "--workspace", "--no-fail-fast"]
    } else {
        vec!["test", "--workspace", "--no-fail-fast"]
    };
    for name in INTEROP {
        args.extend(["--test", name]);
    }
    cargo(&args)
}

fn step(name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    step()
}

fn has_nextest() -> bool {
    Command::new("cargo")
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}
