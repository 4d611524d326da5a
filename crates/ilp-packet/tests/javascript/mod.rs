//! The JavaScript libraries of Interledger in one Node process, and random values to ask it about.
//!
//! Shared by the differential tests of the three wire crates of Interledger. `CODIUS_TEST_SEED`
//! repeats a run, `CODIUS_TEST_CASES` changes its length.

#![allow(
    dead_code,
    reason = "each of the tests that share this uses a part of it"
)]

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

/// Where the libraries are listed, beside the script that asks them.
const LISTED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../ilp-packet/tests/javascript"
);

/// Asks one Node process all questions and returns its answers, one for each.
pub(crate) fn ask(questions: &[Value]) -> Vec<Value> {
    let mut node = Command::new("node")
        .arg(Path::new(LISTED).join("peer.js"))
        .env("NODE_PATH", installed().join("node_modules"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Node runs; install the package `nodejs`");
    let mut input = node.stdin.take().expect("standard input is a pipe");
    let lines: Vec<String> = questions
        .iter()
        .map(|question| format!("{question}\n"))
        .collect();
    // Node answers while it is asked, so both directions have to be served at once.
    let asking = std::thread::spawn(move || {
        for line in lines {
            input
                .write_all(line.as_bytes())
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
    let status = node.wait().expect("Node ends");
    assert!(status.success(), "Node failed; its error is above");
    asking.join().expect("all questions were asked");
    assert_eq!(answers.len(), questions.len(), "one answer for each");
    answers
}

/// The directory with the libraries, installed once per lock file. Several tests may come here at
/// the same time: each installs into a directory of its own, and one of them gets the name.
fn installed() -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock =
        std::fs::read(Path::new(LISTED).join("package-lock.json")).expect("the lock file is there");
    let mut hasher = DefaultHasher::new();
    lock.hash(&mut hasher);
    let ready = root.join(format!("interledger-peer-{:016x}", hasher.finish()));
    if ready.exists() {
        return ready;
    }
    let own = ready.with_extension(std::process::id().to_string());
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
    assert!(status.success(), "npm could not install the libraries");
    if std::fs::rename(&own, &ready).is_err() {
        assert!(
            ready.exists(),
            "the libraries could not be put into place, nor were they by another test"
        );
        let _ = std::fs::remove_dir_all(&own);
    }
    ready
}

/// How many cases a test generates.
pub(crate) fn cases() -> usize {
    match std::env::var("CODIUS_TEST_CASES") {
        Ok(text) => text.parse().expect("CODIUS_TEST_CASES is a number"),
        Err(_) => 3_000,
    }
}

/// Bytes as the peer writes them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// And back.
pub(crate) fn bytes(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("bytes are hexadecimal text");
    data_encoding::HEXLOWER
        .decode(text.as_bytes())
        .expect("bytes are hexadecimal text")
}

/// The number of cases of each kind; printed, and compared with what a test has to reach.
#[derive(Default)]
pub(crate) struct Tally(BTreeMap<&'static str, usize>);

impl Tally {
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    /// Fails if one of the kinds is rarer than one in a thousand: the generator has to reach it.
    pub(crate) fn check(&self, cases: usize, wanted: &[&'static str]) {
        println!("{:#?}", self.0);
        for what in wanted {
            let count = self.0.get(what).copied().unwrap_or(0);
            assert!(count * 1_000 >= cases, "only {count} of {what}");
        }
    }
}

/// Random values, with a liking for the boundaries of the encodings.
pub(crate) struct Random(pub(crate) StdRng);

impl Random {
    /// From the seed of this run, printed for the case that it fails.
    pub(crate) fn new() -> Self {
        let seed = match std::env::var("CODIUS_TEST_SEED") {
            Ok(text) => text.parse().expect("CODIUS_TEST_SEED is a number"),
            Err(_) => rand::random(),
        };
        println!("CODIUS_TEST_SEED={seed}");
        Self(StdRng::seed_from_u64(seed))
    }

    pub(crate) fn below(&mut self, below: usize) -> usize {
        self.0.random_range(0..below)
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.0.random_ratio(1, n)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.random()
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill(&mut bytes);
        bytes
    }

    pub(crate) fn uint(&mut self) -> u64 {
        const BOUNDARIES: [u64; 14] = [
            0,
            1,
            127,
            128,
            255,
            256,
            32_767,
            65_535,
            65_536,
            u32::MAX as u64,
            1 << 53,
            1 << 63,
            u64::MAX - 1,
            u64::MAX,
        ];
        match self.below(3) {
            0 => BOUNDARIES[self.below(BOUNDARIES.len())],
            1 => self.0.random::<u64>() >> self.below(64),
            _ => self.0.random_range(0..2_000),
        }
    }

    /// Length of a field; long ones are rare because they take long.
    pub(crate) fn len(&mut self, max: usize) -> usize {
        let len = match self.below(40) {
            0 => max,
            1 => [126, 127, 128, 129, 255, 256, 257, 1_023][self.below(8)],
            2..=9 => 0,
            _ => self.below(40),
        };
        len.min(max)
    }

    pub(crate) fn data(&mut self, max: usize) -> Vec<u8> {
        let mut data = vec![0; self.len(max)];
        self.0.fill(data.as_mut_slice());
        data
    }

    /// Text of at most `max` bytes with characters of one to four bytes.
    pub(crate) fn text(&mut self, max: usize) -> String {
        const CHARACTERS: [char; 10] = [
            'a', 'Z', '0', ' ', '"', '\0', 'é', '\u{2028}', '\u{ffff}', '😀',
        ];
        let len = self.len(max);
        let mut text = String::new();
        loop {
            let next = CHARACTERS[self.below(CHARACTERS.len())];
            if text.len() + next.len_utf8() > len {
                return text;
            }
            text.push(next);
        }
    }

    pub(crate) fn address(&mut self) -> String {
        const SCHEMES: [&str; 10] = [
            "g", "private", "example", "peer", "self", "test", "test1", "test2", "test3", "local",
        ];
        const CHARACTERS: &[u8] = b"abcXYZ019_~-";
        let mut address = SCHEMES[self.below(SCHEMES.len())].to_owned();
        if self.one_in(40) {
            let len = 1_023 - address.len() - 1;
            return format!("{address}.{}", "a".repeat(len));
        }
        for _ in 0..=self.below(4) {
            address.push('.');
            for _ in 0..=self.below(12) {
                address.push(char::from(CHARACTERS[self.below(CHARACTERS.len())]));
            }
        }
        address
    }

    /// Milliseconds since 1970 that the timestamp of ILPv4 can say, mostly of our time.
    pub(crate) fn millis(&mut self) -> u64 {
        match self.below(8) {
            // The JavaScript library takes 1970-01-01 itself for an error; see the tests.
            0 => self.0.random_range(1..=253_402_300_799_999),
            1 => 253_402_300_799_999,
            _ => self.0.random_range(1_700_000_000_000..1_900_000_000_000),
        }
    }

    /// Changes an encoding, in one of the ways that encodings go wrong.
    pub(crate) fn damaged(&mut self, mut encoded: Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.below(2) {
            if encoded.is_empty() {
                return encoded;
            }
            // Most of what can be damaged stands at the front.
            let reach = encoded.len().min(if self.one_in(2) { 12 } else { 200 });
            let at = self.below(reach);
            match self.below(8) {
                0 | 1 => encoded[at] ^= 1 << self.below(8),
                2 => encoded[at] = self.byte(),
                3 => encoded.truncate(at),
                4 => encoded.insert(at, self.byte()),
                5 => drop(encoded.remove(at)),
                6 => encoded.extend(self.array::<3>()),
                // A length in more bytes than it needs.
                _ => {
                    let zeros = 1 + self.byte() % 5;
                    let mut length = vec![0x81 + zeros];
                    length.extend((0..zeros).map(|_| 0));
                    length.push(encoded[at]);
                    encoded.splice(at..=at, length);
                }
            }
        }
        encoded
    }
}
