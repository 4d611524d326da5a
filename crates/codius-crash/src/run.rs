//! One run: blow after blow, and the checks between them.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use codius_testkit::{Entry, ImageBuilder, Layer, Registry, install_crypto};
use rustix::process::Signal;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

use crate::{
    board::Board,
    books::Books,
    check,
    client::{Client, Counts, Notebook},
    disk::Disk,
    host::{Host, Setup, Start, kill_machines},
    machines::{Lives, since_boot_ms},
    plan::{self, Blow, Event, Moment, Victims},
    tally::Tally,
};

/// Size of the host's file system: room for images and a few pods, filled in a moment.
const DISK_MIB: u64 = 384;
/// Images that clients choose from; each is pulled at its first use.
const IMAGES: usize = 12;
/// What makes each of them another one.
const FILLING_BYTES: usize = 200_000;
/// How long a moment is waited for before the blow comes anyway.
const MOMENT_PATIENCE: Duration = Duration::from_secs(10);
/// How often machines are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// After so many blows all is looked at in peace.
const QUIET_EVERY: u32 = 4;
/// How long what a client does may take.
const STILL_TIMEOUT: Duration = Duration::from_secs(240);
/// How long it may take until all is as it should be, once nobody asks for anything: a machine that was
/// lost is started again, under emulation and beside others.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the last leases may take to run out.
const END_TIMEOUT: Duration = Duration::from_secs(300);
/// How often a start that does not succeed is tried again.
const START_TRIES: u32 = 5;

/// What a run is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    pub kills: u32,
    pub seed: u64,
    pub codiusd: PathBuf,
    /// Where the guest's kernel and initramfs are.
    pub guest: PathBuf,
    /// A static program that answers at a port with a page that names its manifest hash.
    pub hello: PathBuf,
    pub clients: u32,
    /// Whether what clients fail at is printed, too.
    pub verbose: bool,
}

/// Something that no host may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub after: Duration,
    pub seed: u64,
    /// 0 is before the first, and the one after the last is the end.
    pub event: u32,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            after,
            seed,
            event,
            what,
        } = self;
        let seconds = after.as_secs_f64();
        write!(
            out,
            "VIOLATION after {seconds:.1} s, seed {seed}, event {event}: {what}"
        )
    }
}

/// What a run has found.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub kills: u32,
    pub violations: Vec<Violation>,
    /// From the start of the process until it was ready.
    starts: Vec<Duration>,
    counts: Counts,
    tally: Tally,
    lasted: Duration,
    quiet_checks: u32,
    /// Starts that ended because nothing could be written.
    refused_starts: u32,
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            placed,
            extended,
            topped_up,
            stopped,
            visited,
            failed,
        } = self.counts;
        let mut starts = self.starts.clone();
        starts.sort_unstable();
        let middle = starts.get(starts.len() / 2).copied().unwrap_or_default();
        let longest = starts.last().copied().unwrap_or_default();
        writeln!(
            out,
            "seed {}, {:.0} s; clients: {placed} uploads, {extended} extensions, {topped_up} top-ups, \
             {stopped} stops, {visited} visits, {failed} without a good answer",
            self.seed,
            self.lasted.as_secs_f64()
        )?;
        let Tally {
            paid,
            perhaps_paid,
            received,
            perhaps_received,
        } = self.tally;
        writeln!(
            out,
            "money: paid {paid} (and {perhaps_paid} unknown), got back {received} (and {perhaps_received} unknown)"
        )?;
        writeln!(
            out,
            "{} starts, ready after {:.2} s in the middle and {:.2} s at most; {} refused because \
             nothing could be written; {} checks in peace",
            starts.len(),
            middle.as_secs_f64(),
            longest.as_secs_f64(),
            self.refused_starts,
            self.quiet_checks
        )?;
        for violation in &self.violations {
            writeln!(out, "{violation}")?;
        }
        write!(
            out,
            "{} kills, {} violations",
            self.kills,
            self.violations.len()
        )
    }
}

/// Carries out a plan.
pub async fn run(settings: Settings) -> Result<Report> {
    install_crypto();
    ensure!(
        rustix::process::geteuid().is_root(),
        "pods, networks and file systems need root"
    );
    println!("seed {}, {} kills", settings.seed, settings.kills);
    let registry = Registry::start()?;
    let images = push_images(&registry, &settings).await?;
    let place = tempfile::Builder::new().prefix("codius-crash-").tempdir()?;
    let disk = Disk::make(place.path(), DISK_MIB)?;
    let setup = Setup::new(
        &settings.codiusd,
        &settings.guest,
        place.path(),
        &disk,
        &registry.host(),
    )?;
    let mut run = Run::new(settings, Arc::new(setup), disk);
    let mut told_to_end = signal(SignalKind::terminate())?;
    let done = tokio::select! {
        done = run.carry_out(images) => done,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
        _ = told_to_end.recv() => Err(anyhow!("told to end")),
    };
    // All goes with the run, whatever became of it.
    run.host = None;
    kill_machines(&run.setup.machines(), run.setup.prefix())?;
    run.setup.clear()?;
    done?;
    if !run.violations.is_empty() {
        let kept = std::env::temp_dir().join(format!("codius-crash-{}.log", run.settings.seed));
        std::fs::copy(run.setup.log_path(), &kept)?;
        println!("the host's log is kept as {}", kept.display());
    }
    Ok(run.report())
}

async fn push_images(registry: &Registry, settings: &Settings) -> Result<Arc<Vec<String>>> {
    let hello = std::fs::read(&settings.hello)
        .with_context(|| format!("{} cannot be read", settings.hello.display()))?;
    let mut images = Vec::new();
    for number in 0..IMAGES {
        let number = u8::try_from(number)?;
        let layer = Layer::new().entry(Entry::file("hello", 0o755, &hello));
        let other = Layer::new().file("number", 0o644, vec![number; FILLING_BYTES]);
        let image = ImageBuilder::new()
            .layer(layer)
            .layer(other)
            .entrypoint(&["/hello"])
            .user("65534:65534");
        let name = format!("crash/hello:{number}");
        images.push(image.push(registry, &name).await?.by_digest);
    }
    Ok(Arc::new(images))
}

struct Run {
    settings: Settings,
    setup: Arc<Setup>,
    disk: Disk,
    host: Option<Host>,
    board: Arc<Board>,
    notebook: Arc<Notebook>,
    lives: Arc<Mutex<Lives>>,
    began: Instant,
    event: u32,
    violations: Vec<Violation>,
    starts: Vec<Duration>,
    panics: usize,
    quiet_checks: u32,
    refused_starts: u32,
}

impl Run {
    fn new(settings: Settings, setup: Arc<Setup>, disk: Disk) -> Self {
        Self {
            settings,
            setup,
            disk,
            host: None,
            board: Board::new(),
            notebook: Arc::default(),
            lives: Arc::default(),
            began: Instant::now(),
            event: 0,
            violations: Vec::new(),
            starts: Vec::new(),
            panics: 0,
            quiet_checks: 0,
            refused_starts: 0,
        }
    }

    async fn carry_out(&mut self, images: Arc<Vec<String>>) -> Result<()> {
        let watching = tokio::spawn(watch(Arc::clone(&self.setup), Arc::clone(&self.lives)));
        self.bring_up().await?;
        let clients: Vec<_> = (0..self.settings.clients)
            .map(|number| {
                let (board, notebook) = (&self.board, &self.notebook);
                let client = Client::new(number, &self.settings, board, notebook, &images);
                tokio::spawn(client.run())
            })
            .collect();
        for event in plan::plan(self.settings.seed, self.settings.kills) {
            self.event = event.number;
            self.carry_out_event(&event).await?;
            self.check_at_any_time()?;
            if event.number % QUIET_EVERY == 0 || event.blow.is_trouble() {
                self.check_in_peace().await?;
            }
        }
        self.event += 1;
        self.end(clients).await?;
        watching.abort();
        Ok(())
    }

    async fn carry_out_event(&mut self, event: &Event) -> Result<()> {
        sleep(event.pause).await;
        match event.moment {
            Moment::Any => {}
            Moment::During(doing, into) => {
                self.board.during(doing, MOMENT_PATIENCE).await;
                sleep(into).await;
            }
        }
        self.still_lives()?;
        println!(
            "{:7.1} s  {:3}  {:?} {:?}; {} machines",
            self.began.elapsed().as_secs_f64(),
            event.number,
            event.moment,
            event.blow,
            self.setup.machines().len()
        );
        match &event.blow {
            Blow::Kill(victims) => self.kill(*victims)?,
            Blow::CutShutdown { after } => {
                self.board.show(None);
                if let Some(host) = &self.host {
                    host.signal(Signal::TERM)?;
                }
                sleep(*after).await;
                self.kill(Victims::Host)?;
            }
            Blow::CutStarts { after } => {
                self.kill(Victims::Host)?;
                for after in after {
                    let mut host = self.setup.spawn()?;
                    sleep(*after).await;
                    host.kill()?;
                }
            }
            Blow::Suspend { lasting, victims } => {
                if let Some(host) = &self.host {
                    self.lives().host_stopped = true;
                    host.signal(Signal::STOP)?;
                }
                sleep(*lasting / 2).await;
                self.kill(*victims)?;
                sleep(*lasting / 2).await;
                if let Some(host) = &self.host {
                    host.signal(Signal::CONT)?;
                }
                self.lives().host_stopped = false;
            }
            Blow::FillDisk { lasting, victims } => {
                self.disk.fill()?;
                sleep(*lasting / 2).await;
                self.kill(*victims)?;
                if self.host.is_none() {
                    self.try_start().await?;
                }
                sleep(*lasting / 2).await;
                self.disk.free()?;
            }
            Blow::BreakDisk {
                lasting,
                start_meanwhile,
            } => {
                self.disk.break_down()?;
                sleep(*lasting).await;
                self.kill(Victims::Host)?;
                if *start_meanwhile {
                    self.try_start().await?;
                    if self.host.is_some() {
                        self.violated("the host serves, and nothing can be written");
                        self.kill(Victims::Host)?;
                    }
                }
                kill_machines(&self.setup.machines(), self.setup.prefix())?;
                self.disk.repair()?;
            }
        }
        self.bring_up().await
    }

    /// A host that nobody has killed does not end.
    fn still_lives(&mut self) -> Result<()> {
        let ended = match &mut self.host {
            Some(host) => host.has_ended()?,
            None => None,
        };
        if let Some(status) = ended {
            self.board.show(None);
            self.host = None;
            let tail = self.setup.log_tail();
            self.violated(format!("the host has ended by itself ({status}):\n{tail}"));
        }
        Ok(())
    }

    fn kill(&mut self, victims: Victims) -> Result<()> {
        let machines = self.setup.machines();
        let hit = match victims {
            Victims::Host => &[],
            Victims::Pod { place } | Victims::HostAndPod { place } => match machines.len() {
                0 => &[],
                count => std::slice::from_ref(&machines[place % count]),
            },
            Victims::Pods | Victims::HostAndPods => &machines[..],
        };
        if (victims.host() || hit.is_empty())
            && let Some(mut host) = self.host.take()
        {
            self.board.show(None);
            host.kill()?;
        }
        kill_machines(hit, self.setup.prefix())
    }

    /// Starts the host if it does not run; whatever keeps it from that is wrong.
    async fn bring_up(&mut self) -> Result<()> {
        self.still_lives()?;
        for _ in 0..START_TRIES {
            if self.host.is_some() {
                return Ok(());
            }
            if let Some(why) = self.start().await? {
                self.violated(why);
                sleep(Duration::from_secs(1)).await;
            }
        }
        match self.host {
            Some(_) => Ok(()),
            None => bail!("the host does not start any more"),
        }
    }

    /// Starts the host while it may be unable to; that it says so and ends is right.
    async fn try_start(&mut self) -> Result<()> {
        let mut host = self.setup.spawn()?;
        match host.ready()? {
            Start::Ready(up, after) => {
                self.starts.push(after);
                self.board.show(Some(up));
                self.host = Some(host);
            }
            Start::Ended(status) if status.code() == Some(1) => self.refused_starts += 1,
            Start::Ended(status) => {
                let tail = self.setup.log_tail();
                self.violated(format!(
                    "a start that cannot succeed ended with {status}:\n{tail}"
                ));
            }
            Start::TimedOut => self.violated("a start that cannot succeed does not end"),
        }
        Ok(())
    }

    async fn start(&mut self) -> Result<Option<String>> {
        let mut host = self.setup.spawn()?;
        match host.ready()? {
            Start::Ready(up, after) => {
                self.starts.push(after);
                self.board.show(Some(up));
                self.host = Some(host);
                Ok(None)
            }
            Start::Ended(status) => {
                let tail = self.setup.log_tail();
                Ok(Some(format!("the host does not start ({status}):\n{tail}")))
            }
            Start::TimedOut => {
                let tail = self.setup.log_tail();
                Ok(Some(format!("the host is not ready in time:\n{tail}")))
            }
        }
    }

    fn lives(&self) -> std::sync::MutexGuard<'_, Lives> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is true at every moment: money and time.
    fn check_at_any_time(&mut self) -> Result<()> {
        let books = Books::read(&self.setup.database())?;
        let mut wrong = check::ledger(&books);
        wrong.extend(check::leases(&books));
        let now = since_boot_ms();
        let lives = self.lives();
        wrong.extend(check::lives(&books, |hash| lives.most_ms(hash, now)));
        drop(lives);
        wrong.extend(self.notebook.take_wrong());
        for what in wrong {
            self.violated(what);
        }
        let panics = self.setup.panics();
        if panics > self.panics {
            let tail = self.setup.log_tail();
            self.violated(format!("the host has panicked:\n{tail}"));
            self.panics = panics;
        }
        Ok(())
    }

    /// What is true when nobody asks for anything, sooner or later.
    async fn check_in_peace(&mut self) -> Result<()> {
        let board = Arc::clone(&self.board);
        let Ok(_still) = timeout(STILL_TIMEOUT, board.still()).await else {
            self.violated("a client waits for ever for what it asked for");
            return Ok(());
        };
        self.quiet_checks += 1;
        let began = Instant::now();
        loop {
            self.bring_up().await?;
            let wrong = self.wrong_in_peace()?;
            if wrong.is_empty() {
                break;
            }
            if began.elapsed() > SETTLE_TIMEOUT {
                let tail = self.setup.log_tail();
                for what in wrong {
                    self.violated(what);
                }
                println!("the end of the host's log:\n{tail}");
                break;
            }
            sleep(Duration::from_millis(250)).await;
        }
        println!(
            "{:7.1} s       in peace; all was in order after {:.1} s",
            self.began.elapsed().as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
        self.check_at_any_time()
    }

    fn wrong_in_peace(&self) -> Result<Vec<String>> {
        let (machines, notes) = (self.setup.machines(), self.setup.notes());
        let things = self.setup.things()?;
        let books = Books::read(&self.setup.database())?;
        let notes_of_client = self.notebook.notes();
        let mut wrong = check::clients(&books, &notes_of_client.tally);
        wrong.extend(check::told(&books, &notes_of_client.told));
        wrong.extend(check::settled(&books));
        wrong.extend(check::machines(&books, &machines, &notes));
        wrong.extend(check::things(&books, &things, &notes, self.setup.prefix()));
        wrong.extend(check::images(&self.setup.image_files()));
        Ok(wrong)
    }

    /// All leases are stopped or run out, and nothing is left.
    async fn end(&mut self, clients: Vec<tokio::task::JoinHandle<Client>>) -> Result<()> {
        self.board.end();
        let mut ended = Vec::new();
        for client in clients {
            let client = timeout(STILL_TIMEOUT, client).await;
            ended.push(client.context("a client does not end its turn")??);
        }
        for client in &mut ended {
            if let Err(error) = client.end().await {
                self.violated(format!(
                    "a lease could not be stopped at the end: {error:#}"
                ));
            }
        }
        let deadline = Instant::now() + END_TIMEOUT;
        loop {
            self.still_lives()?;
            let books = Books::read(&self.setup.database())?;
            if books.leases.iter().all(crate::books::LeaseRow::has_ended) {
                break;
            }
            if Instant::now() > deadline {
                self.violated("leases do not end");
                break;
            }
            sleep(Duration::from_millis(250)).await;
        }
        self.check_in_peace().await?;
        self.stop()?;
        self.setup.stop_pods()?;
        self.bring_up().await?;
        self.stop()?;
        let books = Books::read(&self.setup.database())?;
        let mut things = self.setup.things()?;
        things.strange.extend(self.setup.sockets());
        let wrong = check::nothing(&books, &self.setup.machines(), &things);
        for what in wrong {
            self.violated(what);
        }
        let notes = self.notebook.notes();
        if notes.counts.placed == 0 || notes.counts.visited == 0 || notes.tally.paid == 0 {
            self.violated("no program has run for money: this run shows nothing");
        }
        self.check_at_any_time()
    }

    /// As an operator does.
    fn stop(&mut self) -> Result<()> {
        self.board.show(None);
        let Some(mut host) = self.host.take() else {
            return Ok(());
        };
        match host.stop()? {
            Some(status) if status.success() => {}
            Some(status) => {
                let tail = self.setup.log_tail();
                self.violated(format!("the host ended with {status}:\n{tail}"));
            }
            None => self.violated("the host does not end when it is told to"),
        }
        Ok(())
    }

    fn violated(&mut self, what: impl Into<String>) {
        let violation = Violation {
            after: self.began.elapsed(),
            seed: self.settings.seed,
            event: self.event,
            what: what.into(),
        };
        // What stays wrong is said once.
        if self
            .violations
            .iter()
            .any(|known| known.what == violation.what)
        {
            return;
        }
        println!("{violation}");
        self.violations.push(violation);
    }

    fn report(self) -> Report {
        let notes = self.notebook.notes();
        Report {
            seed: self.settings.seed,
            kills: self.settings.kills,
            violations: self.violations,
            starts: self.starts,
            counts: notes.counts,
            tally: notes.tally,
            lasted: self.began.elapsed(),
            quiet_checks: self.quiet_checks,
            refused_starts: self.refused_starts,
        }
    }
}

/// Looks at the machines all the time.
async fn watch(setup: Arc<Setup>, lives: Arc<Mutex<Lives>>) {
    loop {
        let (setup, lives) = (Arc::clone(&setup), Arc::clone(&lives));
        let looked = tokio::task::spawn_blocking(move || {
            let (machines, notes) = (setup.machines(), setup.notes());
            let now = since_boot_ms();
            let mut lives = lives.lock().unwrap_or_else(PoisonError::into_inner);
            lives.see(now, &machines, &notes);
        });
        let _ = looked.await;
        sleep(LOOK_INTERVAL).await;
    }
}
