//! Uploading to several hosts and going on from the state file.

mod support;

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use support::{
    Desk,
    host::{Character, FAIR, Host},
    network::Network,
};

async fn at_price(network: &std::sync::Arc<Network>, version: u8, monthly: u64) -> Host {
    Host::with(network, Character::Honest, version, monthly, Vec::new()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cheapest_hosts_are_taken_and_only_they_see_the_program() {
    let network = Network::start().await;
    let dear = at_price(&network, 2, 10).await;
    let middle = at_price(&network, 1, 8).await;
    let cheap = at_price(&network, 2, 6).await;
    let desk = Desk::with_program();
    desk.write(
        "codiushosts.json",
        &json!({ "hosts": [dear.url, middle.url, cheap.url] }),
    );
    let ilp = network.url();
    let told = desk
        .run(&["upload", "-y", "--json", "-c", "2", "--ilp", &ilp])
        .await;
    assert_eq!(told.code, Some(0), "{told:#?}");
    let result = told.json();
    let hosts = result["hosts"].as_array().unwrap();
    let mut hosts: Vec<_> = hosts
        .iter()
        .filter_map(|one| one["host"].as_str())
        .collect();
    hosts.sort_unstable();
    let mut expected = [middle.url.as_str(), cheap.url.as_str()];
    expected.sort_unstable();
    assert_eq!(hosts, expected);
    assert_eq!((dear.quotes(), dear.paid_requests()), (0, 0));
    assert_eq!(network.taken(), i128::from(FAIR * 8 / 10 + FAIR * 6 / 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_hosts_that_are_named_are_paid_or_none() {
    let network = Network::start().await;
    let one = at_price(&network, 2, 10).await;
    let two = at_price(&network, 1, 10).await;
    let full = Host::start(&network, Character::Full, 2).await;
    let ilp = network.url();
    let desk = Desk::with_program();
    let mut words = vec![
        "upload", "-y", "--ilp", &ilp, "--host", &one.url, "--host", &two.url,
    ];
    words.extend(["--host", &full.url]);
    let refused = desk.run(&words).await;
    assert_eq!(refused.code, Some(4), "{refused:#?}");
    assert!(
        refused.err.contains("2 of 3 hosts can be paid"),
        "{refused:#?}"
    );
    assert_eq!(network.taken(), 0);

    let done = desk.run(&words[..8]).await;
    assert_eq!(done.code, Some(0), "{done:#?}");
    assert_eq!(network.taken(), 2 * i128::from(FAIR));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_container_is_told_the_hosts_and_the_hash_is_that_of_what_runs() {
    let network = Network::start().await;
    let one = at_price(&network, 2, 10).await;
    let two = at_price(&network, 1, 10).await;
    let desk = Desk::with_program();
    let ilp = network.url();
    let hosts = ["--host", &one.url, "--host", &two.url];
    let words = [&["upload", "-y", "-a", "--json", "--ilp", &ilp][..], &hosts].concat();
    let told = desk.run(&words).await;
    assert_eq!(told.code, Some(0), "{told:#?}");
    let text = json!([one.url, two.url]).to_string();
    for host in [&one, &two] {
        let container = &host.last_document()["manifest"]["containers"][0];
        assert_eq!(container["environment"]["HOSTS"], text);
    }
    let hash = told.json()["manifestHash"].clone();
    let shown = format!("hash        {}", hash.as_str().unwrap());
    assert!(
        told.err.contains(&shown),
        "the hash was shown before paying: {told:#?}"
    );
    assert_eq!(desk.read("default.codiusstate.json")["manifestHash"], hash);

    let words = [&words[..], &["-o"]].concat();
    let mut program = support::program();
    program["manifest"]["containers"][0]["environment"] = json!({ "HOSTS": "mine" });
    desk.write("codius.json", &program);
    let refused = desk.run(&words).await;
    assert_eq!(refused.code, Some(2), "{refused:#?}");
    assert!(
        refused.err.contains("HOSTS in its environment already"),
        "{refused:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_files_give_the_same_hash_and_a_private_state_file() {
    let network = Network::start().await;
    let host = at_price(&network, 2, 10).await;
    let desk = Desk::new();
    let mut program = support::program();
    program["manifest"]["containers"][0]["environment"] = json!({ "KEY": "$KEY" });
    desk.write("codius.json", &program);
    let vars = json!({ "vars": { "public": {}, "private": { "KEY": { "value": "secret" } } } });
    desk.write("codiusvars.json", &vars);
    let ilp = network.url();
    let words = [
        "upload", "-y", "-o", "--json", "--host", &host.url, "--ilp", &ilp,
    ];
    let first = desk.run(&words).await;
    assert_eq!(first.code, Some(0), "{first:#?}");
    let hash = first.json()["manifestHash"].clone();
    assert_eq!(desk.run(&words).await.json()["manifestHash"], hash);
    let random = [&words[..], &["--random-nonce"]].concat();
    assert_ne!(desk.run(&random).await.json()["manifestHash"], hash);

    let state = desk.work().join("default.codiusstate.json");
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(state), 0o600);
    assert_eq!(mode(desk.home().join(".config/codius/key")), 0o600);
    let private = desk.read("default.codiusstate.json")["generatedManifest"]["private"].clone();
    assert_eq!(private["vars"]["KEY"]["value"], "secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn extend_goes_on_from_the_state_file() {
    for version in [1, 2] {
        let network = Network::start().await;
        let host = at_price(&network, version, 10).await;
        let desk = Desk::with_program();
        let ilp = network.url();
        let words = ["upload", "-y", "--host", &host.url, "--ilp", &ilp];
        assert_eq!(desk.run(&words).await.code, Some(0));
        let again = desk.run(&words).await;
        assert_eq!(again.code, Some(2), "the state file is there: {again:#?}");

        let extended = desk.run(&["extend", "-y", "--json", "--ilp", &ilp]).await;
        assert_eq!(extended.code, Some(0), "{extended:#?}");
        let state = desk.read("default.codiusstate.json");
        let price = &state["status"]["hostDetails"][&host.url]["price"];
        assert_eq!(
            *price,
            json!({ "totalPaid": (2 * FAIR).to_string(), "lastPaid": FAIR.to_string(), "units": "nXRP" })
        );
        assert_eq!(
            state["options"],
            json!({ "maxMonthlyRate": 10, "units": "XRP", "duration": 600 })
        );
        assert_eq!(state["hostList"], json!([host.url]));

        // An upload to a full host with version 2 that runs it already is refused by the host, not here.
        desk.write("other.codiusstate.json", &state);
        let two = desk.run(&["extend", "-y", "--ilp", &ilp]).await;
        assert_eq!(two.code, Some(2), "{two:#?}");
        assert!(two.err.contains("2 state files"), "{two:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_program_the_example_of_the_original_is_written() {
    let network = Network::start().await;
    let host = at_price(&network, 2, 10).await;
    let desk = Desk::new();
    let ilp = network.url();
    let told = desk
        .run(&["upload", "-y", "--host", &host.url, "--ilp", &ilp])
        .await;
    assert_eq!(told.code, Some(0), "{told:#?}");
    assert_eq!(
        desk.read("codius.json")["manifest"]["name"],
        "nginx-codius-pod"
    );
    assert!(desk.read("codiusvars.json")["vars"]["private"].is_object());

    let desk = Desk::new();
    let asked = desk
        .run(&["upload", "--host", &host.url, "--ilp", &ilp])
        .await;
    assert_eq!(asked.code, Some(2), "there is nobody to ask: {asked:#?}");
    assert!(!desk.work().join("codius.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_free_host_is_not_paid() {
    let network = Network::start().await;
    let host = at_price(&network, 2, 0).await;
    let desk = Desk::with_program();
    let ilp = network.url();
    let words = [
        "upload",
        "-y",
        "--json",
        "--host",
        &host.url,
        "--ilp",
        &ilp,
        "--max-price",
        "0",
    ];
    let told = desk.run(&words).await;
    assert_eq!(told.code, Some(0), "{told:#?}");
    assert_eq!(told.json()["paid"], Value::from("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_the_first_generation_is_paid_as_the_original_tool_paid_it() {
    let network = Network::start().await;
    let host = at_price(&network, 0, 10).await;
    let desk = Desk::with_program();
    let ilp = network.url();
    let words = [
        "upload", "-y", "--debug", "--tail", "--host", &host.url, "--ilp", &ilp,
    ];
    let told = desk.run(&words).await;
    assert_eq!(told.code, Some(0), "{told:#?}");
    assert_eq!(network.taken(), i128::from(FAIR));
    // It follows the log to its end, and a ping is no line of it.
    let name = host.url.strip_prefix("http://").unwrap();
    let log = format!("{name} app one\n{name} app two\n{name} app three\n");
    assert!(told.out.ends_with(&log), "{told:#?}");

    let extended = desk.run(&["extend", "-y", "--ilp", &ilp]).await;
    assert_eq!(extended.code, Some(0), "{extended:#?}");
    assert_eq!(network.taken(), 2 * i128::from(FAIR));

    let state = desk.read("default.codiusstate.json");
    let hash = state["manifestHash"].as_str().unwrap();
    let named = format!("{}://{hash}.{name}", "http");
    let words = ["extend-hash", &named, "-y", "--json", "--ilp", &ilp];
    let more = desk.run(&words).await;
    assert_eq!(more.code, Some(0), "{more:#?}");
    assert_eq!(more.json()["paid"], FAIR.to_string());

    let tailed = desk.run(&["tail"]).await;
    assert_eq!((tailed.code, tailed.out), (Some(0), log));
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_found_through_hosts() {
    let network = Network::start().await;
    let cheap = at_price(&network, 1, 3).await;
    let known = vec![cheap.url.clone()];
    let middle = Host::with(&network, Character::Honest, 2, 9, known).await;
    let known = vec![middle.url.clone()];
    let first = Host::with(&network, Character::Honest, 2, 10, known).await;
    let desk = Desk::with_program();
    let ilp = network.url();
    let words = [
        "upload",
        "-y",
        "--json",
        "--bootstrap",
        &first.url,
        "--ilp",
        &ilp,
    ];
    let told = desk.run(&words).await;
    assert_eq!(told.code, Some(0), "{told:#?}");
    assert_eq!(told.json()["host"], cheap.url);

    // The same, from the configuration.
    let configuration = desk.home().join(".config/codius");
    let file = json!({ "hosts": [first.url] }).to_string();
    std::fs::write(configuration.join("bootstrap.json"), file).unwrap();
    let words = ["upload", "-y", "-o", "--json", "-c", "2", "--ilp", &ilp];
    let told = desk.run(&words).await;
    assert_eq!(told.code, Some(0), "{told:#?}");
    assert_eq!(told.json()["hosts"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_asset_in_other_units_is_paid_exactly() {
    for (scale, paid, too_little) in [
        (6, FAIR.div_ceil(1000), "0.002283999"),
        (9, FAIR, "0.002283105"),
        (12, FAIR * 1000, "0.002283105"),
    ] {
        let network = Network::with_scale(scale).await;
        let host = at_price(&network, 2, 10).await;
        let desk = Desk::with_program();
        let ilp = network.url();
        let words = [
            "upload",
            "-y",
            "--json",
            "--host",
            &host.url,
            "--ilp",
            &ilp,
            "--max-price",
        ];
        let refused = desk.run(&[&words[..], &[too_little]].concat()).await;
        assert_eq!(refused.code, Some(3), "{scale} {refused:#?}");
        assert_eq!(network.taken(), 0);
        let told = desk.run(&[&words[..], &["0.002284"]].concat()).await;
        assert_eq!(told.code, Some(0), "{scale} {told:#?}");
        assert_eq!(network.taken(), i128::from(paid));
        assert_eq!(told.json()["paid"], paid.to_string());
        assert_eq!(
            told.json()["asset"],
            json!({ "code": "XRP", "scale": scale })
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_room_does_not_see_the_program() {
    for version in [1, 2] {
        let network = Network::start().await;
        let full = Host::with(&network, Character::Full, version, 1, Vec::new()).await;
        let host = at_price(&network, version, 10).await;
        let desk = Desk::with_program();
        desk.write(
            "codiushosts.json",
            &json!({ "hosts": [full.url, host.url] }),
        );
        let ilp = network.url();
        let told = desk
            .run(&["upload", "-y", "--json", "-c", "1", "--ilp", &ilp])
            .await;
        assert_eq!(told.code, Some(0), "{told:#?}");
        assert_eq!(told.json()["host"], host.url);
        assert_eq!(full.quotes(), 0);
    }
}
