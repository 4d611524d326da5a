//! A real OCI registry on loopback: Debian's `docker-registry`, with storage of its own.
//!
//! Trap: the kernel's parent-death signal is bound to the thread that made the child, not to the
//! process. The child is therefore made by a thread that lives exactly as long as it, so that the
//! registry dies with the test even if the test is killed.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// How long the registry may take to say where it listens.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// A running registry. Dropping it stops the program and removes its storage.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    child: Child,
    _storage: TempDir,
}

impl Registry {
    /// Starts a registry on a free port of 127.0.0.1 and waits until it listens. It speaks plain
    /// HTTP, so its users must list it as an insecure registry.
    pub fn start() -> Result<Self> {
        let storage = tempfile::Builder::new()
            .prefix("codius-registry-")
            .tempdir()?;
        let config = storage.path().join("config.yml");
        let blobs = storage.path().join("blobs");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {blobs:?}}}}}\nhttp: {{addr: '127.0.0.1:0', secret: test}}\n"
            ),
        )?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let (mut child, lines) = spawn_watched(command)?;
        match wait_until_listening(&lines) {
            Ok(address) => Ok(Self {
                address,
                child,
                _storage: storage,
            }),
            Err(error) => {
                // The child may be gone already; there is nothing else to do about it here.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The registry part of a reference: `127.0.0.1:PORT`. Also what to list as insecure.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The whole reference of an image here: `127.0.0.1:PORT/NAME`.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail only if the registry is gone already, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Spawns the program from a thread that then reads its standard error to the end.
fn spawn_watched(mut command: Command) -> Result<(Child, mpsc::Receiver<String>)> {
    let (send_child, child) = mpsc::channel();
    let (send_line, lines) = mpsc::channel();
    thread::Builder::new()
        .name("docker-registry".into())
        .spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = send_child.send(Err(error));
                    return;
                }
            };
            let stderr = child.stderr.take();
            if send_child.send(Ok(child)).is_err() {
                return;
            }
            // Reading goes on after nobody listens any more, so that the registry never blocks on a
            // full pipe.
            for line in stderr
                .into_iter()
                .flat_map(|pipe| BufReader::new(pipe).lines())
            {
                let Ok(line) = line else { break };
                let _ = send_line.send(line);
            }
        })?;
    let child = child
        .recv()
        .context("the thread that starts the registry ended")?
        .context("setpriv cannot be started; install the Debian package util-linux")?;
    Ok((child, lines))
}

fn wait_until_listening(lines: &mpsc::Receiver<String>) -> Result<SocketAddr> {
    let mut seen = Vec::new();
    loop {
        let Ok(line) = lines.recv_timeout(START_DEADLINE) else {
            let output = seen.join("\n");
            if output.contains("No such file or directory") {
                bail!(
                    "docker-registry is not installed; install the Debian package docker-registry"
                );
            }
            bail!("docker-registry did not start; it said:\n{output}");
        };
        if let Some((_, rest)) = line.split_once("listening on ") {
            let address: String = rest
                .chars()
                .take_while(|c| c.is_ascii_digit() || ".:[]".contains(*c))
                .collect();
            return address
                .parse()
                .with_context(|| format!("no address in {line:?}"));
        }
        seen.push(line);
    }
}
