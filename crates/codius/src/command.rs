//! Commands and their flags.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use codius_manifest::ManifestHash;

use crate::{failure::Failure, manifest, pod, upload};

#[derive(Debug, Parser)]
#[command(
    name = "codius",
    version,
    about = "Runs programs on Codius hosts, paid by the second over Interledger"
)]
#[command(after_help = "Exit codes:\n  \
    0    done\n  \
    1    failed\n  \
    2    wrong usage, or a file that is not valid\n  \
    3    not paid: the price is over the limit, or the payment did not go through\n  \
    4    the host said no; what was paid came back or is recorded as owed, as the message says\n  \
    5    the host or the Interledger connection does not answer\n  \
    130  interrupted")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Upload a program to a host and pay for its time
    Upload(UploadArguments),
    /// Buy more time for a program that runs
    ExtendHash(ExtendArguments),
    /// Show where a program is and until when
    Status(PodArguments),
    /// Show what a program writes, if its manifest says `debug`
    Logs(LogArguments),
    /// Work with manifests
    #[command(subcommand)]
    Manifest(ManifestCommand),
}

#[derive(Debug, Args)]
pub(crate) struct UploadArguments {
    #[command(flatten)]
    pub(crate) payment: PaymentArguments,
    /// The program: codius.json
    #[arg(long, value_name = "FILE", default_value = "codius.json")]
    pub(crate) codius_file: PathBuf,
    /// Its variables: codiusvars.json [default: codiusvars.json if it is there]
    #[arg(long, value_name = "FILE")]
    pub(crate) codius_vars_file: Option<PathBuf>,
    /// Publish what the program writes, so that `codius logs` can show it
    #[arg(long)]
    pub(crate) debug: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExtendArguments {
    /// Manifest hash of the program
    pub(crate) hash: ManifestHash,
    #[command(flatten)]
    pub(crate) payment: PaymentArguments,
}

/// How a command pays.
#[derive(Debug, Args)]
pub(crate) struct PaymentArguments {
    /// The host, like https://host.example
    #[arg(long, value_name = "URL")]
    pub(crate) host: String,
    /// How long the program runs
    #[arg(short, long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) duration: u64,
    /// The most to pay, in whole units of the host's asset such as 0.05 [default: the quoted price]
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) max_price: Option<String>,
    /// Interledger connection (BTP) [default: ILP_BTP_SERVER, ILP_CREDENTIALS or btp+ws://localhost:7768]
    #[arg(long, value_name = "URL")]
    pub(crate) ilp: Option<String>,
    /// Do not ask
    #[arg(short = 'y', long)]
    pub(crate) assume_yes: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PodArguments {
    /// Manifest hash of the program
    pub(crate) hash: ManifestHash,
    /// The host, like https://host.example
    #[arg(long, value_name = "URL")]
    pub(crate) host: String,
    /// Print the answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogArguments {
    /// Manifest hash of the program
    pub(crate) hash: ManifestHash,
    /// The host, like https://host.example
    #[arg(long, value_name = "URL")]
    pub(crate) host: String,
    /// Go on until the program ends
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ManifestCommand {
    /// Print the hash of a generated manifest, as it is posted
    Hash {
        /// `{"manifest": …, "private"?: …}`; `-` is standard input
        file: PathBuf,
    },
    /// Check a generated manifest; prints `ok`, or everything that is wrong
    Validate {
        /// `{"manifest": …, "private"?: …}`; `-` is standard input
        file: PathBuf,
    },
}

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    // Chosen here for all who use TLS. It can only be set already if this is called twice.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let command = match command {
        Command::Manifest(ManifestCommand::Hash { file }) => return manifest::hash(&file),
        Command::Manifest(ManifestCommand::Validate { file }) => return manifest::validate(&file),
        command => command,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(1, format!("threads cannot be started: {error}")))?;
    let outcome = runtime.block_on(async {
        match command {
            Command::Upload(arguments) => upload::upload(arguments).await,
            Command::ExtendHash(arguments) => upload::extend(arguments).await,
            Command::Status(arguments) => pod::status(arguments).await,
            Command::Logs(arguments) => pod::logs(arguments).await,
            Command::Manifest(_) => Ok(()),
        }
    });
    // A prompt that waits for an answer does not hold the end up.
    runtime.shutdown_background();
    outcome
}
