//! The command-line tool of uploaders: a file for each command, and beside them
//!
//! ```text
//! project, key, nonce ─▶ document ─▶ candidates ─▶ choice (offer: look, quote) ─▶ plan ─▶ purchase ─▶ report
//!                                       └ discovery           └ ceiling                      └▶ state_file
//! ```

#![forbid(unsafe_code)]

mod amount;
mod candidates;
mod ceiling;
mod choice;
mod command;
mod cron;
mod crontab;
mod discovery;
mod example;
mod extend;
mod extend_hash;
mod failure;
mod hosts_file;
mod key;
mod logs;
mod manifest;
mod monthly_rate;
mod nonce;
mod offer;
mod plan;
mod pod_address;
mod progress;
mod project;
mod purchase;
mod question;
mod raw_log;
mod report;
mod state_file;
mod status;
mod stop;
mod tail;
mod upload;
mod whole_file;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::main()
}
