//! Jobs of cron. `crontab` is a script here that keeps a file, as the real one does.

mod support;

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::json;
use support::{
    Desk,
    host::{Character, FAIR, Host},
    network::Network,
};

const FOREIGN: &str = "MAILTO=me\n# mine\n0 3 * * * backup\n";

/// A desk with a crontab that has a job of somebody else.
fn desk() -> Desk {
    let desk = Desk::with_program();
    let script = desk.bin().join("crontab");
    let file = desk.home().join("crontab");
    fs::write(
        &script,
        format!(
            "#!/bin/sh\ncase $1 in\n-l) cat {file} 2>/dev/null || {{ echo 'no crontab for me' >&2; exit 1; }};;\n-) cat > {file};;\nesac\n",
            file = file.display()
        ),
    )
    .expect("the directory is ours");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&script, mode).expect("the file is ours");
    fs::write(&file, FOREIGN).expect("the directory is ours");
    desk
}

fn crontab(desk: &Desk) -> String {
    fs::read_to_string(desk.home().join("crontab")).expect("it is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_added_shown_and_removed_and_others_stay() {
    let network = Network::start().await;
    let host = Host::start(&network, Character::Honest, 2).await;
    let desk = desk();
    let ilp = network.url();
    let words = ["upload", "-y", "--host", &host.url, "--ilp", &ilp];
    assert_eq!(desk.run(&words).await.code, Some(0));
    // The host's answer is of a fixed day: what it runs has not ended.
    let mut state = desk.read("default.codiusstate.json");
    state["status"]["hostDetails"][&host.url]["expirationDate"] =
        json!("01-01-2099 00:00:00 +0000");
    desk.write("default.codiusstate.json", &state);

    let create = [
        "cron",
        "create",
        "--skip-extend",
        "-m",
        "10",
        "-u",
        "XRP",
        "-y",
        "--ilp",
        &ilp,
    ];
    let created = desk.run(&create).await;
    assert_eq!(created.code, Some(0), "{created:#?}");
    assert_eq!(network.taken(), i128::from(FAIR), "nothing is bought now");
    let hash = state["manifestHash"].as_str().unwrap();
    let text = crontab(&desk);
    let line = text.strip_prefix(FOREIGN).unwrap();
    assert!(line.starts_with("@hourly PATH="), "{line}");
    assert!(line.contains(
        " codius extend -d 3600 --max-monthly-rate 10 --units XRP -y --codius-state-file "
    ));
    assert!(line.ends_with(&format!("for pod {hash}; do not modify it by hand\n")));
    let jobs = desk.read("default.codiusstate.json")["status"]["cronJobs"].clone();
    assert_eq!(jobs[0]["job"], line.trim_end());

    let twice = desk.run(&create).await;
    assert_eq!(twice.code, Some(2), "{twice:#?}");
    let viewed = desk.run(&["cron", "view", "--json"]).await;
    assert_eq!(viewed.json()[0]["job"], line.trim_end());

    // The job is what the shell understands: it buys an hour.
    let command = line.strip_prefix("@hourly ").unwrap();
    let command = command.split('#').next().unwrap().to_owned();
    let mut shell = std::process::Command::new("/bin/sh");
    shell
        .args(["-c", &command])
        .env_clear()
        .env("HOME", desk.home());
    let ran = tokio::task::spawn_blocking(move || shell.output())
        .await
        .unwrap()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");
    assert!(network.taken() > i128::from(FAIR));

    let removed = desk.run(&["cron", "remove", "-y"]).await;
    assert_eq!(removed.code, Some(0), "{removed:#?}");
    assert_eq!(crontab(&desk), FOREIGN);
    assert_eq!(
        desk.read("default.codiusstate.json")["status"]["cronJobs"],
        json!([])
    );
    let none = desk.run(&["cron", "remove", "-y", "--all"]).await;
    assert_eq!(none.code, Some(1), "{none:#?}");
    assert_eq!(crontab(&desk), FOREIGN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffer_is_bought_before_the_job_is_added() {
    let network = Network::start().await;
    let host = Host::start(&network, Character::Honest, 2).await;
    let desk = desk();
    let ilp = network.url();
    let words = ["upload", "-y", "--host", &host.url, "--ilp", &ilp];
    assert_eq!(desk.run(&words).await.code, Some(0));
    let mut state = desk.read("default.codiusstate.json");
    state["status"]["hostDetails"][&host.url]["expirationDate"] =
        json!("01-01-2099 00:00:00 +0000");
    desk.write("default.codiusstate.json", &state);
    // There is more than that already.
    let before = network.taken();
    let enough = desk
        .run(&["cron", "create", "-b", "7200", "-y", "--ilp", &ilp])
        .await;
    assert_eq!(enough.code, Some(0), "{enough:#?}");
    assert_eq!(network.taken(), before);
    let file = desk.home().join("crontab");
    fs::write(&file, "").unwrap();

    state["status"]["hostDetails"][&host.url]["expirationDate"] =
        json!("01-01-2020 00:00:00 +0000");
    desk.write("default.codiusstate.json", &state);
    let bought = desk
        .run(&["cron", "create", "-b", "7200", "-y", "--ilp", &ilp])
        .await;
    assert!(network.taken() > before, "{bought:#?}");
}
