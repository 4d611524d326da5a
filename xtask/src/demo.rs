//! The main job on this machine: a host, a registry, an image, an upload, an answer.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use codius_testkit::{Entry, ImageBuilder, Layer, Registry};
use serde_json::Value;

use crate::{build, guest, packages};

/// What the demo buys.
const LEASE_SECS: u64 = 600;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A template is a boot, on a machine that may be busy.
const TEMPLATE_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// A page is small; anything longer is not ours.
const MAX_PAGE_BYTES: u64 = 1024 * 1024;

pub(crate) fn run(once: bool, yes: bool, port: u16) -> Result<()> {
    packages::require_root("the demo")?;
    packages::ensure(&[packages::HOST], yes)?;
    let mut phases = Phases::default();

    println!("Building codiusd and codius …");
    let programs = phases.time("build", || build::programs(build::Profile::Dev))?;
    println!("Preparing the guest kernel, its initramfs and the example …");
    let guest_dir = guest::default_dir();
    phases.time("guest", || {
        guest::build(&guest_dir, &guest::Options::default())
    })?;
    let hello = phases.time("example", || {
        guest::build_static(&guest_dir, "codius-example-hello")
    })?;

    let place = tempfile::Builder::new().prefix("codius-demo-").tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    // Ctrl-C goes to us alone: the host is in a process group of its own and is told in due order.
    let interrupted = runtime.spawn(async { tokio::signal::ctrl_c().await });

    let registry = phases.time("registry", Registry::start)?;
    let image = phases.time("push image", || push_hello(&runtime, &registry, &hello))?;
    println!("Image {image}");

    let mut host = phases.time("start host", || {
        Host::start(&programs.codiusd, place.path(), &guest_dir, port, &registry)
    })?;
    println!(
        "Host {} (isolation: {}; {})",
        host.api, host.isolation, host.isolation_reason
    );

    let codius_json = place.path().join("codius.json");
    std::fs::write(&codius_json, codius_file(&image))?;
    println!(
        "$ codius upload --host {} -d {LEASE_SECS} --codius-file codius.json -y",
        host.api
    );
    let uploaded = phases.time("upload", || {
        upload(&programs.codius, &host, &codius_json, LEASE_SECS)
    })?;
    let page = phases.time("first answer", || fetch(&uploaded.url))?;
    ensure!(
        page.contains(&uploaded.hash),
        "the page does not name its own manifest hash:\n{page}"
    );

    println!();
    println!("The program answered ({} bytes).", page.len());
    println!("  price paid  {}", uploaded.paid);
    println!("  runs until  {}", uploaded.expiry);
    println!(
        "  isolation   {} ({})",
        host.isolation, host.isolation_reason
    );
    println!("  time        {phases}");
    if !uploaded.phases.is_empty() {
        println!("  of upload   {}", uploaded.phases);
    }
    if !once {
        println!();
        println!(
            "Open {} in a browser. Ctrl-C stops the host and its pod.",
            uploaded.url
        );
        println!("{}", uploaded.url);
        runtime.block_on(async {
            tokio::select! {
                _ = interrupted => println!("\nStopping …"),
                () = host.watch() => {}
            }
        });
    }
    host.stop()?;
    drop(registry);
    if once {
        println!("{}", uploaded.url);
    } else {
        println!("Stopped; nothing was left behind.");
    }
    Ok(())
}

/// How long each step took.
#[derive(Default)]
struct Phases(Vec<(&'static str, Duration)>);

impl Phases {
    fn time<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = step().with_context(|| format!("step `{name}` failed"))?;
        self.0.push((name, start.elapsed()));
        Ok(result)
    }
}

impl std::fmt::Display for Phases {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (name, time)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(out, "{comma}{name} {:.2} s", time.as_secs_f64())?;
        }
        Ok(())
    }
}

/// An image that holds one static program.
pub(crate) fn push_hello(
    runtime: &tokio::runtime::Runtime,
    registry: &Registry,
    program: &Path,
) -> Result<String> {
    let layer = Layer::new().entry(Entry::file("hello", 0o755, std::fs::read(program)?));
    let image = ImageBuilder::new()
        .layer(layer)
        .entrypoint(&["/hello"])
        .user("65534:65534");
    let pushed = runtime.block_on(image.push(registry, "codius/hello:demo"))?;
    Ok(pushed.by_digest)
}

pub(crate) fn codius_file(image: &str) -> String {
    let file = serde_json::json!({
        "manifest": {
            "name": "hello",
            "version": "1.0.0",
            "machine": "small",
            "port": "8080",
            "containers": [{ "id": "app", "image": image, "environment": { "PORT": "8080" } }],
        }
    });
    format!("{file:#}\n")
}

/// How a host differs from the demo's, where benchmarks compare two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    /// Pods are cloned, as always; or booted.
    warm: bool,
    /// Pods may be promised more memory than the machine has.
    crowded: bool,
}

impl Variant {
    pub(crate) const WARM: Self = Self {
        warm: true,
        crowded: false,
    };
    pub(crate) const COLD: Self = Self {
        warm: false,
        crowded: false,
    };

    pub(crate) const fn crowded(self) -> Self {
        Self {
            crowded: true,
            ..self
        }
    }

    /// Its configuration file.
    fn settings(self) -> String {
        let Self { warm, crowded } = self;
        let room = if crowded {
            "memory_mib = 1000000\ndisk_mib = 1000000\nmax_pods = 1000\n"
        } else {
            ""
        };
        format!("[pods]\nwarm = {warm}\n{room}")
    }

    /// Hosts that run at the same time have different ones: a part of their pods' addresses.
    fn number(self) -> u32 {
        u32::from(!self.warm)
    }
}

/// A running `codiusd --local`.
pub(crate) struct Host {
    process: Child,
    pub(crate) api: String,
    pub(crate) interledger: String,
    pub(crate) isolation: String,
    pub(crate) isolation_reason: String,
    log: PathBuf,
    stopped: bool,
}

impl Host {
    pub(crate) fn start(
        codiusd: &Path,
        place: &Path,
        guest: &Path,
        port: u16,
        registry: &Registry,
    ) -> Result<Self> {
        Self::start_as(codiusd, place, guest, port, registry, Variant::WARM)
    }

    pub(crate) fn start_as(
        codiusd: &Path,
        place: &Path,
        guest: &Path,
        port: u16,
        registry: &Registry,
        variant: Variant,
    ) -> Result<Self> {
        let log = place.join("codiusd.log");
        let config = place.join("codiusd.toml");
        std::fs::write(&config, variant.settings())?;
        // So that a host that runs here already, or another demo, is not in the way.
        let id = std::process::id();
        let second = 128 + (id >> 8) % 32 + 32 * variant.number();
        let pool = match variant.crowded {
            false => format!("10.{second}.{}.0/24", id % 256),
            true => format!("10.{second}.{}.0/20", id % 256 / 16 * 16),
        };
        let mut command = Command::new(codiusd);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut process = command
            .arg("--local")
            .arg("--config")
            .arg(&config)
            .arg("--data-dir")
            .arg(place.join("data"))
            .arg("--listen")
            .arg(format!("127.0.0.1:{port}"))
            .args(["--interledger-listen", "127.0.0.1:0"])
            .arg("--guest-dir")
            .arg(guest)
            .arg("--insecure-registry")
            .arg(registry.host())
            .args(["--network-pool", &pool])
            .args(["--on-shutdown", "stop"])
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("{} could not be started", codiusd.display()))?;
        let output = process
            .stdout
            .take()
            .context("codiusd has no standard output")?;
        let mut ready = String::new();
        BufReader::new(output).read_line(&mut ready)?;
        let Some(fields) = ready.strip_prefix("ready ") else {
            let _ = process.wait();
            bail!("codiusd did not start:\n{}", std::fs::read_to_string(&log)?);
        };
        let field = |name: &str| {
            let start = fields
                .find(&format!("{name}="))
                .map(|at| &fields[at + name.len() + 1..]);
            let value = start.map(|rest| match rest.strip_prefix('"') {
                Some(quoted) => quoted.split('"').next().unwrap_or_default(),
                None => rest.split_whitespace().next().unwrap_or_default(),
            });
            value
                .map(str::to_owned)
                .with_context(|| format!("no {name} in `{}`", ready.trim()))
        };
        Ok(Self {
            api: field("api")?,
            interledger: field("interledger")?,
            isolation: field("isolation")?,
            isolation_reason: field("isolation-reason")?,
            process,
            log,
            stopped: false,
        })
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// Waits until pods are cloned: the host says so in its log.
    pub(crate) fn wait_for_template(&self) -> Result<()> {
        let deadline = Instant::now() + TEMPLATE_TIMEOUT;
        loop {
            let log = self.log()?;
            if log.contains("are cloned from now on") {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the host makes no template:\n{log}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Returns when the host has ended by itself.
    async fn watch(&mut self) {
        while matches!(self.process.try_wait(), Ok(None)) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        eprintln!("codiusd has ended by itself");
    }

    /// Asks the host to end and waits for it.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.stopped = true;
        if let Some(status) = self.process.try_wait()? {
            bail!(
                "codiusd had ended already ({status}):\n{}",
                std::fs::read_to_string(&self.log)?
            );
        }
        let id = self.process.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status()?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            match self.process.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!(
                    "codiusd ended with {status}:\n{}",
                    std::fs::read_to_string(&self.log)?
                ),
                None if Instant::now() > deadline => {
                    self.process.kill()?;
                    bail!("codiusd did not stop within {} s", STOP_TIMEOUT.as_secs());
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

/// What `codius upload --json` says.
pub(crate) struct Uploaded {
    pub(crate) hash: String,
    pub(crate) url: String,
    pub(crate) paid: String,
    pub(crate) expiry: String,
    /// The host's own account of the start, in words.
    pub(crate) phases: String,
    /// Each phase and when it began, as the API writes moments.
    pub(crate) moments: Vec<(String, String)>,
}

/// Runs `codius upload`; its progress goes to our standard error, its result is read.
pub(crate) fn upload(
    codius: &Path,
    host: &Host,
    codius_json: &Path,
    lease_secs: u64,
) -> Result<Uploaded> {
    let output = Command::new(codius)
        .args([
            "upload",
            "-y",
            "--json",
            "--host",
            &host.api,
            "-d",
            &lease_secs.to_string(),
            "--codius-file",
        ])
        .arg(codius_json)
        .args(["--ilp", &host.interledger, "-o", "--codius-state-file"])
        .arg(codius_json.with_file_name("demo.codiusstate.json"))
        // Nothing of a demo stays in the developer's own configuration.
        .arg("--key-file")
        .arg(codius_json.with_file_name("key"))
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{} could not be run", codius.display()))?;
    if !output.status.success() {
        let log = std::fs::read_to_string(&host.log).unwrap_or_default();
        bail!(
            "codius upload failed ({}); the host's log:\n{log}",
            output.status
        );
    }
    let result: Value =
        serde_json::from_slice(&output.stdout).context("codius upload --json printed no JSON")?;
    let text = |name: &str| match &result[name] {
        Value::String(text) => Ok(text.clone()),
        other => bail!("codius upload --json has no {name} ({other})"),
    };
    let phases = result["phases"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let said = phases.iter().filter_map(|phase| {
        Some(format!(
            "{} at {:.2} s",
            phase["phase"].as_str()?,
            phase["elapsed_ms"].as_f64()? / 1000.0
        ))
    });
    let moments = phases.iter().filter_map(|phase| {
        Some((
            phase["phase"].as_str()?.to_owned(),
            phase["at"].as_str()?.to_owned(),
        ))
    });
    Ok(Uploaded {
        moments: moments.collect(),
        hash: text("manifestHash")?,
        url: text("url")?,
        expiry: text("expiry")?,
        paid: text("paid_display").or_else(|_| text("paid"))?,
        phases: said.collect::<Vec<_>>().join(", "),
    })
}

/// Fetches a page.
pub(crate) fn fetch(url: &str) -> Result<String> {
    read_page(url, request(url)?)
}

/// Asks for a page as a browser does, for whom every name below `localhost` is this machine (RFC 6761).
/// The answer is still to be read.
pub(crate) fn request(url: &str) -> Result<TcpStream> {
    let authority = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split('/').next());
    let authority = authority.with_context(|| format!("{url} is not an http:// URL"))?;
    let port = authority
        .rsplit(':')
        .next()
        .context("the URL has no port")?;
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}"))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
    )?;
    Ok(stream)
}

/// Reads the whole answer, which has to be a page.
pub(crate) fn read_page(url: &str, answer: impl Read) -> Result<String> {
    let mut page = String::new();
    answer.take(MAX_PAGE_BYTES).read_to_string(&mut page)?;
    ensure!(page.starts_with("HTTP/1.1 200"), "{url} answered:\n{page}");
    Ok(page)
}
