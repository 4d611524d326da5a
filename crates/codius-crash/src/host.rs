//! The process of the host: started, looked at and killed, never asked.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    board::Up,
    check::{ImageFiles, Things},
    disk::{self, Disk},
    machines::{self, Machine, PodNote},
};

/// How long a start may take, with all pods to be taken up, on a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a shutdown may take; the host gives itself a minute.
const STOP_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a process may take to be gone after `kill -9`.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a pod whose money is used up is held still.
const GRACE_SECS: u64 = 5;
/// What pods may have of the small disk: their own disks have holes, and they write little.
const DISK_MIB: u64 = 16 * 1024;
/// What images leave free on the small disk; the default is more than there is.
const MIN_FREE_MIB: u64 = 16;
/// How much of a log is shown with a violation, in bytes.
const LOG_TAIL: u64 = 6_000;

/// How a host is run.
pub(crate) struct Setup {
    codiusd: PathBuf,
    config: PathBuf,
    log: PathBuf,
    data: PathBuf,
    text: String,
    prefix: String,
}

/// What a start came to.
pub(crate) enum Start {
    Ready(Up, Duration),
    /// It ended by itself.
    Ended(ExitStatus),
    TimedOut,
}

/// A process, ready or not.
pub(crate) struct Host {
    process: Child,
    line: mpsc::Receiver<String>,
    started: Instant,
}

impl Setup {
    pub(crate) fn new(
        codiusd: &Path,
        guest: &Path,
        place: &Path,
        disk: &Disk,
        registry: &str,
    ) -> Result<Self> {
        let data = disk.path().join("data");
        fs::create_dir(&data)?;
        fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let data = data.canonicalize()?;
        let (listen, interledger) = (free_port()?, free_port()?);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let pool = format!("10.{}.{low}.0/24", 192 + high % 64);
        let text = format!(
            "data_dir = {data:?}\nlisten = \"127.0.0.1:{listen}\"\n\
             [interledger]\nlisten = [\"127.0.0.1:{interledger}\"]\npayment_timeout_secs = 5\n\
             max_packet_amount = 20000\n\
             [pods]\naccelerator = \"tcg\"\nmax_pods = 4\nmemory_mib = 4096\ndisk_mib = {DISK_MIB}\non_shutdown = \"leave\"\ngrace_secs = {GRACE_SECS}\n\
             [images]\ninsecure_registries = [{registry:?}]\nmin_free_mib = {MIN_FREE_MIB}\n\
             [network]\npool = {pool:?}\n\
             [guest]\ndir = {guest:?}\n",
        );
        let setup = Self {
            codiusd: codiusd.to_owned(),
            config: place.join("codiusd.toml"),
            log: place.join("codiusd.log"),
            prefix: format!("cd{}-", instance(&data)),
            data,
            text,
        };
        fs::write(&setup.config, &setup.text)?;
        Ok(setup)
    }

    /// From the next start on, pods end with the host.
    pub(crate) fn stop_pods(&self) -> Result<()> {
        let text = self
            .text
            .replace("on_shutdown = \"leave\"", "on_shutdown = \"stop\"");
        Ok(fs::write(&self.config, text)?)
    }

    pub(crate) fn spawn(&self) -> Result<Host> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut process = Command::new(&self.codiusd)
            .arg("--config")
            .arg(&self.config)
            .env("RUST_LOG", "info,codiusd=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} could not be started", self.codiusd.display()))?;
        let output = process.stdout.take().context("no standard output")?;
        let (sender, line) = mpsc::channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            if BufReader::new(output).read_line(&mut text).is_ok() && !text.is_empty() {
                let _ = sender.send(text);
            }
        });
        Ok(Host {
            process,
            line,
            started: Instant::now(),
        })
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.data.join("codius.db")
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn machines(&self) -> Vec<Machine> {
        machines::machines(&self.prefix)
    }

    pub(crate) fn notes(&self) -> Vec<PodNote> {
        machines::notes(&self.data.join("pods"))
    }

    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.data.join("pods")
    }

    pub(crate) fn log_tail(&self) -> String {
        let read = || -> Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }

    /// How often the host has panicked until now.
    pub(crate) fn panics(&self) -> usize {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.matches("panicked at").count()
    }

    pub(crate) fn log_path(&self) -> &Path {
        &self.log
    }

    /// What there is of pods outside of the database.
    pub(crate) fn things(&self) -> Result<Things> {
        let ours = |directory: &str| {
            let mut names = names(Path::new(directory));
            names.retain(|name| name.starts_with(&self.prefix));
            names
        };
        let tables = disk::run(Command::new("nft").args(["list", "tables"]))?;
        let table = format!("table inet {}", self.table());
        let mut pod_dirs = names(&self.pods_dir().join("pods"));
        pod_dirs.sort();
        let mut strange = names(&self.pods_dir());
        strange.retain(|name| !["pods", "records", "templates"].contains(&name.as_str()));
        // A template that is not whole has such a name; while it is made, too, which does not take long.
        let templates = names(&self.pods_dir().join("templates"));
        strange.extend(templates.into_iter().filter(|name| name.contains('.')));
        Ok(Things {
            namespaces: ours("/run/netns"),
            interfaces: ours("/sys/class/net"),
            tables: tables.lines().filter(|line| line.trim() == table).count(),
            pod_dirs,
            record_files: names(&self.pods_dir().join("records")),
            strange,
        })
    }

    /// Sockets of the host itself, which go with its process if it is asked to end.
    pub(crate) fn sockets(&self) -> Vec<String> {
        let mut names = names(&self.data);
        names.retain(|name| name.ends_with(".sock"));
        names
    }

    /// Removes what a host that was killed for good has left outside of its disk.
    pub(crate) fn clear(&self) -> Result<()> {
        let things = self.things()?;
        for name in &things.namespaces {
            disk::run(Command::new("ip").args(["netns", "del", name]))?;
        }
        for name in self.things()?.interfaces {
            // It goes with its namespace, in a moment.
            let _ = disk::run(Command::new("ip").args(["link", "del", &name]));
        }
        if things.tables > 0 {
            disk::run(Command::new("nft").args(["delete", "table", "inet", &self.table()]))?;
        }
        Ok(())
    }

    /// The name of the firewall table.
    fn table(&self) -> String {
        let instance = self.prefix.strip_prefix("cd").unwrap_or(&self.prefix);
        let instance = instance.trim_end_matches('-');
        format!("codius_{instance}")
    }

    pub(crate) fn image_files(&self) -> ImageFiles {
        ImageFiles {
            images: names(&self.data.join("images/images")),
            temporary: names(&self.data.join("images/tmp")),
        }
    }
}

impl Host {
    /// Waits until it serves.
    pub(crate) fn ready(&mut self) -> Result<Start> {
        let deadline = self.started + READY_TIMEOUT;
        loop {
            match self.line.recv_timeout(Duration::from_millis(20)) {
                Ok(line) => {
                    let field = |name: &str| {
                        line.split(' ')
                            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                            .map(str::to_owned)
                            .with_context(|| format!("no {name} in {line:?}"))
                    };
                    let up = Up {
                        api: field("api")?,
                        interledger: field("interledger")?,
                    };
                    return Ok(Start::Ready(up, self.started.elapsed()));
                }
                Err(_) => {
                    if let Some(status) = self.process.try_wait()? {
                        return Ok(Start::Ended(status));
                    }
                    if Instant::now() > deadline {
                        return Ok(Start::TimedOut);
                    }
                    // The line may be over before the process is.
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.process.try_wait()?)
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.process.id())?;
        let pid = Pid::from_raw(pid).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Asks it to end and waits for that.
    pub(crate) fn stop(&mut self) -> Result<Option<ExitStatus>> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill()?;
        Ok(None)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // After an error of the run: nothing may go on without it.
        if let Ok(None) = self.process.try_wait() {
            let _ = self.kill();
        }
    }
}

/// `kill -9` of machines, and the wait until they are gone.
pub(crate) fn kill_machines(machines: &[Machine], prefix: &str) -> Result<()> {
    for machine in machines {
        if let Some(pid) = Pid::from_raw(machine.process.pid) {
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let left = machines::machines(prefix);
        let gone = machines
            .iter()
            .all(|machine| left.iter().all(|one| one.process != machine.process));
        if gone {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "machines outlive `kill -9`");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The host's own name for things of its data directory (`codius-microvm`, `Instance`), computed by
/// ourselves: FNV-1a, folded to 16 bits.
fn instance(data: &Path) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in std::os::unix::ffi::OsStrExt::as_bytes(data.as_os_str()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    }
    let folded = (hash ^ (hash >> 16) ^ (hash >> 32) ^ (hash >> 48)) & 0xffff;
    format!("{folded:04x}")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The host gets the same ports each time, as a host in the world does.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
