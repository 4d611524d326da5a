//! A virtual machine with the guest that `cargo xtask guest` has built, and the host's end of its
//! control channel. No network but QEMU's own user-mode one, no root needed.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use codius_guest_protocol::{
    AgentMessage, ContainerConfig, ContainerExit, HostMessage, Line, LineReader, LogStream,
    MAX_GUEST_LINE_BYTES, NetworkConfig, PORT_NAME, PodConfig, RestartPolicy, encode,
};
use tempfile::TempDir;

/// Between two attaches that are not answered.
const ATTACH_INTERVAL: Duration = Duration::from_secs(1);
/// Software emulation on a busy machine is slow; on one that is not, nothing here takes a tenth of this.
pub(crate) const DEADLINE: Duration = Duration::from_secs(240);

/// A root file system that becomes a block image.
pub(crate) struct Image {
    directory: TempDir,
}

impl Image {
    /// Busybox with all its names, a few accounts, a few odd files.
    pub(crate) fn busybox() -> Self {
        let image = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let root = image.directory.path();
        for directory in ["bin", "etc", "tmp", "www"] {
            fs::create_dir(root.join(directory)).unwrap();
        }
        let names = Command::new("busybox")
            .arg("--list")
            .output()
            .expect("install the package busybox-static");
        for name in String::from_utf8(names.stdout)
            .unwrap()
            .lines()
            .filter(|name| *name != "busybox")
        {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))
            .expect("install the package busybox-static");
        image.file(
            "etc/passwd",
            0o644,
            "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n",
        );
        image.file(
            "etc/group",
            0o644,
            "root:x:0:\napp:x:1001:\nvideo:x:44:app\n",
        );
        image.file("etc/hosts", 0o644, "6.6.6.6 of-the-image\n");
        image.file("www/index.html", 0o644, "a page\n");
        image.file("bin/not-executable", 0o644, "#!/bin/sh\n");
        image.file("bin/no-interpreter", 0o755, "#!/bin/gone\n");
        image.file("bin/no-program", 0o755, "\x7fELF but of no machine");
        image
    }

    pub(crate) fn file(&self, path: &str, mode: u32, content: &str) {
        let path = self.directory.path().join(path);
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }

    /// Puts a program of this machine there, with the libraries that it is linked with.
    pub(crate) fn program(&self, program: &str) {
        let linked = Command::new("ldd").arg(program).output().unwrap().stdout;
        let linked = String::from_utf8(linked).unwrap();
        let libraries = linked
            .split_whitespace()
            .filter(|word| word.starts_with('/'));
        for file in libraries.chain([program]) {
            let place = self.directory.path().join(file.trim_start_matches('/'));
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy(file, &place).unwrap_or_else(|error| panic!("{file}: {error}"));
        }
    }

    /// Copies a directory of this machine.
    pub(crate) fn copy(&self, directory: &str) {
        let place = self
            .directory
            .path()
            .join(directory.trim_start_matches('/'));
        fs::create_dir_all(&place).unwrap();
        let status = Command::new("cp")
            .args(["-a", &format!("{directory}/.")])
            .arg(place)
            .status()
            .unwrap();
        assert!(status.success(), "{directory} cannot be copied");
    }

    /// Copies the files of a directory of this machine, without those below.
    pub(crate) fn files_of(&self, directory: &str) {
        let place = self
            .directory
            .path()
            .join(directory.trim_start_matches('/'));
        fs::create_dir_all(&place).unwrap();
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), place.join(entry.file_name())).unwrap();
            }
        }
    }

    pub(crate) fn directory(&self, path: &str) {
        fs::create_dir_all(self.directory.path().join(path)).unwrap();
    }

    pub(crate) fn mode(&self, path: &str, mode: u32) {
        let path = self.directory.path().join(path);
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }

    /// Puts the hostile program there (`examples/hostile`).
    pub(crate) fn hostile(&self, path: &str, mode: u32) {
        fs::copy(hostile(), self.directory.path().join(path)).unwrap();
        self.mode(path, mode);
    }

    pub(crate) fn link(&self, target: &str, path: &str) {
        std::os::unix::fs::symlink(target, self.directory.path().join(path)).unwrap();
    }

    fn build(&self, file: &Path) {
        let status = Command::new("mksquashfs")
            .arg(self.directory.path())
            .arg(file)
            .args([
                "-quiet",
                "-no-progress",
                "-all-root",
                "-noI",
                "-noD",
                "-noF",
                "-noX",
            ])
            .stdout(Stdio::null())
            .status()
            .expect("install the package squashfs-tools");
        assert!(status.success());
    }
}

/// How a machine is made.
pub(crate) struct Options<'a> {
    pub(crate) images: &'a [&'a Image],
    pub(crate) scratch: bool,
    /// `-netdev user,…` options besides `restrict=on`.
    pub(crate) network: String,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            images: &[],
            scratch: true,
            network: String::new(),
        }
    }
}

/// A running machine; killed when dropped.
pub(crate) struct Vm {
    qemu: Child,
    directory: TempDir,
    launched: Instant,
    stream: UnixStream,
    reader: LineReader,
    /// Everything that was heard, in order, but for output.
    pub(crate) heard: Vec<AgentMessage>,
    output: BTreeMap<(u16, bool), Vec<u8>>,
    pub(crate) dropped: BTreeMap<u16, u64>,
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            eprintln!("heard: {:?}", self.heard);
            for ((container, stderr), bytes) in &self.output {
                let tail = &bytes[bytes.len().saturating_sub(4000)..];
                eprintln!(
                    "container {container} stderr={stderr}: {}",
                    String::from_utf8_lossy(tail)
                );
            }
            let console =
                fs::read_to_string(self.directory.path().join("console")).unwrap_or_default();
            eprintln!("console: {console}");
        }
    }
}

impl Vm {
    /// Launches a machine and waits for the agent's hello.
    pub(crate) fn boot(options: &Options<'_>) -> Self {
        let guest = guest();
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args([
                "-machine",
                "microvm,rtc=on,pit=off,pic=off,memory-backend=m",
            ])
            .args([
                "-accel",
                "tcg,tb-size=32",
                "-cpu",
                "max",
                "-smp",
                "1",
                "-m",
                "256",
            ])
            .args(["-object", "memory-backend-memfd,id=m,size=256M,share=on"])
            .arg("-kernel")
            .arg(guest.join("vmlinux"))
            .arg("-initrd")
            .arg(guest.join("initramfs.cpio"))
            .args(["-serial", &format!("file:{}", at("console"))])
            .arg("-append")
            .arg(format!(
                "quiet panic=-1 reboot=t cryptomgr.notests=1 audit=0 console=ttyS0 \
                 tsc_early_khz={} tsc=reliable",
                tsc_khz()
            ))
            .args([
                "-chardev",
                &format!("socket,id=ag,path={},server=on,wait=off", at("agent")),
            ])
            .args(["-device", "virtio-serial-device"])
            .args([
                "-device",
                &format!("virtserialport,chardev=ag,name={PORT_NAME}"),
            ])
            .args([
                "-netdev",
                &format!("user,id=n0,restrict=on{}", options.network),
            ])
            .args(["-device", "virtio-net-device,netdev=n0"])
            .args(["-device", "virtio-balloon-device,free-page-reporting=on"]);
        for (index, image) in options.images.iter().enumerate() {
            let file = at(&format!("img{index}"));
            image.build(Path::new(&file));
            disk(&mut command, &file, &format!("img{index}"), true);
        }
        if options.scratch {
            let file = at("scratch");
            fs::File::create(&file).unwrap().set_len(256 << 20).unwrap();
            let status = Command::new("mke2fs")
                .args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0"])
                .args(["-E", "lazy_itable_init=1,nodiscard", &file])
                .status()
                .expect("install the package e2fsprogs");
            assert!(status.success());
            disk(&mut command, &file, "scratch", false);
        }
        let launched = Instant::now();
        let qemu = command
            .stdin(Stdio::null())
            .spawn()
            .expect("install the package qemu-system-x86");
        let stream = connect(&directory.path().join("agent"));
        let mut vm = Self {
            qemu,
            directory,
            launched,
            stream,
            reader: LineReader::new(MAX_GUEST_LINE_BYTES),
            heard: Vec::new(),
            output: BTreeMap::new(),
            dropped: BTreeMap::new(),
        };
        vm.attach("first");
        vm
    }

    pub(crate) fn since_launch(&self) -> Duration {
        self.launched.elapsed()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Sends an attach, again and again as the host does because the port loses what is written while the
    /// guest opens it, and drops everything up to its hello.
    pub(crate) fn attach(&mut self, nonce: &str) {
        let hello = |message: &AgentMessage| matches!(message, AgentMessage::Hello { nonce: heard, .. } if heard == nonce);
        let deadline = Instant::now() + DEADLINE;
        let mut next = Instant::now();
        self.heard.clear();
        loop {
            if let Some(at) = self.heard.iter().position(hello) {
                self.heard.drain(..at);
                return;
            }
            self.heard.clear();
            let now = Instant::now();
            assert!(now < deadline, "no hello");
            if now >= next {
                next = now + ATTACH_INTERVAL;
                self.stream.write_all(b"\n").unwrap();
                self.send(&HostMessage::Attach {
                    nonce: nonce.to_owned(),
                });
            }
            self.hear(true);
        }
    }

    /// Closes the channel, perhaps after half a line, and opens it again.
    pub(crate) fn reconnect(&mut self, last_words: &[u8], away: Duration) {
        self.stream.write_all(last_words).unwrap();
        self.stream.shutdown(std::net::Shutdown::Both).unwrap();
        std::thread::sleep(away);
        self.stream = connect(&self.path("agent"));
        self.reader = LineReader::new(MAX_GUEST_LINE_BYTES);
    }

    pub(crate) fn send(&mut self, message: &HostMessage) {
        self.stream.write_all(&encode(message)).unwrap();
    }

    pub(crate) fn configure(&mut self, config: PodConfig) {
        self.send(&HostMessage::Configure(Box::new(config)));
    }

    /// Waits until enough was heard since the last attach.
    pub(crate) fn wait_until(&mut self, enough: impl Fn(&[AgentMessage]) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !enough(&self.heard) {
            assert!(
                Instant::now() < deadline,
                "not all was heard that was waited for"
            );
            self.hear(false);
        }
    }

    /// Waits for a message, unless it was heard since the last attach already, keeping all others.
    pub(crate) fn wait_for(&mut self, what: impl Fn(&AgentMessage) -> bool) -> AgentMessage {
        self.wait_until(|heard| heard.iter().any(&what));
        let message = self.heard.iter().find(|message| what(message));
        message.expect("it was waited for").clone()
    }

    pub(crate) fn wait_for_exit(&mut self, wanted: u16) -> ContainerExit {
        let message = self.wait_for(
            |message| matches!(message, AgentMessage::Exited { container, .. } if *container == wanted),
        );
        let AgentMessage::Exited { exit, .. } = message else {
            unreachable!()
        };
        exit
    }

    /// Waits for text in a container's standard output.
    pub(crate) fn wait_for_output(&mut self, container: u16, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.stdout(container).contains(text) {
            assert!(
                Instant::now() < deadline,
                "no {text:?} from container {container}"
            );
            self.hear(false);
        }
    }

    pub(crate) fn stdout(&self, container: u16) -> String {
        self.text(container, false)
    }

    pub(crate) fn stderr(&self, container: u16) -> String {
        self.text(container, true)
    }

    fn text(&self, container: u16, stderr: bool) -> String {
        let bytes = self
            .output
            .get(&(container, stderr))
            .map_or(&[][..], Vec::as_slice);
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Reads once. Before the hello, broken lines are to be expected.
    pub(crate) fn hear(&mut self, out_of_step: bool) {
        self.stream
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let mut bytes = vec![0; 64 * 1024];
        let length = match self.stream.read(&mut bytes) {
            Ok(0) => panic!("the machine has ended"),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        };
        let mut in_step = !out_of_step;
        self.reader
            .push(&bytes[..length], |line: Line<AgentMessage>| match line {
                Line::Message(AgentMessage::Log {
                    container,
                    stream,
                    data,
                }) => {
                    let stderr = stream == LogStream::Stderr;
                    self.output
                        .entry((container, stderr))
                        .or_default()
                        .extend(data);
                }
                Line::Message(AgentMessage::LogDropped { container, bytes }) => {
                    *self.dropped.entry(container).or_default() += bytes;
                }
                Line::Message(message) => {
                    in_step |= matches!(message, AgentMessage::Hello { .. });
                    self.heard.push(message);
                }
                Line::Unreadable(why) => assert!(!in_step, "{why}"),
            });
    }
}

fn disk(command: &mut Command, file: &str, serial: &str, readonly: bool) {
    let readonly = if readonly { "on" } else { "off" };
    command
        .args([
            "-drive",
            &format!("id={serial},file={file},format=raw,if=none,readonly={readonly}"),
        ])
        .args([
            "-device",
            &format!("virtio-blk-device,drive={serial},serial={serial}"),
        ]);
}

fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where `cargo xtask guest` puts the guest.
fn guest() -> PathBuf {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
    assert!(
        guest.join("guest.json").exists(),
        "there is no guest image: run `cargo xtask guest`"
    );
    guest
}

/// Where `cargo xtask test` puts the hostile program.
fn hostile() -> PathBuf {
    let built = "../../target/guest-build/x86_64-unknown-linux-gnu/guest/examples/hostile";
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(built);
    assert!(
        program.exists(),
        "there is no hostile program: run `cargo xtask test hostile`"
    );
    program
}

/// The host's clock rate: without it, the distribution's kernel does not boot under emulation.
fn tsc_khz() -> u64 {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap();
    let mhz = cpu
        .lines()
        .find(|line| line.starts_with("cpu MHz"))
        .unwrap();
    let (whole, fraction) = mhz.rsplit(' ').next().unwrap().split_once('.').unwrap();
    whole.parse::<u64>().unwrap() * 1000 + fraction[..3].parse::<u64>().unwrap()
}

/// A container of image 0 that runs a shell script as root.
pub(crate) fn shell(id: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        id: id.to_owned(),
        image_serial: "img0".to_owned(),
        args: vec!["/bin/sh".into(), "-c".into(), script.to_owned()],
        env: Vec::new(),
        workdir: "/".to_owned(),
        user: String::new(),
        memory_bytes: 0,
        max_processes: 100,
        restart: RestartPolicy::No,
    }
}

pub(crate) fn pod(containers: Vec<ContainerConfig>) -> PodConfig {
    PodConfig {
        entropy_hex: "5a".repeat(32),
        now_unix_ms: 1_800_000_000_000,
        hostname: "pod-name".to_owned(),
        network: Some(NetworkConfig {
            address: [10, 0, 2, 15].into(),
            prefix_len: 24,
            gateway: [10, 0, 2, 100].into(),
            nameservers: vec![[10, 0, 2, 3].into()],
        }),
        port: None,
        containers,
    }
}
