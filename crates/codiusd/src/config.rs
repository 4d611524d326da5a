//! The configuration: one TOML file, every key typed, unknown keys refused.
//!
//! `codiusd --local` needs no file: it is the default configuration with Interledger in local mode.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use url::Url;

/// Bounds that no setting may leave.
const MAX_DURATION_LIMIT_SECS: u64 = 366 * 24 * 3600;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Holds the database, images, disks and pods. Made, with mode 0700, if it is missing.
    pub data_dir: PathBuf,
    /// One listener for the API and the pods; the Host header decides.
    pub listen: SocketAddr,
    /// How this host is reached from outside; pods are at `HASH.` before its host name. Default: the
    /// listener, as `http://localhost:PORT`.
    pub public_uri: Option<Url>,
    pub price: Price,
    pub interledger: Interledger,
    pub pods: Pods,
    pub images: Images,
    pub network: Network,
    pub guest: Guest,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Price {
    /// Price of a small pod for a month (2,628,000 s) in whole units of the asset, as decimal text.
    pub cost_per_month: String,
    /// The longest time that can be bought at once, in seconds.
    pub max_duration_secs: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Interledger {
    /// `local`: this host is the root of a private network and its clients get play money.
    pub mode: InterledgerMode,
    /// Where local clients connect (BTP). Programs in pods have their own port.
    pub listen: Vec<SocketAddr>,
    /// In local mode: the asset that everything is counted in.
    pub asset_code: String,
    pub asset_scale: u8,
    /// The most that one packet may move, in the asset's smallest unit.
    pub max_packet_amount: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterledgerMode {
    Local,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pods {
    pub accelerator: Accelerator,
    /// Memory that all pods together may be promised; 0: three quarters of this machine's.
    pub memory_mib: u64,
    pub max_pods: usize,
    /// How long a program may take to open its port.
    pub port_timeout_secs: u64,
    /// How long containers get between SIGTERM and SIGKILL at the end of a lease.
    pub stop_grace_ms: u64,
    /// What happens to pods when the daemon ends.
    pub on_shutdown: OnShutdown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM if it truly works, otherwise emulation, and said aloud.
    Auto,
    Kvm,
    /// Software emulation: for development and tests.
    Tcg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnShutdown {
    /// They go on; the next `codiusd` takes them up.
    Leave,
    /// They end, and unused money is recorded as owed.
    Stop,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Registries (`host:port`) that are spoken to without TLS, and that may have private addresses.
    pub insecure_registries: Vec<String>,
    /// Sum of an image's layers as they travel.
    pub max_compressed_mib: u64,
    /// Sum of an image's files.
    pub max_unpacked_mib: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Addresses for pods, `a.b.c.d/len`, /24 or larger; eight for each pod. Must be unused on this machine.
    pub pool: String,
    /// Resolvers that pods are told of.
    pub nameservers: Vec<Ipv4Addr>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guest {
    /// Holds `vmlinux` and `initramfs.cpio`. Default: looked for beside the program, then in
    /// `/usr/lib/codius/guest`.
    pub dir: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/codius"),
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            public_uri: None,
            price: Price::default(),
            interledger: Interledger::default(),
            pods: Pods::default(),
            images: Images::default(),
            network: Network::default(),
            guest: Guest::default(),
        }
    }
}

impl Default for Price {
    fn default() -> Self {
        Self { cost_per_month: "10".to_owned(), max_duration_secs: 31 * 24 * 3600 }
    }
}

impl Default for Interledger {
    fn default() -> Self {
        Self {
            mode: InterledgerMode::Local,
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 7768)), "[::1]:7768".parse().expect("a literal address")],
            asset_code: "XRP".to_owned(),
            asset_scale: 9,
            max_packet_amount: 1_000_000_000_000,
        }
    }
}

impl Default for Pods {
    fn default() -> Self {
        Self {
            accelerator: Accelerator::Auto,
            memory_mib: 0,
            max_pods: 100,
            port_timeout_secs: 45,
            stop_grace_ms: 1000,
            on_shutdown: OnShutdown::Leave,
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self { insecure_registries: Vec::new(), max_compressed_mib: 1024, max_unpacked_mib: 4096 }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            pool: "10.88.0.0/16".to_owned(),
            nameservers: vec![Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)],
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Self = toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
        config.check().with_context(|| format!("{} is not valid", path.display()))?;
        Ok(config)
    }

    /// Refuses what the types allow and the host cannot do.
    pub fn check(&self) -> Result<()> {
        let duration = self.price.max_duration_secs;
        ensure!(
            (1..=MAX_DURATION_LIMIT_SECS).contains(&duration),
            "price.max_duration_secs is {duration}; it must be 1 to {MAX_DURATION_LIMIT_SECS}"
        );
        ensure!(self.pods.max_pods > 0, "pods.max_pods is 0; a host runs at least one pod");
        ensure!(self.pods.port_timeout_secs > 0, "pods.port_timeout_secs is 0; programs need time to start");
        ensure!(self.interledger.asset_scale <= 18, "interledger.asset_scale is over 18");
        ensure!(!self.interledger.asset_code.is_empty(), "interledger.asset_code is empty");
        ensure!(self.interledger.max_packet_amount > 0, "interledger.max_packet_amount is 0");
        self.pool()?;
        if let Some(uri) = &self.public_uri {
            ensure!(matches!(uri.scheme(), "http" | "https"), "public_uri must begin with http:// or https://");
            ensure!(uri.host_str().is_some(), "public_uri has no host name");
            ensure!(
                uri.path() == "/" && uri.query().is_none() && uri.fragment().is_none(),
                "public_uri must be scheme, host and port only"
            );
        }
        Ok(())
    }

    /// The pod network as address and prefix length.
    pub fn pool(&self) -> Result<(Ipv4Addr, u8)> {
        let pool = &self.network.pool;
        let parsed = pool.split_once('/').and_then(|(address, len)| {
            Some((address.parse::<Ipv4Addr>().ok()?, len.parse::<u8>().ok().filter(|len| (8..=24).contains(len))?))
        });
        let Some((address, len)) = parsed else {
            bail!("network.pool is {pool:?}; it must be like \"10.88.0.0/16\", with a length of 8 to 24")
        };
        ensure!(
            u32::from(address).trailing_zeros() >= 32 - u32::from(len),
            "network.pool {pool} has bits set beyond its length"
        );
        ensure!(address.is_private(), "network.pool {pool} is not a private network (RFC 1918)");
        Ok((address, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default_and_the_default_is_valid() {
        let config: Config = toml::from_str("").unwrap();
        config.check().unwrap();
        assert_eq!(config.price.cost_per_month, "10");
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused_by_name() {
        let unknown = toml::from_str::<Config>("[pods]\nmemory = 5").unwrap_err();
        assert!(unknown.to_string().contains("memory"), "{unknown}");
        for (text, named) in [
            ("[network]\npool = \"10.88.0.1/16\"", "bits set"),
            ("[network]\npool = \"8.8.0.0/16\"", "RFC 1918"),
            ("[network]\npool = \"10.0.0.0/30\"", "8 to 24"),
            ("[price]\nmax_duration_secs = 0", "max_duration_secs"),
            ("public_uri = \"ftp://host\"", "public_uri"),
            ("public_uri = \"http://host/path\"", "public_uri"),
        ] {
            let config: Config = toml::from_str(text).unwrap();
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
