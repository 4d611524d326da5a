//! The command-line tool of uploaders: a file for each command, and beside them
//!
//! ```text
//! project, key, nonce ─▶ document ─▶ candidates ─▶ choice (offer: look, quote) ─▶ plan ─▶ purchase ─▶ report
//!                                       └ discovery           └ ceiling                      └▶ state_file
//!
//! known_hosts ─▶ host_view ─▶ price, hosts
//! pod_address, key ─▶ usage
//! pod_record, state_file ─▶ standing ─▶ pods, status
//! ```

#![forbid(unsafe_code)]

mod amount;
mod candidates;
mod ceiling;
mod choice;
mod command;
mod completions;
mod cron;
mod crontab;
mod discovery;
mod example;
mod exec;
mod extend;
mod extend_hash;
mod failure;
mod host_view;
mod hosts;
mod hosts_file;
mod init;
mod key;
mod known_hosts;
mod logs;
mod manifest;
mod monthly_rate;
mod nonce;
mod offer;
mod plan;
mod pod_address;
mod pod_record;
mod pods;
mod price;
mod progress;
mod project;
mod purchase;
mod question;
mod raw_log;
mod refund;
mod report;
mod run;
mod standing;
mod state_file;
mod status;
mod stop;
mod table;
mod tail;
mod upload;
mod usage;
mod wallet;
mod whole_file;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::main()
}
