//! What a person with the tool has: a directory, a key, an Interledger connection, and hosts.
//!
//! The connection is a real connector with play money and a real BTP server, in this process. The hosts
//! ([`host`]) are HTTP servers in this process too, because they do what no real host does: they lie.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod host;
pub(crate) mod network;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// A directory to work in, and a home of its own.
pub(crate) struct Desk {
    place: tempfile::TempDir,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let place = tempfile::tempdir().expect("there is room for a directory");
        for name in ["work", "home", "bin"] {
            fs::create_dir(place.path().join(name)).expect("the directory is ours");
        }
        Self { place }
    }

    /// With the example program in it.
    pub(crate) fn with_program() -> Self {
        let desk = Self::new();
        desk.write("codius.json", &program());
        desk
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.place.path().join("work")
    }

    pub(crate) fn bin(&self) -> PathBuf {
        self.place.path().join("bin")
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.place.path().join("home")
    }

    pub(crate) fn write(&self, name: &str, content: &Value) {
        let path = self.work().join(name);
        fs::write(path, format!("{content:#}")).expect("the directory is ours");
    }

    pub(crate) fn read(&self, name: &str) -> Value {
        let text = fs::read(self.work().join(name)).expect("the file is there");
        serde_json::from_slice(&text).expect("the file is JSON")
    }

    /// The tool, with nothing of this machine's settings.
    pub(crate) fn tool(&self, words: &[&str]) -> Command {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_codius"));
        let path = format!("{}:/usr/bin:/bin", self.bin().display());
        tool.args(words)
            .current_dir(self.work())
            .env_clear()
            .env("HOME", self.home())
            .env("PATH", path)
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        tool
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, words: &[&str]) -> Told {
        let mut tool = self.tool(words);
        let output = tokio::task::spawn_blocking(move || tool.output())
            .await
            .expect("nothing panics there")
            .expect("the tool can be run");
        Told::new(&output, self.place.path())
    }
}

/// What the tool has said.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
    /// Where this run's files are.
    pub(crate) place: String,
}

impl Told {
    fn new(output: &Output, place: &Path) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code(),
            out: text(&output.stdout),
            err: text(&output.stderr),
            place: place.display().to_string(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// Everything, with names for what is different in each run.
    pub(crate) fn all(&self, names: &[(&str, &str)]) -> String {
        let code = self
            .code
            .map_or("killed".to_owned(), |code| code.to_string());
        let text = format!("{}{}[exit code {code}]", self.err, self.out);
        named(&text.replace(&self.place, "PLACE"), names)
    }
}

/// Text with names for what is different in each run.
pub(crate) fn named(text: &str, names: &[(&str, &str)]) -> String {
    names
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// A program that needs no registry to be quoted.
pub(crate) fn program() -> Value {
    let digest = "3e2ffcf0edca2a4e9b24ca442d227baea7b7f0e33ad654ef1eb806fbd9bedcf0";
    json!({ "manifest": {
        "name": "hello", "version": "1.0.0", "machine": "small", "port": "8080",
        "containers": [{ "id": "app", "image": format!("hello@sha256:{digest}") }]
    }})
}

/// Waits until something is true.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "it should be true by now");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const LONG: Duration = Duration::from_secs(60);
