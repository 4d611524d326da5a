//! One scenario (scenario.json), two tools: `codius` 3.1.0 of the first Codius, unmodified from npm, and ours.
//! Each begins with an empty directory and a host of its own, and has to leave the same state file behind.
//!
//! Everything runs in a network of its own, in which the name of the host leads to it by way of a real
//! nginx with TLS. Both tools pay by their default connection, the host's own port 7768.

mod support;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use codius_manifest::{ManifestHash, Upload};
use codius_testkit::{Background, Front, Listen, NODE, NetworkNamespace, Packages};
use serde::Deserialize;
use serde_json::{Value, json};
use support::{Settings, World};

const SCENARIO: &str = include_str!("scenario.json");
const ORIGINAL: Packages<'_> = Packages {
    packages: &[("codius", "3.1.0"), NODE],
    overrides: &[],
};
const NAME: &str = "host.example";
const HOST: &str = "https://host.example";
const PORT: u16 = 3000;
/// An upload boots a machine under emulation; the original gives up after 70 s.
const TOOL_TIMEOUT: Duration = Duration::from_secs(120);
/// How far apart two readings of one expiry are: it is derived from a balance, rounded.
const EXPIRY_SLACK_MS: u64 = 100;
/// How many lines, one a second, a tail has to see that were written after it began.
const LATER_LINES: usize = 4;

#[derive(Debug, Deserialize)]
struct Scenario {
    codius: Value,
    codiusvars: Value,
    steps: Vec<Step>,
    /// By the host's own books.
    paid_in_all: i64,
    #[serde(rename = "about")]
    _about: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    step: String,
    words: Vec<String>,
    #[serde(default)]
    fails: bool,
    /// What visitors see afterwards.
    page: Option<String>,
    /// The `options` of the state file.
    options: Option<Value>,
    /// What the state file says was paid to the host.
    paid: Option<Paid>,
    longer_by_seconds: Option<u64>,
    /// The tool goes on and writes these lines, in any order.
    #[serde(default)]
    follows: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Paid {
    total: String,
    last: String,
}

/// Which of the two.
enum Tool {
    Original { node: PathBuf, script: PathBuf },
    Ours(PathBuf),
}

impl Tool {
    fn original() -> Result<Self> {
        let modules = ORIGINAL.install(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        Ok(Self::Original {
            node: modules.join(NODE.0).join("bin/node"),
            script: modules.join("codius/bin/codius.js"),
        })
    }

    fn ours() -> Result<Self> {
        let program = Path::new(env!("CARGO_BIN_EXE_codiusd")).with_file_name("codius");
        ensure!(
            program.is_file(),
            "{} is missing; run the tests with `cargo xtask test`",
            program.display()
        );
        Ok(Self::Ours(program))
    }
}

/// A directory, and the tool that works in it.
struct Desk<'a> {
    tool: Tool,
    network: &'a NetworkNamespace,
    authority: PathBuf,
    place: tempfile::TempDir,
}

impl Desk<'_> {
    fn write(&self, name: &str, content: &Value) -> Result<()> {
        Ok(fs::write(
            self.place.path().join(name),
            content.to_string(),
        )?)
    }

    fn state(&self) -> Result<Value> {
        let state = fs::read(self.place.path().join("default.codiusstate.json"))?;
        Ok(serde_json::from_slice(&state)?)
    }

    fn command(&self, words: &[String]) -> Command {
        let mut command = self.network.command("/bin/sh");
        command.args(["-c", "exec \"$@\" 2>&1", "sh"]);
        match &self.tool {
            Tool::Original { node, script } => command.arg(node).arg(script),
            Tool::Ours(program) => command.arg(program),
        };
        command
            .args(words)
            .current_dir(self.place.path())
            .env("HOME", self.place.path())
            .env("NODE_EXTRA_CA_CERTS", &self.authority)
            .env("SSL_CERT_FILE", &self.authority);
        let inherited = [
            "ILP_PLUGIN",
            "ILP_CREDENTIALS",
            "ILP_BTP_SERVER",
            "DEBUG",
            "XDG_CONFIG_HOME",
            "XDG_DATA_HOME",
        ];
        for name in inherited {
            command.env_remove(name);
        }
        command
    }

    fn start(&self, words: &[String]) -> Result<Background> {
        Background::start(&self.command(words), Listen::Output)
    }
}

#[test]
fn the_original_tool_follows_the_scenario() -> Result<()> {
    in_network(Tool::original()?)
}

#[test]
fn our_tool_follows_the_scenario() -> Result<()> {
    in_network(Tool::ours()?)
}

fn in_network(tool: Tool) -> Result<()> {
    let network = Arc::new(NetworkNamespace::new()?);
    network.enter()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(follow(network, tool))
}

async fn follow(network: Arc<NetworkNamespace>, tool: Tool) -> Result<()> {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let at = SocketAddr::new(address, PORT);
    let front = Front::start(&network, address, &[(NAME, at)])?;
    let mut world = World::start(Settings {
        listen: format!("127.0.0.1:{PORT}"),
        interledger_port: 7768,
        public_uri: Some(HOST.to_owned()),
        network: Some(Arc::clone(&network)),
        ..Settings::default()
    })?;
    let scenario = SCENARIO.replace("{image}", &world.busybox().await?);
    let scenario: Scenario = serde_json::from_str(&scenario)?;
    let desk = Desk {
        tool,
        network: &network,
        authority: front.authority(),
        place: tempfile::Builder::new().prefix("codius-tool-").tempdir()?,
    };
    desk.write("codius.json", &scenario.codius)?;
    desk.write("codiusvars.json", &scenario.codiusvars)?;
    let mut running = None;
    for step in &scenario.steps {
        println!("{}", step.step);
        running = take(step, running, &desk)
            .await
            .with_context(|| step.step.clone())?;
    }

    world.stop()?;
    let balances = world.balances().await?;
    let clients = ("local:clients".to_owned(), -scenario.paid_in_all);
    ensure!(balances.contains(&clients), "{balances:?}");
    Ok(())
}

/// What was uploaded, and until when it ran at the last look.
#[derive(Clone, Copy)]
struct Running {
    hash: ManifestHash,
    until_ms: u64,
}

/// One step, and all that has to hold after it.
async fn take(step: &Step, before: Option<Running>, desk: &Desk<'_>) -> Result<Option<Running>> {
    if step.follows.is_empty() {
        let words = filled(&step.words, before, 0);
        let (succeeded, text) = desk.start(&words)?.output(TOOL_TIMEOUT)?;
        ensure!(succeeded != step.fails, "{words:?}:\n{text}");
    } else {
        let now = ticks(before.context("nothing runs")?.hash).await?;
        let tail = desk.start(&filled(&step.words, before, 0))?;
        seen(&tail, &filled(&step.follows, before, now + LATER_LINES))?;
    }

    let state = desk.state()?;
    let hash = Upload::parse(state["generatedManifest"].to_string().as_bytes())?.hash();
    ensure!(state["manifestHash"] == hash.to_string(), "{state}");
    ensure!(state["hostList"] == json!([HOST]), "{state}");
    let until_ms = expiry(hash).await?;
    let details = &state["status"]["hostDetails"][HOST];
    ensure!(
        details["url"] == format!("https://{hash}.{NAME}/"),
        "{state}"
    );
    if let Some(options) = &step.options {
        ensure!(state["options"] == *options, "{state}");
    }
    if let Some(Paid { total, last }) = &step.paid {
        let price = json!({ "totalPaid": total, "lastPaid": last, "units": "nXRP" });
        ensure!(details["price"] == price, "{state}");
    }
    if let Some(seconds) = step.longer_by_seconds {
        let was = before.context("nothing ran before")?.until_ms;
        let difference = until_ms.abs_diff(was + seconds * 1000);
        ensure!(
            difference <= EXPIRY_SLACK_MS,
            "{was} + {seconds} s: {until_ms}"
        );
    }
    if let Some(page) = &step.page {
        let page = page.replace("{host}", HOST);
        let got = get(&format!("{hash}.{NAME}"), "/").await?;
        ensure!(got == (200, page), "{got:?}");
    }
    Ok(Some(Running { hash, until_ms }))
}

fn filled(words: &[String], running: Option<Running>, later: usize) -> Vec<String> {
    let hash = running.map_or_else(String::new, |running| running.hash.to_string());
    let fill = |word: &String| {
        word.replace("{host}", HOST)
            .replace("{url}", &format!("https://{hash}.{NAME}/"))
            .replace("{hash}", &hash)
            .replace("{nobody}", &"a".repeat(52))
            .replace("{later}", &later.to_string())
    };
    words.iter().map(fill).collect()
}

/// Reads until every text was seen, in any order.
fn seen(running: &Background, texts: &[String]) -> Result<()> {
    let deadline = Instant::now() + TOOL_TIMEOUT;
    let mut all = String::new();
    while let Some(missing) = texts.iter().find(|text| !all.contains(text.as_str())) {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = running.line(left);
        all += &line.with_context(|| format!("no {missing:?} in:\n{all}"))?;
        all += "\n";
    }
    Ok(())
}

async fn get(host: &str, path: &str) -> Result<(u16, String)> {
    let request = reqwest::Client::new()
        .get(format!("http://127.0.0.1:{PORT}{path}"))
        .header("Host", host)
        .timeout(Duration::from_secs(20));
    let response = request.send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// When a pod expires, in milliseconds since 1970, as its host says.
async fn expiry(hash: ManifestHash) -> Result<u64> {
    let (status, text) = get(NAME, &format!("/pods?manifestHash={hash}")).await?;
    ensure!(status == 200, "{status} {text}");
    let reply: codius_api::PodStatusReply = serde_json::from_str(&text)?;
    Ok(reply.expiry.get())
}

/// How many lines the program has written so far.
async fn ticks(hash: ManifestHash) -> Result<usize> {
    let (status, text) = get(NAME, &format!("/pods/{hash}/logs")).await?;
    ensure!(status == 200, "{status} {text}");
    Ok(text.matches("tick").count())
}
