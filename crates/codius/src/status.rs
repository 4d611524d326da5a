//! `codius status`: where a program is and until when.

use codius_client::HostClient;

use crate::{
    command::PodArguments,
    failure::{Failure, printable},
    pod_address::PodAddress,
};

pub(crate) async fn status(arguments: PodArguments) -> Result<(), Failure> {
    let said: Vec<_> = arguments.host.iter().cloned().collect();
    let address = PodAddress::new(&arguments.hash, &said)?;
    let pod = HostClient::new(address.only_host()?)?
        .pod(&address.hash)
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

/// A string of a stranger, without what could move a terminal's cursor.
fn text(value: &serde_json::Value) -> String {
    printable(value.as_str().unwrap_or_default())
}
