//! A whole host for tests: the real `codiusd`, a real registry, real pods under emulation.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod bridge;

use std::{
    fs,
    io::{BufRead, BufReader},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc::RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use codius_client::{HostClient, Wallet};
use codius_manifest::{ManifestHash, Upload};
use codius_testkit::{
    Entry, ImageBuilder, Layer, NetworkNamespace, Packages, Registry, install_crypto,
};
use serde_json::{Value, json};

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// What `node/spsp_payer.js` needs, and a verifier of its receipts. Exactly these were looked at when the
/// behaviour of the payer was written down.
pub(crate) const PAYER: Packages<'_> = Packages {
    packages: &[
        ("ilp-plugin", "3.5.4"),
        ("ilp-protocol-spsp", "3.0.0"),
        ("@coil/receipt-verifier", "1.0.3"),
    ],
    // The one that ilp-protocol-spsp asks for does not run on Node.js 18 and later.
    overrides: &[("ilp-protocol-stream", "2.7.2-alpha.3")],
};

/// Settings that differ between tests, as TOML.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Whether pods are clones; most tests do without, as a template in the background costs each a boot.
    pub(crate) warm: bool,
    pub(crate) memory_mib: u64,
    pub(crate) port_timeout_secs: u64,
    pub(crate) max_unpacked_mib: u64,
    pub(crate) max_duration_secs: u64,
    pub(crate) on_shutdown: &'static str,
    /// How long a pod whose money is used up is held still; most tests want it gone.
    pub(crate) grace_secs: u64,
    /// The Interledger parent; without one the host is in local mode.
    pub(crate) parent: Option<String>,
    pub(crate) public_uri: Option<String>,
    /// Whether the host tests itself before it lets anybody in.
    pub(crate) tests_itself: bool,
    /// Where it listens; a test that restarts it at the same address says which.
    pub(crate) listen: String,
    /// Further tables of the configuration.
    pub(crate) more: String,
    pub(crate) cost_per_month: &'static str,
    /// In local mode.
    pub(crate) asset_scale: u8,
    /// `api.quote`.
    pub(crate) quote: &'static str,
    /// Where local clients connect; at a port of its own if it is 0.
    pub(crate) interledger_port: u16,
    /// The name of the network that the host runs in, if it is not the one of this machine.
    pub(crate) network: Option<Arc<NetworkNamespace>>,
    /// Certificates of the authorities that the host trusts, if not those of this machine.
    pub(crate) authorities: Option<PathBuf>,
    /// The registry of another host, which this one uses, too.
    pub(crate) other_registry: Option<String>,
    /// Hosts that one test has at the same time have different ones, below 3.
    pub(crate) number: u8,
    /// A file with the program, which `codiusd keep` is to run and to look up again. Without one, `codiusd` is
    /// run by itself.
    pub(crate) kept: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            warm: false,
            memory_mib: 4096,
            port_timeout_secs: 40,
            max_unpacked_mib: 1024,
            max_duration_secs: 31 * 24 * 3600,
            on_shutdown: "stop",
            grace_secs: 0,
            parent: None,
            public_uri: None,
            tests_itself: false,
            listen: "127.0.0.1:0".to_owned(),
            more: String::new(),
            cost_per_month: "10",
            asset_scale: 9,
            quote: "plain",
            interledger_port: 0,
            network: None,
            authorities: None,
            other_registry: None,
            number: 0,
            kept: None,
        }
    }
}

/// A directory, a registry and a host.
pub(crate) struct World {
    pub(crate) registry: Registry,
    pub(crate) settings: Settings,
    place: tempfile::TempDir,
    process: Option<Child>,
    pub(crate) api: String,
    pub(crate) interledger: String,
}

impl World {
    pub(crate) fn start(settings: Settings) -> Result<Self> {
        install_crypto();
        ensure!(
            rustix::process::geteuid().is_root(),
            "tests with pods need root"
        );
        let mut world = Self {
            registry: Registry::start()?,
            settings,
            place: tempfile::Builder::new().prefix("codius-e2e-").tempdir()?,
            process: None,
            api: String::new(),
            interledger: String::new(),
        };
        world.run()?;
        Ok(world)
    }

    /// Starts `codiusd` (again) on the same data.
    pub(crate) fn run(&mut self) -> Result<()> {
        let config = self.place.path().join("codiusd.toml");
        fs::write(&config, self.config())?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let program = match &self.settings.kept {
            Some(program) => program.to_str().context("its name is not UTF-8")?,
            None => env!("CARGO_BIN_EXE_codiusd"),
        };
        let mut command = match &self.settings.network {
            Some(network) => network.command(program),
            None => Command::new(program),
        };
        if self.settings.kept.is_some() {
            command.arg("keep");
        }
        if let Some(authorities) = &self.settings.authorities {
            command.env("SSL_CERT_FILE", authorities);
        }
        let mut process = command
            .arg("--config")
            .arg(&config)
            .env("RUST_LOG", "info,codiusd=debug")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let output = process
            .stdout
            .take()
            .context("codiusd has no standard output")?;
        self.process = Some(process);
        let (sender, ready) = std::sync::mpsc::channel();
        // Read to the end: hosts that follow each other write to the same pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let _ = sender.send(line);
            }
        });
        let line = match ready.recv_timeout(READY_TIMEOUT) {
            Ok(line) => line?,
            Err(RecvTimeoutError::Disconnected) => bail!("codiusd did not start:\n{}", self.log()),
            Err(RecvTimeoutError::Timeout) => {
                bail!("codiusd was not ready in time:\n{}", self.log())
            }
        };
        let field = |name: &str| {
            let value = line
                .split(' ')
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.map(str::to_owned)
        };
        let (Some(api), Some(interledger)) = (field("api"), field("interledger")) else {
            bail!("codiusd did not start:\n{}", self.log());
        };
        self.api = api;
        self.interledger = interledger;
        Ok(())
    }

    fn config(&self) -> String {
        let [a, b, c, _] = self.pool().octets();
        let Settings {
            warm,
            memory_mib,
            port_timeout_secs,
            max_unpacked_mib,
            max_duration_secs,
            on_shutdown,
            grace_secs,
            parent,
            public_uri,
            tests_itself,
            listen,
            more,
            cost_per_month,
            asset_scale,
            quote,
            interledger_port,
            network: _,
            authorities: _,
            other_registry,
            number: _,
            kept: _,
        } = &self.settings;
        let interledger = match parent {
            Some(parent) => format!("mode = \"uplink\"\nparent = {parent:?}"),
            None => {
                format!("listen = [\"127.0.0.1:{interledger_port}\"]\nasset_scale = {asset_scale}")
            }
        };
        let registries = [self.registry.host()]
            .into_iter()
            .chain(other_registry.clone());
        let public_uri = match public_uri {
            Some(uri) => format!("public_uri = {uri:?}\n"),
            None => String::new(),
        };
        format!(
            "data_dir = {data:?}\nlisten = {listen:?}\n{public_uri}\
             [self_test]\nenabled = {tests_itself}\nretries = 1\n\
             [api]\nquote = {quote:?}\n\
             [price]\ncost_per_month = {cost_per_month:?}\nmax_duration_secs = {max_duration_secs}\n\
             [interledger]\n{interledger}\npayment_timeout_secs = 5\n\
             [pods]\naccelerator = \"tcg\"\nwarm = {warm}\nmemory_mib = {memory_mib}\nport_timeout_secs = {port_timeout_secs}\n\
             on_shutdown = \"{on_shutdown}\"\ngrace_secs = {grace_secs}\nexpiry_notice_secs = [3600, 4]\n\
             [images]\ninsecure_registries = {registries:?}\nmax_unpacked_mib = {max_unpacked_mib}\n\
             [network]\npool = \"{a}.{b}.{c}.0/24\"\n{more}",
            data = self.data_dir(),
            registries = registries.collect::<Vec<_>>(),
        )
    }

    /// Where the addresses of its pods begin.
    pub(crate) fn pool(&self) -> Ipv4Addr {
        pool(self.settings.number)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.place.path().join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.place.path().join("codiusd.log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub(crate) fn client(&self) -> HostClient {
        HostClient::new(&self.api).expect("the host's own address is valid")
    }

    /// A wallet at the host in local mode, or at its parent.
    pub(crate) async fn wallet(&self) -> Result<Wallet> {
        Ok(Wallet::connect(&self.interledger).await?)
    }

    /// Waits until the host has logged this text more than `before` times.
    pub(crate) async fn logged(&self, text: &str, before: usize) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while self.log().matches(text).count() <= before {
            ensure!(
                Instant::now() < deadline,
                "not logged: {text}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits until pods are cloned, if they are at all.
    pub(crate) async fn warmed(&self) -> Result<()> {
        if !self.settings.warm {
            return Ok(());
        }
        self.logged("are cloned from now on", 0).await
    }

    /// The process that was started last: the host, or who keeps it.
    pub(crate) fn process_id(&self) -> Result<u32> {
        let process = self.process.as_ref().context("codiusd does not run")?;
        Ok(process.id())
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("codiusd does not run")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// As an operator does.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("codiusd does not run")?;
        Command::new("kill")
            .args(["-TERM", &process.id().to_string()])
            .status()?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            match process.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("codiusd ended with {status}:\n{}", self.log()),
                None if Instant::now() > deadline => {
                    process.kill()?;
                    bail!("codiusd did not stop:\n{}", self.log());
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The names of whatever belongs to the pods of this host begin with it.
    pub(crate) fn prefix(&self) -> String {
        let data = fs::canonicalize(self.data_dir()).unwrap_or_else(|_| self.data_dir());
        format!("cd{}-", codius_microvm::Instance::of_data_dir(&data))
    }

    /// The processes of its machines.
    pub(crate) fn machines(&self) -> Vec<u32> {
        let name = format!("-name {}", self.prefix());
        let mut machines = Vec::new();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            // Every machine is named after its pod.
            if command.contains("qemu-system") && command.contains(&name) {
                machines.extend(process.file_name().to_string_lossy().parse::<u32>());
            }
        }
        machines
    }

    /// What of pods exists on this machine: processes, network namespaces, interfaces, files.
    pub(crate) fn remains(&self) -> Vec<String> {
        let mut remains = Vec::new();
        let prefix = self.prefix();
        remains.extend(self.machines().iter().map(|id| format!("process {id}")));
        for directory in ["/run/netns", "/sys/class/net"] {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&prefix) {
                    remains.push(entry.path().display().to_string());
                }
            }
        }
        for place in ["pods/pods", "pods/records"] {
            for entry in fs::read_dir(self.data_dir().join(place))
                .into_iter()
                .flatten()
                .flatten()
            {
                remains.push(entry.path().display().to_string());
            }
        }
        remains
    }

    /// Waits until nothing of any pod exists.
    pub(crate) async fn nothing_remains(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let remains = self.remains();
            if remains.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "still there: {remains:#?}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Balances by account, read from the database; the host must not run.
    pub(crate) async fn balances(&self) -> Result<Vec<(String, i64)>> {
        let store = self.books().await?;
        let balances = store.balances().await?;
        let named = balances
            .into_iter()
            .map(|(account, balance)| (account.to_string(), balance))
            .collect();
        store.close().await;
        Ok(named)
    }

    /// The newest movements of an account; the host must not run.
    pub(crate) async fn entries(
        &self,
        account: &codius_ledger::Account,
    ) -> Result<Vec<codius_store::Entry>> {
        let store = self.books().await?;
        let entries = store.entries(account, codius_store::MAX_ENTRIES).await?;
        store.close().await;
        Ok(entries)
    }

    /// The last lease of a program; the host must not run.
    pub(crate) async fn lease(&self, hash: ManifestHash) -> Result<codius_ledger::Lease> {
        let store = self.books().await?;
        let stored = store.lease(hash).await?;
        store.close().await;
        Ok(stored.context("there was no lease")?.lease)
    }

    /// The books, which add up.
    async fn books(&self) -> Result<codius_store::Store> {
        ensure!(
            self.process.is_none(),
            "the database belongs to the host while it runs"
        );
        let store = codius_store::Store::open(&self.data_dir().join("codius.db"))?;
        store.verify().await?;
        Ok(store)
    }

    /// Pushes an image that holds static busybox.
    pub(crate) async fn busybox(&self) -> Result<String> {
        let image = codius_testkit::busybox(ImageBuilder::new())?.cmd(&["/bin/sh"]);
        Ok(image
            .push(&self.registry, "test/busybox:1")
            .await?
            .by_digest)
    }

    /// Pushes an image that holds the example program.
    pub(crate) async fn hello(&self) -> Result<String> {
        let bytes = fs::read(hello_program()?)?;
        let layer = Layer::new().entry(Entry::file("hello", 0o755, bytes));
        let image = ImageBuilder::new()
            .layer(layer)
            .entrypoint(&["/hello"])
            .user("65534:65534");
        Ok(image.push(&self.registry, "test/hello:1").await?.by_digest)
    }

    /// A visitor's `GET /`, with the Host header of a pod.
    pub(crate) async fn visit(&self, label: &str, path: &str) -> Result<(u16, String)> {
        let port = self.api.rsplit(':').next().context("no port")?;
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(20))
            .build()?;
        let request = client
            .get(format!("http://127.0.0.1:{port}{path}"))
            .header("Host", format!("{label}.localhost:{port}"));
        let response = request.send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.process.is_some() {
            let _ = self.stop();
        }
        // A test leaves no pods behind, whatever it wanted of its host, and whether it fails or not: those that
        // were left or lost their host are ended by another one.
        self.settings.on_shutdown = "stop";
        if !self.remains().is_empty() && self.run().is_ok() {
            let _ = self.stop();
        }
        if std::thread::panicking() {
            eprintln!("--- log of codiusd\n{}", self.log());
        }
    }
}

fn target_dir() -> Result<&'static Path> {
    let program = Path::new(env!("CARGO_BIN_EXE_codiusd"));
    program.ancestors().nth(2).context("no target directory")
}

/// Where the guest's kernel and initramfs are.
pub(crate) fn guest_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("guest"))
}

/// The example program, which `cargo xtask test` builds.
pub(crate) fn hello_program() -> Result<PathBuf> {
    let built = "guest-build/x86_64-unknown-linux-gnu/guest/codius-example-hello";
    let program = target_dir()?.join(built);
    ensure!(
        program.is_file(),
        "{} is missing; run the tests with `cargo xtask test`",
        program.display()
    );
    Ok(program)
}

/// Where the addresses of the pods of this test's hosts begin: ranges that no other test of this machine
/// has at the same time.
pub(crate) fn pool(number: u8) -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(10, 64 * (1 + number) + high % 64, low, 0)
}

/// A manifest of containers, as posted.
pub(crate) fn document(name: &str, port: Option<u16>, containers: Value) -> String {
    let mut manifest = json!({ "name": name, "version": "1", "machine": "small", "debug": true, "containers": containers });
    if let Some(port) = port {
        manifest["port"] = json!(port.to_string());
    }
    json!({ "manifest": manifest, "private": {} }).to_string()
}

pub(crate) fn hash_of(document: &str) -> ManifestHash {
    Upload::parse(document.as_bytes())
        .expect("a valid manifest")
        .hash()
}

/// One container that runs a shell script.
pub(crate) fn shell(id: &str, image: &str, script: &str) -> Value {
    json!({ "id": id, "image": image, "command": ["/bin/sh", "-c", script] })
}
