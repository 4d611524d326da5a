//! `codius logs`: what a program writes.

use crate::{command::LogArguments, failure::Failure, pod_address::PodAddress, raw_log::Printer};

pub(crate) async fn logs(arguments: LogArguments) -> Result<(), Failure> {
    let said: Vec<_> = arguments.host.iter().cloned().collect();
    let address = PodAddress::known(&arguments.hash, &said)?;
    let host = codius_client::HostClient::new(address.only_host()?)?;
    let response = host.logs(&address.hash, arguments.follow).await?;
    let mut printer = if arguments.json {
        Printer::json(host.origin())
    } else {
        Printer::plain()
    };
    crate::raw_log::copy(response, &mut printer).await
}
