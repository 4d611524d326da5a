//! `cargo xtask session`: what an uploader does and sees, from a real run at a real host. It writes
//! docs/session.txt, and the same into the README between its two marks.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use codius_testkit::{Entry, ImageBuilder, Layer, Registry};
use serde_json::Value;

use crate::{
    build,
    demo::{Host, fetch},
    guest, packages,
};

const FILE: &str = "docs/session.txt";
const README: &str = "README.md";
/// The marks, which are not shown.
const BEGIN: &str = "<!-- made by `cargo xtask session` -->\n```\n";
const END: &str = "```\n<!-- end of the session -->";
const IMAGE: &str = "hello:1.0.0";
const STATE_FILE: &str = "default.codiusstate.json";

pub(crate) fn run(yes: bool) -> Result<()> {
    packages::require_root("a session at a real host")?;
    packages::ensure(&[packages::HOST], yes)?;
    let programs = build::programs(build::Profile::Dev)?;
    let guest_dir = guest::default_dir();
    guest::build(&guest_dir, &guest::Options::default())?;
    let hello = guest::build_static(&guest_dir, "codius-example-hello")?;

    let place = tempfile::Builder::new()
        .prefix("codius-session-")
        .tempdir()?;
    let registry = Registry::start()?;
    let image = push(&registry, &hello)?;
    let mut host = Host::start(&programs.codiusd, place.path(), &guest_dir, 0, &registry)?;
    let mut desk = Desk::new(place.path(), &programs.codius, &host)?;

    desk.shell(&["init", &image, "--port", "8080", "-e", "PORT=8080", "-y"])?;
    desk.shell(&["hosts", "--add", &host.api.clone()])?;
    desk.terminal(&["price"])?;
    desk.shell(&["upload", "-y"])?;
    let state: Value = serde_json::from_slice(&fs::read(desk.directory.join(STATE_FILE))?)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let hash = text(&state["manifestHash"]).context("no hash in the state file")?;
    let details = &state["status"]["hostDetails"][host.api.as_str()];
    let url = text(&details["url"]).context("no URL in the state file")?;
    // So that there is something in its log.
    fetch(&url)?;
    desk.terminal(&["pods"])?;
    desk.shell(&["status", &hash])?;
    desk.shell(&["logs", &hash])?;
    desk.shell(&["stop", "-y"])?;
    desk.shell(&["pods"])?;
    host.stop()?;

    let path = build::workspace().join(FILE);
    fs::write(&path, &desk.transcript)?;
    let readme = build::workspace().join(README);
    let shown = replaced(&fs::read_to_string(&readme)?, &desk.transcript)?;
    fs::write(readme, shown)?;
    print!("{}", desk.transcript);
    println!("{}", path.display());
    Ok(())
}

/// The README with another session in it.
fn replaced(readme: &str, session: &str) -> Result<String> {
    let (before, rest) = readme.split_once(BEGIN).context("no mark in the README")?;
    let (_, after) = rest
        .split_once(END)
        .context("no second mark in the README")?;
    Ok(format!("{before}{BEGIN}{session}{END}{after}"))
}

fn push(registry: &Registry, program: &Path) -> Result<String> {
    let layer = Layer::new().entry(Entry::file("hello", 0o755, fs::read(program)?));
    let image = ImageBuilder::new()
        .layer(layer)
        .entrypoint(&["/hello"])
        .user("65534:65534");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(image.push(registry, IMAGE))?;
    Ok(format!("{}/{IMAGE}", registry.host()))
}

/// A directory to work in, and what was typed and seen.
struct Desk {
    directory: PathBuf,
    home: PathBuf,
    codius: PathBuf,
    interledger: String,
    transcript: String,
}

impl Desk {
    fn new(place: &Path, codius: &Path, host: &Host) -> Result<Self> {
        let (directory, home) = (place.join("work"), place.join("home"));
        fs::create_dir(&directory)?;
        fs::create_dir(&home)?;
        let transcript = format!(
            "A real run of the tool at a host in local mode; made by `cargo xtask session`.\n\n\
             $ export ILP_BTP_SERVER={}\n",
            host.interledger
        );
        Ok(Self {
            directory,
            home,
            codius: codius.to_owned(),
            interledger: host.interledger.clone(),
            transcript,
        })
    }

    /// Runs the tool as a script does; its progress is plain lines then.
    fn shell(&mut self, words: &[&str]) -> Result<()> {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "exec \"$0\" \"$@\" 2>&1"])
            .arg(&self.codius)
            .args(words);
        self.take(command, words)
    }

    /// Runs the tool on a terminal, on which columns have names.
    fn terminal(&mut self, words: &[&str]) -> Result<()> {
        let mut command = Command::new("script");
        let line = format!("{} {}", self.codius.display(), words.join(" "));
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        self.take(command, words)
    }

    fn take(&mut self, mut command: Command, words: &[&str]) -> Result<()> {
        let output = command
            .current_dir(&self.directory)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &self.home)
            .env("TZ", "UTC")
            .env("ILP_BTP_SERVER", &self.interledger)
            .output()?;
        let text = String::from_utf8(output.stdout)?.replace('\r', "");
        ensure!(
            output.status.success(),
            "codius {words:?} failed ({}):\n{text}",
            output.status
        );
        write!(self.transcript, "\n$ codius {}\n{text}", words.join(" "))?;
        Ok(())
    }
}
