//! The host uploads a program to itself before it lets anybody in.

mod support;

use std::{
    net::TcpListener,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use support::{Settings, World};

/// A machine boots under emulation, beside others.
const TEST_TIMEOUT: Duration = Duration::from_secs(120);

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Status and body of `GET path`.
async fn get(world: &World, path: &str, authorization: Option<&str>) -> Result<(u16, Value)> {
    let port = world.api.rsplit(':').next().context("no port")?;
    let mut request = reqwest::Client::new().get(format!("http://127.0.0.1:{port}{path}"));
    if let Some(authorization) = authorization {
        request = request.header("Authorization", authorization);
    }
    let response = request.send().await?;
    let status = response.status().as_u16();
    Ok((status, response.json().await?))
}

/// Waits until the test is over and says what `GET /version` answers then.
async fn tested(world: &World) -> Result<(u16, Value)> {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let (status, body) = get(world, "/version", None).await?;
        if body["stats"]["running"] != true {
            return Ok((status, body));
        }
        ensure!(Instant::now() < deadline, "no end: {body}\n{}", world.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_lets_nobody_in_before_a_program_of_its_own_has_run_and_keeps_no_money_of_it()
-> Result<()> {
    let mut world = World::start(Settings {
        tests_itself: true,
        // The public name, which the port is part of, stays the same when it starts again.
        listen: format!("127.0.0.1:{}", free_port()?),
        ..Settings::default()
    })?;
    for (path, authorization) in [
        ("/version", None),
        ("/info", Some("Bearer 00")),
        ("/nothing", None),
        ("/api/v2/leases/x/events", None),
    ] {
        let (status, body) = get(&world, path, authorization).await?;
        ensure!(status == 503, "{path}: {status} {body}");
        ensure!(body["message"] == "Self Test Running", "{body}");
        ensure!(body["stats"]["selfTestSuccess"] == false, "{body}");
        ensure!(body["stats"]["running"] == true, "{body}");
    }
    // Pods are visited all the same; there is none of this name.
    let (status, _) = world.visit(&"a".repeat(52), "/").await?;
    ensure!(status == 404, "{status}");

    let (status, body) = tested(&world).await?;
    ensure!(status == 200, "{body}\n{}", world.log());
    let (_, info) = get(&world, "/info", None).await?;
    ensure!(info["selfTestSuccess"] == true, "{info}");
    ensure!(info["runningContracts"] == 0, "{info}");
    world.nothing_remains().await?;

    // A host that was seen to work is open at once, and tests itself again: this time it is killed in
    // the middle.
    world.stop()?;
    ensure!(
        world.balances().await?.is_empty(),
        "{:?}",
        world.balances().await?
    );
    world.run()?;
    let (status, _) = get(&world, "/version", None).await?;
    ensure!(status == 200, "{status}\n{}", world.log());
    world.logged("a pod has been started", 1).await?;
    world.kill()?;

    world.run()?;
    let (status, _) = get(&world, "/version", None).await?;
    ensure!(status == 200, "{status}\n{}", world.log());
    world.logged("self-test passed", 1).await?;
    world.nothing_remains().await?;
    world.stop()?;
    ensure!(
        world.balances().await?.is_empty(),
        "{:?}",
        world.balances().await?
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_found_under_its_public_name_stays_closed() -> Result<()> {
    let port = free_port()?;
    let mut world = World::start(Settings {
        tests_itself: true,
        public_uri: Some("http://nobody.invalid".to_owned()),
        listen: format!("127.0.0.1:{port}"),
        ..Settings::default()
    })?;
    world.logged("self-test failed", 0).await?;
    world.api = format!("http://localhost:{port}");
    let (status, body) = get(&world, "/version", None).await?;
    ensure!(
        status == 503 && body["message"] == "Self Test Failed",
        "{body}"
    );
    ensure!(body["stats"]["uploadSuccess"] == false, "{body}");
    world.stop()?;
    ensure!(
        world.balances().await?.is_empty(),
        "{:?}",
        world.balances().await?
    );
    Ok(())
}

/// A host that is being drained sells nothing to its test either, which says nothing about the host.
#[tokio::test(flavor = "multi_thread")]
async fn a_test_waits_for_the_end_of_a_drain_and_does_not_fail() -> Result<()> {
    // Given a host that is being drained, and has never tested itself,
    let mut world = World::start(Settings::default())?;
    let drained = Command::new(env!("CARGO_BIN_EXE_codiusd"))
        .args(["drain", "--data-dir"])
        .arg(world.data_dir())
        .output()?;
    ensure!(drained.status.success(), "{drained:?}");
    world.stop()?;

    // when it is started again and would test itself, then it says what it waits for.
    world.settings.tests_itself = true;
    world.run()?;
    world.logged("draining: the self-test waits", 0).await?;
    let (status, body) = get(&world, "/version", None).await?;
    ensure!(status == 503, "{body}");
    let message = "Self Test Waits: this host is being drained";
    ensure!(body["message"] == message, "{body}");
    ensure!(!world.log().contains("self-test failed"), "{}", world.log());
    world.stop()
}
