//! `codius usage`: what a program has used of its hosts. Told to its owner alone, so the requests are signed.

use codius_api::v2::{Packets, UsageReply};
use codius_client::HostClient;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::{
    command::PodArguments,
    failure::{Failure, USAGE, one_line},
    host_view::failed_in_json,
    host_view::tell_failed,
    key::Key,
    offer::{ASKED_AT_ONCE, LeftOut, QUOTE_TIMEOUT},
    pod_address::PodAddress,
};

const KIB: u64 = 1024;

pub(crate) async fn usage(arguments: PodArguments) -> Result<(), Failure> {
    let PodAddress { hash, hosts } = PodAddress::known(&arguments.hash, &arguments.host)?;
    // To ask makes no key: a new one owns nothing.
    let Some(key) = Key::existing(arguments.key.key_file.as_deref())? else {
        return Err(
            Failure::new(USAGE, "there is no key, and only the owner is told")
                .note("Next: give --key-file with the key that the program was uploaded with."),
        );
    };
    let signer = key.signer();
    let answers: Vec<_> = stream::iter(hosts)
        .map(|host| {
            let signer = &signer;
            async move {
                let asked = async {
                    let client = HostClient::new(&host)?.answering_within(QUOTE_TIMEOUT);
                    Ok::<_, Failure>(client.usage(&hash, signer).await?)
                };
                (asked.await, host)
            }
        })
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await;
    let (mut told, mut left_out) = (Vec::new(), Vec::new());
    for (answer, host) in answers {
        match answer {
            Ok(usage) => told.push((host, usage)),
            Err(failure) => left_out.push(LeftOut { host, failure }),
        }
    }
    if arguments.json {
        let hosts: Vec<Value> = told
            .iter()
            .map(|(host, usage)| in_json(host, usage))
            .collect();
        let whole = json!({
            "manifestHash": hash,
            "hosts": hosts,
            "failed": failed_in_json(&left_out),
        });
        println!("{whole:#}");
    } else {
        for (host, usage) in &told {
            print!("{}", in_words(host, usage));
        }
    }
    tell_failed(left_out, told.is_empty(), arguments.json)
}

fn in_json(host: &str, usage: &UsageReply) -> Value {
    json!({
        "host": host,
        "machine": usage.machine,
        "cpu_ms": usage.cpu_ms,
        "memory": usage.memory,
        "disk": usage.disk,
        "network": usage.network,
    })
}

/// Of a host that does not count something, there is no line.
fn in_words(host: &str, usage: &UsageReply) -> String {
    let mut lines = Vec::new();
    if let Some(machine) = &usage.machine {
        lines.push(("machine", one_line(&machine.name)));
    }
    if let Some(cpu_ms) = usage.cpu_ms {
        let (secs, millis) = (cpu_ms / 1000, cpu_ms % 1000);
        lines.push(("processor", format!("{secs}.{millis:03} s")));
    }
    if let Some(memory) = usage.memory {
        let (now, peak) = (bytes(memory.bytes), bytes(memory.peak_bytes));
        lines.push(("memory", format!("{now} now, {peak} at most")));
    }
    if let Some(disk) = usage.disk {
        let (taken, read, written) = (
            bytes(disk.bytes),
            bytes(disk.read_bytes),
            bytes(disk.written_bytes),
        );
        lines.push((
            "disk",
            format!("{taken} taken, {read} read, {written} written"),
        ));
    }
    let traffic = |sent: Packets, received: Packets| {
        let (sent, received) = (bytes(sent.bytes), bytes(received.bytes));
        format!("{sent} sent, {received} received")
    };
    let network = &usage.network;
    for (name, with) in [
        ("internet", network.internet),
        ("visitors", network.visitors),
    ] {
        lines.push((name, traffic(with.sent, with.received)));
    }
    for (reason, refused) in network.refused.iter().filter(|(_, it)| it.packets > 0) {
        let packets = refused.packets;
        lines.push((
            "refused",
            format!("{packets} packets ({})", one_line(reason)),
        ));
    }
    let mut whole = format!("{host}\n");
    for (name, value) in lines {
        whole += &format!("  {name:<11} {value}\n");
    }
    whole
}

/// Rounded up: nothing that there is becomes nothing.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut unit = 0;
    let mut rest = bytes;
    while rest >= 10 * KIB && unit + 1 < UNITS.len() {
        rest = rest.div_ceil(KIB);
        unit += 1;
    }
    format!("{rest} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_bytes_are_short_and_never_too_small() {
        for (count, text) in [
            (0, "0 B"),
            (10_239, "10239 B"),
            (10_240, "10 KiB"),
            (10_241, "11 KiB"),
            (10 << 20, "10 MiB"),
            (u64::MAX, "17179869184 GiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn what_a_host_does_not_count_has_no_line() {
        let text = r#"{"manifest_hash":"HASH","network":{"internet":{"sent":{"packets":1,"bytes":60},
            "received":{"packets":0,"bytes":0}},"visitors":{"sent":{"packets":0,"bytes":0},
            "received":{"packets":0,"bytes":0}},"refused":{"port":{"packets":3,"bytes":180}}}}"#;
        let text = text.replace("HASH", &"a".repeat(52));
        let usage: UsageReply = serde_json::from_str(&text).unwrap();
        assert_eq!(
            in_words("https://h.example", &usage),
            "https://h.example\n  internet    60 B sent, 0 B received\n  \
             visitors    0 B sent, 0 B received\n  refused     3 packets (port)\n"
        );
    }
}
