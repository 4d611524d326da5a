//! Interledger: packets through the connector, STREAM payments, and paid requests.
//!
//! ```text
//! load ──BTP──▶ connector of moneyd (JavaScript)   ┐
//! load ──BTP──▶ ours, with its ledger on a disk    ├ in turn, each a process of its own
//! load ──BTP──▶ a relay that reads nothing         ┘ says what the load itself can do
//! ```
//! Every process ends when its standard input does, so that none is left behind, however this ends.
//! The ledger of ours is compared with what the load saw fulfilled: durability cannot be switched off
//! unnoticed.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use codius_testkit::Registry;
use serde_json::{Value, json};

use super::{disk, figure::Figure, median};
use crate::{
    build,
    demo::{self, Host},
    guest, packages,
};

const IN_FLIGHT: u64 = 64;
const WARM_UP_MS: u64 = 1500;
const MEASURE_MS: u64 = 2000;
const MEMORY_PAIRS: u64 = 50;
const MEMORY_PACKETS: u64 = 1_000_000;
/// What interledger-rs sent and received in one node on a machine like this, packets a second.
const STREAM_PEER: f64 = 5700.0;
const STREAM_PACKETS: u64 = 20_000;
const STREAM_PACKET_AMOUNT: u64 = 1000;
const SMALL_CONNECTIONS: u64 = 1000;
const PAID_REQUESTS: u32 = 20;
/// Enough for every request of a run.
const LEASE_SECS: u64 = 3600;
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Prints the figures.
pub(super) fn run(runs: u32, yes: bool) -> Result<()> {
    packages::require_root("this benchmark, which boots a pod,")?;
    packages::ensure(&[packages::HOST, packages::JAVASCRIPT], yes)?;
    let peers = install_peers()?;
    let programs = build::programs(build::Profile::Release)?;
    let bench = Bench {
        load: programs.codiusd.with_file_name("codius-bench"),
        client: programs.codiusd.with_file_name("codius-bench-client"),
        peers,
        // Beside the build, because a temporary directory may be in memory, where nothing is durable.
        place: tempfile::Builder::new()
            .prefix("ilp-")
            .tempdir_in(build::target_dir())?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    // Ctrl-C ends the load of the moment, which fails the run; without this it would end us as well,
    // and the hosts would not be told.
    let interrupted = runtime.spawn(async { tokio::signal::ctrl_c().await });
    let go_on = || {
        ensure!(!interrupted.is_finished(), "interrupted");
        Ok(())
    };

    bench.all(runs, &runtime, &go_on).map_err(|error| {
        // Whatever failed then, that is why.
        go_on().err().unwrap_or(error)
    })
}

struct Bench {
    load: PathBuf,
    client: PathBuf,
    peers: PathBuf,
    place: tempfile::TempDir,
}

impl Bench {
    fn all(
        &self,
        runs: u32,
        runtime: &tokio::runtime::Runtime,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let (mut forwards, mut streams) = (Vec::new(), Vec::new());
        for run in 0..runs {
            go_on()?;
            let forward = self.forward(run)?;
            eprintln!("run {run}: {forward:?}");
            forwards.push(forward);
            go_on()?;
            let stream = self.stream()?;
            eprintln!("run {run}: {stream:?}");
            streams.push(stream);
        }
        report_forward(&forwards);
        report_stream(&streams);

        let mut memories = Vec::new();
        for run in 0..runs {
            go_on()?;
            memories.push(self.memory()?);
            eprintln!("run {run}: {:.1} MiB", memories[memories.len() - 1]);
        }
        Figure::new("ilp/memory", "MiB", &memories)
            .limit("15 MiB", 15.0)
            .at_most(1.0)
            .print();

        let paid = self.paid(runs, runtime, go_on)?;
        report_paid(&paid);
        Ok(())
    }
}

/// A process that says where it listens and ends with its standard input.
struct Listening {
    process: Child,
    output: BufReader<ChildStdout>,
    ports: Vec<u64>,
}

impl Listening {
    fn start(command: &mut Command) -> Result<Self> {
        // Out of reach of Ctrl-C: it is told to end in due order.
        std::os::unix::process::CommandExt::process_group(command, 0);
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} could not be started", command.get_program().display()))?;
        let output = process.stdout.take().context("no standard output")?;
        let mut listening = Self {
            process,
            output: BufReader::new(output),
            ports: Vec::new(),
        };
        listening.ports = loop {
            let line = listening.line()?;
            // The JavaScript connector logs to its standard output, too.
            if let Some(ports) = line["ports"].as_array() {
                break ports.iter().filter_map(Value::as_u64).collect();
            }
        };
        Ok(listening)
    }

    /// The next line that is JSON; nothing for others.
    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self.output.read_line(&mut line)?;
        ensure!(count > 0, "a program of the benchmark ended too early");
        Ok(serde_json::from_str(&line).unwrap_or_default())
    }

    fn process_id(&self) -> String {
        self.process.id().to_string()
    }

    fn address(&self, number: usize) -> Result<String> {
        let port = self.ports.get(number).context("too few ports")?;
        Ok(format!("127.0.0.1:{port}"))
    }

    fn connect(&self, load: &mut Command) {
        for port in &self.ports {
            load.args(["--connect", &format!("127.0.0.1:{port}")]);
        }
        load.args(["--pid", &self.process_id()]);
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let deadline = Instant::now() + STOP_TIMEOUT;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        // It has ended by now, or does not listen to us.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Bench {
    fn script(&self, name: &str) -> Command {
        let mut command = Command::new("node");
        // A client that leaves with a request under way would end moneyd's server otherwise.
        command
            .arg("--unhandled-rejections=warn")
            .arg(self.peers.join(name))
            .current_dir(&self.peers);
        command
    }

    fn javascript(&self) -> Result<Listening> {
        Listening::start(&mut self.script("connector.js"))
    }

    fn relay(&self) -> Result<Listening> {
        Listening::start(Command::new(&self.load).arg("relay").stderr(Stdio::null()))
    }

    /// Our host with a new ledger.
    fn host(&self, children: u64) -> Result<(Listening, tempfile::TempDir)> {
        let dir = tempfile::tempdir_in(self.place.path())?;
        let mut command = Command::new(&self.load);
        command
            .arg("host")
            .args(["--children", &children.to_string()])
            .arg("--dir")
            .arg(dir.path())
            .stderr(fs::File::create(dir.path().join("host.log"))?);
        Ok((Listening::start(&mut command)?, dir))
    }

    fn forward(&self, run: u32) -> Result<Forward> {
        let measure = |connector: &Listening, in_flight: u64| -> Result<Load> {
            let mut load = Command::new(&self.load);
            load.args(["load", "--in-flight", &in_flight.to_string()])
                .args(["--warm-up-ms", &WARM_UP_MS.to_string()])
                .args(["--measure-ms", &MEASURE_MS.to_string()]);
            connector.connect(&mut load);
            Load::of(&answer(&mut load)?)
        };
        let both = |connector: &Listening| -> Result<[Load; 2]> {
            Ok([measure(connector, IN_FLIGHT)?, measure(connector, 1)?])
        };
        let ours = || -> Result<[Load; 2]> {
            let (host, _dir) = self.host(2)?;
            let loads = both(&host)?;
            let fulfilled = loads.iter().map(|load| load.fulfilled).sum();
            check_ledger(host, fulfilled, fulfilled)?;
            Ok(loads)
        };
        let javascript = || both(&self.javascript()?);
        // Whoever goes first changes, so that drift of the machine hits both alike.
        let (ours, javascript) = if run.is_multiple_of(2) {
            let javascript = javascript()?;
            (ours()?, javascript)
        } else {
            (ours()?, javascript()?)
        };
        let relay = both(&self.relay()?)?;
        let sync_us = disk::sync_us(self.place.path())?;
        Ok(Forward {
            sync_us,
            ours,
            javascript,
            relay,
        })
    }

    fn memory(&self) -> Result<f64> {
        let (host, _dir) = self.host(MEMORY_PAIRS * 2)?;
        let mut load = Command::new(&self.load);
        load.args(["load", "--in-flight", &IN_FLIGHT.to_string()])
            .args(["--pairs", &MEMORY_PAIRS.to_string()])
            .args(["--packets", &MEMORY_PACKETS.to_string()]);
        host.connect(&mut load);
        let load = Load::of(&answer(&mut load)?)?;
        check_ledger(host, load.fulfilled, load.fulfilled)?;
        Ok(load.rss_mib)
    }

    fn stream(&self) -> Result<Stream> {
        let measure = |connections: u64, amount: u64| -> Result<Value> {
            let (host, _dir) = self.host(2)?;
            let mut payments = Command::new(&self.load);
            payments
                .args(["stream", "--sender", &host.address(0)?])
                .args(["--receiver", &host.address(1)?])
                .args(["--connections", &connections.to_string()])
                .args(["--amount", &amount.to_string()])
                .args(["--max-packet-amount", &STREAM_PACKET_AMOUNT.to_string()])
                .args(["--pid", &host.process_id()]);
            let answer = answer(&mut payments)?;
            let whole = |name: &str| answer[name].as_u64().context("no whole number");
            check_ledger(host, whole("received")?, whole("packets")?)?;
            Ok(answer)
        };
        let one = measure(1, STREAM_PACKETS * STREAM_PACKET_AMOUNT)?;
        let many = measure(SMALL_CONNECTIONS, STREAM_PACKET_AMOUNT)?;
        if many["failures"] != 0 {
            eprintln!("the first failure: {}", many["first_failure"]);
        }
        ensure!(one["failures"] == 0, "a payment failed: {one}");
        Ok(Stream {
            per_second: number(&one, "per_second")?,
            cpu_us: number(&one, "cpu_us")?,
            failures: number(&many, "failures")?,
            seconds: number(&many, "seconds")?,
        })
    }

    fn paid(
        &self,
        runs: u32,
        runtime: &tokio::runtime::Runtime,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Vec<Paid>> {
        let guest_dir = guest::default_dir();
        guest::build(&guest_dir, &guest::Options::default())?;
        let hello = guest::build_static(&guest_dir, "codius-example-hello")?;
        let registry = Registry::start()?;
        let image = demo::push_hello(runtime, &registry, &hello)?;
        let release = self.load.with_file_name("codiusd");
        let mut host = Host::start(&release, self.place.path(), &guest_dir, 0, &registry)?;
        let codius_json = self.place.path().join("codius.json");
        fs::write(&codius_json, demo::codius_file(&image))?;
        let codius = self.load.with_file_name("codius");
        let pod = demo::upload(&codius, &host, &codius_json, LEASE_SECS)?.hash;
        let interledger = host
            .interledger
            .strip_prefix("btp+ws://")
            .unwrap_or(&host.interledger)
            .trim_end_matches('/')
            .to_owned();
        let connector = self.javascript()?;
        let javascript = connector.address(0)?;
        let mut shop = self.script("shop.js");
        shop.env("ILP_CREDENTIALS", credentials(&javascript, "shop"));
        let shop = Listening::start(&mut shop)?;
        let shop_url = format!("http://{}/", shop.address(0)?);
        let pod_url = format!("{}/pods?manifestHash={pod}&duration=10", host.api);

        let fetch = |url: &str, interledger: &str| -> Result<f64> {
            let mut pay = self.script("pay.js");
            pay.arg(url)
                .arg(PAID_REQUESTS.to_string())
                .env("ILP_CREDENTIALS", credentials(interledger, "payer"));
            millis(&answer(&mut pay)?, "millis")
        };
        let mut paid = Vec::new();
        for run in 0..runs {
            go_on()?;
            let theirs = || fetch(&shop_url, &javascript);
            let ours = || fetch(&pod_url, &interledger);
            let (theirs, ours) = if run.is_multiple_of(2) {
                let theirs = theirs()?;
                (theirs, ours()?)
            } else {
                let ours = ours()?;
                (theirs()?, ours)
            };
            let mut client = Command::new(&self.client);
            client
                .args(["--host", &host.api, "--interledger", &interledger])
                .args(["--pod", &pod, "--requests", &PAID_REQUESTS.to_string()]);
            let own = answer(&mut client)?;
            if run == 0 {
                eprintln!(
                    "our client: {} ms to set up HTTP, then Prepares {}",
                    own["set_up_millis"], own["prepares"]
                );
            }
            let prepares = own["prepares"].as_array().context("no Prepares")?;
            let prepares = u32::try_from(prepares.len())?;
            paid.push(Paid {
                theirs,
                ours,
                own: millis(&own, "millis")?,
                own_connect: millis(&own, "connect_millis")?,
                own_prepares: prepares.into(),
                host_rss_mib: rss_mib(host.process_id())?,
            });
            eprintln!("run {run}: {:?}", paid[paid.len() - 1]);
        }
        host.stop()?;
        Ok(paid)
    }
}

/// Ends the host and compares its ledger with what was seen from outside.
fn check_ledger(mut host: Listening, moved: u64, packets: u64) -> Result<()> {
    drop(host.process.stdin.take());
    let ledger = host.line().context("the host did not end well")?;
    ensure!(
        ledger == json!({ "moved": moved, "packets": packets }),
        "{moved} units moved in {packets} packets, but the ledger has {ledger}"
    );
    Ok(())
}

#[derive(Debug)]
struct Forward {
    /// Of each first with many packets in flight, then with one.
    ours: [Load; 2],
    javascript: [Load; 2],
    relay: [Load; 2],
    /// What one write to the ledger costs the disk, at least; microseconds.
    sync_us: f64,
}

#[derive(Debug)]
struct Load {
    fulfilled: u64,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
    load_cpu_us: f64,
    rss_mib: f64,
}

impl Load {
    fn of(answer: &Value) -> Result<Self> {
        Ok(Self {
            fulfilled: answer["fulfilled"].as_u64().context("no count")?,
            per_second: number(answer, "per_second")?,
            p50_us: number(answer, "p50_us")?,
            p99_us: number(answer, "p99_us")?,
            cpu_us: number(answer, "cpu_us")?,
            load_cpu_us: number(answer, "load_cpu_us")?,
            rss_mib: number(answer, "rss_mib")?,
        })
    }
}

#[derive(Debug)]
struct Stream {
    per_second: f64,
    cpu_us: f64,
    failures: f64,
    seconds: f64,
}

#[derive(Debug)]
struct Paid {
    theirs: f64,
    ours: f64,
    own: f64,
    /// Of it, until the Interledger connection was there.
    own_connect: f64,
    own_prepares: f64,
    host_rss_mib: f64,
}

fn report_forward(runs: &[Forward]) {
    let figure = |name, unit, at: usize, value: fn(&Load) -> f64| {
        let values = |loads: fn(&Forward) -> &[Load; 2]| -> Vec<f64> {
            runs.iter().map(|run| value(&loads(run)[at])).collect()
        };
        let (ours, theirs) = (values(|run| &run.ours), values(|run| &run.javascript));
        Figure::new(name, unit, &ours).peer("ilp-connector 22.5.0", &theirs)
    };
    figure("ilp/forward-64", "packets/s", 0, |load| load.per_second)
        .at_least(10.0)
        .print();
    figure("ilp/forward-cpu", "us/packet", 0, |load| load.cpu_us)
        .at_most(0.1)
        .print();
    figure("ilp/forward-64-p99", "us", 0, |load| load.p99_us).print();
    figure("ilp/forward-1-p50", "us", 1, |load| load.p50_us)
        .at_most(0.5)
        .print();
    figure("ilp/forward-1-p99", "us", 1, |load| load.p99_us).print();
    figure("ilp/forward-rss", "MiB", 0, |load| load.rss_mib).print();
    let relay = |name, unit, at: usize, value: fn(&Load) -> f64| {
        let values: Vec<f64> = runs.iter().map(|run| value(&run.relay[at])).collect();
        Figure::new(name, unit, &values).print();
    };
    relay("ilp/load-ceiling-64", "packets/s", 0, |load| {
        load.per_second
    });
    relay("ilp/load-ceiling-1-p50", "us", 1, |load| load.p50_us);
    let syncs: Vec<f64> = runs.iter().map(|run| run.sync_us).collect();
    Figure::new("ilp/fdatasync", "us", &syncs).print();
    // Who forwards and writes each packet to this disk first cannot be faster than this.
    let floor = |run: &Forward| run.relay[1].p50_us + run.sync_us;
    let floors: Vec<f64> = runs.iter().map(floor).collect();
    let javascript: Vec<f64> = runs.iter().map(|run| run.javascript[1].p50_us).collect();
    Figure::new("ilp/forward-1-p50-floor", "us", &floors)
        .peer("ilp-connector 22.5.0", &javascript)
        .print();
    let own: Vec<f64> = runs.iter().map(|run| run.ours[0].load_cpu_us).collect();
    Figure::new("ilp/load-cpu", "us/packet", &own).print();
}

fn report_stream(runs: &[Stream]) {
    let values = |value: fn(&Stream) -> f64| -> Vec<f64> { runs.iter().map(value).collect() };
    Figure::new("ilp/stream", "packets/s", &values(|run| run.per_second))
        .limit("interledger-rs, recorded", STREAM_PEER)
        .at_least(3.0)
        .print();
    Figure::new("ilp/stream-cpu", "us/packet", &values(|run| run.cpu_us)).print();
    Figure::new("ilp/stream-1000", "failures", &values(|run| run.failures))
        .none_at_all()
        .print();
    Figure::new("ilp/stream-1000-time", "s", &values(|run| run.seconds)).print();
}

fn report_paid(runs: &[Paid]) {
    let values = |value: fn(&Paid) -> f64| -> Vec<f64> { runs.iter().map(value).collect() };
    Figure::new("ilp/paid-fetch", "ms", &values(|run| run.ours))
        .peer("hapi 21 + cog 0.1.2", &values(|run| run.theirs))
        .at_most(0.5)
        .print();
    Figure::new("ilp/paid-own", "ms", &values(|run| run.own))
        .limit("5 ms", 5.0)
        .at_most(1.0)
        .print();
    let connecting = values(|run| run.own_connect);
    Figure::new("ilp/paid-own-connect", "ms", &connecting).print();
    Figure::new(
        "ilp/paid-own-prepares",
        "Prepares",
        &values(|run| run.own_prepares),
    )
    .limit("4 Prepares", 4.0)
    .at_most(1.0)
    .print();
    Figure::new("ilp/codiusd-rss", "MiB", &values(|run| run.host_rss_mib)).print();
}

fn credentials(interledger: &str, token: &str) -> String {
    json!({ "server": format!("btp+ws://:{token}@{interledger}") }).to_string()
}

/// The last line of a program that has to end well. Its complaints go to our standard error.
fn answer(command: &mut Command) -> Result<Value> {
    let program = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let output = output.with_context(|| format!("{program} could not be run"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{program} failed ({}); it says why above",
        output.status
    );
    let line = text.lines().next_back().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("{program} printed no figures: {text}"))
}

fn number(answer: &Value, name: &str) -> Result<f64> {
    answer[name]
        .as_f64()
        .with_context(|| format!("no {name} in {answer}"))
}

/// The median of the times that a client tells under a name.
fn millis(answer: &Value, name: &str) -> Result<f64> {
    let times = answer[name].as_array().context("no times")?;
    let times: Vec<f64> = times.iter().filter_map(Value::as_f64).collect();
    ensure!(!times.is_empty(), "no times in {answer}");
    Ok(median(&times))
}

fn rss_mib(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .context("no VmRSS")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

/// The packages of the JavaScript peers and the scripts around them, in the build directory. What is
/// there already is kept.
fn install_peers() -> Result<PathBuf> {
    let source = build::workspace().join("bench/ilp");
    let place = build::target_dir().join("bench/ilp");
    fs::create_dir_all(&place)?;
    for script in ["connector.js", "shop.js", "pay.js"] {
        fs::copy(source.join(script), place.join(script))?;
    }
    let wanted = fs::read_to_string(source.join("package.json"))?;
    let stamp = place.join("installed.json");
    if read_if_there(&stamp)?.as_deref() == Some(wanted.as_str()) {
        return Ok(place);
    }
    fs::write(place.join("package.json"), &wanted)?;
    npm_install(&place).context(
        "the JavaScript peers of this benchmark cannot be installed; it needs npm and its registry",
    )?;
    fs::write(&stamp, &wanted)?;
    Ok(place)
}

fn npm_install(place: &Path) -> Result<()> {
    let status = Command::new("npm")
        .args(["install", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(place)
        .stdout(Stdio::null())
        .status()
        .context("npm could not be run")?;
    if !status.success() {
        bail!("`npm install` failed ({status}); its messages are above");
    }
    Ok(())
}

fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
