//! Hosts tell each other of hosts: real `codiusd` processes on loopback.

mod support;

use std::{
    collections::BTreeSet,
    net::TcpListener,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use support::{Settings, World};

/// Long enough for several rounds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Rounds every second, so that the test is not long.
const QUICK: &str = "exchange_interval_secs = 1\ncheck_interval_secs = 2\nretry_secs = 1\n";

/// A host that takes peers from its own machine.
fn host(bootstrap: &[&World]) -> Result<World> {
    let urls: Vec<&str> = bootstrap.iter().map(|world| world.api.as_str()).collect();
    World::start(Settings {
        more: format!("[peers]\nallow_private = true\nbootstrap = {urls:?}\n{QUICK}"),
        ..Settings::default()
    })
}

fn client() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .build()?)
}

async fn get(world: &World, path: &str) -> Result<Value> {
    let response = client()?.get(format!("{}{path}", world.api)).send().await?;
    ensure!(response.status() == 200, "{path}: {}", response.status());
    Ok(response.json().await?)
}

async fn discover(world: &World, body: &Value) -> Result<(u16, Value)> {
    let url = format!("{}/peers/discover", world.api);
    let response = client()?.post(url).json(body).send().await?;
    Ok((response.status().as_u16(), response.json().await?))
}

async fn peers(world: &World) -> Result<BTreeSet<String>> {
    let reply = get(world, "/peers").await?;
    Ok(serde_json::from_value(reply["peers"].clone())?)
}

/// Waits until a host lists exactly these.
async fn lists(world: &World, others: &[&str]) -> Result<()> {
    let wanted: BTreeSet<String> = others.iter().map(|&url| url.to_owned()).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = peers(world).await?;
        if found == wanted {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{} lists {found:?}, not {wanted:?}\n{}",
            world.api,
            world.log()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_learn_of_each_other_and_forget_who_is_gone() -> Result<()> {
    // A knows B, B knows C; nobody was told of A.
    let mut c = host(&[])?;
    let b = host(&[&c])?;
    let mut a = host(&[&b])?;
    let (url_a, url_b, url_c) = (a.api.clone(), b.api.clone(), c.api.clone());
    lists(&a, &[&url_b, &url_c]).await?;
    lists(&b, &[&url_a, &url_c]).await?;
    lists(&c, &[&url_a, &url_b]).await?;

    let info = get(&a, "/info").await?;
    ensure!(info["numPeers"] == 2 && info["peers"].is_null(), "{info}");
    let info = get(&a, "/info?requestPeers=true").await?;
    ensure!(
        info["peers"]
            .as_array()
            .is_some_and(|peers| peers.len() == 2),
        "{info}"
    );
    let page = client()?.get(&a.api).send().await?.text().await?;
    ensure!(page.contains(r#"<td id="numPeers">2</td>"#), "{page}");
    let one = get(&a, "/peers?limit=1").await?;
    ensure!(
        one["peers"]
            .as_array()
            .is_some_and(|peers| peers.len() == 1),
        "{one}"
    );

    // As another host asks. Itself, and what is no peer, is not listed by that.
    let nonsense = json!({ "peers": [url_a, "http://localhost:1/x", "", "http://127.0.0.1:1"] });
    let (status, reply) = discover(&a, &nonsense).await?;
    let members: Vec<&String> = reply
        .as_object()
        .map(|reply| reply.keys().collect())
        .unwrap_or_default();
    ensure!(
        status == 200 && members == ["name", "version", "peers"],
        "{status} {reply}"
    );
    ensure!(
        reply["peers"]
            .as_array()
            .is_some_and(|peers| peers.len() == 2),
        "{reply}"
    );
    lists(&a, &[&url_b, &url_c]).await?;

    // C dies, and is listed by nobody; it comes back at the same address, and is listed again.
    c.kill()?;
    lists(&a, &[&url_b]).await?;
    lists(&b, &[&url_a]).await?;
    c.settings.listen = url_c.replace("http://localhost", "127.0.0.1");
    c.run()?;
    ensure!(c.api == url_c, "{} is not {url_c}", c.api);
    lists(&b, &[&url_a, &url_c]).await?;
    lists(&a, &[&url_b, &url_c]).await?;

    // A remembers them itself: it is restarted without anyone to begin with.
    a.stop()?;
    a.settings.more = format!("[peers]\nallow_private = true\n{QUICK}");
    a.run()?;
    let restarted = a.api.clone();
    lists(&a, &[&url_b, &url_c]).await?;
    // Its port is another, so the others know it by another name; the old one is gone.
    lists(&b, &[&restarted, &url_c]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_make_a_host_speak_to_its_own_network() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let world = World::start(Settings {
        // A name that leads nowhere (RFC 6761).
        more: format!("[peers]\nbootstrap = [\"https://codius.invalid\"]\n{QUICK}"),
        ..Settings::default()
    })?;
    let hosts = [
        "127.0.0.1",
        "localhost",
        "127.1",
        "0.0.0.0",
        "[::ffff:127.0.0.1]",
        "a.localhost",
    ];
    let named: Vec<String> = hosts
        .iter()
        .flat_map(|host| ["https", "http"].map(|scheme| format!("{scheme}://{host}:{port}")))
        .collect();
    let (status, reply) = discover(&world, &json!({ "peers": named })).await?;
    ensure!(status == 200, "{status} {reply}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(listener.accept().is_err(), "{}", world.log());
    ensure!(peers(&world).await?.is_empty());

    // The same names reach the listener of a host whose operator allows it: they would have here.
    let private = host(&[])?;
    let (status, reply) = discover(&private, &json!({ "peers": named })).await?;
    ensure!(status == 200, "{status} {reply}");
    let deadline = Instant::now() + PATIENCE;
    while listener.accept().is_err() {
        ensure!(Instant::now() < deadline, "{}", private.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_not_found_itself_well_exchanges_no_peers() -> Result<()> {
    let world = World::start(Settings::default())?;
    let (status, reply) = discover(&world, &json!({ "peers": [] })).await?;
    ensure!(status == 403, "{status} {reply}");
    ensure!(reply["message"] == "This host is misconfigured.", "{reply}");
    // What cannot be understood is refused first.
    let (status, reply) = discover(&world, &json!({ "peers": [], "more": 1 })).await?;
    ensure!(status == 400, "{status} {reply}");
    ensure!(
        reply["message"] == "Invalid request payload input",
        "{reply}"
    );
    Ok(())
}
