//! The environment variables of the original, with their meaning here.
//!
//! They stand between the configuration file and the command line: over the one, under the other. An
//! empty variable is one that is not there, as in the original. A value that the original would have
//! replaced by its default without a word is an error here.
//!
//! | variable | here |
//! |---|---|
//! | `CODIUS_PUBLIC_URI` | `public_uri` |
//! | `CODIUS_PORT`, `CODIUS_BIND_IP` | `listen` |
//! | `CODIUS_COST_PER_MONTH`, else `COST_PER_MONTH`, else `CODIUS_XRP_PER_MONTH` | `price.cost_per_month` |
//! | `CODIUS_ROOT` | `data_dir` |
//! | `CODIUS_MAX_MEMORY_FRACTION` | `pods.memory_fraction` |
//! | `CODIUS_ADDITIONAL_HOST_INFO` | `publish_running` |
//! | `CODIUS_BOOTSTRAP_PEERS` | `peers.bootstrap` |
//! | `CODIUS_DEV` | `interledger.mode = "local"`, `peers.allow_private = true` |
//! | `CODIUS_ADMIN_API`, `CODIUS_ADMIN_PORT` | `admin.tcp_port` |
//! | `ILP_PLUGIN`, `ILP_CREDENTIALS` | `interledger.mode = "uplink"`, `.parent` and its secret |
//! | `CODIUS_SELF_TEST_RETRIES`, `CODIUS_SELF_TEST_INTERVAL` | `self_test.retries`, `.interval_secs` |
//! | `CODIUS_HYPER_SOCKET`, `CODIUS_MEMDOWN_PERSIST` | nothing: there is no hyperd, and all is kept |
//! | `CODIUS_HYPER_NOOP` | refused if `true`: a host that runs nothing must not take money |

use std::{collections::BTreeMap, ffi::OsString, net::IpAddr, path::PathBuf};

use codius_ledger::Cost;
use codius_peers::{PeerUrl, Reach};
use ilp_link::BtpUrl;
use serde::Deserialize;
use thiserror::Error;
use url::Url;

use crate::config::{Config, InterledgerMode, Secret};

/// Everything that the original read.
const KNOWN: [&str; 21] = [
    "CODIUS_ADDITIONAL_HOST_INFO",
    "CODIUS_ADMIN_API",
    "CODIUS_ADMIN_PORT",
    "CODIUS_BIND_IP",
    "CODIUS_BOOTSTRAP_PEERS",
    "CODIUS_COST_PER_MONTH",
    "CODIUS_DEV",
    "CODIUS_HYPER_NOOP",
    "CODIUS_HYPER_SOCKET",
    "CODIUS_MAX_MEMORY_FRACTION",
    "CODIUS_MEMDOWN_PERSIST",
    "CODIUS_PORT",
    "CODIUS_PUBLIC_URI",
    "CODIUS_ROOT",
    "CODIUS_SELF_TEST_INTERVAL",
    "CODIUS_SELF_TEST_RETRIES",
    "CODIUS_XRP_PER_MONTH",
    "COST_PER_MONTH",
    "ILP_CREDENTIALS",
    "ILP_PLUGIN",
    "NODE_ENV",
];
/// Names of this beginning belong to a host.
const PREFIX: &str = "CODIUS_";
/// For tests of this host and the tools beside it, not for the host.
const NOT_OURS: [&str; 2] = ["CODIUS_TEST_", "CODIUS_GUEST_DIR"];
const PRICES: [&str; 3] = [
    "CODIUS_COST_PER_MONTH",
    "COST_PER_MONTH",
    "CODIUS_XRP_PER_MONTH",
];
/// The one plug-in whose protocol this host speaks.
const BTP_PLUGIN: &str = "ilp-plugin-btp";
const DEFAULT_ADMIN_PORT: u16 = 3001;

/// What the environment says.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Environment {
    public_uri: Option<Url>,
    port: Option<u16>,
    bind_ip: Option<IpAddr>,
    cost_per_month: Option<String>,
    data_dir: Option<PathBuf>,
    memory_fraction: Option<f64>,
    publish_running: Option<bool>,
    bootstrap: Option<Vec<String>>,
    dev: bool,
    /// `Some(None)`: there shall be none.
    admin_port: Option<Option<u16>>,
    parent: Option<Parent>,
    self_test_retries: Option<u32>,
    self_test_interval_secs: Option<u64>,
    /// What the operator should know: variables that mean nothing here.
    remarks: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
struct Parent {
    /// Without a secret.
    url: String,
    secret: Option<Secret>,
}

/// A variable has a value that it cannot have. The operator corrects it.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("environment variable {variable}: {reason}")]
pub(crate) struct EnvironmentError {
    variable: String,
    reason: String,
}

/// Options of `ilp-plugin-btp`, as far as they say where the parent is.
#[derive(Deserialize)]
struct Credentials {
    server: String,
    #[serde(default, rename = "btpToken")]
    token: Option<String>,
}

/// The variables that are there and not empty.
struct Variables(BTreeMap<String, String>);

impl Environment {
    /// Reads this process's own.
    pub(crate) fn of_process() -> Result<Self, EnvironmentError> {
        Self::read(std::env::vars_os())
    }

    fn read(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, EnvironmentError> {
        let variables = Variables::of(variables)?;
        let mut remarks = variables.remarks();
        let dev = variables.flag("CODIUS_DEV")?.unwrap_or_default();
        if variables.flag("CODIUS_HYPER_NOOP")? == Some(true) {
            let reason = "a host that runs nothing must not take money; remove it";
            return Err(error("CODIUS_HYPER_NOOP", reason));
        }
        let cost = PRICES
            .iter()
            .find_map(|name| Some((*name, variables.text(name)?)));
        let cost_per_month = match cost {
            Some((name, text)) => {
                text.parse::<Cost>().map_err(|reason| error(name, reason))?;
                Some(text.to_owned())
            }
            None => None,
        };
        let parent = variables.parent()?;
        if dev && parent.is_some() {
            remarks.push(
                "ILP_PLUGIN and ILP_CREDENTIALS mean nothing with CODIUS_DEV=true".to_owned(),
            );
        }
        Ok(Self {
            public_uri: variables.parsed("CODIUS_PUBLIC_URI")?,
            port: variables.parsed("CODIUS_PORT")?,
            bind_ip: variables.parsed("CODIUS_BIND_IP")?,
            cost_per_month,
            data_dir: variables.text("CODIUS_ROOT").map(PathBuf::from),
            memory_fraction: variables.memory_fraction()?,
            publish_running: variables.flag("CODIUS_ADDITIONAL_HOST_INFO")?,
            bootstrap: variables.bootstrap(dev)?,
            dev,
            admin_port: variables.admin_port(&mut remarks)?,
            parent,
            self_test_retries: variables.parsed("CODIUS_SELF_TEST_RETRIES")?,
            self_test_interval_secs: variables.parsed("CODIUS_SELF_TEST_INTERVAL")?,
            remarks,
        })
    }

    /// Whether this is all that a host needs to be told, as it was for the original.
    pub(crate) fn is_enough(&self) -> bool {
        self.dev || self.public_uri.is_some()
    }

    pub(crate) fn data_dir(&self) -> Option<PathBuf> {
        self.data_dir.clone()
    }

    pub(crate) fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Says it over what is configured. `is_alone`: there is no file, so that the host is what the
    /// original was: one below moneyd.
    pub(crate) fn apply(&self, config: &mut Config, is_alone: bool) {
        if let Some(uri) = &self.public_uri {
            config.public_uri = Some(uri.clone());
        }
        if let Some(port) = self.port {
            config.listen.set_port(port);
        }
        if let Some(ip) = self.bind_ip {
            config.listen.set_ip(ip);
        }
        if let Some(cost) = &self.cost_per_month {
            config.price.cost_per_month.clone_from(cost);
        }
        if let Some(dir) = &self.data_dir {
            config.data_dir.clone_from(dir);
        }
        if let Some(fraction) = self.memory_fraction {
            config.pods.memory_mib = 0;
            config.pods.memory_fraction = fraction;
        }
        if let Some(publish) = self.publish_running {
            config.publish_running = publish;
        }
        if let Some(peers) = &self.bootstrap {
            config.peers.bootstrap.clone_from(peers);
        }
        if let Some(port) = self.admin_port {
            config.admin.tcp_port = port;
        }
        if let Some(retries) = self.self_test_retries {
            config.self_test.retries = retries;
        }
        if let Some(secs) = self.self_test_interval_secs {
            config.self_test.interval_secs = secs;
        }
        if self.dev {
            config.interledger.mode = InterledgerMode::Local;
            config.peers.allow_private = true;
        } else if let Some(parent) = &self.parent {
            config.interledger.mode = InterledgerMode::Uplink;
            config.interledger.parent.clone_from(&parent.url);
            config.interledger.parent_secret.clone_from(&parent.secret);
        } else if is_alone && self.is_enough() {
            config.interledger.mode = InterledgerMode::Uplink;
        }
    }
}

impl Variables {
    fn of(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, EnvironmentError> {
        let mut kept = BTreeMap::new();
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            if !name.starts_with(PREFIX) && !KNOWN.contains(&name) {
                continue;
            }
            let value = value
                .into_string()
                .map_err(|_| error(name, "it is not UTF-8"))?;
            if !value.is_empty() {
                kept.insert(name.to_owned(), value);
            }
        }
        Ok(Self(kept))
    }

    fn text(&self, name: &str) -> Option<&str> {
        debug_assert!(KNOWN.contains(&name), "{name} is read and not known");
        self.0.get(name).map(String::as_str)
    }

    fn parsed<T>(&self, name: &str) -> Result<Option<T>, EnvironmentError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let parse = |text: &str| text.parse().map_err(|reason| error(name, reason));
        self.text(name).map(parse).transpose()
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, EnvironmentError> {
        match self.text(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(error(name, "it is neither true nor false")),
        }
    }

    fn memory_fraction(&self) -> Result<Option<f64>, EnvironmentError> {
        const NAME: &str = "CODIUS_MAX_MEMORY_FRACTION";
        match self.parsed::<f64>(NAME)? {
            Some(fraction) if fraction > 0.0 && fraction <= 1.0 => Ok(Some(fraction)),
            Some(_) => Err(error(NAME, "it must be over 0 and at most 1")),
            None => Ok(None),
        }
    }

    fn bootstrap(&self, dev: bool) -> Result<Option<Vec<String>>, EnvironmentError> {
        const NAME: &str = "CODIUS_BOOTSTRAP_PEERS";
        let Some(text) = self.text(NAME) else {
            return Ok(None);
        };
        let peers: Vec<String> = serde_json::from_str(text)
            .map_err(|_| error(NAME, "it is not a JSON array of URLs"))?;
        let reach = if dev { Reach::Any } else { Reach::Public };
        for peer in &peers {
            PeerUrl::parse(peer, reach)
                .map_err(|reason| error(NAME, format!("{peer:?}: {reason}")))?;
        }
        Ok(Some(peers))
    }

    fn admin_port(
        &self,
        remarks: &mut Vec<String>,
    ) -> Result<Option<Option<u16>>, EnvironmentError> {
        let port = self.parsed("CODIUS_ADMIN_PORT")?;
        let is_on = self.flag("CODIUS_ADMIN_API")?;
        if port.is_some() && is_on != Some(true) {
            remarks
                .push("CODIUS_ADMIN_PORT means nothing without CODIUS_ADMIN_API=true".to_owned());
        }
        Ok(is_on.map(|is_on| is_on.then(|| port.unwrap_or(DEFAULT_ADMIN_PORT))))
    }

    fn parent(&self) -> Result<Option<Parent>, EnvironmentError> {
        const NAME: &str = "ILP_CREDENTIALS";
        let plugin = self.text("ILP_PLUGIN");
        if let Some(plugin) = plugin
            && plugin != BTP_PLUGIN
        {
            let reason = format!(
                "this host speaks the protocol of {BTP_PLUGIN} only; run moneyd with {plugin:?}"
            );
            return Err(error("ILP_PLUGIN", reason));
        }
        let Some(text) = self.text(NAME) else {
            // The plug-in's default is moneyd, and so is ours.
            return Ok(plugin.map(|_| Parent {
                url: crate::config::Interledger::default().parent,
                secret: None,
            }));
        };
        // Nothing of the text is told: there are secrets in it.
        let credentials: Credentials = serde_json::from_str(text)
            .map_err(|_| error(NAME, "it is not JSON with a `server`"))?;
        let server: BtpUrl = credentials
            .server
            .parse()
            .map_err(|reason| error(NAME, format!("server: {reason}")))?;
        let token = credentials
            .token
            .unwrap_or(server.credentials().token.clone());
        let url = without_password(credentials.server.trim())
            .ok_or_else(|| error(NAME, "server: not a URL"))?;
        let secret = (!token.is_empty()).then_some(Secret(token));
        Ok(Some(Parent { url, secret }))
    }

    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for (name, value) in &self.0 {
            let remark = match name.as_str() {
                "CODIUS_HYPER_SOCKET" => "is ignored: pods do not need hyperd",
                "CODIUS_MEMDOWN_PERSIST" => "is ignored: everything is kept in the data directory",
                "NODE_ENV" if value == "test" => "is ignored: CODIUS_DEV=true makes a local host",
                known if KNOWN.contains(&known) => continue,
                other if NOT_OURS.iter().any(|ours| other.starts_with(ours)) => continue,
                _ => "is unknown, and ignored",
            };
            remarks.push(format!("environment variable {name} {remark}"));
        }
        remarks
    }
}

/// A BTP URL with the user name that it has, and without the secret.
fn without_password(server: &str) -> Option<String> {
    let mut url = Url::parse(server.strip_prefix("btp+").unwrap_or(server)).ok()?;
    url.set_password(None).ok()?;
    Some(format!("btp+{url}"))
}

fn error(variable: &str, reason: impl std::fmt::Display) -> EnvironmentError {
    EnvironmentError {
        variable: variable.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, EnvironmentError> {
        Environment::read(
            variables
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
        )
    }

    /// The configuration that a file and the environment make.
    fn over(file: &str, variables: &[(&str, &str)]) -> Config {
        let mut config: Config = toml::from_str(file).expect("valid");
        read(variables).expect("valid").apply(&mut config, false);
        config.check().expect("valid");
        config
    }

    /// The configuration of the environment alone.
    fn alone(variables: &[(&str, &str)]) -> Config {
        let mut config = Config::default();
        let environment = read(variables).expect("valid");
        assert!(environment.is_enough());
        environment.apply(&mut config, true);
        config.check().expect("valid");
        config
    }

    const HOST: (&str, &str) = ("CODIUS_PUBLIC_URI", "https://host.example");

    #[test]
    fn a_public_uri_alone_makes_a_host_below_moneyd() {
        let config = alone(&[HOST]);
        assert_eq!(
            config.public_uri.map(String::from).as_deref(),
            Some("https://host.example/")
        );
        assert_eq!(config.listen, SocketAddr::from(([127, 0, 0, 1], 3000)));
        assert_eq!(config.interledger.mode, InterledgerMode::Uplink);
        assert_eq!(config.interledger.parent, "btp+ws://localhost:7768");
        assert_eq!(config.interledger.parent_secret, None);
        assert_eq!(config.price.cost_per_month, "10");
        assert_eq!(config.admin.tcp_port, None);
        assert!(config.publish_running && config.peers.bootstrap.is_empty());

        // Without it there is nothing that says where the host is.
        assert!(!read(&[("CODIUS_PORT", "3000")]).expect("valid").is_enough());
        assert!(
            !read(&[("CODIUS_PUBLIC_URI", "")])
                .expect("valid")
                .is_enough()
        );
    }

    #[test]
    fn each_variable_is_said_over_the_file() {
        let config = over("public_uri = \"http://other\"", &[HOST]);
        assert_eq!(
            config.public_uri.map(String::from).as_deref(),
            Some("https://host.example/")
        );
        let config = over("listen = \"[::1]:9\"", &[("CODIUS_PORT", "8080")]);
        assert_eq!(config.listen.to_string(), "[::1]:8080");
        let config = over("listen = \"[::1]:9\"", &[("CODIUS_BIND_IP", "0.0.0.0")]);
        assert_eq!(config.listen.to_string(), "0.0.0.0:9");
        let config = over("data_dir = \"/a\"", &[("CODIUS_ROOT", "/b")]);
        assert_eq!(config.data_dir, PathBuf::from("/b"));
        let fraction = [("CODIUS_MAX_MEMORY_FRACTION", "0.5")];
        let config = over("[pods]\nmemory_mib = 100", &fraction);
        assert_eq!(
            (config.pods.memory_mib, config.pods.memory_fraction),
            (0, 0.5)
        );
        let config = over(
            "publish_running = true",
            &[("CODIUS_ADDITIONAL_HOST_INFO", "false")],
        );
        assert!(!config.publish_running);
        let peers = [("CODIUS_BOOTSTRAP_PEERS", r#"["https://a.example"]"#)];
        let config = over("[peers]\nbootstrap = [\"https://b.example\"]", &peers);
        assert_eq!(config.peers.bootstrap, ["https://a.example"]);
        // What is empty is not there.
        let config = over(
            "data_dir = \"/a\"",
            &[("CODIUS_ROOT", ""), ("CODIUS_PORT", "")],
        );
        assert_eq!(config.data_dir, PathBuf::from("/a"));
        // A file without the variables is as it was.
        assert_eq!(over("", &[]).interledger.mode, InterledgerMode::Local);
    }

    #[test]
    fn the_first_of_three_prices_counts() {
        let all = [
            ("CODIUS_XRP_PER_MONTH", "1"),
            ("COST_PER_MONTH", "2"),
            ("CODIUS_COST_PER_MONTH", "3"),
        ];
        for (count, price) in [(1, "1"), (2, "2"), (3, "3")] {
            let config = over("[price]\ncost_per_month = \"9\"", &all[..count]);
            assert_eq!(config.price.cost_per_month, price);
        }
        assert_eq!(
            over("[price]\ncost_per_month = \"9\"", &[])
                .price
                .cost_per_month,
            "9"
        );
    }

    #[test]
    fn development_is_a_local_host() {
        let config = alone(&[("CODIUS_DEV", "true")]);
        assert_eq!(config.interledger.mode, InterledgerMode::Local);
        assert!(config.peers.allow_private);
        let config = alone(&[HOST, ("CODIUS_DEV", "false")]);
        assert_eq!(config.interledger.mode, InterledgerMode::Uplink);
        assert!(!config.peers.allow_private);
        let both = [
            ("CODIUS_DEV", "true"),
            ("ILP_CREDENTIALS", r#"{"server":"btp+ws://x"}"#),
        ];
        assert_eq!(alone(&both).interledger.mode, InterledgerMode::Local);
        assert_eq!(read(&both).expect("valid").remarks().len(), 1);
        let peers = ("CODIUS_BOOTSTRAP_PEERS", r#"["http://localhost:3001"]"#);
        assert_eq!(
            alone(&[("CODIUS_DEV", "true"), peers])
                .peers
                .bootstrap
                .len(),
            1
        );
    }

    #[test]
    fn the_parent_and_its_secret_are_those_of_the_plug_in() {
        let of = |json: &str| over("", &[("ILP_CREDENTIALS", json)]).interledger;
        let secret = |text: &str| Some(Secret(text.to_owned()));
        let parent = of(r#"{"server":"btp+ws://:secret@parent.example:7768"}"#);
        assert_eq!(parent.mode, InterledgerMode::Uplink);
        assert_eq!(parent.parent, "btp+ws://parent.example:7768/");
        assert_eq!(parent.parent_secret, secret("secret"));
        let parent = of(r#"{"server":"btp+wss://me:a%40b@parent.example","reconnectInterval":5}"#);
        assert_eq!(parent.parent, "btp+wss://me@parent.example/");
        assert_eq!(parent.parent_secret, secret("a@b"));
        let parent = of(r#"{"server":"btp+ws://parent.example","btpToken":"t"}"#);
        assert_eq!(parent.parent_secret, secret("t"));
        let parent = of(r#"{"server":"btp+ws://parent.example"}"#);
        assert_eq!(parent.parent_secret, None);
        assert!(!format!("{:?}", of(r#"{"server":"btp+ws://:hidden@x"}"#)).contains("hidden"));

        let plugin = over("", &[("ILP_PLUGIN", "ilp-plugin-btp")]).interledger;
        assert_eq!(plugin.mode, InterledgerMode::Uplink);
        assert_eq!(plugin.parent, "btp+ws://localhost:7768");
    }

    #[test]
    fn the_admin_api_gets_a_port_only_if_asked_for() {
        let port = |variables: &[(&str, &str)]| over("", variables).admin.tcp_port;
        assert_eq!(port(&[]), None);
        assert_eq!(port(&[("CODIUS_ADMIN_API", "true")]), Some(3001));
        assert_eq!(
            port(&[("CODIUS_ADMIN_API", "true"), ("CODIUS_ADMIN_PORT", "4000")]),
            Some(4000)
        );
        assert_eq!(port(&[("CODIUS_ADMIN_PORT", "4000")]), None);
        let config = over("[admin]\ntcp_port = 5", &[("CODIUS_ADMIN_API", "false")]);
        assert_eq!(config.admin.tcp_port, None);
    }

    #[test]
    fn the_self_test_is_told_how_often() {
        let variables = [
            ("CODIUS_SELF_TEST_RETRIES", "7"),
            ("CODIUS_SELF_TEST_INTERVAL", "9"),
        ];
        let told = over("", &variables).self_test;
        assert_eq!((told.retries, told.interval_secs), (7, 9));
    }

    #[test]
    fn what_means_nothing_any_more_is_accepted_and_said() {
        let variables = [
            ("CODIUS_HYPER_SOCKET", "/var/run/hyper.sock"),
            ("CODIUS_MEMDOWN_PERSIST", "true"),
            ("CODIUS_HYPER_NOOP", "false"),
            ("CODIUS_COLOUR", "red"),
            ("NODE_ENV", "test"),
            ("PATH", "/bin"),
            HOST,
        ];
        let remarks = read(&variables).expect("valid").remarks().join("\n");
        for name in [
            "CODIUS_HYPER_SOCKET",
            "CODIUS_MEMDOWN_PERSIST",
            "CODIUS_COLOUR",
            "NODE_ENV",
        ] {
            assert!(
                remarks.contains(&format!("variable {name} is")),
                "{name}: {remarks}"
            );
        }
        assert_eq!(remarks.lines().count(), 4, "{remarks}");
    }

    #[test]
    fn a_bad_value_is_an_error_that_names_the_variable() {
        for (name, value) in [
            ("CODIUS_PUBLIC_URI", "host.example"),
            ("CODIUS_PORT", "http"),
            ("CODIUS_PORT", "70000"),
            ("CODIUS_BIND_IP", "here"),
            ("CODIUS_COST_PER_MONTH", "cheap"),
            ("COST_PER_MONTH", "-1"),
            ("CODIUS_XRP_PER_MONTH", "1e3"),
            ("CODIUS_MAX_MEMORY_FRACTION", "0"),
            ("CODIUS_MAX_MEMORY_FRACTION", "1.5"),
            ("CODIUS_MAX_MEMORY_FRACTION", "NaN"),
            ("CODIUS_ADDITIONAL_HOST_INFO", "yes"),
            ("CODIUS_BOOTSTRAP_PEERS", "https://a.example"),
            ("CODIUS_BOOTSTRAP_PEERS", r#"["http://a.example"]"#),
            ("CODIUS_BOOTSTRAP_PEERS", r#"["https://10.0.0.1"]"#),
            ("CODIUS_DEV", "1"),
            ("CODIUS_HYPER_NOOP", "true"),
            ("CODIUS_ADMIN_API", "on"),
            ("CODIUS_ADMIN_PORT", "-1"),
            ("CODIUS_SELF_TEST_RETRIES", "many"),
            ("CODIUS_SELF_TEST_INTERVAL", "1.5"),
            ("ILP_PLUGIN", "ilp-plugin-xrp-escrow"),
            ("ILP_CREDENTIALS", "{"),
            ("ILP_CREDENTIALS", "{}"),
            ("ILP_CREDENTIALS", r#"{"server":"http://x"}"#),
        ] {
            let error = read(&[(name, value)]).expect_err(value);
            assert_eq!(error.variable, name, "{value}");
        }
        let error = read(&[("ILP_CREDENTIALS", r#"{"server":":hidden@"}"#)]).expect_err("no URL");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
}
