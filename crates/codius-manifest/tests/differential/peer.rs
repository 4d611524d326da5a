//! The original libraries in a Node process.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

/// Where the libraries are listed, and the script that asks them.
const LISTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/npm");

pub(crate) struct Peer;

impl Peer {
    /// Asks one Node process all questions and returns its answers, one for each.
    pub(crate) fn ask(questions: impl Iterator<Item = Value>) -> Vec<Value> {
        let modules = installed().join("node_modules");
        let mut node = Command::new("node")
            .arg(Path::new(LISTED).join("peer.js"))
            .env("NODE_PATH", modules)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Node runs; install the package `nodejs`");
        let mut input = node.stdin.take().expect("standard input is a pipe");
        let questions: Vec<String> = questions.map(|question| format!("{question}\n")).collect();
        let count = questions.len();
        // Node answers while it is asked, so both directions have to be served at once.
        let asking = std::thread::spawn(move || {
            for question in questions {
                input
                    .write_all(question.as_bytes())
                    .expect("Node reads the questions");
            }
        });
        let output = BufReader::new(node.stdout.take().expect("standard output is a pipe"));
        let answers: Vec<Value> = output
            .lines()
            .map(|line| {
                serde_json::from_str(&line.expect("Node writes text")).expect("an answer is JSON")
            })
            .collect();
        assert!(
            node.wait().expect("Node ends").success(),
            "Node failed; its error is above"
        );
        asking.join().expect("all questions were asked");
        assert_eq!(answers.len(), count, "one answer for each question");
        answers
    }
}

/// The directory with the libraries, installed once per lock file. Several tests may come here at
/// the same time: each installs into a directory of its own, and one of them gets the name.
fn installed() -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock =
        std::fs::read(Path::new(LISTED).join("package-lock.json")).expect("the lock file is there");
    let digest = ring::digest::digest(&ring::digest::SHA256, &lock);
    let name = data_encoding::HEXLOWER.encode(&digest.as_ref()[..8]);
    let ready = root.join(format!("manifest-peer-{name}"));
    if ready.exists() {
        return ready;
    }
    let own = root.join(format!("manifest-peer-{name}.{}", std::process::id()));
    std::fs::create_dir_all(&own).expect("the target directory can be written");
    for file in ["package.json", "package-lock.json"] {
        std::fs::copy(Path::new(LISTED).join(file), own.join(file))
            .expect("the file can be copied");
    }
    let status = Command::new("npm")
        .args([
            "ci",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--loglevel=error",
        ])
        .current_dir(&own)
        .status()
        .expect("npm runs; install the package `npm`");
    assert!(
        status.success(),
        "npm could not install the original libraries"
    );
    if std::fs::rename(&own, &ready).is_err() {
        // Another test was faster.
        assert!(
            ready.exists(),
            "the installed libraries could not be put into place"
        );
        let _ = std::fs::remove_dir_all(&own);
    }
    ready
}
