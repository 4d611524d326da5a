//! A host that is killed while it makes the template that its pods are cloned from.

mod support;

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;
use support::{Settings, World, document, hash_of, shell};
use tokio::time::{Instant, sleep};

const PRICE_LIMIT: u64 = 1_000_000_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// How far the making is when the host is killed: QEMU has just begun, the kernel boots, and so on to the end,
/// as far as this machine is as fast as usual. Whenever it is, the outcome is the same.
const AFTER: [u64; 4] = [0, 700, 1600, 2500];

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_while_it_makes_a_template_makes_another() -> Result<()> {
    let mut world = World::start(Settings {
        warm: true,
        ..Settings::default()
    })?;
    let templates = world.data_dir().join("pods/templates");
    for after in AFTER {
        // Given a host that makes a template from nothing,
        let deadline = Instant::now() + PATIENCE;
        while world.machines().is_empty() && !world.log().contains("are cloned from now on") {
            ensure!(Instant::now() < deadline, "no template is made");
            sleep(Duration::from_millis(5)).await;
        }
        sleep(Duration::from_millis(after)).await;

        // when it is killed, and started again,
        world.kill()?;
        let making = world.machines();
        ensure!(after > 0 || !making.is_empty(), "it was ready too soon");
        let whole = fs::read_dir(&templates)?.flatten().any(|entry| {
            let path = entry.path();
            path.extension().is_none()
        });
        ensure!(!whole || making.is_empty(), "half of one counts as whole");
        if whole {
            fs::remove_dir_all(&templates)?;
        }
        world.run()?;

        // then the machine that was to be one is gone before the host is ready.
        let left = world.machines();
        ensure!(
            making.iter().all(|machine| !left.contains(machine)),
            "{making:?}, {left:?}\n{}",
            world.log()
        );
    }
    world.warmed().await?;
    ensure!(world.machines().is_empty());
    let names: Vec<String> = fs::read_dir(&templates)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    ensure!(names.len() == 1 && !names[0].contains('.'), "{names:?}");

    // And the template is a good one.
    let busybox = world.busybox().await?;
    let serve = "mkdir -p /www && echo hello > /www/index.html && exec httpd -f -p 8080 -h /www";
    let upload = document("warm", Some(8080), json!([shell("web", &busybox, serve)]));
    let wallet = world.wallet().await?;
    world
        .client()
        .upload(&upload, 8, &wallet, PRICE_LIMIT)
        .await?;
    let (status, page) = world.visit(&hash_of(&upload).to_string(), "/").await?;
    ensure!(status == 200 && page == "hello\n", "{status} {page}");
    let log = world.log();
    ensure!(log.contains("cloned=true"), "{log}");
    ensure!(!log.contains("a clone has failed"), "{log}");
    world.stop()
}
