//! What people see, word for word. A change of a snapshot is a change for them.

mod support;

use serde_json::json;
use support::{
    Desk,
    host::{Character, Host},
    network::Network,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_help_of_every_command() {
    let desk = Desk::new();
    for words in [
        &[][..],
        &["upload"],
        &["extend"],
        &["extend-hash"],
        &["run"],
        &["tail"],
        &["cron"],
        &["cron", "create"],
        &["cron", "view"],
        &["cron", "remove"],
        &["status"],
        &["logs"],
        &["stop"],
        &["refund"],
        &["manifest"],
    ] {
        let name = format!("help {}", words.join(" "));
        let told = desk.run(&[words, &["--help"]].concat()).await;
        assert_eq!(told.code, Some(0), "{told:#?}");
        insta::assert_snapshot!(name.trim().replace(' ', "_"), told.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_from_the_plan_to_the_result() {
    let network = Network::start().await;
    let host = Host::start(&network, Character::Honest, 1).await;
    let desk = Desk::with_program();
    let ilp = network.url();
    let told = desk
        .run(&["upload", "-y", "--host", &host.url, "--ilp", &ilp])
        .await;
    let names = [(address(&host), "HOST")];
    insta::assert_snapshot!(told.all(&names));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_one_of_which_is_replaced() {
    let network = Network::start().await;
    let cheap = Host::with(&network, Character::AsksMuch, 2, 5, Vec::new()).await;
    let honest = Host::with(&network, Character::Honest, 2, 8, Vec::new()).await;
    let desk = Desk::with_program();
    desk.write(
        "codiushosts.json",
        &json!({ "hosts": [honest.url, cheap.url] }),
    );
    let ilp = network.url();
    let told = desk
        .run(&["upload", "-y", "--debug", "-c", "1", "--ilp", &ilp])
        .await;
    let names = [(address(&cheap), "CHEAP"), (address(&honest), "HONEST")];
    insta::assert_snapshot!(told.all(&names));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_hosts_with_a_failure_among_them() {
    let network = Network::start().await;
    let good = Host::with(&network, Character::Honest, 2, 8, Vec::new()).await;
    let bad = Host::with(&network, Character::TakesAndFails, 1, 9, Vec::new()).await;
    let desk = Desk::with_program();
    let ilp = network.url();
    let mut words = vec!["upload", "-y", "--ilp", &ilp];
    words.extend(["--host", &good.url, "--host", &bad.url]);
    let told = desk.run(&words).await;
    let names = [(address(&good), "GOOD"), (address(&bad), "BAD")];
    // Which of them is told of first depends on who is faster.
    let err = support::named(&told.err, &names);
    let mut lines: Vec<_> = err.lines().map(str::to_owned).collect();
    lines.sort();
    let sorted = support::Told {
        err: lines.join("\n") + "\n",
        ..told
    };
    insta::assert_snapshot!(sorted.all(&names));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_result_as_json() {
    let network = Network::start().await;
    let host = Host::start(&network, Character::Honest, 2).await;
    let dear = Host::with(&network, Character::QuotesMuch, 2, 5, Vec::new()).await;
    let desk = Desk::with_program();
    desk.write(
        "codiushosts.json",
        &json!({ "hosts": [dear.url, host.url] }),
    );
    let ilp = network.url();
    let words = ["upload", "-y", "--json", "-c", "1", "--ilp", &ilp];
    let told = desk.run(&words).await;
    let names = [(address(&host), "HOST"), (address(&dear), "DEAR")];
    insta::assert_snapshot!(support::named(&told.out, &names));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_one_sentence_and_a_next_step() {
    let network = Network::start().await;
    let dear = Host::start(&network, Character::QuotesMuch, 2).await;
    let full = Host::start(&network, Character::Full, 1).await;
    let foreign = Host::start(&network, Character::Foreign, 2).await;
    let ilp = network.url();
    let at = |host: &Host| {
        vec![
            "upload".to_owned(),
            "-y".into(),
            "--host".into(),
            host.url.clone(),
        ]
    };
    let several = [at(&dear), vec!["--host".into(), full.url.clone()]].concat();
    let hash = "a".repeat(52);
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut seen = String::new();
    for words in [
        words("upload -y"),
        at(&dear),
        at(&full),
        at(&foreign),
        several,
        words("upload -y --host ftp://x"),
        words("upload -y --host http://127.0.0.1:1"),
        words("upload -y --host x --max-price 1 -m 1 -u XRP"),
        words("extend -y"),
        words("tail"),
        words("extend-hash x"),
        words(&format!("status {hash}")),
        words("cron view"),
        words("upload --codius-file missing.json --host x"),
    ] {
        let desk = Desk::with_program();
        let mut all: Vec<&str> = words.iter().map(String::as_str).collect();
        if words[0] == "upload" {
            all.extend(["--ilp", &ilp]);
        }
        let told = desk.run(&all).await;
        let names = [
            (address(&dear), "DEAR"),
            (address(&full), "FULL"),
            (address(&foreign), "FOREIGN"),
        ];
        let line = support::named(&format!("$ codius {}", words.join(" ")), &names);
        seen.push_str(&format!("{line}\n{}\n\n", told.all(&names)));
    }
    insta::assert_snapshot!(seen);
}

/// Host and port, which are different in each run.
fn address(host: &Host) -> &str {
    host.url.strip_prefix("http://").unwrap_or(&host.url)
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_are_hashed_and_checked() {
    let desk = Desk::with_program();
    desk.write(
        "wrong.json",
        &json!({ "manifest": { "name": "n", "containers": [] } }),
    );
    let hash = "wtitjuasbpgxt3bidzdbshgwupqpqb7elaztrfeowc6v3cb5enaq";
    let hashed = desk.run(&["manifest", "hash", "codius.json"]).await;
    assert_eq!((hashed.code, hashed.out.trim()), (Some(0), hash));
    let words = ["manifest", "hash", "codius.json", "--json"];
    assert_eq!(
        desk.run(&words).await.json(),
        json!({ "manifestHash": hash })
    );
    let valid = desk.run(&["manifest", "validate", "codius.json"]).await;
    assert_eq!((valid.code, valid.out.as_str()), (Some(0), "ok\n"));
    let words = ["manifest", "validate", "wrong.json", "--json"];
    let wrong = desk.run(&words).await;
    assert_eq!(wrong.code, Some(2), "{wrong:#?}");
    assert_eq!(wrong.json()["valid"], false);
    assert!(wrong.json()["errors"][0]["message"].is_string());
}
