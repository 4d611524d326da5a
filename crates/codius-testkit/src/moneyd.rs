//! The original: moneyd 4.3.0, whose behaviour ours is held against.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};

use crate::{
    background::{Background, Listen},
    namespace::NetworkNamespace,
};

/// What to install for it. The connector's database is replaced by one that runs on today's Node.js;
/// moneyd keeps its state in memory anyway.
pub const MONEYD: (&str, &str) = ("moneyd", "4.3.0");
/// See [`MONEYD`].
pub const MONEYD_OVERRIDE: (&str, &str) = ("leveldown", "6.1.1");

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running `moneyd local`. Its port, 7768 on both loopback addresses, cannot be chosen: it needs a
/// network of its own.
#[derive(Debug)]
pub struct Moneyd {
    _program: Background,
}

impl Moneyd {
    /// Starts it in `network` from installed packages and waits until it takes clients.
    pub fn local(network: &NetworkNamespace, node_modules: &Path) -> Result<Self> {
        let mut command = network.command("node");
        command
            // It does not survive a client that leaves with a request under way otherwise.
            .arg("--unhandled-rejections=warn")
            .arg(node_modules.join("moneyd/bin/moneyd.js"))
            .arg("local");
        let program = Background::start(&command, Listen::Output)?;
        program
            .line_with("connector ready", START_TIMEOUT)
            .context("moneyd did not start")?;
        Ok(Self { _program: program })
    }
}
