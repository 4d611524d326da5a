//! The configuration: one TOML file, every key typed, unknown keys refused.
//!
//! `codiusd --local` needs no file: it is the default configuration with Interledger in local mode.

mod egress;
mod sizes;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use codius_image::Pattern;
use codius_ledger::Backoff;
use codius_manifest::{MachineName, ManifestHash};
use codius_microvm::Ipv4Pool;
use ilp_link::BtpUrl;
use serde::{Deserialize, Serialize};
use url::Url;

pub(crate) use self::{
    egress::Egress,
    sizes::{Price, SizeOffered},
};

/// Bounds that no setting may leave.
const MAX_DRAIN_SECS: u64 = 600;
const MAX_DURATION_LIMIT_SECS: u64 = 366 * 24 * 3600;
const MAX_PEER_INTERVAL_SECS: u64 = 24 * 3600;
const MAX_GRACE_SECS: u64 = 24 * 3600;
const MAX_EXPIRY_NOTICES: usize = 16;
/// What making an image takes on disk besides its files.
const IMAGE_MARGIN_MIB: u64 = 512;
const MAX_CPU_OVERCOMMIT: f64 = 1000.0;
const MAX_REFUND_RETRY_SECS: u64 = 7 * 24 * 3600;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Holds the database, images, disks and pods. Made, with mode 0700, if it is missing.
    pub(crate) data_dir: PathBuf,
    /// One listener for the API and the pods; the Host header decides.
    pub(crate) listen: SocketAddr,
    /// How this host is reached from outside; pods are at `HASH.` before its host name. Default: the
    /// listener, as `http://localhost:PORT`.
    pub(crate) public_uri: Option<Url>,
    /// Whether `/info` says how many pods run.
    pub(crate) publish_running: bool,
    pub(crate) api: Api,
    pub(crate) price: Price,
    /// Sizes of pods besides `small`, by the name that a manifest has in `machine`. Without the table `medium`
    /// and `large` are offered; one that is there names all.
    pub(crate) sizes: BTreeMap<MachineName, SizeOffered>,
    pub(crate) peers: Peers,
    pub(crate) admin: Admin,
    pub(crate) books: Books,
    pub(crate) interledger: Interledger,
    pub(crate) refunds: Refunds,
    pub(crate) pods: Pods,
    pub(crate) images: Images,
    pub(crate) network: Network,
    pub(crate) egress: Egress,
    pub(crate) guest: Guest,
    pub(crate) self_test: SelfTest,
    pub(crate) shutdown: Shutdown,
}

/// The end of the daemon.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Shutdown {
    /// How long requests and packets under way get. What takes longer is cut: event streams, WebSockets.
    pub(crate) drain_secs: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Api {
    /// How the quotes of version 1 are given.
    pub(crate) quote: Quote,
}

/// Two tools of the original exist whose quotes cannot be told apart by their requests, and each fails
/// at what the other needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Quote {
    /// At once, as `codius` 3.1.0 from npm wants it.
    #[default]
    Plain,
    /// A client that sends a `Pay-Token` is first asked to connect, for nothing, as the later `codius`
    /// from git wants it: it reads the asset from the connection.
    Stream,
}

/// The other hosts that this one knows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Peers {
    /// Hosts to begin with, as URLs without a path. All that the original began with are assumed dead.
    pub(crate) bootstrap: Vec<String>,
    /// Whether peers may be at private addresses and without TLS: for tests and private networks only,
    /// because whoever names a peer chooses what this host connects to.
    pub(crate) allow_private: bool,
    /// How often peers are exchanged with a few of those that answer.
    pub(crate) exchange_interval_secs: u64,
    /// Each listed peer is checked again within this time.
    pub(crate) check_interval_secs: u64,
    /// The first wait for a peer that does not answer; it doubles, up to an hour.
    pub(crate) retry_secs: u64,
}

/// The operator's own entrance. `DATA_DIR/admin.sock` is always there.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Admin {
    /// A port of 127.0.0.1 besides, for whoever has the token in `DATA_DIR/admin.token`; 0: any.
    pub(crate) tcp_port: Option<u16>,
}

/// What is remembered.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Books {
    /// How long leases that have ended, and orders that were answered, are kept, in days from their
    /// creation; 0: for ever. The ledger is always kept whole.
    pub(crate) keep_days: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Interledger {
    pub(crate) mode: InterledgerMode,
    /// In local mode: where local clients connect (BTP). Programs in pods have their own port.
    pub(crate) listen: Option<Vec<SocketAddr>>,
    /// In local mode: the asset that everything is counted in. A parent says its own.
    pub(crate) asset_code: String,
    pub(crate) asset_scale: u8,
    /// In uplink mode: the parent, `btp+ws://` or `btp+wss://`, perhaps with a user name.
    pub(crate) parent: String,
    /// In uplink mode: a file with the secret (BTP token) for the parent. Without it the host uses one
    /// that follows from its own secret, which is what `moneyd` expects.
    pub(crate) parent_secret_file: Option<PathBuf>,
    /// The same from the environment, where the original had it. Never in the file.
    #[serde(skip)]
    pub(crate) parent_secret: Option<Secret>,
    /// In uplink mode: the most that the parent may owe this host, in the asset's smallest unit; what
    /// would exceed it is refused (T04). Default: no limit.
    pub(crate) parent_credit: Option<u64>,
    /// The most packets that the programs of one pod may send in a second.
    pub(crate) max_packets_per_sec: u32,
    /// The most that one packet may move, in the asset's smallest unit.
    pub(crate) max_packet_amount: u64,
    /// How long the price of an order may take to arrive, once the client has asked again.
    pub(crate) payment_timeout_secs: u64,
}

/// Money that goes back to payment pointers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Refunds {
    /// Whether pointers may be at private addresses and without TLS: for tests and private networks only,
    /// because whoever uploads chooses what this host connects to. In local mode those of this machine may
    /// be anyway.
    pub(crate) allow_private: bool,
    /// The first wait after a refund that did not arrive, in seconds. It doubles with each, up to
    /// `longest_retry_secs`; there is no last try.
    pub(crate) retry_secs: u64,
    pub(crate) longest_retry_secs: u64,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InterledgerMode {
    /// This host is the root of a private network and its local clients get play money.
    Local,
    /// This host is a child of `moneyd` or another connector.
    Uplink,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Pods {
    pub(crate) accelerator: Accelerator,
    /// Whether pods are clones of a machine that is booted once, which takes some 90 MiB of memory.
    pub(crate) warm: Warm,
    /// Memory that all pods together may be promised, with what the host needs to run each; 0: as
    /// `memory_fraction` says.
    pub(crate) memory_mib: u64,
    /// Part of this machine's memory that pods may be promised.
    pub(crate) memory_fraction: f64,
    /// Disk that all pods together may be promised; 0: as `disk_fraction` says.
    pub(crate) disk_mib: u64,
    /// Part of what is free on the disk of `data_dir` that pods may be promised.
    pub(crate) disk_fraction: f64,
    /// The most virtual processors that are sold for each core of this machine; 0: no limit.
    pub(crate) max_cpu_overcommit: f64,
    pub(crate) max_pods: usize,
    /// How long a program may take to open its port.
    pub(crate) port_timeout_secs: u64,
    /// How long containers get between SIGTERM and SIGKILL at the end of a lease.
    pub(crate) stop_grace_ms: u64,
    /// How long a pod is held still, and kept, when its money is used up, in seconds; whoever pays in time
    /// lets it go on. 0: it ends at once.
    pub(crate) grace_secs: u64,
    /// How long before the end of a lease it is announced, in seconds; at most 16 times.
    pub(crate) expiry_notice_secs: Vec<u64>,
    /// What happens to pods when the daemon ends.
    pub(crate) on_shutdown: OnShutdown,
    /// If there are any: other manifests are refused.
    pub(crate) allow_hashes: Vec<ManifestHash>,
    /// Manifests that are refused, even if they are allowed.
    pub(crate) deny_hashes: Vec<ManifestHash>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accelerator {
    /// KVM if it truly works, otherwise emulation, and said aloud.
    Auto,
    Kvm,
    /// Software emulation: for development and tests.
    Tcg,
}

/// `"auto"`, `true` or `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WarmText")]
pub(crate) enum Warm {
    /// As the host thinks best, which is on.
    Auto,
    On,
    Off,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WarmText {
    Choice(bool),
    Word(String),
}

impl TryFrom<WarmText> for Warm {
    type Error = &'static str;

    fn try_from(text: WarmText) -> Result<Self, Self::Error> {
        match text {
            WarmText::Choice(true) => Ok(Self::On),
            WarmText::Choice(false) => Ok(Self::Off),
            WarmText::Word(word) if word == "auto" => Ok(Self::Auto),
            WarmText::Word(_) => Err("pods.warm is true, false or \"auto\""),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnShutdown {
    /// They go on; the next `codiusd` takes them up.
    Leave,
    /// They end, and unused money is recorded as owed.
    Stop,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Images {
    /// Registries (`host:port`) that are spoken to without TLS, and that may have private addresses.
    pub(crate) insecure_registries: Vec<String>,
    /// Sum of an image's layers as they travel.
    pub(crate) max_compressed_mib: u64,
    /// Sum of an image's files.
    pub(crate) max_unpacked_mib: u64,
    /// Disk that all images together may take, those that are being made included.
    pub(crate) max_cache_mib: u64,
    /// Disk that images leave free for everything else.
    pub(crate) min_free_mib: u64,
    /// If there are any: other images are refused.
    pub(crate) allow: Vec<Pattern>,
    /// Images that are refused, even if they are allowed.
    pub(crate) deny: Vec<Pattern>,
    /// Images that are never removed to make room. Nothing is fetched for it.
    pub(crate) pin: Vec<Pattern>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    /// Addresses for pods, `a.b.c.d/len` with a length of 14 to 29; eight for each pod. Must be unused on this machine.
    pub(crate) pool: String,
    /// Resolvers that pods are told of.
    pub(crate) nameservers: Vec<Ipv4Addr>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Guest {
    /// Holds `vmlinux` and `initramfs.cpio`. Default: looked for beside the program, then in
    /// `/usr/lib/codius/guest`.
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SelfTest {
    /// Whether the host uploads a program to itself, and takes nobody else's before that has worked.
    /// Default: below a parent yes, in local mode no.
    pub(crate) enabled: Option<bool>,
    /// Another image than the host's own; it has to answer as the original's does.
    pub(crate) image: Option<String>,
    /// How often the upload is tried in one test.
    pub(crate) retries: u32,
    /// Time between two tries, in seconds.
    pub(crate) interval_secs: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/codius"),
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            public_uri: None,
            publish_running: true,
            api: Api::default(),
            price: Price::default(),
            sizes: sizes::without_a_table(),
            peers: Peers::default(),
            admin: Admin::default(),
            books: Books::default(),
            interledger: Interledger::default(),
            refunds: Refunds::default(),
            pods: Pods::default(),
            images: Images::default(),
            network: Network::default(),
            egress: Egress::default(),
            guest: Guest::default(),
            self_test: SelfTest::default(),
            shutdown: Shutdown::default(),
        }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { drain_secs: 5 }
    }
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            bootstrap: Vec::new(),
            allow_private: false,
            exchange_interval_secs: 5,
            check_interval_secs: 600,
            retry_secs: 30,
        }
    }
}

impl Default for Books {
    fn default() -> Self {
        Self { keep_days: 400 }
    }
}

impl Default for Interledger {
    fn default() -> Self {
        Self {
            mode: InterledgerMode::Local,
            listen: None,
            asset_code: "XRP".to_owned(),
            asset_scale: 9,
            parent: format!("btp+ws://localhost:{}", ilp_link::DEFAULT_PORT),
            parent_secret_file: None,
            parent_secret: None,
            parent_credit: None,
            max_packets_per_sec: 5000,
            max_packet_amount: 1_000_000_000_000,
            payment_timeout_secs: 60,
        }
    }
}

impl Default for Refunds {
    fn default() -> Self {
        Self {
            allow_private: false,
            retry_secs: 60,
            longest_retry_secs: 24 * 3600,
        }
    }
}

impl Default for SelfTest {
    fn default() -> Self {
        Self {
            enabled: None,
            image: None,
            retries: 5,
            interval_secs: 5,
        }
    }
}

impl Default for Pods {
    fn default() -> Self {
        Self {
            accelerator: Accelerator::Auto,
            warm: Warm::Auto,
            memory_mib: 0,
            memory_fraction: 0.75,
            disk_mib: 0,
            disk_fraction: 0.75,
            max_cpu_overcommit: 0.0,
            max_pods: 100,
            port_timeout_secs: 45,
            stop_grace_ms: 1000,
            grace_secs: 60,
            expiry_notice_secs: vec![3600, 600, 60],
            on_shutdown: OnShutdown::Leave,
            allow_hashes: Vec::new(),
            deny_hashes: Vec::new(),
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            max_compressed_mib: 1024,
            max_unpacked_mib: 4096,
            max_cache_mib: 20 * 1024,
            min_free_mib: 1024,
            allow: Vec::new(),
            deny: Vec::new(),
            pin: Vec::new(),
        }
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
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| {
                format!(
                    "cannot read {}; name a file that is there with --config (README.md has one to begin with), or take --local for a host to try out",
                    path.display()
                )
            })?;
        let config: Self =
            toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
        config
            .check()
            .with_context(|| format!("{} is not valid", path.display()))?;
        Ok(config)
    }

    /// Refuses what the types allow and the host cannot do.
    pub(crate) fn check(&self) -> Result<()> {
        let duration = self.price.max_duration_secs;
        ensure!(
            (1..=MAX_DURATION_LIMIT_SECS).contains(&duration),
            "price.max_duration_secs is {duration}; it must be 1 to {MAX_DURATION_LIMIT_SECS}"
        );
        ensure!(
            self.pods.max_pods > 0,
            "pods.max_pods is 0; a host runs at least one pod"
        );
        ensure!(
            self.pods.port_timeout_secs > 0,
            "pods.port_timeout_secs is 0; programs need time to start"
        );
        ensure!(
            self.pods.grace_secs <= MAX_GRACE_SECS,
            "pods.grace_secs is over {MAX_GRACE_SECS}; a pod that nobody pays for keeps its memory"
        );
        ensure!(
            self.pods.expiry_notice_secs.len() <= MAX_EXPIRY_NOTICES,
            "pods.expiry_notice_secs has over {MAX_EXPIRY_NOTICES} times"
        );
        ensure!(
            self.interledger.asset_scale <= 18,
            "interledger.asset_scale is over 18"
        );
        ensure!(
            !self.interledger.asset_code.is_empty(),
            "interledger.asset_code is empty"
        );
        ensure!(
            self.interledger.max_packet_amount > 0,
            "interledger.max_packet_amount is 0"
        );
        ensure!(
            self.interledger.payment_timeout_secs > 0,
            "interledger.payment_timeout_secs is 0"
        );
        ensure!(
            self.self_test.retries > 0,
            "self_test.retries is 0; set self_test.enabled = false for no test"
        );
        ensure!(
            self.shutdown.drain_secs <= MAX_DRAIN_SECS,
            "shutdown.drain_secs is {}; it must be at most {MAX_DRAIN_SECS}",
            self.shutdown.drain_secs
        );
        for (name, fraction) in [
            ("memory_fraction", self.pods.memory_fraction),
            ("disk_fraction", self.pods.disk_fraction),
        ] {
            ensure!(
                fraction > 0.0 && fraction <= 1.0,
                "pods.{name} is {fraction}; it must be over 0 and at most 1"
            );
        }
        let overcommit = self.pods.max_cpu_overcommit;
        ensure!(
            (0.0..=MAX_CPU_OVERCOMMIT).contains(&overcommit),
            "pods.max_cpu_overcommit is {overcommit}; it must be 0 (no limit) to {MAX_CPU_OVERCOMMIT}"
        );
        sizes::check(&self.sizes, &self.price)?;
        self.images.check()?;
        self.interledger.check()?;
        self.refunds.check()?;
        self.peers.check()?;
        self.egress.check(self.pool()?)?;
        if let Some(uri) = &self.public_uri {
            ensure!(
                matches!(uri.scheme(), "http" | "https"),
                "public_uri must begin with http:// or https://"
            );
            ensure!(uri.host_str().is_some(), "public_uri has no host name");
            ensure!(
                uri.path() == "/" && uri.query().is_none() && uri.fragment().is_none(),
                "public_uri must be scheme, host and port only"
            );
        }
        Ok(())
    }

    /// Whether the host tests itself before it takes uploads.
    pub(crate) fn tests_itself(&self) -> bool {
        let below_a_parent = self.interledger.mode == InterledgerMode::Uplink;
        self.self_test.enabled.unwrap_or(below_a_parent)
    }

    /// The pod network.
    pub(crate) fn pool(&self) -> Result<Ipv4Pool> {
        self.network.pool.parse().context("network.pool")
    }
}

impl Peers {
    fn check(&self) -> Result<()> {
        for (name, secs) in [
            ("exchange_interval_secs", self.exchange_interval_secs),
            ("check_interval_secs", self.check_interval_secs),
            ("retry_secs", self.retry_secs),
        ] {
            ensure!(
                (1..=MAX_PEER_INTERVAL_SECS).contains(&secs),
                "peers.{name} is {secs}; it must be 1 to {MAX_PEER_INTERVAL_SECS}"
            );
        }
        self.bootstrap_urls().map(drop)
    }
}

impl Images {
    fn check(&self) -> Result<()> {
        // The files of an image are on disk twice while its block image is made.
        let least = self
            .max_unpacked_mib
            .saturating_mul(2)
            .saturating_add(IMAGE_MARGIN_MIB);
        ensure!(
            self.max_cache_mib >= least,
            "images.max_cache_mib is {}; with max_unpacked_mib = {} it must be at least {least}, or \
             the largest image could never be made",
            self.max_cache_mib,
            self.max_unpacked_mib
        );
        Ok(())
    }
}

impl Refunds {
    fn check(&self) -> Result<()> {
        for (name, secs) in [
            ("retry_secs", self.retry_secs),
            ("longest_retry_secs", self.longest_retry_secs),
        ] {
            ensure!(
                (1..=MAX_REFUND_RETRY_SECS).contains(&secs),
                "refunds.{name} is {secs}; it must be 1 to {MAX_REFUND_RETRY_SECS}"
            );
        }
        Ok(())
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff {
            first_ms: self.retry_secs * 1000,
            longest_ms: self.longest_retry_secs * 1000,
        }
    }
}

impl Interledger {
    fn check(&self) -> Result<()> {
        ensure!(
            self.max_packets_per_sec > 0,
            "interledger.max_packets_per_sec is 0"
        );
        match self.mode {
            InterledgerMode::Local => ensure!(
                self.parent_secret_file.is_none() && self.parent_credit.is_none(),
                "interledger.parent_secret_file and parent_credit are for mode = \"uplink\""
            ),
            InterledgerMode::Uplink => {
                ensure!(
                    self.listen.is_none(),
                    "interledger.listen is for mode = \"local\": below a parent, local clients \
                     connect to the parent"
                );
                let parent: BtpUrl = self.parent.parse().context("interledger.parent")?;
                ensure!(
                    parent.credentials().token.is_empty(),
                    "interledger.parent has a secret in it; put that into a file of its own, mode \
                     0600, and name it in interledger.parent_secret_file"
                );
            }
        }
        Ok(())
    }

    /// Where local clients connect in local mode.
    pub(crate) fn local_addresses(&self) -> Vec<SocketAddr> {
        self.listen.clone().unwrap_or_else(|| {
            let port = ilp_link::DEFAULT_PORT;
            vec![
                SocketAddr::from(([127, 0, 0, 1], port)),
                SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port)),
            ]
        })
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
        assert_eq!(config.api.quote, Quote::Plain);
        let names: Vec<String> = config.sizes.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["large", "medium"]);
        let text = "[sizes.huge]\nvcpus = 8\nmemory_mib = 8192\ndisk_mib = 16384";
        let config: Config = toml::from_str(text).unwrap();
        config.check().unwrap();
        assert_eq!(config.sizes.len(), 1, "what is written names all");
        let config: Config = toml::from_str("[api]\nquote = \"stream\"").unwrap();
        assert_eq!(config.api.quote, Quote::Stream);
    }

    #[test]
    fn patterns_and_hashes_are_read_or_refused_with_what_is_wrong() {
        let config: Config = toml::from_str(
            "[images]\nallow = [\"docker.io/library/*\"]\ndeny = [\"*.example\"]\npin = [\"docker.io/nginx\"]",
        )
        .unwrap();
        config.check().unwrap();
        assert_eq!(config.images.deny[0].to_string(), "*.example");
        for (text, reason) in [
            ("[images]\nallow = [\"nginx\"]", "docker.io/nginx"),
            ("[images]\ndeny = [\"sha256:12\"]", "64 lower-case"),
            ("[pods]\ndeny_hashes = [\"abc\"]", "hash"),
            ("[egress]\ndeny_ports = [\"25/sctp\"]", "137-139/udp"),
            ("[egress]\ndeny_ports = [25]", "string"),
            (
                "[egress]\nallow_ranges = [\"10.1.1.1/8\"]",
                "below its length",
            ),
            ("[egress]\nports = [\"25\"]", "unknown field"),
            ("[sizes.BIG]\nvcpus = 1", "name of a machine"),
            ("[sizes.big]\nvcpus = 1\nmemory_mib = 512", "disk_mib"),
        ] {
            let error = toml::from_str::<Config>(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused_by_name() {
        let unknown = toml::from_str::<Config>("[pods]\nmemory = 5").unwrap_err();
        assert!(unknown.to_string().contains("memory"), "{unknown}");
        for (text, named) in [
            ("[network]\npool = \"10.88.0.1/16\"", "network.pool"),
            ("[network]\npool = \"10.0.0.0/30\"", "network.pool"),
            ("[price]\nmax_duration_secs = 0", "max_duration_secs"),
            ("public_uri = \"ftp://host\"", "public_uri"),
            ("[shutdown]\ndrain_secs = 601", "shutdown.drain_secs"),
            ("[peers]\nretry_secs = 0", "retry_secs"),
            (
                "[sizes.small]\nvcpus = 2\nmemory_mib = 512\ndisk_mib = 1024",
                "sizes.small cannot be changed",
            ),
            (
                "[sizes.big]\nvcpus = 65\nmemory_mib = 512\ndisk_mib = 1024",
                "sizes.big cannot be run: a machine has 1 to 64 processors",
            ),
            (
                "[sizes.big]\nvcpus = 1\nmemory_mib = 512\ndisk_mib = 15",
                "MiB of disk",
            ),
            (
                "[sizes.big]\nvcpus = 1\nmemory_mib = 512\ndisk_mib = 1024\ncost_per_month = \"ten\"",
                "sizes.big.cost_per_month is \"ten\"",
            ),
            ("[price]\nper_vcpu_month = \"3\"", "belong together"),
            (
                "[pods]\nmax_cpu_overcommit = -1",
                "max_cpu_overcommit is -1",
            ),
            ("[pods]\ndisk_fraction = 0", "pods.disk_fraction is 0"),
            ("[images]\nmax_cache_mib = 8192", "at least 8704"),
            ("[refunds]\nlongest_retry_secs = 0", "refunds.longest"),
            (
                "[peers]\nbootstrap = [\"https://host.example/path\"]",
                "peers.bootstrap",
            ),
            (
                "[peers]\nbootstrap = [\"https://10.0.0.1\"]",
                "peers.bootstrap",
            ),
            (
                "[interledger]\nmode = \"uplink\"\nparent = \"http://host\"",
                "interledger.parent",
            ),
            (
                "[interledger]\nmode = \"uplink\"\nparent = \"btp+ws://:secret@host\"",
                "parent_secret_file",
            ),
            (
                "[interledger]\nmode = \"uplink\"\nlisten = []",
                "interledger.listen",
            ),
            ("[interledger]\nparent_credit = 5", "parent_credit"),
            ("public_uri = \"http://host/path\"", "public_uri"),
            (
                "[egress]\nmax_kib_per_sec = 0",
                "egress.max_kib_per_sec is 0",
            ),
            (
                "[egress]\nmax_open_connections = 10000001",
                "it must be 1 to 10000000",
            ),
            (
                "[egress]\nallow_ranges = [\"10.0.0.0/8\"]",
                "egress.allow_ranges",
            ),
            (
                "[egress]\nallow_ranges = [\"169.254.169.254\"]",
                "egress.allow_ranges",
            ),
        ] {
            let config: Config = toml::from_str(text).unwrap();
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
