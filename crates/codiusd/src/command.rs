//! The command line of `codiusd`.

use std::{ffi::OsString, io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use url::Url;

use crate::{
    admin::{self, AdminCommand},
    backup::{self, BackupArguments, RestoreArguments},
    config::{Config, InterledgerMode, OnShutdown},
    daemon,
    drain::{self, DrainArguments},
    environment::Environment,
    keep,
    ledger::{self, LedgerArguments},
    listeners::Held,
    privileges,
};

#[derive(Debug, Parser)]
#[command(
    name = "codiusd",
    version,
    about = "Runs programs by the second, for whoever pays over Interledger"
)]
#[command(
    after_help = "Exit codes: 0 ended as asked, 1 failed, 2 wrong usage or configuration.\n\
                        Log level: RUST_LOG (default info), to standard error.\n\
                        The CODIUS_* variables of the first Codius host are read: command line over \
                        environment over file."
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look at the configuration without running anything
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What was earned and what is owed; every lease and every posting
    Ledger {
        #[command(flatten)]
        arguments: LedgerArguments,
        /// The data directory of the host [default: /var/lib/codius]
        #[arg(long, value_name = "DIR", global = true)]
        data_dir: Option<PathBuf>,
    },
    /// Take no new pods from now on, over restarts as well, and tell who runs some
    Drain {
        #[command(flatten)]
        arguments: DrainArguments,
        /// The data directory of the host [default: /var/lib/codius]
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Copy the database, while the host works or not; the copy holds the host's secret
    Backup {
        #[command(flatten)]
        arguments: BackupArguments,
        /// The data directory of the host [default: /var/lib/codius]
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Make a backup the database of a data directory that has none
    Restore {
        #[command(flatten)]
        arguments: RestoreArguments,
        /// The data directory; made if it is missing [default: /var/lib/codius]
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Ask the host that runs on this machine, or change its price
    Admin {
        #[command(subcommand)]
        command: AdminCommand,
        /// The data directory of the host [default: /var/lib/codius]
        #[arg(long, value_name = "DIR", global = true)]
        data_dir: Option<PathBuf>,
        /// Print the host's answer as it is
        #[arg(long, global = true)]
        json: bool,
    },
    /// Run a host whose program can be replaced without a refused connection: SIGHUP does it, and a
    /// host that dies is started again (docs/operator.md)
    Keep {
        /// The program to run, looked up anew at each start [default: this one]
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
        /// What the host is started with, such as `--config FILE`
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGUMENTS"
        )]
        arguments: Vec<OsString>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a configuration file; prints `ok`
    Check {
        /// The file
        #[arg(long)]
        config: PathBuf,
    },
}

/// Where the configuration comes from, and what the command line says over it.
#[derive(Debug, Args)]
struct Settings {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A host with no other daemon: the root of its own Interledger network, with play money for local clients
    #[arg(long)]
    local: bool,
    /// Database, images and pods are kept here [default: /var/lib/codius]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address of the API and the pods [default: 127.0.0.1:3000]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Address for local Interledger clients (BTP); may be repeated [default: 127.0.0.1:7768 and [::1]:7768]
    #[arg(long, value_name = "ADDRESS")]
    interledger_listen: Vec<SocketAddr>,
    /// The Interledger parent, such as `btp+ws://localhost:7768` for moneyd; mode = "uplink"
    #[arg(long, value_name = "URL", conflicts_with = "local")]
    uplink: Option<String>,
    /// File with the secret (BTP token) for the parent [default: one that follows from the host's own]
    #[arg(long, value_name = "FILE", conflicts_with = "local")]
    uplink_secret_file: Option<PathBuf>,
    /// How the host is reached from outside [default: http://localhost:PORT]
    #[arg(long, value_name = "URL")]
    public_uri: Option<Url>,
    /// Take uploads without a test whether a program can be uploaded and visited by the public name
    #[arg(long)]
    no_self_test: bool,
    /// Directory with the guest's vmlinux and initramfs.cpio
    #[arg(long, value_name = "DIR")]
    guest_dir: Option<PathBuf>,
    /// A registry (HOST:PORT) that is spoken to without TLS; may be repeated
    #[arg(long, value_name = "REGISTRY")]
    insecure_registry: Vec<String>,
    /// Private addresses for pods, eight for each; used for nothing else on this machine
    /// [default: 10.88.0.0/16]
    #[arg(long, value_name = "NETWORK")]
    network_pool: Option<String>,
    /// Whether pods go on when the daemon ends (`leave`) or end with it (`stop`) [default: leave]
    #[arg(long, value_name = "WHAT", value_parser = on_shutdown)]
    on_shutdown: Option<OnShutdown>,
}

fn on_shutdown(text: &str) -> Result<OnShutdown, String> {
    match text {
        "leave" => Ok(OnShutdown::Leave),
        "stop" => Ok(OnShutdown::Stop),
        _ => Err("it is `leave` or `stop`".to_owned()),
    }
}

impl Settings {
    /// What the file, the environment and the command line say, each over the one before.
    fn into_config(self, environment: &Environment) -> Result<Config> {
        let is_alone = self.config.is_none() && !self.local && self.uplink.is_none();
        if is_alone && !environment.is_enough() {
            bail!(
                "give --config FILE, or --local for a host with no other daemon, or --uplink URL for \
                 one below moneyd, or CODIUS_PUBLIC_URI in the environment"
            );
        }
        let mut config = match &self.config {
            Some(path) => Config::load(path)?,
            None => Config::default(),
        };
        environment.apply(&mut config, is_alone);
        if self.local {
            config.interledger.mode = InterledgerMode::Local;
            config.interledger.parent_secret = None;
        }
        if self.no_self_test {
            config.self_test.enabled = Some(false);
        }
        if let Some(data_dir) = self.data_dir {
            config.data_dir = data_dir;
        }
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        if !self.interledger_listen.is_empty() {
            config.interledger.listen = Some(self.interledger_listen);
        }
        if let Some(parent) = self.uplink {
            config.interledger.mode = InterledgerMode::Uplink;
            config.interledger.parent = parent;
            // The environment's secret is for the environment's parent.
            config.interledger.parent_secret = None;
        }
        if self.uplink_secret_file.is_some() {
            config.interledger.parent_secret_file = self.uplink_secret_file;
            config.interledger.parent_secret = None;
        }
        if self.public_uri.is_some() {
            config.public_uri = self.public_uri;
        }
        if self.guest_dir.is_some() {
            config.guest.dir = self.guest_dir;
        }
        if let Some(pool) = self.network_pool {
            config.network.pool = pool;
        }
        config
            .images
            .insecure_registries
            .extend(self.insecure_registry);
        if let Some(on_shutdown) = self.on_shutdown {
            config.pods.on_shutdown = on_shutdown;
        }
        config.check()?;
        Ok(config)
    }
}

/// Runs the daemon as the command line says.
pub fn main() -> ExitCode {
    // Before there is another thread, or another file.
    let held = Held::from_environment();
    let arguments = Arguments::parse();
    let usage = |error: anyhow::Error| {
        eprintln!("codiusd: {error:#}");
        ExitCode::from(2)
    };
    let failed = |error: anyhow::Error| {
        eprintln!("codiusd: {error:#}");
        ExitCode::FAILURE
    };
    let environment = match Environment::of_process() {
        Ok(environment) => environment,
        Err(error) => return usage(error.into()),
    };
    let of_settings = arguments.settings.data_dir.clone();
    // The data directory of a host that is asked.
    let place = |data_dir: Option<PathBuf>| {
        data_dir
            .or(of_settings)
            .or_else(|| environment.data_dir())
            .unwrap_or_else(|| Config::default().data_dir)
    };
    let exit = |done: Result<()>| match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error),
    };
    match arguments.command {
        Some(Command::Ledger {
            arguments,
            data_dir,
        }) => {
            return exit(ledger::run(&arguments, &place(data_dir)));
        }
        Some(Command::Drain {
            arguments,
            data_dir,
        }) => {
            return exit(drain::run(&arguments, &place(data_dir)));
        }
        Some(Command::Backup {
            arguments,
            data_dir,
        }) => {
            return exit(backup::backup(&arguments, &place(data_dir)));
        }
        Some(Command::Restore {
            arguments,
            data_dir,
        }) => {
            return exit(backup::restore(&arguments, &place(data_dir)));
        }
        Some(Command::Config(ConfigCommand::Check { config })) => {
            return match Config::load(&config) {
                Ok(_) => {
                    println!("ok");
                    ExitCode::SUCCESS
                }
                Err(error) => usage(error),
            };
        }
        Some(Command::Admin {
            command,
            data_dir,
            json,
        }) => {
            let data_dir = place(data_dir);
            return match admin::run_tool(&command, &data_dir, json) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(error),
            };
        }
        Some(Command::Keep { program, arguments }) => {
            let config = match kept_settings(&arguments)
                .and_then(|settings| settings.into_config(&environment))
            {
                Ok(config) => config,
                Err(error) => return usage(error),
            };
            let code = held.and_then(|held| keep(program, arguments, &config, held));
            return code.unwrap_or_else(failed);
        }
        None => {}
    }
    let config = match arguments.settings.into_config(&environment) {
        Ok(config) => config,
        Err(error) => return usage(error),
    };
    match held.and_then(|held| serve(config, environment.remarks(), held)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error),
    }
}

/// What a kept host is started with, which has to be a host.
fn kept_settings(arguments: &[OsString]) -> Result<Settings> {
    let program = OsString::from("codiusd");
    let parsed = Arguments::try_parse_from(std::iter::once(&program).chain(arguments))?;
    if parsed.command.is_some() {
        bail!("only a host can be kept; give its settings, such as `--config FILE`");
    }
    Ok(parsed.settings)
}

/// Holds the listeners of a host and runs it.
fn keep(
    program: Option<PathBuf>,
    arguments: Vec<OsString>,
    config: &Config,
    held: Held,
) -> Result<ExitCode> {
    begin_log();
    // Found now: once the file is replaced, the kernel's answer would be the old one.
    let program = match program {
        Some(program) => program,
        None => std::env::current_exe().context("cannot find this program; give --program")?,
    };
    privileges::give_up().context("cannot give up capabilities")?;
    // It has next to nothing to do.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(keep::run(program, arguments, config, held))
}

fn begin_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

fn serve(config: Config, remarks: &[String], held: Held) -> Result<()> {
    begin_log();
    for remark in remarks {
        tracing::warn!("{remark}");
    }
    // One implementation of cryptography for TLS, chosen here for all who use it.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        bail!("TLS was set up twice");
    }
    privileges::give_up().context("cannot give up capabilities")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(daemon::run(config, held))
}
