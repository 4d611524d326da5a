//! The same program in containers of others: `podman run`, and gVisor's `runsc`.
//!
//! Both get the host's network and no cgroups of their own, so that nothing of this machine's network is
//! changed and both run where cgroups are not writable; that makes them faster, not slower. Each runs two
//! containers at once, as our pod does, and is timed from the start of the command to the first byte.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

/// A container that does not answer by then is broken, not slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries to connect: small against what is measured.
const POLL: Duration = Duration::from_millis(1);

/// Whether a program of the distribution is there, and runs.
pub(super) fn is_installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Podman with a store of its own.
pub(super) struct Podman {
    dir: PathBuf,
    image: String,
}

impl Podman {
    /// Pulls the image, which is not timed.
    pub(super) fn with(dir: &Path, image: &str) -> Result<Self> {
        let podman = Self {
            dir: dir.to_owned(),
            image: image.to_owned(),
        };
        fs::create_dir_all(dir)?;
        podman.run(&["pull", "-q", "--tls-verify=false", image])?;
        Ok(podman)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // In a mount namespace of its own: its store is mounted on itself there, and crun does not run beside a
        // second, "unified" hierarchy of control groups, which some machines have.
        let script = "umount /sys/fs/cgroup/unified 2>/dev/null; exec podman \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", script, "podman", "--root"])
            .arg(self.dir.join("root"))
            .arg("--runroot")
            .arg(self.dir.join("run"))
            .args(["--runtime", "crun", "--cgroup-manager", "cgroupfs"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let status = self.command(arguments).status()?;
        ensure!(status.success(), "podman {} failed", arguments.join(" "));
        Ok(())
    }

    /// In milliseconds.
    pub(super) fn first_byte(&self) -> Result<f64> {
        let ports = free_ports()?;
        let begin = Instant::now();
        let mut starting = Vec::new();
        for (name, port) in [("web", ports[0]), ("beside", ports[1])] {
            let port = format!("PORT={port}");
            starting.push(
                self.command(&[
                    "run",
                    "-d",
                    "--rm",
                    "--network=host",
                    "--cgroups=disabled",
                    // More than this process may have itself is refused on some machines.
                    "--ulimit=nofile=1024:1024",
                    "--ulimit=nproc=4096:4096",
                ])
                .args(["--name", name, "-e", &port, &self.image])
                .spawn()?,
            );
        }
        let answered = wait_for_byte(ports[0], begin);
        for mut child in starting {
            ensure!(child.wait()?.success(), "podman run failed");
        }
        self.run(&["rm", "-f", "-t", "0", "web", "beside"])?;
        answered
    }
}

/// gVisor with two bundles of the same program.
pub(super) struct Runsc {
    dir: PathBuf,
}

impl Runsc {
    pub(super) fn with(dir: &Path, program: &Path) -> Result<Self> {
        for name in ["web", "beside"] {
            let root = dir.join(name).join("rootfs");
            fs::create_dir_all(&root)?;
            fs::copy(program, root.join("hello"))?;
        }
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// In milliseconds.
    pub(super) fn first_byte(&self) -> Result<f64> {
        let ports = free_ports()?;
        for (name, port) in [("web", ports[0]), ("beside", ports[1])] {
            let config = json!({
                "ociVersion": "1.0.0",
                "process": {
                    "args": ["/hello"], "cwd": "/", "user": { "uid": 65534, "gid": 65534 },
                    "env": [format!("PORT={port}")],
                },
                "root": { "path": "rootfs", "readonly": true },
                "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }] },
            });
            fs::write(self.dir.join(name).join("config.json"), config.to_string())?;
        }
        let begin = Instant::now();
        let mut running = Vec::new();
        for name in ["web", "beside"] {
            running.push(Running(
                self.command()
                    .args(["run", "-bundle"])
                    .arg(self.dir.join(name))
                    .arg(name)
                    .spawn()
                    .context("runsc could not be started")?,
            ));
        }
        let answered = wait_for_byte(ports[0], begin);
        for name in ["web", "beside"] {
            self.command().args(["kill", name, "KILL"]).status()?;
        }
        for Running(child) in &mut running {
            child.wait()?;
        }
        for name in ["web", "beside"] {
            self.command().args(["delete", "-force", name]).status()?;
        }
        answered
    }

    fn command(&self) -> Command {
        let mut command = Command::new("runsc");
        command
            .arg("--root")
            .arg(self.dir.join("state"))
            .args(["--platform=ptrace", "--network=host", "--ignore-cgroups"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

/// A program that does not outlive the measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two ports that were free a moment ago.
fn free_ports() -> Result<[u16; 2]> {
    let listeners = [
        std::net::TcpListener::bind("127.0.0.1:0")?,
        std::net::TcpListener::bind("127.0.0.1:0")?,
    ];
    Ok([
        listeners[0].local_addr()?.port(),
        listeners[1].local_addr()?.port(),
    ])
}

/// Milliseconds from `begin` until a program at this port has answered a request with its first byte.
pub(super) fn wait_for_byte(port: u16, begin: Instant) -> Result<f64> {
    loop {
        if ask(port).is_ok() {
            return Ok(begin.elapsed().as_secs_f64() * 1000.0);
        }
        ensure!(begin.elapsed() < PATIENCE, "the container does not answer");
        std::thread::sleep(POLL);
    }
}

fn ask(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: bench\r\n\r\n")?;
    stream.read_exact(&mut [0])?;
    Ok(())
}
