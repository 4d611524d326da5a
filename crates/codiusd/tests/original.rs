//! The tool of the first Codius, `codius` 3.1.0 from npm, unmodified and with its defaults, against this
//! host: at the host's own port 7768, and through the real `moneyd local`.
//!
//! Everything runs in a network of its own, in which the names that the tool has built in lead to our hosts
//! by way of a real nginx. The tool runs on the Node.js of its time. Nothing stands in for the exchange rates
//! that it looks up on the internet: it does not while its units are the host's asset. Not tested: that its
//! search grows by the peers of a host, as these hosts know of none; and `cron`, which needs a crontab.

mod support;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use codius_manifest::{ManifestHash, Upload};
use codius_testkit::{
    Background, Front, Listen, Moneyd, NODE, NetworkNamespace, Packages,
    moneyd::{MONEYD, MONEYD_OVERRIDE},
};
use serde_json::{Value, json};
use support::{Settings, World, shell};

const TOOL: Packages<'_> = Packages {
    packages: &[("codius", "3.1.0"), NODE],
    overrides: &[],
};
const PARENT: Packages<'_> = Packages {
    packages: &[MONEYD],
    overrides: &[MONEYD_OVERRIDE],
};
/// An upload boots a machine under emulation; the tool itself gives up after 70 s.
const TOOL_TIMEOUT: Duration = Duration::from_secs(120);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Of 600 s at 10 XRP a month, in 10^-9 XRP.
const PRICE: u64 = 2_283_106;
/// Of 60 s.
const MINUTE: u64 = 228_311;
/// How far apart two readings of one expiry are: it is derived from a balance, rounded.
const EXPIRY_SLACK_MS: u64 = 100;

/// The tool in a working directory of its own.
struct Tool<'a> {
    network: &'a NetworkNamespace,
    modules: &'a Path,
    authority: PathBuf,
    place: tempfile::TempDir,
}

impl<'a> Tool<'a> {
    fn new(network: &'a NetworkNamespace, modules: &'a Path, front: &Front) -> Result<Self> {
        Ok(Self {
            network,
            modules,
            authority: front.authority(),
            place: tempfile::Builder::new().prefix("codius-tool-").tempdir()?,
        })
    }

    fn write(&self, name: &str, value: &Value) -> Result<()> {
        Ok(fs::write(self.place.path().join(name), value.to_string())?)
    }

    fn state(&self) -> Result<Value> {
        let state = fs::read(self.place.path().join("default.codiusstate.json"))?;
        Ok(serde_json::from_slice(&state)?)
    }

    fn start(&self, words: &[&str]) -> Result<Background> {
        let node = self.modules.join(NODE.0).join("bin/node");
        let mut command = self.network.command("/bin/sh");
        command
            .args(["-c", "exec \"$@\" 2>&1", "sh"])
            .arg(node)
            .arg(self.modules.join("codius/bin/codius.js"))
            .args(words)
            .current_dir(self.place.path())
            .env("HOME", self.place.path())
            .env("NODE_EXTRA_CA_CERTS", &self.authority);
        for inherited in ["ILP_PLUGIN", "ILP_CREDENTIALS", "ILP_BTP_SERVER", "DEBUG"] {
            command.env_remove(inherited);
        }
        Background::start(&command, Listen::Output)
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        let (succeeded, text) = self.start(words)?.output(TOOL_TIMEOUT)?;
        ensure!(succeeded, "codius {words:?} failed:\n{text}");
        Ok(text)
    }

    fn fail(&self, words: &[&str]) -> Result<String> {
        let (succeeded, text) = self.start(words)?.output(TOOL_TIMEOUT)?;
        ensure!(!succeeded, "codius {words:?} did not fail:\n{text}");
        Ok(text)
    }
}

/// Reads until every text was seen, in any order.
fn until_seen(running: &Background, texts: &[&str]) -> Result<()> {
    let deadline = Instant::now() + TOOL_TIMEOUT;
    let mut all = String::new();
    while let Some(missing) = texts.iter().find(|text| !all.contains(**text)) {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = running.line(left);
        all += &line.with_context(|| format!("no {missing:?} in:\n{all}"))?;
        all += "\n";
    }
    Ok(())
}

/// Runs a test in a network of its own.
fn in_network<F: Future<Output = Result<()>>>(
    test: impl FnOnce(Arc<NetworkNamespace>) -> F,
) -> Result<()> {
    let network = Arc::new(NetworkNamespace::new()?);
    network.enter()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(test(network))
}

fn installed(packages: Packages<'_>) -> Result<PathBuf> {
    packages.install(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::new(LOOPBACK, port)
}

async fn get(port: u16, host: &str, path: &str) -> Result<(u16, String)> {
    let request = reqwest::Client::new()
        .get(format!("http://{}{path}", at(port)))
        .header("Host", host)
        .timeout(Duration::from_secs(20));
    let response = request.send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// When a pod expires, in milliseconds since 1970, as its host says.
async fn expiry(port: u16, hash: &ManifestHash) -> Result<u64> {
    let (status, text) = get(port, "localhost", &format!("/pods?manifestHash={hash}")).await?;
    ensure!(status == 200, "{status} {text}");
    let reply: codius_api::PodStatusReply = serde_json::from_str(&text)?;
    Ok(reply.expiry.get())
}

/// Checks that a pod's life was made longer.
async fn extended(port: u16, hash: &ManifestHash, from: u64, by_secs: u64) -> Result<u64> {
    let now = expiry(port, hash).await?;
    let difference = now.abs_diff(from + by_secs * 1000);
    ensure!(difference <= EXPIRY_SLACK_MS, "{from} + {by_secs} s: {now}");
    Ok(now)
}

/// How many lines a pod has written so far.
async fn logged_ticks(port: u16, hash: &ManifestHash) -> Result<usize> {
    let (status, text) = get(port, "localhost", &format!("/pods/{hash}/logs")).await?;
    ensure!(status == 200, "{status} {text}");
    Ok(text.matches("tick").count())
}

/// The manifest that a state file holds has the hash that the tool computed, by our count too.
fn stored_hash(state: &Value) -> Result<ManifestHash> {
    let hash = Upload::parse(state["generatedManifest"].to_string().as_bytes())?.hash();
    ensure!(state["manifestHash"] == hash.to_string(), "{state}");
    Ok(hash)
}

/// What a state file says of one host.
fn details<'a>(state: &'a Value, host: &str) -> Result<&'a Value> {
    let details = &state["status"]["hostDetails"][host];
    ensure!(details.is_object(), "{host} is not in {state}");
    Ok(details)
}

/// Checks what a state file says of payments and expiry.
fn recorded(of_host: &Value, total: u64, last: u64, expiry_ms: u64) -> Result<()> {
    let price = json!({
        "totalPaid": total.to_string(), "lastPaid": last.to_string(), "units": "nXRP"
    });
    let written = of_host["expirationDate"].as_str().context("no date")?;
    let written = jiff::Timestamp::strptime("%m-%d-%Y %H:%M:%S %z", written)?;
    let difference = written.as_millisecond().abs_diff(i64::try_from(expiry_ms)?);
    // It writes whole seconds.
    ensure!(
        of_host["price"] == price && difference <= 1000 + EXPIRY_SLACK_MS,
        "{of_host}, expires at {expiry_ms}"
    );
    Ok(())
}

fn serving(image: &str) -> Value {
    let page = "mkdir /www; echo \"$GREETING $SECRET $HOSTS\" > /www/index.html";
    let count = "n=0; while true; do echo tick $n; n=$((n+1)); sleep 1; done";
    let mut web = shell(
        "web",
        image,
        &format!("{page}; httpd -p 8080 -h /www; {count}"),
    );
    web["environment"] = json!({ "GREETING": "$GREETING" });
    let look = "until wget -q -O /dev/null http://127.0.0.1:8080/; do sleep 0.1; done; echo found >&2; sleep 100000";
    let side = shell("side", image, look);
    json!({ "manifest": {
        "name": "serving", "version": "1.0.0", "machine": "small", "port": "8080",
        "containers": [web, side],
    } })
}

#[test]
fn the_original_tool_uploads_extends_and_tails_at_our_own_port() -> Result<()> {
    let modules = installed(TOOL)?;
    in_network(async |network| at_our_own_port(network, &modules).await)
}

async fn at_our_own_port(network: Arc<NetworkNamespace>, modules: &Path) -> Result<()> {
    const NAME: &str = "host.example";
    const HOST: &str = "https://host.example";
    const PORT: u16 = 3000;
    let front = Front::start(&network, LOOPBACK, &[(NAME, at(PORT))])?;
    let mut world = World::start(Settings {
        listen: format!("127.0.0.1:{PORT}"),
        interledger_port: 7768,
        public_uri: Some(HOST.to_owned()),
        network: Some(Arc::clone(&network)),
        ..Settings::default()
    })?;
    let tool = Tool::new(&network, modules, &front)?;
    let mut file = serving(&world.busybox().await?);
    file["manifest"]["containers"][0]["environment"]["SECRET"] = "$SECRET".into();
    tool.write("codius.json", &file)?;
    let variables = json!({ "vars": {
        "public": { "GREETING": { "value": "hello", "description": "for everyone" } },
        "private": { "SECRET": { "value": "keep-it" } },
    } });
    tool.write("codiusvars.json", &variables)?;

    // Uploaded, with both kinds of variables, two containers and the list of hosts; then it is followed.
    let words = [
        "upload",
        "-y",
        "--add-host-env",
        "--debug",
        "--tail",
        "--host",
        NAME,
    ];
    let upload = tool.start(&words)?;
    until_seen(
        &upload,
        &["pricePaid: \"2283106\"", "_side found", "_web tick 5"],
    )?;
    drop(upload);
    let state = tool.state()?;
    let hash = stored_hash(&state)?;
    ensure!(state["hostList"] == json!([HOST]), "{state}");
    ensure!(
        state["options"] == json!({ "maxMonthlyRate": 10, "units": "XRP", "duration": 600 }),
        "{state}"
    );
    let private = &state["generatedManifest"]["private"]["vars"]["SECRET"];
    ensure!(private["value"] == "keep-it", "{state}");
    let of_host = details(&state, HOST)?;
    ensure!(
        of_host["url"] == format!("https://{hash}.{NAME}/"),
        "{state}"
    );
    println!("{}", serde_json::to_string_pretty(&state)?);
    let page = get(PORT, &format!("{hash}.{NAME}"), "/").await?;
    ensure!(
        page == (200, format!("hello keep-it [\"{HOST}\"]\n")),
        "{page:?}"
    );
    let (_, shown) = get(PORT, NAME, &format!("/pods?manifestHash={hash}")).await?;
    ensure!(!shown.contains("keep-it"), "{shown}");

    // The same again is more time; so is the hash alone, at a host or in its own name.
    let mut until = expiry(PORT, &hash).await?;
    tool.run(&["extend", "-y"])?;
    until = extended(PORT, &hash, until, 600).await?;
    let state = tool.state()?;
    ensure!(stored_hash(&state)? == hash, "{state}");
    recorded(details(&state, HOST)?, 2 * PRICE, PRICE, until)?;
    let text = hash.to_string();
    let address = format!("http://{}", at(PORT));
    tool.run(&["extend-hash", &text, "--host", &address, "-d", "60", "-y"])?;
    until = extended(PORT, &hash, until, 60).await?;
    let url = format!("https://{hash}.{NAME}/");
    tool.run(&["extend-hash", &url, "-d", "60", "-y"])?;
    extended(PORT, &hash, until, 60).await?;

    let logs = reqwest::get(format!("{address}/pods/{hash}/logs")).await?;
    let header = |name: &str| logs.headers().get(name).cloned();
    ensure!(
        header("content-type").is_some_and(|it| it == "application/vnd.codius.raw-stream")
            && header("cache-control").is_some_and(|it| it == "no-cache"),
        "{logs:?}"
    );

    // What it writes is followed for as long as one likes, not to the first pause.
    for words in [vec!["tail"], vec!["tail", &text, "--host", HOST]] {
        let tail = tool.start(&words)?;
        // The first lines are history, those after them come as they are written.
        let now = logged_ticks(PORT, &hash).await?;
        let [first, later] = ["_web tick 0", &format!("_web tick {}", now + 4)];
        until_seen(&tail, &[first, later])?;
    }

    // What the person sees when something is wrong.
    let nobody = "a".repeat(52);
    for (words, said) in [
        (vec!["upload", "-y", "--host", NAME], "already exists"),
        (
            vec![
                "extend-hash",
                &text,
                "--host",
                HOST,
                "-m",
                "1",
                "-u",
                "XRP",
                "-y",
            ],
            "Quoted price exceeded specified max price",
        ),
        (
            vec!["extend-hash", &nobody, "--host", HOST, "-y"],
            "status code 404",
        ),
    ] {
        let text = tool.fail(&words)?;
        ensure!(text.contains(said), "{words:?}:\n{text}");
    }

    world.stop()?;
    let paid = i64::try_from(2 * PRICE + 2 * MINUTE)?;
    let balances = world.balances().await?;
    ensure!(
        balances.contains(&("local:clients".to_owned(), -paid)),
        "{balances:?}"
    );
    Ok(())
}

#[test]
fn the_original_tool_finds_two_hosts_and_pays_them_through_moneyd() -> Result<()> {
    let (modules, parent) = (installed(TOOL)?, installed(PARENT)?);
    in_network(async |network| through_moneyd(network, &modules, &parent).await)
}

/// Our two hosts. The first has the name of one that the tool begins its search at, of which the others
/// are not there; the second it can only hear of from the first.
const NAMES: [&str; 2] = ["codius.justmoon.com", "codius.second.example"];

/// Where the two hosts listen.
const PORTS: [u16; 2] = [3000, 3001];

async fn through_moneyd(
    network: Arc<NetworkNamespace>,
    modules: &Path,
    parent: &Path,
) -> Result<()> {
    let _moneyd = Moneyd::local(&network, parent)?;
    let names: Vec<(&str, SocketAddr)> = NAMES.into_iter().zip(PORTS.map(at)).collect();
    let front = Front::start(&network, LOOPBACK, &names)?;
    let hosts = NAMES.map(|name| format!("https://{name}"));
    let start = |number: u8, other_registry: Option<String>| {
        World::start(Settings {
            listen: format!("127.0.0.1:{}", PORTS[usize::from(number)]),
            public_uri: Some(hosts[usize::from(number)].clone()),
            parent: Some("btp+ws://localhost:7768".to_owned()),
            network: Some(Arc::clone(&network)),
            authorities: Some(front.authority()),
            // Their addresses are this machine's.
            more: format!(
                "[peers]\nallow_private = true\nexchange_interval_secs = 1\nretry_secs = 1\n\
                 bootstrap = [{:?}]\n",
                hosts[usize::from(1 - number)]
            ),
            other_registry,
            number,
            ..Settings::default()
        })
    };
    let mut one = start(0, None)?;
    let mut two = start(1, Some(one.registry.host()))?;
    for world in [&one, &two] {
        world.logged("uplink is up", 0).await?;
    }
    let hash = two_hosts(&network, modules, &front, &one.busybox().await?, &hosts).await;
    let hash = hash.with_context(|| format!("{}\n{}", one.log(), two.log()))?;

    // What was paid came in through moneyd, to the unit.
    let mut paid = Vec::new();
    for world in [&mut one, &mut two] {
        world.stop()?;
        let balances = world.balances().await?;
        let parent = balances.iter().find(|(name, _)| name == "parent");
        paid.push(parent.map_or(0, |(_, balance)| balance.unsigned_abs()));
    }
    ensure!(paid == [PRICE + 3 * MINUTE; 2], "{paid:?} for {hash}");
    Ok(())
}

/// Waits until a host lists another.
async fn listed(port: u16, other: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (_, peers) = get(port, "localhost", "/peers").await?;
        if peers.contains(other) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{other} is not listed: {peers}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn two_hosts(
    network: &NetworkNamespace,
    modules: &Path,
    front: &Front,
    image: &str,
    hosts: &[String; 2],
) -> Result<ManifestHash> {
    let variables = json!({ "vars": { "public": { "GREETING": { "value": "hello" } } } });
    let prepared = || {
        let tool = Tool::new(network, modules, front)?;
        tool.write("codius.json", &serving(image))?;
        tool.write("codiusvars.json", &variables)?;
        Ok::<_, anyhow::Error>(tool)
    };

    // To both at once, from a file of names without a scheme.
    let tool = prepared()?;
    tool.write("codiushosts.json", &json!({ "hosts": NAMES }))?;
    tool.run(&["upload", "-y"])?;
    let state = tool.state()?;
    let hash = stored_hash(&state)?;
    ensure!(state["hostList"] == json!(hosts), "{state}");
    let mut until = Vec::new();
    for (name, port) in NAMES.iter().zip(PORTS) {
        let page = get(port, &format!("{hash}.{name}"), "/").await?;
        ensure!(page == (200, "hello  \n".to_owned()), "{page:?}");
        let expiry = expiry(port, &hash).await?;
        recorded(
            details(&state, &format!("https://{name}"))?,
            PRICE,
            PRICE,
            expiry,
        )?;
        until.push(expiry);
    }
    tool.run(&["extend", "-y", "-d", "60"])?;
    let state = tool.state()?;
    for ((host, port), until) in hosts.iter().zip(PORTS).zip(&mut until) {
        *until = extended(port, &hash, *until, 60).await?;
        recorded(details(&state, host)?, PRICE + MINUTE, MINUTE, *until)?;
    }

    let [one, two] = hosts;
    let text = hash.to_string();
    tool.run(&[
        "extend-hash",
        &text,
        "--host",
        one,
        "--host",
        two,
        "-d",
        "60",
        "-y",
    ])?;
    for (port, until) in PORTS.into_iter().zip(&mut until) {
        *until = extended(port, &hash, *until, 60).await?;
    }

    // Without names, it asks those that it has built in for their peers, and hears of the second host
    // from the first.
    listed(PORTS[0], two).await?;
    let tool = prepared()?;
    tool.run(&["upload", "-y", "-d", "60", "-c", "2"])?;
    let asked = format!("{} GET /peers 200", NAMES[0]);
    ensure!(front.requests().contains(&asked), "{}", front.requests());
    let state = tool.state()?;
    ensure!(stored_hash(&state)? == hash, "{state}");
    for ((host, port), until) in hosts.iter().zip(PORTS).zip(until) {
        let until = extended(port, &hash, until, 60).await?;
        recorded(details(&state, host)?, MINUTE, MINUTE, until)?;
    }
    Ok(hash)
}
