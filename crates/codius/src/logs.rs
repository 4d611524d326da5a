//! `codius logs`: what a program writes, for its owner; from hosts without version 2 for everybody, if
//! it was uploaded with `--debug`.

use std::time::Duration;

use codius_api::v2::LogStreamName;
use codius_client::{HostClient, LogQuery, Signer};
use codius_manifest::ManifestHash;

use crate::{
    command::LogArguments,
    failure::{Failure, UNREACHABLE, USAGE},
    key::Key,
    pod_address::PodAddress,
    raw_log::{LogLine, Printer, copy},
};

/// Tries in a row to go on after the connection broke.
const MAX_TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn logs(arguments: LogArguments) -> Result<(), Failure> {
    let said: Vec<_> = arguments.host.iter().cloned().collect();
    let address = PodAddress::known(&arguments.hash, &said)?;
    let host = HostClient::new(address.only_host()?)?;
    let mut printer = if arguments.json {
        Printer::json(host.origin())
    } else {
        Printer::plain()
    };
    if host.host_v2().await?.is_none() {
        if arguments.container.is_some() || arguments.since.is_some() {
            return Err(Failure::new(
                USAGE,
                "this host knows neither --container nor --since",
            ));
        }
        let response = host.logs(&address.hash, arguments.follow).await?;
        return copy(response, &mut printer).await;
    }
    let signer = Key::open(arguments.key.key_file.as_deref())?.signer();
    let query = LogQuery {
        follow: arguments.follow,
        container: arguments.container,
        since: arguments.since,
        after: None,
    };
    events(&host, &address.hash, query, &signer, &printer).await
}

/// Prints the lines, and goes on after the last one if the connection breaks.
async fn events(
    host: &HostClient,
    hash: &ManifestHash,
    mut query: LogQuery,
    signer: &Signer,
    printer: &Printer,
) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        let mut lines = host.log_events(hash, &query, signer).await?;
        let cut = loop {
            match lines.next().await {
                Ok(Some(line)) => {
                    tries = 0;
                    // Whoever reads us may stop reading.
                    if !printer.print(&line.into()) {
                        return Ok(());
                    }
                }
                Ok(None) => return Ok(()),
                Err(cut) => break cut,
            }
        };
        query.after = lines.last_id().map(str::to_owned);
        tries += 1;
        if !query.follow || tries > MAX_TRIES {
            return Err(Failure::new(UNREACHABLE, cut.to_string()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl From<codius_api::v2::LogLine> for LogLine {
    fn from(line: codius_api::v2::LogLine) -> Self {
        Self {
            at: Some(line.at),
            container: line.container,
            stream: match line.stream {
                LogStreamName::Stdout => "stdout".to_owned(),
                LogStreamName::Stderr => "stderr".to_owned(),
            },
            text: line.text,
        }
    }
}
