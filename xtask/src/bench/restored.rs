//! A pod that was saved while it served, and goes on: what a sleeping pod would cost to wake.
//!
//! This is an experiment beside the host, which cannot do it yet: the pod's own QEMU options, the same guest
//! and the same program in two containers, but QEMU's user-mode network in place of a pod's. The machine is
//! saved once (its memory is a file, the rest is written by a migration); each measurement maps the file
//! copy-on-write, reads the state and asks for a page. Timed from the start of QEMU to the first byte.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use codius_guest_protocol::{
    AgentMessage, ContainerConfig, HostMessage, Line, LineReader, MAX_GUEST_LINE_BYTES,
    NetworkConfig, PORT_NAME, PodConfig, SCRATCH_SERIAL, encode,
};
use serde_json::{Value, json};

use super::containers::wait_for_byte;
use crate::guest::Guest;

/// A step that takes longer is broken, not slow.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(1);
const SCRATCH_BYTES: u64 = 64 << 20;

/// A saved pod.
pub(super) struct Saved {
    dir: PathBuf,
    options: Vec<String>,
    memory: String,
    port: u16,
}

struct Machine {
    child: Child,
    begin: Instant,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Saved {
    /// Boots a pod, waits until it serves, saves it and ends it. `options` are those of a pod's QEMU.
    pub(super) fn make(
        dir: &Path,
        guest: &Guest,
        options: &[String],
        program: &Path,
    ) -> Result<Self> {
        fs::create_dir_all(dir.join("root"))?;
        fs::copy(program, dir.join("root/hello"))?;
        run(Command::new("mksquashfs")
            .arg(dir.join("root"))
            .arg(dir.join("img0"))
            .args([
                "-all-root",
                "-quiet",
                "-no-progress",
                "-noI",
                "-noD",
                "-noF",
            ]))?;
        File::create(dir.join("scratch"))?.set_len(SCRATCH_BYTES)?;
        run(Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal"])
            .arg(dir.join("scratch")))?;
        let size = options
            .iter()
            .find_map(|option| {
                option
                    .split(',')
                    .find_map(|part| part.strip_prefix("size="))
            })
            .context("the pod's memory has no size")?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let saved = Self {
            dir: dir.to_owned(),
            options: options
                .chunks(2)
                .filter(|pair| pair[0] != "-object" && pair[0] != "-append")
                .flatten()
                .cloned()
                .collect(),
            memory: format!(
                "memory-backend-file,id=memory,size={size},mem-path={}",
                dir.join("memory").display()
            ),
            port,
        };
        let append = options.iter().position(|option| option == "-append");
        let append = append
            .and_then(|at| options.get(at + 1))
            .context("the pod has no -append")?;
        let mut machine = saved.start(&[
            "-object".into(),
            format!("{},share=on", saved.memory),
            "-kernel".into(),
            guest.kernel.display().to_string(),
            "-initrd".into(),
            guest.initramfs.display().to_string(),
            "-append".into(),
            append.clone(),
        ])?;
        saved.configure(&mut machine)?;
        wait_for_byte(port, machine.begin)?;
        let mut qemu = Monitor::connect(&saved.dir.join("monitor"), &mut machine)?;
        qemu.take_state()?;
        // The state goes to a program of QEMU's: this machine is not in a sandbox.
        let uri = format!("exec:cat > {}", saved.dir.join("state").display());
        qemu.run("migrate", json!({ "uri": uri }))?;
        loop {
            match qemu.run("query-migrate", json!({}))?["status"].as_str() {
                Some("completed") => return Ok(saved),
                Some("failed") => bail!("QEMU could not save the pod"),
                _ => std::thread::sleep(POLL),
            }
        }
    }

    /// In milliseconds.
    pub(super) fn first_byte(&self) -> Result<f64> {
        let state = File::open(self.dir.join("state"))?;
        // QEMU inherits it as its standard input.
        let mut machine = self.start_with(
            &[
                "-object".into(),
                format!("{},share=off", self.memory),
                "-incoming".into(),
                "defer".into(),
            ],
            Stdio::from(state),
        )?;
        let mut qemu = Monitor::connect(&self.dir.join("monitor"), &mut machine)?;
        qemu.take_state()?;
        qemu.run("migrate-incoming", json!({ "uri": "fd:0" }))?;
        wait_for_byte(self.port, machine.begin)
    }

    fn start(&self, options: &[String]) -> Result<Machine> {
        self.start_with(options, Stdio::null())
    }

    fn start_with(&self, options: &[String], input: Stdio) -> Result<Machine> {
        for socket in ["agent", "monitor"] {
            let _ = fs::remove_file(self.dir.join(socket));
        }
        let at = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(&self.options)
            .args(options)
            .args(["-serial", &format!("file:{}", at("console.log"))])
            .args([
                "-chardev",
                &format!("socket,id=agent,path={},server=on,wait=off", at("agent")),
            ])
            .args(["-device", "virtio-serial-device", "-device"])
            .arg(format!("virtserialport,chardev=agent,name={PORT_NAME}"))
            .args([
                "-qmp",
                &format!("unix:{},server=on,wait=off", at("monitor")),
            ])
            .args([
                "-drive",
                &format!("id=img0,if=none,format=raw,readonly=on,file={}", at("img0")),
            ])
            .args(["-device", "virtio-blk-device,drive=img0,serial=img0"])
            .args([
                "-drive",
                &format!(
                    "id=scratch,if=none,format=raw,cache=unsafe,file={}",
                    at("scratch")
                ),
            ])
            .args(["-device", "virtio-blk-device,drive=scratch,serial=scratch"])
            .args([
                "-netdev",
                &format!(
                    "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{}-:8080",
                    self.port
                ),
            ])
            .args(["-device", "virtio-net-device,netdev=net"])
            .args(["-device", "virtio-balloon-device,free-page-reporting=off"])
            .stdin(input);
        let begin = Instant::now();
        let child = command.spawn().context("QEMU could not be started")?;
        Ok(Machine { child, begin })
    }

    fn configure(&self, machine: &mut Machine) -> Result<()> {
        let mut agent = connect(&self.dir.join("agent"), machine)?;
        agent.set_read_timeout(Some(PATIENCE))?;
        agent.write_all(&encode(&HostMessage::Attach {
            nonce: "bench".into(),
        }))?;
        let container = |id: &str, port: &str| ContainerConfig {
            id: id.into(),
            image_serial: "img0".into(),
            args: vec!["/hello".into()],
            env: vec![("PORT".into(), port.into())],
            workdir: "/".into(),
            user: "65534:65534".into(),
            memory_bytes: 0,
            max_processes: 0,
            restart: codius_guest_protocol::RestartPolicy::No,
        };
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let config = PodConfig {
            entropy_hex: "5a".repeat(32),
            now_unix_ms: u64::try_from(now.as_millis())?,
            hostname: "restored".into(),
            // Those of QEMU's user-mode network.
            network: Some(NetworkConfig {
                address: [10, 0, 2, 15].into(),
                prefix_len: 24,
                gateway: [10, 0, 2, 2].into(),
                nameservers: Vec::new(),
            }),
            port: Some(8080),
            containers: vec![container("web", "8080"), container("beside", "8081")],
        };
        debug_assert_eq!(SCRATCH_SERIAL, "scratch");
        agent.write_all(&encode(&HostMessage::Configure(Box::new(config))))?;
        let mut reader = LineReader::new(MAX_GUEST_LINE_BYTES);
        let mut buffer = [0; 4096];
        loop {
            let count = agent.read(&mut buffer).context("the guest says nothing")?;
            ensure!(count > 0, "the machine ended");
            let (mut listening, mut failed) = (false, None);
            reader.push(&buffer[..count], |line: Line<AgentMessage>| match line {
                Line::Message(AgentMessage::Listening) => listening = true,
                Line::Message(AgentMessage::Failed { message, .. }) => failed = Some(message),
                _ => {}
            });
            if let Some(message) = failed {
                bail!("the pod did not start: {message}");
            }
            if listening {
                return Ok(());
            }
        }
    }
}

/// QEMU's control channel.
struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(socket: &Path, machine: &mut Machine) -> Result<Self> {
        let stream = connect(socket, machine)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        monitor.line()?;
        Ok(monitor)
    }

    fn take_state(&mut self) -> Result<()> {
        self.run("qmp_capabilities", json!({}))?;
        let capability = json!({ "capability": "x-ignore-shared", "state": true });
        self.run(
            "migrate-set-capabilities",
            json!({ "capabilities": [capability] }),
        )?;
        Ok(())
    }

    fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.stream
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut line = self.line()?;
            ensure!(
                line.get("error").is_none(),
                "QEMU refuses {command}: {line}"
            );
            if line.get("return").is_some() {
                return Ok(line["return"].take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        serde_json::from_str(&line).context("QEMU's control channel ended")
    }
}

/// To a socket that QEMU makes.
fn connect(socket: &Path, machine: &mut Machine) -> Result<UnixStream> {
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return Ok(stream);
        }
        if let Some(status) = machine.child.try_wait()? {
            bail!("QEMU ended at once ({status})");
        }
        ensure!(machine.begin.elapsed() < PATIENCE, "QEMU does not listen");
        std::thread::sleep(POLL);
    }
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    ensure!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
