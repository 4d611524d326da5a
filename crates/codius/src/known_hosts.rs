//! Hosts that are looked at: those that are named, those in `codiushosts.json`, or those that are found.

use std::path::PathBuf;

use clap::Args;

use crate::{
    candidates::{self, Said},
    failure::Failure,
    hosts_file::HOSTS_FILE,
};

/// Where hosts are taken from.
#[derive(Debug, Args)]
pub(crate) struct KnownHosts {
    /// A host, like https://host.example; can be repeated
    /// [default: those in the file of hosts, or those that are found]
    #[arg(long, value_name = "URL")]
    pub(crate) host: Vec<String>,
    /// A host that knows others, to find hosts from; `original` stands for the six of the first Codius
    /// [default: bootstrap.json in the configuration directory]
    #[arg(
        long,
        value_name = "URL",
        env = "CODIUS_BOOTSTRAP",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub(crate) bootstrap: Vec<String>,
    /// The file of hosts
    #[arg(long, value_name = "FILE", default_value = HOSTS_FILE)]
    pub(crate) codius_hosts_file: PathBuf,
}

impl KnownHosts {
    /// All of them.
    pub(crate) async fn all(&self) -> Result<Vec<String>, Failure> {
        let said = Said {
            hosts: &self.host,
            count: None,
            hosts_file: &self.codius_hosts_file,
            bootstrap: &self.bootstrap,
        };
        Ok(candidates::candidates(said).await?.hosts)
    }
}
