//! `codius run` at a real host: a program that is paid by the second, what becomes of it when the money
//! stops, and where the money is at the end.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use codius_api::v2::LeaseState;
use codius_ledger::{Account, LeaseParts, Rate};
use codius_manifest::ManifestHash;
use serde_json::{Value, json};
use support::{Settings, World, hash_of, shell};

/// Longer than anything here takes on a machine that does many other things.
const PATIENCE: Duration = Duration::from_secs(90);
/// 10 XRP a month, per second.
const RATE: &str = "3805.17503805175038051751";
/// Counts the seconds that it has lived.
const COUNTER: &str = "i=0; while true; do echo $i; i=$((i+1)); sleep 1; done";

/// A directory to work in, and a home with the uploader's key.
struct Uploader {
    place: tempfile::TempDir,
    tool: PathBuf,
    hash: ManifestHash,
}

impl Uploader {
    async fn new(world: &World, script: &str) -> Result<Self> {
        let tool = Path::new(env!("CARGO_BIN_EXE_codiusd")).with_file_name("codius");
        ensure!(
            tool.is_file(),
            "{} is missing; run `cargo build -p codius`",
            tool.display()
        );
        let manifest = json!({
            "name": "run", "version": "1", "machine": "small",
            "containers": [shell("app", &world.busybox().await?, script)]
        });
        let place = tempfile::tempdir()?;
        let document = json!({ "manifest": manifest }).to_string();
        fs::write(place.path().join("codius.json"), &document)?;
        let hash = hash_of(&document);
        Ok(Self { place, tool, hash })
    }

    fn command(&self, world: &World, words: &[&str]) -> Command {
        let mut tool = Command::new(&self.tool);
        tool.args(words)
            .args(["-y", "--json", "--host", &world.api])
            .current_dir(self.place.path())
            .env_clear()
            .env("HOME", self.place.path())
            .env("ILP_BTP_SERVER", &world.interledger)
            .stdin(Stdio::null());
        tool
    }

    fn start(&self, world: &World, words: &[&str]) -> Result<Run> {
        let mut tool = self.command(world, words);
        let mut process = tool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let out = process.stdout.take().context("no standard output")?;
        let told = Arc::clone(&events);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "not": line }));
                lock(&told).push(event);
            }
        });
        Ok(Run { process, events })
    }
}

/// A run of the tool.
struct Run {
    process: Child,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Run {
    fn events(&self) -> Vec<Value> {
        lock(&self.events).clone()
    }

    /// Waits for the first event from number `from` on that fits, and says its number.
    async fn event(&mut self, from: usize, fits: impl Fn(&Value) -> bool) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.events().iter().skip(from).position(&fits);
            if let Some(index) = found {
                return Ok(from + index);
            }
            let ended = self.process.try_wait()?.is_some();
            if ended || Instant::now() > deadline {
                // What was written last may still be read.
                tokio::time::sleep(Duration::from_millis(500)).await;
                if let Some(index) = self.events().iter().skip(from).position(&fits) {
                    return Ok(from + index);
                }
                let mut errors = String::new();
                if let (true, Some(mut out)) = (ended, self.process.stderr.take()) {
                    out.read_to_string(&mut errors)?;
                }
                bail!("not told: {:#?}\n{errors}", self.events());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn named(&mut self, from: usize, name: &str) -> Result<usize> {
        self.event(from, |event| event["event"] == name).await
    }

    fn signal(&self, name: &str) -> Result<()> {
        let signal = format!("-{name}");
        let status = Command::new("kill")
            .args([signal, self.process.id().to_string()])
            .status()?;
        ensure!(status.success(), "the tool does not run");
        Ok(())
    }

    /// Waits for its end: its exit code and its last words.
    async fn end(mut self) -> Result<(Option<i32>, Value)> {
        let index = self.named(0, "ended").await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok((status.code(), self.events()[index].clone()));
            }
            ensure!(Instant::now() < deadline, "the tool does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the program has counted, as far as it is known.
    fn counted(&self) -> Vec<u64> {
        let lines = self.events();
        let numbers = lines.iter().filter(|event| event["event"] == "log");
        numbers
            .filter_map(|event| event["text"].as_str()?.parse().ok())
            .collect()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn amount(event: &Value, member: &str) -> Result<u64> {
    let text = event[member].as_str();
    Ok(text
        .with_context(|| format!("{member} {event:#}"))?
        .parse()?)
}

fn rate() -> Rate {
    RATE.parse().expect("it is a rate")
}

async fn state(world: &World, hash: &ManifestHash, wanted: LeaseState) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lease = world.client().lease(hash).await?;
        if lease.state == wanted {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{lease:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// After the end of the host: nothing is left in the accounts of the program, and what was earned is
/// `used`, which is never more than the time costs that the pod has run.
async fn settled(world: &World, hash: &ManifestHash, used: u64) -> Result<LeaseParts> {
    let balances = world.balances().await?;
    let of = |name: &str| {
        let found = balances.iter().find(|(account, _)| account == name);
        found.map_or(0, |(_, balance)| *balance)
    };
    ensure!(of(&format!("lease:{hash}")) == 0, "{balances:?}");
    // What lasts for less than a millisecond cannot be used up.
    let least = i64::try_from(rate().earned(1))?;
    ensure!(of(&format!("owed:{hash}")) <= least, "{balances:?}");
    ensure!(of("earned") == i64::try_from(used)?, "{used} {balances:?}");
    let store = codius_store::Store::open(&world.data_dir().join("codius.db"))?;
    let lease = store.lease(*hash).await?.context("no lease")?.lease;
    store.close().await;
    let parts = *lease.parts();
    ensure!(parts.charged == used, "{parts:?}");
    ensure!(used <= rate().earned(parts.run_ms) + 1, "{parts:?}");
    Ok(parts)
}

/// It is exactly what the time costs, to a unit. A pod that was frozen has run a little longer than that:
/// until the host had frozen it.
fn exact(parts: &LeaseParts) -> Result<()> {
    let earned = rate().earned(parts.run_ms);
    ensure!(earned.abs_diff(parts.charged) <= 1, "{parts:?}");
    Ok(())
}

#[tokio::test]
async fn a_program_is_paid_by_the_second_and_ctrl_c_gets_the_rest_back() -> Result<()> {
    let mut world = World::start(Settings {
        grace_secs: 60,
        ..Settings::default()
    })?;
    let uploader = Uploader::new(&world, COUNTER).await?;
    let mut run = uploader.start(&world, &["run", "--ahead", "15s"])?;
    run.event(0, |event| event["seconds"].as_u64() >= Some(15))
        .await?;
    run.signal("INT")?;
    let counted = run.counted();
    let (code, end) = run.end().await?;
    ensure!(code == Some(130), "{end:#}");
    ensure!(end["reason"] == "stopped", "{end:#}");
    ensure!(counted.len() >= 5, "{counted:?}");

    let (paid, refunded) = (amount(&end, "paid")?, amount(&end, "refunded")?);
    let used = amount(&end, "used")?;
    ensure!(amount(&end, "owed")? == 0, "{end:#}");
    ensure!(paid - refunded == used, "{end:#}");
    ensure!(paid >= rate().earned(15_000), "{end:#}");
    // Never more than was to be paid ahead.
    ensure!(refunded <= rate().earned(15_000) + 1, "{end:#}");

    world.nothing_remains().await?;
    world.stop()?;
    exact(&settled(&world, &uploader.hash, used).await?)?;
    // It has come second by second, and not at once.
    let entries = world.entries(&Account::Lease(uploader.hash)).await?;
    let packets: Vec<_> = entries.iter().filter(|entry| entry.amount > 0).collect();
    ensure!(packets.len() >= 10, "{packets:?}");
    Ok(())
}

#[tokio::test]
async fn when_the_money_stops_the_pod_is_frozen_and_when_it_comes_back_it_goes_on() -> Result<()> {
    let mut world = World::start(Settings {
        grace_secs: 25,
        ..Settings::default()
    })?;
    let uploader = Uploader::new(&world, COUNTER).await?;
    let hash = uploader.hash;
    let mut run = uploader.start(&world, &["run", "--ahead", "5s"])?;
    run.event(0, |event| event["text"] == "3").await?;
    let machines = world.machines();
    ensure!(machines.len() == 1, "{machines:?}");

    run.signal("STOP")?;
    let stopped = Instant::now();
    state(&world, &hash, LeaseState::Frozen).await?;
    println!("frozen after {:?}", stopped.elapsed());
    let frozen = world.client().lease(&hash).await?;
    ensure!(frozen.balance.0 <= 1, "{frozen:#?}");
    run.signal("CONT")?;
    state(&world, &hash, LeaseState::Running).await?;
    let told = run.events().len();
    run.event(told, |event| event["event"] == "log").await?;
    ensure!(world.machines() == machines, "it was started again");
    let counted = run.counted();
    let in_order: Vec<u64> = (0..).take(counted.len()).collect();
    ensure!(counted == in_order, "it has forgotten: {counted:?}");

    // The tool is lost for good, and another run takes up what it has left.
    run.signal("KILL")?;
    state(&world, &hash, LeaseState::Frozen).await?;
    drop(run);
    let name = hash.to_string();
    let mut run = uploader.start(&world, &["run", &name, "--ahead", "5s"])?;
    state(&world, &hash, LeaseState::Running).await?;
    run.event(0, |event| event["event"] == "log").await?;
    ensure!(world.machines() == machines, "it was started again");

    // Nobody pays any more.
    run.signal("KILL")?;
    state(&world, &hash, LeaseState::Ended).await?;
    world.nothing_remains().await?;
    let ended = world.client().lease(&hash).await?.ended;
    let reason = json!(ended.context("it has ended")?.reason);
    ensure!(reason == "expired", "{reason}");
    world.stop()?;
    let balances = world.balances().await?;
    let earned = balances.iter().find(|(account, _)| account == "earned");
    let earned = earned.context("nothing was earned")?.1;
    settled(&world, &hash, u64::try_from(earned)?).await?;
    Ok(())
}

#[tokio::test]
async fn a_program_that_ends_by_itself_leaves_nothing_owed() -> Result<()> {
    let mut world = World::start(Settings {
        grace_secs: 60,
        ..Settings::default()
    })?;
    let uploader = Uploader::new(&world, "sleep 14; echo bye").await?;
    let run = uploader.start(&world, &["run", "--ahead", "8s"])?;
    let events = Arc::clone(&run.events);
    let (code, end) = run.end().await?;
    ensure!(code == Some(0), "{end:#}");
    ensure!(end["reason"] == "exited", "{end:#}");
    let said_bye = lock(&events).iter().any(|event| event["text"] == "bye");
    ensure!(said_bye, "{:#?}", lock(&events));
    let used = amount(&end, "used")?;
    ensure!(amount(&end, "owed")? == 0, "{end:#}");
    ensure!(amount(&end, "refunded")? > 0, "{end:#}");
    ensure!(amount(&end, "cost")? == used, "{end:#}");
    world.nothing_remains().await?;
    world.stop()?;
    exact(&settled(&world, &uploader.hash, used).await?)
}

#[tokio::test]
async fn a_host_that_is_killed_and_comes_back_is_paid_again() -> Result<()> {
    let free = |_| Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    let ports: Vec<u16> = (0..2).map(free).collect::<Result<_>>()?;
    let mut world = World::start(Settings {
        listen: format!("127.0.0.1:{}", ports[0]),
        interledger_port: ports[1],
        grace_secs: 60,
        ..Settings::default()
    })?;
    let uploader = Uploader::new(&world, COUNTER).await?;
    let hash = uploader.hash;
    let mut run = uploader.start(&world, &["run", "--ahead", "8s", "--max", "1"])?;
    run.event(0, |event| event["text"] == "3").await?;
    let machines = world.machines();
    world.kill()?;
    let lost = run.named(0, "disconnected").await?;
    world.run()?;
    run.named(lost, "connected").await?;
    state(&world, &hash, LeaseState::Running).await?;
    let counted = run.counted().len();
    let told = run.events().len();
    run.event(told, |event| event["event"] == "log").await?;
    ensure!(run.counted().len() > counted);
    ensure!(world.machines() == machines, "it was started again");

    // Somebody else with the key stops it; the rest comes back to who has paid.
    let name = hash.to_string();
    let mut stop = uploader.command(&world, &["stop", &name]);
    let stopped = tokio::task::spawn_blocking(move || stop.output()).await??;
    ensure!(stopped.status.success(), "{stopped:?}");
    let (code, end) = run.end().await?;
    ensure!(code == Some(0), "{end:#}");
    ensure!(end["reason"] == "stopped", "{end:#}");
    ensure!(amount(&end, "refunded")? > 0, "{end:#}");
    ensure!(amount(&end, "owed")? == 0, "{end:#}");
    let used = amount(&end, "used")?;
    world.stop()?;
    settled(&world, &hash, used).await?;
    Ok(())
}
