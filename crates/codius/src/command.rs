//! Commands and their flags. Names, short forms and defaults of `upload`, `extend`, `extend-hash`,
//! `tail` and `cron` are those of the original tool, `codius` 3.1.0 from npm.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand};
use codius_client::{Wallet, default_url};

use crate::{
    ceiling::{Ceiling, DEFAULT_UNITS},
    completions::{self, CompletionsArguments, ManArguments},
    cron, exec, extend, extend_hash,
    failure::Failure,
    hosts::{self, HostsArguments},
    hosts_file::HOSTS_FILE,
    init::{self, InitArguments},
    logs, manifest,
    monthly_rate::MonthlyRate,
    pods::{self, PodsArguments},
    price::{self, PriceArguments},
    project::CODIUS_FILE,
    refund,
    run::{self, RunArguments},
    state_file::{DEFAULT_FILE, Options},
    status, stop, tail, upload, usage,
    wallet::{self, WalletArguments},
};

#[derive(Debug, Parser)]
#[command(
    name = "codius",
    version,
    about = "Runs programs on Codius hosts, paid by the second over Interledger"
)]
#[command(after_help = "Exit codes:\n  \
    0    done\n  \
    1    failed, or not confirmed\n  \
    2    wrong usage, or a file that is not valid\n  \
    3    not paid: the price is over the limit, or the payment did not go through\n  \
    4    the host said no; what was paid came back or is recorded as owed, as the message says\n  \
    5    the host or the Interledger connection does not answer\n  \
    130  interrupted\n\
    With several hosts the code is that of the first one that failed.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write codius.json for an image, and codiusvars.json if there are variables
    Init(InitArguments),
    /// Compare what a program costs at several hosts; nothing is paid
    Price(PriceArguments),
    /// Show which hosts there are and what they are like, or change codiushosts.json
    Hosts(HostsArguments),
    /// Upload a program to hosts and pay for its time
    Upload(UploadArguments),
    /// Run a program and pay for it by the second, as long as this command runs
    Run(RunArguments),
    /// Buy more time for what a state file says was uploaded
    Extend(ExtendArguments),
    /// Buy more time for a program that runs
    ExtendHash(ExtendHashArguments),
    /// Follow what a program writes on all its hosts, if it was uploaded with --debug
    Tail(TailArguments),
    /// Buy more time every hour, with cron
    #[command(subcommand)]
    Cron(CronCommand),
    /// Show all that you have running, where, until when, and what it costs
    Pods(PodsArguments),
    /// Show where a program is, until when, and what it costs
    Status(PodArguments),
    /// Show what your program has used of its hosts: processor, memory, disk, network
    Usage(PodArguments),
    /// Show what a program writes
    Logs(LogArguments),
    /// Run a program in a container of a pod, beside its own; for its owner
    Exec(ExecArguments),
    /// End a program before its time and get back what was not used
    Stop(StopArguments),
    /// Get what hosts still owe for programs that have ended
    Refund(RefundArguments),
    /// Check the Interledger connection that pays; nothing is paid
    Wallet(WalletArguments),
    /// Work with manifests
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// Print a script that completes commands in a shell
    Completions(CompletionsArguments),
    /// Print the manual page, or write one for each command
    Man(ManArguments),
}

#[derive(Debug, Args)]
pub(crate) struct UploadArguments {
    /// How long the program runs
    #[arg(short, long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) duration: u64,
    #[command(flatten)]
    pub(crate) payment: PaymentArguments,
    /// A host, like https://host.example; can be repeated, and all of them are paid
    #[arg(long, value_name = "URL", conflicts_with = "host_count")]
    pub(crate) host: Vec<String>,
    /// To how many hosts: the best of those that are found or listed [default: 1, or all that are listed]
    #[arg(short = 'c', long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) host_count: Option<u16>,
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
    /// Tell every container which hosts were chosen, as a JSON array in HOSTS
    #[arg(short, long)]
    pub(crate) add_host_env: bool,
    /// The program
    #[arg(long, value_name = "FILE", default_value = CODIUS_FILE)]
    pub(crate) codius_file: PathBuf,
    /// Its variables [default: codiusvars.json if it is there]
    #[arg(long, value_name = "FILE")]
    pub(crate) codius_vars_file: Option<PathBuf>,
    /// The hosts to upload to, if there is such a file
    #[arg(long, value_name = "FILE", default_value = HOSTS_FILE)]
    pub(crate) codius_hosts_file: PathBuf,
    /// Where to write what was uploaded, for `extend`, `tail` and `cron`
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub(crate) codius_state_file: PathBuf,
    /// Overwrite the state file if it is there
    #[arg(short, long)]
    pub(crate) overwrite_codius_state: bool,
    /// Publish what the program writes
    #[arg(long)]
    pub(crate) debug: bool,
    /// Follow what the program writes, once it runs
    #[arg(long, requires = "debug")]
    pub(crate) tail: bool,
    /// Where hosts send what was not used when the program ends: a payment pointer, like $wallet.example/alice
    #[arg(long, value_name = "POINTER")]
    pub(crate) refund_to: Option<String>,
    /// Hide private variables behind new random numbers, as the original does: another hash each time
    #[arg(long)]
    pub(crate) random_nonce: bool,
    #[command(flatten)]
    pub(crate) key: KeyArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ExtendArguments {
    /// How much more time [default: as in the state file]
    #[arg(short, long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) duration: Option<u64>,
    #[command(flatten)]
    pub(crate) payment: PaymentArguments,
    #[command(flatten)]
    pub(crate) state: StateArguments,
    #[command(flatten)]
    pub(crate) key: KeyArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ExtendHashArguments {
    /// The program: its hash, HASH.host, or its URL
    #[arg(value_name = "HASH")]
    pub(crate) manifest_hash: String,
    /// A host that runs it; can be repeated [default: the one in HASH.host]
    #[arg(long, value_name = "URL")]
    pub(crate) host: Vec<String>,
    /// How much more time
    #[arg(short, long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) duration: u64,
    #[command(flatten)]
    pub(crate) payment: PaymentArguments,
}

#[derive(Debug, Args)]
pub(crate) struct TailArguments {
    /// The program: its hash, HASH.host, or its URL [default: as in the state file]
    #[arg(value_name = "HASH")]
    pub(crate) manifest_hash: Option<String>,
    /// A host that runs it; can be repeated
    #[arg(long, value_name = "URL")]
    pub(crate) host: Vec<String>,
    #[command(flatten)]
    pub(crate) state: StateArguments,
    /// Print each line as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CronCommand {
    /// Add a job that buys an hour every hour
    Create(CronCreateArguments),
    /// Show the job of a program, or all that this tool has added
    View(CronViewArguments),
    /// Remove the job of a program, or all that this tool has added; never others
    Remove(CronRemoveArguments),
}

#[derive(Debug, Args)]
pub(crate) struct CronCreateArguments {
    /// First buy as much that at least so much time is left, 3600 or more
    #[arg(short, long, value_name = "SECONDS", required_unless_present = "skip_extend", conflicts_with = "skip_extend",
          value_parser = clap::value_parser!(u64).range(cron::EXTEND_SECS..))]
    pub(crate) buffer_sec: Option<u64>,
    /// Buy nothing now
    #[arg(long)]
    pub(crate) skip_extend: bool,
    #[command(flatten)]
    pub(crate) payment: PaymentArguments,
    #[command(flatten)]
    pub(crate) state: StateArguments,
    #[command(flatten)]
    pub(crate) key: KeyArguments,
}

#[derive(Debug, Args)]
pub(crate) struct CronViewArguments {
    /// All jobs that this tool has added
    #[arg(short, long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) state: StateArguments,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CronRemoveArguments {
    /// All jobs that this tool has added
    #[arg(short, long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) state: StateArguments,
    /// Do not ask
    #[arg(short = 'y', long)]
    pub(crate) assume_yes: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StateArguments {
    /// What was uploaded; the default name stands for the only *.codiusstate.json here
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub(crate) codius_state_file: PathBuf,
}

/// How a command pays.
#[derive(Debug, Args)]
pub(crate) struct PaymentArguments {
    /// The most that a month at one host may cost, in whole units [default: 10]
    #[arg(
        short,
        long,
        value_name = "AMOUNT",
        requires = "units",
        conflicts_with = "max_price"
    )]
    pub(crate) max_monthly_rate: Option<MonthlyRate>,
    /// What --max-monthly-rate is counted in; it must be what the host counts in [default: XRP]
    #[arg(short, long, value_name = "ASSET", requires = "max_monthly_rate")]
    pub(crate) units: Option<String>,
    /// The most to pay to one host, in whole units of its asset such as 0.05
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) max_price: Option<String>,
    /// Interledger connection (BTP) [default: ILP_BTP_SERVER, ILP_CREDENTIALS or btp+ws://localhost:7768]
    #[arg(long, value_name = "URL")]
    pub(crate) ilp: Option<String>,
    /// How long a host may take from the payment to the running program
    #[arg(long, value_name = "SECONDS", default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: u64,
    /// Do not ask
    #[arg(short = 'y', long)]
    pub(crate) assume_yes: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl PaymentArguments {
    /// What may be paid to one host; what was chosen earlier where nothing is said.
    pub(crate) fn ceiling(&self, earlier: Option<&Options>) -> Ceiling {
        if let Some(price) = &self.max_price {
            return Ceiling::Price(price.clone());
        }
        match (self.max_monthly_rate, earlier) {
            (Some(rate), _) => Ceiling::Rate {
                rate,
                units: self
                    .units
                    .clone()
                    .unwrap_or_else(|| DEFAULT_UNITS.to_owned()),
            },
            (None, Some(options)) => Ceiling::Rate {
                rate: options.rate,
                units: options.units.clone(),
            },
            (None, None) => Ceiling::default(),
        }
    }

    /// Connects the Interledger account.
    pub(crate) async fn wallet(&self) -> Result<Wallet, Failure> {
        let url = self.ilp.clone().unwrap_or_else(default_url);
        Ok(Wallet::connect(&url).await?)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// Whose key signs.
#[derive(Debug, Args)]
pub(crate) struct KeyArguments {
    /// The uploader's key, made at first use [default: codius/key in the configuration directory]
    #[arg(
        long,
        value_name = "FILE",
        env = "CODIUS_KEY_FILE",
        hide_env_values = true
    )]
    pub(crate) key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PodArguments {
    /// The program: its hash, HASH.host, or its URL
    pub(crate) hash: String,
    /// A host that runs it; can be repeated [default: the one in HASH.host, or those it was uploaded to]
    #[arg(long, value_name = "URL")]
    pub(crate) host: Vec<String>,
    #[command(flatten)]
    pub(crate) key: KeyArguments,
    /// Print the answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StopArguments {
    /// The program: its hash, HASH.host, or its URL [default: as in the state file]
    pub(crate) hash: Option<String>,
    /// A host that runs it; can be repeated
    #[arg(long, value_name = "URL")]
    pub(crate) host: Vec<String>,
    #[command(flatten)]
    pub(crate) state: StateArguments,
    /// Ask for no money now: what was not used goes to the pointer of --refund-to, or waits for `codius refund`
    /// or your next upload of the same manifest
    #[arg(long)]
    pub(crate) no_refund: bool,
    /// Interledger connection (BTP) that it comes back to [default: as for upload]
    #[arg(long, value_name = "URL", conflicts_with = "no_refund")]
    pub(crate) ilp: Option<String>,
    #[command(flatten)]
    pub(crate) key: KeyArguments,
    /// Do not ask
    #[arg(short = 'y', long)]
    pub(crate) assume_yes: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RefundArguments {
    /// The program: its hash, HASH.host, or its URL [default: as in the state file]
    pub(crate) hash: Option<String>,
    /// All that state files here and the record of pods know of
    #[arg(short, long, conflicts_with = "hash")]
    pub(crate) all: bool,
    /// A host that ran it; can be repeated. With --all, only these
    #[arg(long, value_name = "URL")]
    pub(crate) host: Vec<String>,
    /// Have it sent to this payment pointer, like $wallet.example/alice [default: over the own connection, now]
    #[arg(long, value_name = "POINTER")]
    pub(crate) to: Option<String>,
    /// Interledger connection (BTP) that it comes to [default: as for upload]
    #[arg(long, value_name = "URL", conflicts_with = "to")]
    pub(crate) ilp: Option<String>,
    #[command(flatten)]
    pub(crate) state: StateArguments,
    #[command(flatten)]
    pub(crate) key: KeyArguments,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogArguments {
    /// The program: its hash, HASH.host, or its URL
    pub(crate) hash: String,
    /// The host, like https://host.example [default: the one in HASH.host]
    #[arg(long, value_name = "URL")]
    pub(crate) host: Option<String>,
    /// Go on until the program ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Of this container only
    #[arg(long, value_name = "ID")]
    pub(crate) container: Option<String>,
    /// Since then: a moment like 2026-11-23T16:10:00Z, or so many seconds ago
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    #[command(flatten)]
    pub(crate) key: KeyArguments,
    /// Print each line as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The exit code is the program's, 128 and the number of the signal that ended it, 127 if \
    there is no such program, 126 if it cannot be run."
)]
pub(crate) struct ExecArguments {
    /// The program: its hash, HASH.host, or its URL
    pub(crate) hash: String,
    /// The host, like https://host.example [default: the one in HASH.host]
    #[arg(long, value_name = "URL")]
    pub(crate) host: Option<String>,
    /// In this container [default: the first one of the manifest]
    #[arg(long, value_name = "ID")]
    pub(crate) container: Option<String>,
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal: this one
    #[arg(short, long = "tty")]
    pub(crate) terminal: bool,
    #[command(flatten)]
    pub(crate) key: KeyArguments,
    /// What to run, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ManifestCommand {
    /// Print the hash of a generated manifest, as it is posted
    Hash {
        /// `{"manifest": …, "private"?: …}`; `-` is standard input
        file: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Check a generated manifest; prints `ok`, or everything that is wrong
    Validate {
        /// `{"manifest": …, "private"?: …}`; `-` is standard input
        file: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match carry_out(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn carry_out(command: Command) -> Result<(), Failure> {
    // Chosen here for all who use TLS. It can only be set already if this is called twice.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(1, format!("threads cannot be started: {error}")))?;
    let outcome = runtime.block_on(async {
        match command {
            Command::Init(arguments) => init::init(arguments).await,
            Command::Price(arguments) => price::price(arguments).await,
            Command::Hosts(arguments) => hosts::hosts(arguments).await,
            Command::Pods(arguments) => pods::pods(arguments).await,
            Command::Wallet(arguments) => wallet::wallet(arguments).await,
            Command::Completions(arguments) => {
                completions::completions(&arguments, Arguments::command())
            }
            Command::Man(arguments) => completions::man(&arguments, Arguments::command()),
            Command::Upload(arguments) => upload::upload(arguments).await,
            Command::Run(arguments) => run::run(arguments).await,
            Command::Extend(arguments) => extend::extend(arguments).await,
            Command::ExtendHash(arguments) => extend_hash::extend_hash(arguments).await,
            Command::Tail(arguments) => tail::tail(arguments).await,
            Command::Cron(CronCommand::Create(arguments)) => cron::create(arguments).await,
            Command::Cron(CronCommand::View(arguments)) => cron::view(&arguments).await,
            Command::Cron(CronCommand::Remove(arguments)) => cron::remove(&arguments).await,
            Command::Status(arguments) => status::status(arguments).await,
            Command::Usage(arguments) => usage::usage(arguments).await,
            Command::Logs(arguments) => logs::logs(arguments).await,
            Command::Exec(arguments) => exec::exec(arguments).await,
            Command::Stop(arguments) => stop::stop(arguments).await,
            Command::Refund(arguments) => refund::refund(arguments).await,
            Command::Manifest(ManifestCommand::Hash { file, json }) => manifest::hash(&file, json),
            Command::Manifest(ManifestCommand::Validate { file, json }) => {
                manifest::validate(&file, json)
            }
        }
    });
    // A prompt that waits for an answer does not hold the end up.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_fit_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn implications_and_conflicts_are_those_of_the_original() {
        let fails = |words: &str| Arguments::try_parse_from(words.split(' ')).is_err();
        for refused in [
            "codius upload -m 10",
            "codius upload -u XRP",
            "codius upload --host a --host-count 2",
            "codius upload --tail",
            "codius upload -c 0",
            "codius upload -d 0",
            "codius extend -m 1",
            "codius cron create",
            "codius cron create -b 3599",
            "codius cron create -b 3600 --skip-extend",
            "codius extend-hash",
            "codius run --ahead 1s",
            "codius run h --codius-file x",
            "codius exec h",
            "codius exec h sh",
            "codius refund h --all",
            "codius refund --to $a --ilp b",
        ] {
            assert!(fails(refused), "{refused}");
        }
        for taken in [
            "codius upload",
            "codius upload -d 60 -m 10 -u XRP -c 3 -a -o -y --debug --tail",
            "codius upload --host a --host b --codius-file x --codius-vars-file y",
            "codius extend -d 60 -m 0.5 -u XRP --codius-state-file x -y",
            "codius extend-hash h --host a --host b -d 60 -m 1 -u XRP -y",
            "codius tail",
            "codius tail h --host a",
            "codius cron create -b 3600 -m 1 -u XRP -y",
            "codius cron create --skip-extend",
            "codius cron view -a",
            "codius cron remove --all -y",
            "codius run",
            "codius run --host a --ahead 30s --max 0.5 -y --json",
            "codius run h --host a -y",
            "codius exec h -it --container a -- sh -c true",
            "codius refund -a --host a --to $w.example/a",
        ] {
            assert!(!fails(taken), "{taken}");
        }
    }
}
