//! The commands that look and pay nothing, word for word and as JSON, at real HTTP servers and a real
//! Interledger connection; `init`, which only writes; and what they say when something is wrong.

mod support;

use std::io::Write;

use serde_json::{Value, json};
use support::{
    Desk, Told,
    host::{Character, EXPIRY, Host},
    network::Network,
    program,
};

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:9";

fn address(host: &Host) -> &str {
    host.url.trim_start_matches("http://")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_help_of_the_commands_that_look() {
    let desk = Desk::new();
    for command in [
        "init",
        "price",
        "hosts",
        "pods",
        "status",
        "wallet",
        "completions",
        "man",
    ] {
        let told = desk.run(&[command, "--help"]).await;
        assert_eq!(told.code, Some(0), "{told:#?}");
        insta::assert_snapshot!(format!("help_{command}"), told.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prices_are_sorted_within_an_asset_and_failures_are_told_last() {
    let network = Network::start().await;
    let dear = Host::with(&network, Character::Honest, 2, 12, Vec::new()).await;
    let first = Host::with(&network, Character::Honest, 0, 8, Vec::new()).await;
    let middle = Host::with(&network, Character::Honest, 1, 10, Vec::new()).await;
    let foreign = Host::start(&network, Character::Foreign, 2).await;
    let full = Host::with(&network, Character::Full, 2, 1, Vec::new()).await;
    let garbage = Host::start(&network, Character::Garbage, 2).await;
    let desk = Desk::with_program();
    let urls = [&dear, &first, &middle, &foreign, &full, &garbage].map(|host| host.url.as_str());
    let urls = [&urls[..], &[NOBODY]].concat();
    desk.write("codiushosts.json", &json!({ "hosts": urls }));
    let names = [
        (address(&dear), "DEAR"),
        (address(&first), "FIRST"),
        (address(&middle), "MIDDLE"),
        (address(&foreign), "FOREIGN"),
        (address(&full), "FULL"),
        (address(&garbage), "GARBAGE"),
    ];
    let told = desk.run(&["price"]).await;
    insta::assert_snapshot!(squeezed(&told.all(&names)));
    let told = desk.run(&["price", "--json"]).await;
    insta::assert_snapshot!(told.all(&names));
    assert_eq!(network.taken(), 0);

    // Only so much can be bought at once.
    let told = desk
        .run(&["price", "-d", "9999999", "--host", &dear.url])
        .await;
    assert_eq!(told.code, Some(4), "{told:#?}");
    assert!(told.err.contains("it sells at most 2678400 s"), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_a_price_shows_no_private_value_to_anybody() {
    let network = Network::start().await;
    let host = Host::start(&network, Character::Honest, 2).await;
    let desk = Desk::new();
    let words = ["init", "hello", "--private", "KEY=keep-it", "-y"];
    assert_eq!(desk.run(&words).await.code, Some(0));
    let words = ["price", "--published", "--host", &host.url];
    let told = desk.run(&words).await;
    assert!(told.out.contains("published"), "{told:#?}");
    assert_eq!((told.code, host.quotes()), (Some(0), 0), "{told:#?}");
    let told = desk.run(&["price", "--host", &host.url]).await;
    assert_eq!((told.code, host.quotes()), (Some(0), 1), "{told:#?}");
    let seen = host.last_document().to_string();
    assert!(
        seen.contains("hello") && !seen.contains("keep-it"),
        "{seen}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_found_checked_and_compared() {
    let network = Network::start().await;
    let known = Host::with(&network, Character::Honest, 1, 9, Vec::new()).await;
    let peers = vec![known.url.clone(), NOBODY.to_owned()];
    let first = Host::with(&network, Character::Honest, 2, 10, peers).await;
    // A name under which it does not know itself.
    let alias = known.url.replace("127.0.0.1", "localhost");
    let gossip = Host::with(&network, Character::Full, 2, 11, vec![alias.clone()]).await;
    let desk = Desk::new();
    let names = [
        (address(&first), "FIRST"),
        (address(&known), "KNOWN"),
        (address(&gossip), "GOSSIP"),
        (alias.trim_start_matches("http://"), "ALIAS"),
    ];
    let words = ["hosts", "--host", &first.url, "--host", &gossip.url];
    let told = desk.run(&words).await;
    insta::assert_snapshot!(squeezed(&told.all(&names)));
    let told = desk.run(&[&words[..], &["--json"]].concat()).await;
    insta::assert_snapshot!(told.all(&names));
    let told = desk.run(&[&words[..], &["--no-discovery"]].concat()).await;
    assert_eq!(told.out.lines().count(), 2, "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_are_compared_and_a_host_without_the_wanted_one_is_shown_no_program() {
    let network = Network::start().await;
    let sized = Host::with(&network, Character::Honest, 2, 10, Vec::new()).await;
    let older = Host::with(&network, Character::Honest, 1, 1, Vec::new()).await;
    let desk = Desk::with_program();
    let hosts = ["--host", &sized.url, "--host", &older.url];

    // The published price of a size is shown, and nobody is asked about the program.
    let words = ["price", "--machine", "medium", "--json"];
    let told = desk.run(&[&words[..], &hosts].concat()).await;
    let prices = told.json();
    assert_eq!(prices["machine"], "medium", "{told:#?}");
    assert_eq!(prices["hosts"].as_array().map(Vec::len), Some(1));
    assert_eq!(prices["hosts"][0]["per_month_display"], "30 XRP");
    let failed = prices["failed"][0]["message"].to_string();
    assert!(failed.contains("no machine"), "{failed}");
    let words = ["hosts", "--sizes", "--no-discovery"];
    let told = desk.run(&[&words[..], &hosts].concat()).await;
    assert!(squeezed(&told.out).contains("medium 2 1024 MiB 2048 MiB 30 XRP yes"));
    assert_eq!(told.out.matches("small").count(), 2, "{told:#?}");
    assert_eq!((sized.quotes(), older.quotes()), (0, 0));

    // A program of a size goes where it is sold, and is shown to nobody else.
    let mut medium = program();
    medium["manifest"]["machine"] = json!("medium");
    desk.write("codius.json", &medium);
    let ilp = network.url();
    let words = ["upload", "-y", "--ilp", &ilp];
    let told = desk.run(&[&words[..], &hosts].concat()).await;
    assert_eq!(told.code, Some(4), "{told:#?}");
    assert!(told.err.contains("no machine"), "{told:#?}");
    assert_eq!((older.quotes(), network.taken()), (0, 0));
    let told = desk
        .run(&[&words[..], &["--max-price", "1", "--host", &sized.url]].concat())
        .await;
    assert_eq!(told.code, Some(0), "{told:#?}");
    assert_eq!(sized.last_document()["manifest"]["machine"], "medium");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_hosts_is_edited_in_its_own_shape() {
    let desk = Desk::new();
    desk.write(
        "codiushosts.json",
        &json!({ "hosts": ["one.example"], "mine": 1 }),
    );
    let words = [
        "hosts",
        "--add",
        "https://two.example/x",
        "--add",
        "one.example",
    ];
    let told = desk.run(&words).await;
    assert_eq!(told.out, "one.example\nhttps://two.example\n", "{told:#?}");
    assert_eq!(
        desk.read("codiushosts.json"),
        json!({ "hosts": ["one.example", "https://two.example"], "mine": 1 })
    );
    let told = desk.run(&["hosts", "--remove", "three.example"]).await;
    assert_eq!(told.code, Some(2), "{told:#?}");
    let words = ["hosts", "--remove", "https://one.example", "--json"];
    let told = desk.run(&words).await.json();
    assert_eq!(
        told,
        json!({ "hosts_file": "codiushosts.json", "hosts": ["https://two.example"] })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_bought_is_found_again_from_anywhere() {
    let network = Network::start().await;
    let one = Host::start(&network, Character::Honest, 2).await;
    let two = Host::start(&network, Character::Honest, 0).await;
    let desk = Desk::with_program();
    let ilp = network.url();
    let words = ["upload", "-y", "--json", "--ilp", &ilp, "--host"];
    let uploaded = desk.run(&[&words[..], &[&one.url]].concat()).await.json();
    let hash = uploaded["manifestHash"].as_str().unwrap();
    let second = ["--codius-state-file", "second.codiusstate.json"];
    let told = desk.run(&[&words[..], &[&two.url], &second].concat()).await;
    assert_eq!(told.code, Some(0), "{told:#?}");
    let names = [
        (address(&one), "ONE"),
        (address(&two), "TWO"),
        (hash, "HASH"),
    ];
    let told = desk.run(&["pods"]).await;
    insta::assert_snapshot!(squeezed(&told.all(&names)));

    // The own record alone knows it, too.
    for file in ["default.codiusstate.json", "second.codiusstate.json"] {
        std::fs::remove_file(desk.work().join(file)).unwrap();
    }
    let again = desk.run(&["pods"]).await;
    assert_eq!(again.out, told.out, "{again:#?}");
    let told = desk.run(&["pods", "--json"]).await;
    insta::assert_snapshot!(told.all(&names));
    let told = desk.run(&["status", hash]).await;
    insta::assert_snapshot!(told.all(&names));
    let told = desk.run(&["status", hash, "--json"]).await.json();
    assert_eq!(told["hosts"].as_array().unwrap().len(), 2, "{told:#}");
    assert_eq!(
        (&told["state"], &told["expiry"]),
        (&json!("running"), &json!(EXPIRY))
    );

    // Where it does not run, and where nobody answers.
    let nobody = "a".repeat(52);
    let told = desk.run(&["status", &nobody, "--host", &one.url]).await;
    insta::assert_snapshot!(told.all(&names));
    let told = desk.run(&["status", hash, "--host", NOBODY]).await;
    assert_eq!(told.code, Some(5), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_record_of_pods_never_stops_a_command() {
    let network = Network::start().await;
    let host = Host::start(&network, Character::Honest, 2).await;
    let desk = Desk::with_program();
    let record = desk.home().join(".local/share/codius/pods.json");
    std::fs::create_dir_all(record.parent().unwrap()).unwrap();
    std::fs::write(&record, "not ours").unwrap();
    let ilp = network.url();
    let told = desk
        .run(&["upload", "-y", "--ilp", &ilp, "--host", &host.url])
        .await;
    assert_eq!(told.code, Some(0), "{told:#?}");
    assert!(told.err.contains("pods.json, is left out"), "{told:#?}");
    assert_eq!(std::fs::read(&record).unwrap(), b"not ours");
    let told = desk.run(&["pods"]).await;
    assert_eq!(told.out.lines().count(), 1, "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_tells_what_its_connection_tells() {
    let network = Network::start().await;
    let desk = Desk::new();
    let ilp = network.url();
    let told = desk.run(&["wallet", "--ilp", &ilp, "--json"]).await;
    assert_eq!(told.code, Some(0), "{told:#?}");
    let mut wallet = told.json();
    for measured in ["connect_ms", "round_trip_ms"] {
        assert!(
            wallet[measured].take().as_f64().unwrap() >= 0.0,
            "{told:#?}"
        );
    }
    let own = wallet["address"].take();
    assert!(own.as_str().unwrap().starts_with("test.network."), "{own}");
    assert_eq!(wallet["url"].take(), json!(ilp));
    insta::assert_snapshot!(format!("{wallet:#}"));
    assert_eq!(network.taken(), 0);

    let told = desk.run(&["wallet", "--ilp", &ilp]).await;
    let names: Vec<_> = told.out.lines().map(|line| &line[..11]).collect();
    assert_eq!(
        names.join("|"),
        "connection |address    |asset      |latency    |max packet |balance    "
    );
    assert!(
        told.out.contains("not told by this connection"),
        "{told:#?}"
    );

    let secret = "btp+ws://me:keep-it@127.0.0.1:9";
    let told = desk.run(&["wallet", "--ilp", secret, "--json"]).await;
    assert_eq!(told.code, Some(5), "{told:#?}");
    assert_eq!(told.json()["reachable"], false, "{told:#?}");
    assert!(!format!("{told:?}").contains("keep-it"), "{told:#?}");
    let mut from_environment = desk.tool(&["wallet", "--json"]);
    from_environment.env("ILP_CREDENTIALS", r#"{"server":"btp+ws://127.0.0.1:9"}"#);
    let output = from_environment.output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["source"], "ILP_CREDENTIALS");
}

#[tokio::test(flavor = "multi_thread")]
async fn init_writes_what_upload_takes() {
    let network = Network::start().await;
    let host = Host::start(&network, Character::Honest, 2).await;
    let desk = Desk::new();
    let words = [
        "init",
        "docker.io/library/nginx:1.27",
        "--port",
        "80",
        "-e",
        "GREETING=hello",
        "--private",
        "KEY=keep-it",
        "-y",
    ];
    let told = desk.run(&words).await;
    insta::assert_snapshot!(told.all(&[]));
    insta::assert_snapshot!(format!("{:#}", desk.read("codius.json")));
    insta::assert_snapshot!(format!("{:#}", desk.read("codiusvars.json")));
    let ilp = network.url();
    let words = ["upload", "-y", "--ilp", &ilp, "--host", &host.url];
    assert_eq!(desk.run(&words).await.code, Some(0));

    let told = desk.run(&["init", "other", "-y"]).await;
    assert_eq!(told.code, Some(2), "{told:#?}");
    let words = ["init", "other", "-y", "--force", "--json"];
    let told = desk.run(&words).await.json();
    assert_eq!(
        told,
        json!({
            "codius_file": "codius.json", "codius_vars_file": null, "image": "other", "pinned": false
        })
    );
}

/// On a terminal what is not said is asked; util-linux's `script` is the terminal.
#[tokio::test(flavor = "multi_thread")]
async fn init_asks_on_a_terminal() {
    let desk = Desk::new();
    let line = format!("{} init", env!("CARGO_BIN_EXE_codius"));
    let mut terminal = std::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .current_dir(desk.work())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Image, name, version, port, variables until nothing is answered, private ones likewise.
    let answers = "nginx:1.27\nweb\n\n8080\nA=1\nno variable\n\nKEY=keep-it\n\n";
    let mut keyboard = terminal.stdin.take().unwrap();
    keyboard.write_all(answers.as_bytes()).unwrap();
    let output = tokio::task::spawn_blocking(move || terminal.wait_with_output());
    let output = output.await.unwrap().unwrap();
    drop(keyboard);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("no variable is not NAME=VALUE"), "{text}");
    let manifest = &desk.read("codius.json")["manifest"];
    assert_eq!(
        *manifest,
        json!({
            "name": "web", "version": "1.27", "machine": "small", "port": "8080",
            "containers": [{
                "id": "app", "image": "nginx:1.27", "environment": { "A": "1", "KEY": "$KEY" }
            }]
        })
    );
    let private = &desk.read("codiusvars.json")["vars"]["private"];
    assert_eq!(*private, json!({ "KEY": { "value": "keep-it" } }));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_one_sentence_and_a_next_step() {
    let desk = Desk::new();
    let mut all = String::new();
    for words in [
        &["init"][..],
        &["init", "https://image.example/a", "-y"],
        &["init", "a@sha256:12", "-y"],
        &["init", "a", "--env", "=x", "-y"],
        &["init", "a", "--env", "CODIUS_X=1", "-y"],
        &["init", "a", "--private", "NOT_SET", "-y"],
        &["price"],
        &["price", "--host", "ftp://host.example"],
        &["price", "--codius-file", "none.json", "--host", NOBODY],
        &["hosts", "--host", NOBODY],
        &["hosts", "--add", "ftp://host.example"],
        &["hosts", "--codius-hosts-file", "none.json"],
        &["status", "x"],
        &["status", &"a".repeat(52)],
        &["wallet", "--ilp", "http://host.example"],
        &["man", "--dir", "/proc/none"],
    ] {
        let told: Told = desk.run(words).await;
        assert_ne!(told.code, Some(0), "{words:?} {told:#?}");
        all += &format!("$ codius {}\n{}\n\n", words.join(" "), told.all(&[]));
    }
    insta::assert_snapshot!(all);
    assert_eq!(std::fs::read_dir(desk.work()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_and_man_know_every_command() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let told = desk.run(&["completions", shell]).await;
        assert_eq!(told.code, Some(0), "{told:#?}");
        assert!(told.out.contains("extend-hash"), "{shell}");
    }
    // Bash itself takes it, and completes with it.
    let script = "source <(codius completions bash); COMP_WORDS=(codius ini); COMP_CWORD=1; \
                  _codius codius ini codius; echo ${COMPREPLY[@]}";
    let script = script.replace(
        "codius completions",
        &format!("{} completions", env!("CARGO_BIN_EXE_codius")),
    );
    let output = std::process::Command::new("bash")
        .args(["-c", &script])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "init\n",
        "{output:?}"
    );

    let told = desk.run(&["man", "--dir", "pages"]).await;
    assert_eq!(told.code, Some(0), "{told:#?}");
    let mut pages: Vec<_> = std::fs::read_dir(desk.work().join("pages"))
        .unwrap()
        .map(|page| page.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    for page in ["codius.1", "codius-init.1", "codius-cron-create.1"] {
        assert!(pages.iter().any(|one| one == page), "{pages:?}");
    }
    assert!(desk.run(&["man"]).await.out.contains(".TH codius 1"));
}

/// With one blank where there are many: columns are as wide as addresses, which differ between runs.
fn squeezed(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}
