//! Hosts that lie: whatever they do, no more is paid than was shown, and it is said where the money is.

mod support;

use std::process::Stdio;

use serde_json::json;
use support::{
    Desk, Told,
    host::{Character, FAIR, Host},
    network::Network,
};

const VERSIONS: [u8; 2] = [1, 2];

/// Uploads to one host.
async fn upload(network: &Network, host: &Host, more: &[&str]) -> Told {
    let desk = Desk::with_program();
    let (ilp, url) = (network.url(), host.url.as_str());
    let mut words = vec!["upload", "-y", "--json", "--host", url, "--ilp", &ilp];
    words.extend(more);
    desk.run(&words).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_paid_to_a_host_that_is_found_out_before() {
    for version in VERSIONS {
        for (character, code, reason) in [
            (Character::AsksMuch, 3, "more than the"),
            (Character::QuotesNothing, 3, "more than the"),
            (Character::QuotesMuch, 3, "over the limit"),
            (Character::Foreign, 3, "counts in XRP and the host in USD"),
            (Character::Garbage, 4, "does not answer like a Codius host"),
            (Character::Silent, 5, "does not answer"),
            (Character::FailsFirst, 4, "Memory usage exceeded"),
            (Character::Misnames, 4, "another hash"),
            (Character::Full, 4, "takes no uploads now"),
        ] {
            let network = Network::start().await;
            let host = Host::start(&network, character, version).await;
            let told = upload(&network, &host, &[]).await;
            assert_eq!(told.code, Some(code), "{character:?} {version} {told:#?}");
            assert!(
                told.err.contains(reason),
                "{character:?} {version} {told:#?}"
            );
            assert!(told.err.contains("Nothing was paid"), "{told:#?}");
            assert_eq!(network.taken(), 0, "{character:?} {version}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_names_no_price_gets_what_it_has_quoted() {
    for version in VERSIONS {
        let network = Network::start().await;
        let host = Host::start(&network, Character::TakesAll, version).await;
        let told = upload(&network, &host, &["--max-price", "0.5"]).await;
        assert_eq!(told.code, Some(0), "{told:#?}");
        assert_eq!(network.taken(), i128::from(FAIR));
        assert_eq!(told.json()["paid"], FAIR.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_takes_the_money_and_fails_is_told_of() {
    for version in VERSIONS {
        let network = Network::start().await;
        let host = Host::start(&network, Character::TakesAndFails, version).await;
        let told = upload(&network, &host, &[]).await;
        assert_eq!(told.code, Some(4), "{told:#?}");
        assert_eq!(network.taken(), i128::from(FAIR));
        let paid = "Paid 0.002283106 XRP, of which 0 XRP came back";
        assert!(told.err.contains(paid), "{told:#?}");
        let failed = &told.json()["failed"][0];
        assert_eq!(
            (&failed["paid"], &failed["refunded"]),
            (&json!("2283106"), &json!("0"))
        );
        assert_eq!(failed["exit_code"], 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_came_back_is_told_of() {
    for version in VERSIONS {
        let network = Network::start().await;
        let host = Host::start(&network, Character::GivesBack, version).await;
        let told = upload(&network, &host, &[]).await;
        assert_eq!(told.code, Some(4), "{told:#?}");
        assert_eq!(network.taken(), 0);
        let back = "All of the 0.002283106 XRP that was paid came back.";
        assert!(told.err.contains(back), "{told:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_runs_something_else_is_told_of() {
    for version in VERSIONS {
        let network = Network::start().await;
        let host = Host::start(&network, Character::RunsAnother, version).await;
        let told = upload(&network, &host, &[]).await;
        assert_eq!(told.code, Some(4), "{told:#?}");
        assert!(told.err.contains("runs another program"), "{told:#?}");
        assert_eq!(told.json()["failed"][0]["paid"], "2283106");
        assert_eq!(network.taken(), i128::from(FAIR));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_bounds_what_is_paid_to_an_honest_host_too() {
    let network = Network::start().await;
    let host = Host::start(&network, Character::Honest, 2).await;
    for (limit, code) in [
        (["--max-price", "0.002283105", "--timeout", "60"], 3),
        (["--max-price", "0.002283106", "--timeout", "60"], 0),
        (["-m", "9.9", "-u", "XRP"], 3),
        (["-m", "10", "-u", "USD"], 3),
        (["-m", "10", "-u", "XRP"], 0),
    ] {
        let before = network.taken();
        let told = upload(&network, &host, &limit).await;
        assert_eq!(told.code, Some(code), "{limit:?} {told:#?}");
        let paid = network.taken() - before;
        assert_eq!(paid, if code == 0 { FAIR.into() } else { 0 }, "{limit:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_heard_of_after_the_payment_is_told_of() {
    let network = Network::start().await;
    let host = Host::start(&network, Character::TakesAndGoes, 2).await;
    let told = upload(&network, &host, &["--timeout", "3"]).await;
    assert_eq!(told.code, Some(5), "{told:#?}");
    assert_eq!(network.taken(), i128::from(FAIR));
    assert!(
        told.err.contains("lost after it had been paid"),
        "{told:#?}"
    );
    assert_eq!(told.json()["failed"][0]["paid"], FAIR.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_interrupts_is_told_what_was_paid_until_then() {
    let network = Network::start().await;
    let host = Host::start(&network, Character::TakesAndGoes, 2).await;
    let desk = Desk::with_program();
    let ilp = network.url();
    let mut tool = desk.tool(&["upload", "-y", "--host", &host.url, "--ilp", &ilp]);
    let tool = tool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let tool = tool.expect("the tool can be run");
    let process = tool.id().to_string();
    support::until(|| network.taken() == i128::from(FAIR)).await;
    let sent = std::process::Command::new("kill")
        .args(["-INT", &process])
        .status();
    assert!(sent.is_ok_and(|status| status.success()));
    let output = tokio::task::spawn_blocking(move || tool.wait_with_output()).await;
    let output = output.expect("nothing panics there").expect("it ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(
        err.contains("interrupted after hosts had been paid"),
        "{err}"
    );
    assert!(
        err.contains(&format!("{}: 0.002283106 XRP", host.url)),
        "{err}"
    );
}

/// A cheap host that fails is chosen first; another takes its place only if it has had nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_replaced_only_if_it_has_had_nothing() {
    for (character, code, placed, taken) in [
        (Character::FailsFirst, 0, 1, FAIR),
        (Character::AsksMuch, 0, 1, FAIR),
        (Character::TakesAndFails, 4, 0, FAIR / 2),
        (Character::GivesBack, 4, 0, 0),
    ] {
        let network = Network::start().await;
        let cheap = Host::with(&network, character, 2, 5, Vec::new()).await;
        let honest = Host::start(&network, Character::Honest, 2).await;
        let desk = Desk::with_program();
        desk.write(
            "codiushosts.json",
            &json!({ "hosts": [honest.url, cheap.url] }),
        );
        let ilp = network.url();
        let told = desk
            .run(&["upload", "-y", "--json", "-c", "1", "--ilp", &ilp])
            .await;
        assert_eq!(told.code, Some(code), "{character:?} {told:#?}");
        assert_eq!(told.json()["hosts"].as_array().unwrap().len(), placed);
        assert_eq!(network.taken(), i128::from(taken), "{character:?}");
        assert_eq!(honest.paid_requests(), placed, "{character:?}");
        if placed == 1 {
            assert_eq!(told.json()["host"], honest.url);
            assert_eq!(told.json()["left_out"][0]["host"], cheap.url);
            let says = format!("nothing was paid there, {} takes its place", honest.url);
            assert!(told.err.contains(&says), "{told:#?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_from_peers_is_no_host() {
    let network = Network::start().await;
    let honest = Host::start(&network, Character::Honest, 2).await;
    let peers = ["", "ftp://x", "http://", "\u{1b}[2J", "http://127.0.0.1:1"].map(str::to_owned);
    let known = [peers.to_vec(), vec![honest.url.clone()]].concat();
    let first = Host::with(&network, Character::Full, 2, 1, known).await;
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
    assert_eq!(told.json()["host"], honest.url);
    assert_eq!(network.taken(), i128::from(FAIR));
}
