//! A real OCI registry on loopback: Debian's `docker-registry`, with storage of its own.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::background::{Background, Listen};

/// How long the registry may take to say where it listens.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// A running registry. Dropping it stops the program and removes its storage.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    _program: Background,
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
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none");
        let program = Background::start(&command, Listen::Errors)?;
        let line = program
            .line_with("listening on ", START_DEADLINE)
            .context("docker-registry did not start; install the Debian package docker-registry")?;
        Ok(Self {
            address: address_in(&line)?,
            _program: program,
            _storage: storage,
        })
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

fn address_in(line: &str) -> Result<SocketAddr> {
    let (_, rest) = line.split_once("listening on ").context("no address")?;
    let address: String = rest
        .chars()
        .take_while(|c| c.is_ascii_digit() || ".:[]".contains(*c))
        .collect();
    address
        .parse()
        .with_context(|| format!("no address in {line:?}"))
}
