//! `codius status` and `codius logs`.

use std::io::{Write, stdout};

use codius_client::HostClient;

use crate::{
    command::{LogArguments, PodArguments},
    failure::{Failure, UNREACHABLE},
};

pub(crate) async fn status(arguments: PodArguments) -> Result<(), Failure> {
    let pod = HostClient::new(&arguments.host)?
        .pod(&arguments.hash)
        .await?;
    if arguments.json {
        let text = serde_json::to_string_pretty(&pod)
            .map_err(|error| Failure::new(1, error.to_string()))?;
        println!("{text}");
        return Ok(());
    }
    println!("{}", pod.url);
    println!("  runs until  {}", pod.expiry);
    println!(
        "  name        {} {}",
        text(&pod.manifest["name"]),
        text(&pod.manifest["version"])
    );
    for container in pod.manifest["containers"].as_array().into_iter().flatten() {
        println!(
            "  container   {} ({})",
            text(&container["id"]),
            text(&container["image"])
        );
    }
    Ok(())
}

pub(crate) async fn logs(arguments: LogArguments) -> Result<(), Failure> {
    let host = HostClient::new(&arguments.host)?;
    let mut response = host.logs(&arguments.hash, arguments.follow).await?;
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                // Whoever reads us may stop reading.
                if stdout()
                    .write_all(&chunk)
                    .and_then(|()| stdout().flush())
                    .is_err()
                {
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(error) => {
                return Err(Failure::new(
                    UNREACHABLE,
                    format!("the host stopped in the middle: {error}"),
                ));
            }
        }
    }
}

/// A string of a stranger, without what could move a terminal's cursor.
fn text(value: &serde_json::Value) -> String {
    value
        .as_str()
        .unwrap_or_default()
        .chars()
        .filter(|letter| !letter.is_control())
        .collect()
}
