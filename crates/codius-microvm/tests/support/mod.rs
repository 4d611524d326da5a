//! A host with real virtual machines for one test, removed at its end however that comes.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

pub mod jail;

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use codius_manifest::ManifestHash;
use codius_microvm::{AcceleratorChoice, Instance, Ipv4Pool, MicrovmConfig, MicrovmDriver};
use codius_pod::{
    ContainerStart, Driver, Duplex, EgressPolicy, ImageConfig, Machine, PodEvent, PodEvents,
    PodStart, PreparedImage,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::{Instant, timeout_at},
};

/// Far over what anything takes, for machines that do much else at the same time.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Of all pods.
pub const MACHINE: Machine = Machine {
    vcpus: 1,
    memory_mib: 128,
    scratch_mib: 64,
};

/// Makes of each test function, which takes a [`TestHost`], one test with a host that boots its pods and one
/// with a host that clones them: nothing about a pod may depend on that.
#[macro_export]
macro_rules! both_ways {
    ($($name:ident),+ $(,)?) => {
        mod booted {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::support::TestHost::booting()).await;
            })+
        }
        mod cloned {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::support::TestHost::cloning()).await;
            })+
        }
    };
}

/// One instance with its own names, addresses and directory.
pub struct TestHost {
    pub config: MicrovmConfig,
    pub image: PreparedImage,
    /// Different for each host, to make addresses of.
    pub number: u16,
    _dir: TempDir,
}

impl TestHost {
    /// Its pods are booted.
    pub fn booting() -> Self {
        Self::new(false, &[])
    }

    /// Its pods are clones of a template.
    pub fn cloning() -> Self {
        Self::new(true, &[])
    }

    /// Its pods are booted, and have these programs in `/bin` of the image, beside busybox.
    pub fn with_programs(programs: &[&Path]) -> Self {
        Self::new(false, programs)
    }

    fn new(warm: bool, programs: &[&Path]) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_test_writer()
            .with_env_filter("debug")
            .try_init();
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Unique over all tests that run at the same time: process ids are.
        let number = u16::try_from(std::process::id() % 0x7fff).expect("it is below 0x7fff");
        let instance: Instance = format!("{:04x}", 0x8000 | number)
            .parse()
            .expect("four digits");
        let pool: Ipv4Pool = format!("10.{}.{}.0/24", 64 + (number >> 8), number & 0xff)
            .parse()
            .expect("a pool");
        let image = busybox_image(dir.path(), programs);
        Self {
            config: MicrovmConfig {
                state_dir: dir.path().join("state"),
                guest_dir: guest_dir(),
                instance,
                accelerator: AcceleratorChoice::Auto,
                pool,
                nameservers: Vec::new(),
                warm: warm.then_some(MACHINE),
                egress: EgressPolicy::default(),
                uid_base: MicrovmConfig::DEFAULT_UID_BASE,
            },
            image,
            number,
            _dir: dir,
        }
    }

    /// With its template there, if it has one.
    pub async fn open(&self) -> MicrovmDriver {
        let driver = MicrovmDriver::open(self.config.clone())
            .await
            .expect("the driver opens");
        driver.warmed().await;
        driver
    }

    /// A pod whose containers each run a shell script.
    pub fn pod(&self, number: u8, port: Option<u16>, scripts: &[&str]) -> PodStart {
        let containers = scripts
            .iter()
            .enumerate()
            .map(|(index, script)| ContainerStart {
                id: format!("c{index}"),
                image: self.image.clone(),
                args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
                env: vec![("PATH".into(), "/bin".into())],
                workdir: "/".into(),
                user: String::new(),
                restart: codius_guest_protocol::RestartPolicy::No,
            });
        PodStart {
            hash: ManifestHash::from_bytes([number; 32]),
            machine: MACHINE,
            port,
            containers: containers.collect(),
        }
    }

    fn prefix(&self) -> String {
        format!("cd{}-", self.config.instance)
    }

    /// Process ids of this host's virtual machines.
    pub fn machines(&self) -> Vec<i32> {
        let prefix = self.prefix();
        let processes = fs::read_dir("/proc").expect("/proc can be read");
        let pids =
            processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut arguments = line.split(|&byte| byte == 0);
            arguments.any(|argument| argument.starts_with(prefix.as_bytes()))
                && String::from_utf8_lossy(&line).contains("qemu-system")
        })
        .collect()
    }

    /// Everything of this host's pods that can be found from outside.
    pub fn traces(&self) -> Vec<String> {
        let prefix = self.prefix();
        let mut traces: Vec<String> = self
            .machines()
            .iter()
            .map(|pid| format!("process {pid}"))
            .collect();
        for dir in ["/run/netns", "/sys/class/net"] {
            traces.extend(
                names(Path::new(dir))
                    .filter(|name| name.starts_with(&prefix))
                    .map(|name| format!("{dir}/{name}")),
            );
        }
        let groups = self.control_groups().into_iter();
        traces.extend(groups.map(|group| group.display().to_string()));
        for dir in ["pods", "records"] {
            let dir = self.config.state_dir.join(dir);
            traces.extend(names(&dir).map(|name| format!("{}/{name}", dir.display())));
        }
        traces
    }

    /// The control groups of its machines, innermost first.
    fn control_groups(&self) -> Vec<PathBuf> {
        let tree = format!("codius-{}", self.config.instance);
        let found = Command::new("find")
            .args(["/sys/fs/cgroup", "-depth", "-type", "d", "-path"])
            .arg(format!("*/{tree}*"))
            .output()
            .expect("find runs");
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        found.lines().map(PathBuf::from).collect()
    }

    #[track_caller]
    pub fn assert_no_traces(&self) {
        assert_eq!(self.traces(), Vec::<String>::new());
    }
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

impl Drop for TestHost {
    /// A failed test must not leave machines running. Works without the driver under test.
    fn drop(&mut self) {
        for pid in self.machines() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        for group in self.control_groups() {
            let _ = fs::remove_dir(group);
        }
        let prefix = self.prefix();
        for name in names(Path::new("/sys/class/net")).filter(|name| name.starts_with(&prefix)) {
            let _ = Command::new("ip").args(["link", "del", &name]).status();
        }
        for name in names(Path::new("/run/netns")).filter(|name| name.starts_with(&prefix)) {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
        let table = format!("codius_{}", self.config.instance);
        let _ = Command::new("nft")
            .args(["delete", "table", "inet", &table])
            .output();
        let _ = fs::remove_file(format!("/run/codius/{}.lock", self.config.instance));
    }
}

/// The guest's kernel and initramfs as built in this workspace, or those in `CODIUS_GUEST_DIR`.
pub fn guest_dir() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
    let dir = std::env::var_os("CODIUS_GUEST_DIR").map_or(built, PathBuf::from);
    assert!(
        dir.join("vmlinux").exists(),
        "no guest kernel in {}: run `cargo xtask guest`",
        dir.display()
    );
    dir.canonicalize().expect("it exists")
}

/// A program that means no good, as `cargo xtask test` builds it (an example of `codius-guest-agent`).
pub fn hostile_program() -> PathBuf {
    let built = "../../target/guest-build/x86_64-unknown-linux-gnu/guest/examples/hostile";
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(built);
    assert!(
        program.exists(),
        "no hostile program: run `cargo xtask test hostile`"
    );
    program
}

/// A block image of busybox with all its names.
fn busybox_image(dir: &Path, programs: &[&Path]) -> PreparedImage {
    let busybox = Path::new("/bin/busybox");
    assert!(
        busybox.exists(),
        "no /bin/busybox: install the Debian package busybox-static"
    );
    let root = dir.join("root");
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "www"] {
        fs::create_dir_all(root.join(name)).expect("a directory");
    }
    fs::copy(busybox, root.join("bin/busybox")).expect("busybox is copied");
    let list = Command::new(busybox)
        .arg("--list")
        .output()
        .expect("busybox runs")
        .stdout;
    for name in String::from_utf8(list)
        .expect("names")
        .lines()
        .filter(|name| *name != "busybox")
    {
        symlink("busybox", root.join("bin").join(name)).expect("a symbolic link");
    }
    for program in programs {
        let name = program.file_name().expect("a program has a name");
        fs::copy(program, root.join("bin").join(name)).expect("a program is copied");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").expect("passwd");
    fs::write(root.join("www/index.html"), "hello from the pod\n").expect("a page");
    let block_image = dir.join("busybox.squashfs");
    let made = Command::new("mksquashfs")
        .args([&root, &block_image])
        .args([
            "-all-root",
            "-quiet",
            "-no-progress",
            "-noI",
            "-noD",
            "-noF",
        ])
        .output()
        .expect("no mksquashfs: install the Debian package squashfs-tools");
    assert!(made.status.success(), "{made:?}");
    PreparedImage {
        digest: "sha256:busybox".into(),
        block_image,
        config: ImageConfig::default(),
    }
}

/// Remembers what a pod does, and echoes on its Interledger connections.
#[derive(Default)]
pub struct Recorder {
    events: Mutex<Vec<PodEvent>>,
    grown: Notify,
}

impl Recorder {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn events(&self) -> Vec<PodEvent> {
        self.events.lock().expect("not poisoned").clone()
    }

    /// What a container has written so far.
    pub fn output(&self, of: usize) -> String {
        let mut output = Vec::new();
        for event in self.events() {
            match event {
                PodEvent::Log {
                    container, data, ..
                } if container == of => output.extend(data),
                _ => {}
            }
        }
        String::from_utf8_lossy(&output).into_owned()
    }

    pub async fn wait_for<T>(&self, what: &str, mut find: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            if let Some(found) = find(self) {
                return found;
            }
            if timeout_at(deadline, grown).await.is_err() {
                panic!("no {what}, but {:#?}", self.events());
            }
        }
    }

    pub async fn wait_event(&self, event: PodEvent) {
        self.wait_for(&format!("{event:?}"), |recorder| {
            recorder.events().contains(&event).then_some(())
        })
        .await;
    }

    pub async fn wait_lost(&self) -> String {
        self.wait_for("loss", |recorder| {
            recorder.events().into_iter().find_map(|event| match event {
                PodEvent::Lost { reason } => Some(reason),
                _ => None,
            })
        })
        .await
    }
}

impl PodEvents for Recorder {
    fn event(&self, event: PodEvent) {
        self.events.lock().expect("not poisoned").push(event);
        self.grown.notify_waiters();
    }

    fn interledger(&self, mut connection: Box<dyn Duplex>) {
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = connection.read(&mut buffer).await {
                if connection.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            let _ = connection.shutdown().await;
        });
    }
}

/// A page, by a plain request as a proxy would make it.
pub async fn fetch(address: SocketAddr) -> std::io::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(b"GET / HTTP/1.0\r\nHost: pod\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(PATIENCE, exchange).await?
}

/// Removes the pods of a test that went well, through the driver.
pub async fn stop_all(driver: &MicrovmDriver) {
    for pod in driver.list().await.expect("pods are listed") {
        driver
            .stop(&pod, Duration::from_secs(1))
            .await
            .expect("a pod is stopped");
    }
    assert!(driver.retire().await.expect("the rules are removed"));
}

/// Runs a program with something to read, such as `nft -f -`.
pub fn script(command: &[&str], text: &str) {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success(), "{command:?}: {text}");
}
