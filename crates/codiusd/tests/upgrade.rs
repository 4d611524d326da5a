//! The program is replaced, or killed, while pods answer: no pod ends, no request is lost, and every second is
//! charged once. And after the machine itself has started anew, pods come back by themselves.
//!
//! What a visitor is: one request after the other, either on a new connection each, or on one connection for as
//! long as the host keeps it. On a kept connection a request may cross with its closing. RFC 9110, 9.2.2 lets a
//! client send it again if it is idempotent, as every client with a pool of connections does; here, only if not
//! one byte of an answer has come. (The host speaks HTTP/1.1 only, so there is no visitor by HTTP/2.)

mod support;

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use codius_ledger::Account;
use codius_manifest::ManifestHash;
use serde_json::{Value, json};
use support::{Settings, World, document, hash_of, shell};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const PRICE_LIMIT: u64 = 1_000_000_000;
const LEASE_SECS: u64 = 3600;
/// As many pods as two processors carry beside other tests.
const FEW_PODS: usize = 3;
const SWAPS: usize = 3;
/// A visitor gives up; much longer than any restart.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two requests of a visitor, for each pod: emulated machines share few processors.
const PAUSE_PER_POD: Duration = Duration::from_millis(25);
/// Between a start of the host and the next one.
const CALM: Duration = Duration::from_secs(2);

/// A page that names this very start of the program.
const SERVE: &str = "mkdir -p /www && cat /proc/sys/kernel/random/uuid > /www/index.html && \
                     exec httpd -f -p 8080 -h /www";

#[tokio::test(flavor = "multi_thread")]
async fn the_program_is_replaced_and_killed_while_pods_answer() -> Result<()> {
    let pods = number("CODIUS_UPGRADE_PODS", FEW_PODS)?;
    let swaps = number("CODIUS_UPGRADE_SWAPS", SWAPS)?;
    let place = tempfile::Builder::new()
        .prefix("codius-program-")
        .tempdir()?;
    let program = Program::new(place.path())?;
    let mut world = World::start(Settings {
        memory_mib: u64::try_from(pods)? * 1000,
        kept: Some(program.file.clone()),
        more: program.guest_table(),
        ..Settings::default()
    })?;
    let bought = buy(&world, pods).await?;
    let machines = sorted(world.machines());
    ensure!(machines.len() == pods, "{machines:?}");

    // Given visitors of every pod and of the API …
    let visitors = Visitors::start(&world, &bought)?;
    tokio::time::sleep(CALM).await;
    // … when the program is replaced a few times, and killed once …
    let mut hosts = vec![kept_host(&world)?];
    let mut starts = 1;
    for _ in 0..swaps {
        program.replace()?;
        signal(world.process_id()?, "HUP")?;
        world.logged("host ready", starts).await?;
        starts += 1;
        let host = kept_host(&world)?;
        ensure!(program.is_run_by(host)?, "an old program runs");
        hosts.push(host);
        tokio::time::sleep(CALM).await;
    }
    let killed_at = Instant::now();
    signal(kept_host(&world)?, "KILL")?;
    world.logged("host ready", starts).await?;
    hosts.push(kept_host(&world)?);
    tokio::time::sleep(CALM).await;
    let asked = visitors.stop().await?;

    // … then these were different processes, the machines are the same, and everybody was answered by the pod
    // that was asked before.
    let restarted = machines
        .iter()
        .filter(|machine| !world.machines().contains(machine))
        .count();
    let in_flight = |request: &Asked| request.began <= killed_at && killed_at <= request.ended;
    let (excused, failed): (Vec<_>, Vec<_>) = asked
        .iter()
        .filter(|request| request.failure.is_some())
        .partition(|request| in_flight(request) && !request.was_refused());
    let again = |after: bool| -> usize {
        let of_then = asked
            .iter()
            .filter(|request| (request.ended >= killed_at) == after);
        of_then.map(|request| request.again).sum()
    };
    let longest = asked.iter().map(|request| request.ended - request.began);
    println!(
        "{pods} pods, {swaps} swaps, {} requests, {} failed, {restarted} restarted \
         (on a kept connection that was being closed {} were sent again, and {} after the host was killed; \
         {} that were in flight then failed; longest answer {} ms)",
        asked.len(),
        failed.len(),
        again(false),
        again(true),
        excused.len(),
        longest.max().unwrap_or_default().as_millis(),
    );
    let why: Vec<_> = failed
        .iter()
        .filter_map(|request| request.failure.as_ref())
        .map(Failure::to_string)
        .collect();
    ensure!(why.is_empty(), "{why:#?}\n{}", world.log());
    ensure!(restarted == 0, "{machines:?}, now {:?}", world.machines());
    hosts.sort_unstable();
    hosts.dedup();
    ensure!(hosts.len() == swaps + 2, "{hosts:?}");
    // Each visitor a few times between two starts, however slow the machine is.
    let fewest = 4 * (pods + 1) * (swaps + 1);
    ensure!(asked.len() >= fewest, "only {} requests", asked.len());

    // And what was paid less what is owed is the price of the time that each pod has run.
    let stopping = Instant::now();
    world.stop()?;
    let stopped = Instant::now();
    ensure!(
        world.log().matches("host ready").count() == starts + 1,
        "it was started more often than that"
    );
    world.nothing_remains().await?;
    for pod in &bought {
        pod.is_settled(&world, stopping, stopped).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_run_is_not_swapped_in() -> Result<()> {
    let place = tempfile::Builder::new()
        .prefix("codius-program-")
        .tempdir()?;
    let program = Program::new(place.path())?;
    let mut world = World::start(Settings {
        kept: Some(program.file.clone()),
        more: program.guest_table(),
        ..Settings::default()
    })?;
    let host = kept_host(&world)?;
    for broken in ["#!/bin/sh\nexit 1\n", "no program at all"] {
        let before = world.log().matches("the host is not replaced").count();
        program.put(|file| fs::write(file, broken))?;
        signal(world.process_id()?, "HUP")?;
        world.logged("the host is not replaced", before).await?;
    }
    ensure!(kept_host(&world)? == host && world.client().info().await.is_ok());
    // With a whole one it is.
    program.replace()?;
    signal(world.process_id()?, "HUP")?;
    world.logged("host ready", 1).await?;
    ensure!(kept_host(&world)? != host && world.client().info().await.is_ok());
    world.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_machine_has_started_anew_pods_come_back_and_the_time_between_is_free()
-> Result<()> {
    let away = Duration::from_secs(4);
    let mut world = World::start(Settings {
        on_shutdown: "leave",
        ..Settings::default()
    })?;
    let bought = buy(&world, 1).await?;
    let pod = &bought[0];
    let page = world.visit(&pod.hash.to_string(), "/").await?;
    let machines = world.machines();
    let left_when = |expiry: u64| -> Result<u64> { Ok(expiry.saturating_sub(unix_ms()?)) };
    world.kill()?;
    let left_before = left_when(pod.expiry)?;

    // What a boot leaves of it all: the disk, on which another boot is noted, with another steady clock.
    forget_the_boot(&world)?;
    tokio::time::sleep(away).await;
    world.run()?;

    // Nobody does anything but visit, and is told to come back at most.
    let deadline = Instant::now() + PATIENCE;
    let again = loop {
        match world.visit(&pod.hash.to_string(), "/").await? {
            (503, _) if Instant::now() < deadline => {}
            answer => break answer,
        }
    };
    ensure!(again.0 == 200 && again.1 != page.1, "{again:?} {page:?}");
    ensure!(!world.machines().iter().any(|it| machines.contains(it)));
    let left_after = left_when(world.client().pod(&pod.hash).await?.expiry.get())?;
    ensure!(
        left_after <= LEASE_SECS * 1000,
        "more than was bought: {left_after} ms"
    );
    // It has run since it was started again; it was lost with what was not noted yet. The time away is longer
    // than both.
    let away_ms = u64::try_from(away.as_millis())?;
    ensure!(
        left_after + away_ms / 2 >= left_before,
        "{left_before} ms before, {left_after} ms after {away_ms} ms away"
    );
    world.settings.on_shutdown = "stop";
    world.stop()?;
    world.run()?;
    world.stop()?;
    world.nothing_remains().await?;
    let settled = Instant::now();
    pod.is_settled(&world, pod.answered, settled).await
}

/// What a boot of the machine does to a host that does not run: nothing is left of its pods but files, and what
/// the files say of the boot is about another one.
fn forget_the_boot(world: &World) -> Result<()> {
    const OTHER_BOOT: &str = "00000000-0000-4000-8000-000000000000";
    const UPTIME_MS: i64 = 90 * 24 * 3600 * 1000;
    for machine in world.machines() {
        signal(machine, "KILL")?;
    }
    let prefix = world.prefix();
    for name in names(Path::new("/run/netns"))? {
        if name.starts_with(&prefix) {
            ip(&["netns", "delete", &name])?;
        }
    }
    // With its namespace, an interface and its peer in this one are gone, sooner or later.
    for name in names(Path::new("/sys/class/net"))? {
        if name.starts_with(&prefix) {
            let _ = ip(&["link", "delete", &name]);
        }
    }
    let instance = prefix.trim_start_matches("cd").trim_end_matches('-');
    fs::remove_file(format!("/run/codius/{instance}.lock"))?;
    let table = format!("codius_{instance}");
    let removed = Command::new("nft")
        .args(["delete", "table", "inet", &table])
        .status()?;
    ensure!(removed.success(), "nft: {removed}");

    for pod in names(&world.data_dir().join("pods/pods"))? {
        let socket = world
            .data_dir()
            .join("pods/pods")
            .join(pod)
            .join("agent.sock");
        ensure!(socket.exists(), "{} is elsewhere", socket.display());
    }
    let records = world.data_dir().join("pods/records");
    for name in names(&records)? {
        let file = records.join(name);
        let mut record: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let boot = &mut record["process"]["boot_id"];
        ensure!(boot.is_string(), "{record}");
        *boot = OTHER_BOOT.into();
        fs::write(&file, serde_json::to_vec(&record)?)?;
    }
    let database = rusqlite::Connection::open(world.data_dir().join("codius.db"))?;
    let changed = database.execute(
        "UPDATE leases SET segment_boot = ?1, segment_counted_to_ms = segment_counted_to_ms + ?2
         WHERE state = 'running'",
        (OTHER_BOOT, UPTIME_MS),
    )?;
    ensure!(changed > 0, "no lease was running");
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).status()?;
    ensure!(status.success(), "ip {arguments:?}: {status}");
    Ok(())
}

/// A pod that was paid for.
struct Bought {
    hash: ManifestHash,
    page: String,
    paid: u64,
    expiry: u64,
    asked: Instant,
    answered: Instant,
}

impl Bought {
    /// The books of a lease that has ended: nothing is left of it, and nothing was charged twice or not at all.
    async fn is_settled(&self, world: &World, stopping: Instant, stopped: Instant) -> Result<()> {
        let parts = *world.lease(self.hash).await?.parts();
        let balances: BTreeMap<_, _> = world.balances().await?.into_iter().collect();
        let of = |account: Account| balances.get(&account.to_string()).copied().unwrap_or(0);
        let owed = u64::try_from(of(Account::Owed(self.hash)))?;
        let earned = self.paid.checked_sub(owed).context("more owed than paid")?;
        let price = parts.rate.earned(parts.run_ms);
        ensure!(
            of(Account::Lease(self.hash)) == 0 && earned.abs_diff(price) <= 1 && earned > 0,
            "{parts:?}: {} paid, {owed} owed, {price} is the price",
            self.paid
        );
        let run = Duration::from_millis(parts.run_ms);
        ensure!(
            run <= stopped - self.asked,
            "{run:?} is longer than it was there"
        );
        if stopping > self.answered {
            let least = stopping - self.answered;
            // Milliseconds are whole.
            ensure!(
                run + Duration::from_millis(2) >= least,
                "{run:?} of {least:?}"
            );
        }
        Ok(())
    }
}

async fn buy(world: &World, pods: usize) -> Result<Vec<Bought>> {
    let busybox = world.busybox().await?;
    let (client, wallet) = (world.client(), world.wallet().await?);
    let mut bought = Vec::new();
    for index in 0..pods {
        let containers = json!([shell("web", &busybox, SERVE)]);
        let upload = document(&format!("upgrade-{index}"), Some(8080), containers);
        let hash = hash_of(&upload);
        let asked = Instant::now();
        let answer = client
            .upload(&upload, LEASE_SECS, &wallet, PRICE_LIMIT)
            .await?;
        let answered = Instant::now();
        let (status, page) = world.visit(&hash.to_string(), "/").await?;
        ensure!(status == 200 && !page.is_empty(), "{status} {page}");
        bought.push(Bought {
            hash,
            page,
            paid: answer.receipt.paid - answer.receipt.refunded,
            expiry: answer.reply.expiry.get(),
            asked,
            answered,
        });
    }
    Ok(bought)
}

/// A copy of the program, as an operator has it installed.
struct Program {
    file: PathBuf,
}

impl Program {
    fn new(place: &Path) -> Result<Self> {
        let program = Self {
            file: place.join("codiusd"),
        };
        program.replace()?;
        Ok(program)
    }

    /// Another file takes the place of this one.
    fn replace(&self) -> Result<()> {
        self.put(|file| fs::copy(env!("CARGO_BIN_EXE_codiusd"), file).map(drop))
    }

    fn put(&self, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
        let new = self.file.with_extension("new");
        write(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
        fs::rename(new, &self.file)?;
        Ok(())
    }

    fn is_run_by(&self, process: u32) -> Result<bool> {
        let run = fs::metadata(format!("/proc/{process}/exe"))?;
        let file = fs::metadata(&self.file)?;
        Ok((run.dev(), run.ino()) == (file.dev(), file.ino()))
    }

    /// Where the guest is, which is not beside the copy.
    fn guest_table(&self) -> String {
        let target = Path::new(env!("CARGO_BIN_EXE_codiusd")).ancestors().nth(2);
        let guest = target.unwrap_or(Path::new("/")).join("guest");
        format!("[guest]\ndir = {guest:?}\n")
    }
}

/// One request, and what became of it.
#[derive(Debug)]
struct Asked {
    began: Instant,
    ended: Instant,
    /// How often it was sent again.
    again: usize,
    failure: Option<Failure>,
}

#[derive(Debug)]
enum Failure {
    Broken(io::Error),
    Late,
    Wrong(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => write!(f, "{error}"),
            Self::Late => write!(f, "no answer within {} s", PATIENCE.as_secs()),
            Self::Wrong(answer) => write!(f, "another answer: {answer}"),
        }
    }
}

impl Asked {
    fn was_refused(&self) -> bool {
        match &self.failure {
            Some(Failure::Broken(error)) => error.kind() == ErrorKind::ConnectionRefused,
            Some(Failure::Late | Failure::Wrong(_)) => true,
            None => false,
        }
    }
}

/// Two for each pod, and two for the API.
struct Visitors {
    stop: CancellationToken,
    tasks: JoinSet<Vec<Asked>>,
}

impl Visitors {
    fn start(world: &World, pods: &[Bought]) -> Result<Self> {
        let port = world.api.rsplit(':').next().context("no port")?;
        let address = SocketAddr::from(([127, 0, 0, 1], port.parse()?));
        let pause = PAUSE_PER_POD * u32::try_from(pods.len())?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let of_pods = pods.iter().map(|pod| {
            let host = format!("{}.localhost:{port}", pod.hash);
            ("/", host, pod.page.as_str())
        });
        let of_api = ("/info", format!("localhost:{port}"), "\"costPerMonth\"");
        for (path, host, page) in of_pods.chain([of_api]) {
            for keeps in [false, true] {
                let connection = if keeps { "keep-alive" } else { "close" };
                let visitor = Visitor {
                    address,
                    request: format!(
                        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: {connection}\r\n\r\n"
                    ),
                    page: page.into(),
                    keeps,
                    kept: None,
                };
                tasks.spawn(visitor.visit_until(stop.clone(), pause));
            }
        }
        Ok(Self { stop, tasks })
    }

    async fn stop(self) -> Result<Vec<Asked>> {
        self.stop.cancel();
        Ok(self.tasks.join_all().await.into_iter().flatten().collect())
    }
}

struct Visitor {
    address: SocketAddr,
    request: String,
    /// Is in every right answer.
    page: Arc<str>,
    keeps: bool,
    kept: Option<TcpStream>,
}

impl Visitor {
    async fn visit_until(mut self, stop: CancellationToken, pause: Duration) -> Vec<Asked> {
        let mut asked = Vec::new();
        while !stop.is_cancelled() {
            let began = Instant::now();
            let mut again = 0;
            let outcome = timeout(PATIENCE, self.ask(&mut again)).await;
            let failure = match outcome {
                Ok(Ok(answer))
                    if answer.contains(&*self.page) && answer.contains(" 200 OK\r\n") =>
                {
                    None
                }
                Ok(Ok(answer)) => Some(Failure::Wrong(answer)),
                Ok(Err(error)) => Some(Failure::Broken(error)),
                Err(_) => Some(Failure::Late),
            };
            if failure.is_some() {
                self.kept = None;
            }
            asked.push(Asked {
                began,
                ended: Instant::now(),
                again,
                failure,
            });
            tokio::time::sleep(pause).await;
        }
        asked
    }

    async fn ask(&mut self, again: &mut usize) -> io::Result<String> {
        if let Some(mut kept) = self.kept.take() {
            let mut answer = Vec::new();
            match exchange(&mut kept, &self.request, &mut answer).await {
                Ok(()) => return Ok(self.keep(kept, &answer)),
                // See above: it crossed with the closing.
                Err(_) if answer.is_empty() => *again += 1,
                Err(error) => return Err(error),
            }
        }
        let mut stream = TcpStream::connect(self.address).await?;
        let mut answer = Vec::new();
        exchange(&mut stream, &self.request, &mut answer).await?;
        Ok(self.keep(stream, &answer))
    }

    fn keep(&mut self, stream: TcpStream, answer: &[u8]) -> String {
        let answer = String::from_utf8_lossy(answer).into_owned();
        let closes = answer.to_lowercase().contains("\r\nconnection: close\r\n");
        self.kept = (self.keeps && !closes).then_some(stream);
        answer
    }
}

/// Sends a request and reads the whole answer.
async fn exchange(stream: &mut TcpStream, request: &str, answer: &mut Vec<u8>) -> io::Result<()> {
    stream.write_all(request.as_bytes()).await?;
    loop {
        if whole(answer) {
            return Ok(());
        }
        if stream.read_buf(answer).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Whether an answer with a length has come to its end.
fn whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(usize::MAX)
}

/// The host's process, a child of who keeps it.
fn kept_host(world: &World) -> Result<u32> {
    let keeper = world.process_id()?;
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))?;
    match children.split_whitespace().collect::<Vec<_>>()[..] {
        [host] => Ok(host.parse()?),
        _ => bail!("the host is not running: {children:?}\n{}", world.log()),
    }
}

fn signal(process: u32, name: &str) -> Result<()> {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &process.to_string()])
        .status()?;
    ensure!(sent.success(), "kill: {sent}");
    Ok(())
}

fn number(variable: &str, default: usize) -> Result<usize> {
    match env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}")),
        Err(_) => Ok(default),
    }
}

fn sorted(mut numbers: Vec<u32>) -> Vec<u32> {
    numbers.sort_unstable();
    numbers
}

fn unix_ms() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_millis())?)
}
