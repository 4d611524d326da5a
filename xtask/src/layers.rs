//! Checks that the arrows between our crates never point up, and that the pure crates stay pure.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// The ladder, lowest first. A crate may use crates of lower layers, and of its own layer only those
/// that are named in [`SIDEWAYS`].
const LAYERS: &[(&str, &[&str])] = &[
    (
        "wire",
        &[
            "ilp-packet",
            "ilp-btp",
            "ilp-stream",
            "codius-manifest",
            "codius-guest-protocol",
            "codius-api",
            "codius-address",
            "codius-signature",
        ],
    ),
    (
        "logic",
        &[
            "codius-ledger",
            "codius-pod",
            "codius-peers",
            "ilp-connector",
        ],
    ),
    (
        "I/O",
        &[
            "codius-store",
            "codius-outbound",
            "codius-image",
            "codius-jailer",
            "codius-microvm",
            "ilp-link",
            "codius-proxy",
            "codius-client",
        ],
    ),
    (
        "programs",
        &[
            "codiusd",
            "codius",
            "codius-guest-agent",
            "codius-example-hello",
            "codius-self-test",
        ],
    ),
];

/// Arrows within a layer: who uses whom.
const SIDEWAYS: &[(&str, &str)] = &[
    ("ilp-btp", "ilp-packet"),
    ("ilp-stream", "ilp-packet"),
    ("codius-api", "codius-manifest"),
    ("codius-client", "ilp-link"),
    ("codius-image", "codius-outbound"),
];

/// What a wire crate may not reach, directly or through others: a runtime, a socket, a clock.
const IMPURE: &[&str] = &[
    "tokio",
    "mio",
    "socket2",
    "async-std",
    "smol",
    "hyper",
    "reqwest",
    "jiff",
    "chrono",
    "time",
];
/// And not directly: randomness is passed in (`ring` itself contains a generator that we do not use).
const IMPURE_DIRECT: &[&str] = &["rand", "getrandom", "fastrand"];
/// Crates that may contain unsafe code.
const UNSAFE: &[&str] = &["codius-microvm", "codius-guest-agent"];

pub(crate) fn check() -> Result<()> {
    let metadata = MetadataCommand::new().exec()?;
    let mut faults = Vec::new();
    let rank: BTreeMap<&str, usize> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(rank, (_, crates))| crates.iter().map(move |name| (*name, rank)))
        .collect();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        if matches!(
            name,
            "xtask" | "codius-testkit" | "codius-bench" | "codius-crash"
        ) {
            continue;
        }
        let Some(&own) = rank.get(name) else {
            faults.push(format!(
                "{name} is in no layer: name it in xtask/src/layers.rs"
            ));
            continue;
        };
        for dependency in direct(package) {
            let Some(&other) = rank.get(dependency) else {
                if dependency == "codius-testkit" {
                    faults.push(format!("{name} uses codius-testkit outside of its tests"));
                }
                continue;
            };
            if other > own || (other == own && !SIDEWAYS.contains(&(name, dependency))) {
                faults.push(format!(
                    "{name} ({}) uses {dependency} ({})",
                    LAYERS[own].0, LAYERS[other].0
                ));
            }
        }
        if LAYERS[own].0 == "wire" {
            let reached = reached(&metadata, package);
            let direct: BTreeSet<&str> = direct(package).collect();
            faults.extend(
                IMPURE
                    .iter()
                    .filter(|crate_name| reached.contains(**crate_name))
                    .chain(
                        IMPURE_DIRECT
                            .iter()
                            .filter(|crate_name| direct.contains(**crate_name)),
                    )
                    .map(|crate_name| format!("{name} is a wire crate and reaches {crate_name}")),
            );
        }
        if !UNSAFE.contains(&name) {
            faults.extend(
                allows_unsafe(package).map(|file| format!("{name} allows unsafe code in {file}")),
            );
        }
    }
    if faults.is_empty() {
        println!("layers: {} crates, no arrow points up", rank.len());
        return Ok(());
    }
    bail!("layers:\n  {}", faults.join("\n  "))
}

fn direct(package: &Package) -> impl Iterator<Item = &str> {
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind == DependencyKind::Normal)
        .map(|dependency| dependency.name.as_str())
}

/// Names of all crates that a package reaches through normal dependencies, as cargo has resolved them.
fn reached<'m>(metadata: &'m Metadata, package: &Package) -> BTreeSet<&'m str> {
    let Some(resolve) = &metadata.resolve else {
        return BTreeSet::new();
    };
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut names = BTreeSet::new();
    let mut todo = vec![&package.id];
    let mut seen = BTreeSet::new();
    while let Some(id) = todo.pop() {
        let Some(node) = nodes.get(id) else { continue };
        for dependency in &node.deps {
            let normal = dependency
                .dep_kinds
                .iter()
                .any(|kind| kind.kind == DependencyKind::Normal);
            if normal && seen.insert(&dependency.pkg) {
                names.insert(metadata[&dependency.pkg].name.as_str());
                todo.push(&dependency.pkg);
            }
        }
    }
    names
}

/// Source files of a package that lift the workspace's ban on unsafe code.
fn allows_unsafe(package: &Package) -> impl Iterator<Item = String> {
    let sources = package.manifest_path.parent().map(|root| root.join("src"));
    let mut files = Vec::new();
    let mut todo: Vec<_> = sources
        .into_iter()
        .map(cargo_metadata::camino::Utf8PathBuf::into_std_path_buf)
        .collect();
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(
                path.read_dir()
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path()),
            );
        } else if std::fs::read_to_string(&path).is_ok_and(|text| {
            text.contains("allow(unsafe_code") || text.contains("expect(unsafe_code")
        }) {
            files.push(path.display().to_string());
        }
    }
    files.into_iter()
}
