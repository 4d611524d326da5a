//! What a host finds at its start that belongs to no pod of its own: everything is removed, the pod that
//! has a lease goes on, what is another's stays, and the log says in one line what was done.

mod support;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use codius_manifest::ManifestHash;
use serde_json::json;
use support::{Settings, World, document, hash_of, shell};

const PRICE_LIMIT: u64 = 1_000_000_000;
/// Slots that no pod of this test has.
const NAMESPACE: u16 = 21;
const VETH: u16 = 22;
const TAP: u16 = 23;
const MACHINE: u16 = 24;
const DEAD_RECORD: u16 = 25;

/// A process that is ended with the test if the host has not ended it.
struct Stray(Child);

impl Stray {
    /// A virtual machine that runs nothing, under a name of the host's.
    fn machine(name: &str) -> Result<Self> {
        let child = Command::new("qemu-system-x86_64")
            .args(["-name", name, "-machine", "none", "-nodefaults"])
            .args(["-display", "none", "-S"])
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    fn runs(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Networks of others, which go with the test.
struct Others(Vec<Vec<String>>);

impl Drop for Others {
    fn drop(&mut self) {
        for words in &self.0 {
            let _ = Command::new(&words[0]).args(&words[1..]).status();
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn hash(byte: u8) -> ManifestHash {
    ManifestHash::from_bytes([byte; 32])
}

/// Files below the pods' directory that no living pod has.
fn plant_files(pods: &Path) -> Result<()> {
    let dir = pods.join("pods").join(hash(1).to_string());
    fs::create_dir(&dir)?;
    fs::write(dir.join("scratch.img"), [0; 4096])?;
    fs::write(dir.join("agent.sock"), "")?;
    // A file where a directory should be.
    fs::write(pods.join("pods/scratch.img"), [0; 4096])?;
    let records = pods.join("records");
    let record = json!({
        "version": 1,
        "hash": hash(2),
        "slot": DEAD_RECORD,
        "phase": "running",
        "process": { "pid": 4_194_000, "start_time": 1, "boot_id": "of another day" },
        "port": 8080,
        "containers": ["web"],
    });
    fs::write(
        records.join(format!("{}.json", hash(2))),
        record.to_string(),
    )?;
    fs::write(records.join(format!("{}.json", hash(3))), "{")?;
    fs::write(records.join(format!("{}.new", hash(4))), "{")?;
    Ok(())
}

/// In the image store: an image without a record, a record without an image, and something half made.
fn plant_images(images: &Path) -> Result<()> {
    let (one, other) = ("a".repeat(64), "b".repeat(64));
    fs::write(images.join(format!("images/{one}.squashfs")), [0; 4096])?;
    fs::write(images.join(format!("images/{other}.json")), "{}")?;
    fs::write(images.join("tmp/half"), [0; 4096])?;
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn tables() -> Result<String> {
    run("nft", &["list", "tables"])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_no_pod_is_removed_and_a_pod_with_a_lease_goes_on() -> Result<()> {
    // Given a pod that runs, and a host that was killed,
    let mut world = World::start(Settings {
        on_shutdown: "leave",
        ..Settings::default()
    })?;
    let busybox = world.busybox().await?;
    let serve =
        "mkdir -p /www && echo $RANDOM$RANDOM > /www/index.html && exec httpd -f -p 8080 -h /www";
    let upload = document("stays", Some(8080), json!([shell("web", &busybox, serve)]));
    let stays = hash_of(&upload).to_string();
    let wallet = world.wallet().await?;
    world
        .client()
        .upload(&upload, 600, &wallet, PRICE_LIMIT)
        .await?;
    let page = world.visit(&stays, "/").await?;
    ensure!(page.0 == 200, "{page:?}");
    world.kill()?;

    // and of every kind something that no lease has,
    let prefix = world.prefix();
    let (pods, images) = (
        world.data_dir().join("pods"),
        world.data_dir().join("images"),
    );
    let (before_pods, before_images) = (names(&pods.join("pods"))?, names(&images.join("images"))?);
    plant_files(&pods)?;
    plant_images(&images)?;
    let name = |slot: u16| format!("{prefix}{slot}");
    run("ip", &["netns", "add", &name(NAMESPACE)])?;
    let peer = format!("op{}", std::process::id());
    let veth = [
        "link",
        "add",
        &name(VETH),
        "type",
        "veth",
        "peer",
        "name",
        &peer,
    ];
    run("ip", &veth)?;
    run("ip", &["tuntap", "add", &name(TAP), "mode", "tap"])?;
    let mut machine = Stray::machine(&name(MACHINE))?;
    let instance = prefix.strip_prefix("cd").context("another prefix")?;
    let table = format!("codius_{}", instance.trim_end_matches('-'));
    // The table of this host, as an older version may have left it.
    run("nft", &["add", "chain", "inet", &table, "of_old"])?;
    // and beside it things of others, whose names are much like ours.
    let others = format!("cdzzzz-{}", std::process::id() % 1000);
    let other_table = format!("codius_other_{}", std::process::id());
    let _others = Others(vec![
        ["ip", "netns", "del", &others].map(str::to_owned).to_vec(),
        ["nft", "delete", "table", "inet", &other_table]
            .map(str::to_owned)
            .to_vec(),
    ]);
    run("ip", &["netns", "add", &others])?;
    run("nft", &["add", "table", "inet", &other_table])?;
    let mut other_machine = Stray::machine(&others)?;
    // QEMU needs a moment to be what it will be.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !world.machines().contains(&machine.0.id()) {
        ensure!(Instant::now() < deadline && machine.runs()?, "no QEMU");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // when it is started again,
    world.run()?;

    // then nothing of that is left,
    ensure!(!machine.runs()?, "the machine without a pod runs");
    for slot in [NAMESPACE, VETH, TAP, MACHINE, DEAD_RECORD] {
        for directory in ["/run/netns", "/sys/class/net"] {
            let path = Path::new(directory).join(name(slot));
            ensure!(!path.exists(), "{} is still there", path.display());
        }
    }
    ensure!(names(&pods.join("pods"))? == before_pods);
    ensure!(names(&pods.join("records"))? == [format!("{stays}.json")]);
    ensure!(names(&images.join("images"))? == before_images);
    ensure!(names(&images.join("tmp"))?.is_empty());
    let rules = run("nft", &["list", "table", "inet", &table])?;
    ensure!(!rules.contains("of_old"), "{rules}");
    // the pod is the same one,
    ensure!(
        world.visit(&stays, "/").await? == page,
        "another pod, or none:\n{}",
        world.log()
    );
    // what is another's is as it was,
    ensure!(Path::new("/run/netns").join(&others).exists());
    ensure!(tables()?.contains(&other_table));
    ensure!(other_machine.runs()?);
    // and the log says what was done.
    let log = world.log();
    let line = log
        .lines()
        .rfind(|line| line.contains("what an earlier run has left is in order"))
        .context("no line in the log")?;
    let line = without_colours(line);
    for said in [
        "leases=1",
        "pods_removed=1",
        "machines_ended=1",
        "networks_removed=3",
        "files_removed=2",
    ] {
        ensure!(line.contains(said), "{said} is not in: {line}");
    }

    world.settings.on_shutdown = "stop";
    world.stop()?;
    world.run()?;
    world.stop()?;
    world.nothing_remains().await
}

/// The log is coloured where it goes to a terminal, and may be elsewhere.
fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            for skipped in characters.by_ref() {
                if skipped == 'm' {
                    break;
                }
            }
        } else {
            plain.push(character);
        }
    }
    plain
}
