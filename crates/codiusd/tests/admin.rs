//! The operator's entrance of a real host: through its socket, its port and `codiusd admin`.

mod support;

use std::{
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use codius_microvm::Instance;
use reqwest::{Client, StatusCode, header};
use serde_json::{Value, json};
use support::{Settings, World, document, hash_of, shell};

const PRICE_LIMIT: u64 = 1_000_000_000;

/// Asks through the socket.
async fn ask(world: &World, path: &str) -> Result<(StatusCode, Value)> {
    let response = socket(world)?
        .get(format!("http://localhost{path}"))
        .send()
        .await?;
    Ok((response.status(), response.json().await?))
}

fn socket(world: &World) -> Result<Client> {
    Ok(Client::builder()
        .unix_socket(world.data_dir().join("admin.sock"))
        .build()?)
}

async fn configure(world: &World, body: &str) -> Result<(StatusCode, String)> {
    let request = socket(world)?
        .post("http://localhost/config")
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.to_owned());
    let response = request.send().await?;
    Ok((response.status(), response.text().await?))
}

/// What `codiusd admin` prints, and whether it did what it was asked.
fn tool(world: &World, arguments: &[&str]) -> Result<(bool, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_codiusd"))
        .arg("admin")
        .args(arguments)
        .arg("--data-dir")
        .arg(world.data_dir())
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(text)?))
}

async fn info(world: &World) -> Result<Value> {
    Ok(reqwest::get(format!("{}/info", world.api))
        .await?
        .json()
        .await?)
}

async fn quote(world: &World, document: &str) -> Result<String> {
    let method = reqwest::Method::OPTIONS;
    let request = Client::new().request(method, format!("{}/pods?duration=3600", world.api));
    let request = request.header(header::CONTENT_TYPE, "application/json");
    let reply: Value = request
        .body(document.to_owned())
        .send()
        .await?
        .json()
        .await?;
    Ok(reply["price"].as_str().context("no price")?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_sees_pods_and_accounts_and_sets_the_price() -> Result<()> {
    let mut world = World::start(Settings {
        more: "[admin]\ntcp_port = 0\n".to_owned(),
        ..Settings::default()
    })?;
    let metadata = fs::metadata(world.data_dir().join("admin.sock"))?;
    ensure!(metadata.file_type().is_socket());
    ensure!(
        metadata.permissions().mode() & 0o777 == 0o600,
        "{metadata:?}"
    );

    // The original's answers, with nothing running.
    let running = json!({ "test": "This shows that you are running the Codiusd Admin API." });
    ensure!(ask(&world, "/").await? == (StatusCode::OK, running.clone()));
    ensure!(ask(&world, "/any/thing").await? == (StatusCode::OK, running));
    ensure!(ask(&world, "/getPods").await? == (StatusCode::OK, json!({ "running": [] })));
    let uptime = json!({ "aggregate_pod_uptime": "0", "aggregate_earnings": { "XRP": "0" } });
    ensure!(ask(&world, "/getAllUptime").await? == (StatusCode::OK, uptime));
    let (status, error) = ask(&world, "/getPodInfo").await?;
    ensure!(
        status == 400 && error["message"] == "missing manifestHash",
        "{error}"
    );
    for id in ["x".to_owned(), "a".repeat(52)] {
        let (status, error) = ask(&world, &format!("/getPodInfo?id={id}")).await?;
        ensure!(status == 404, "{error}");
        ensure!(
            error["message"] == format!("no pod found with id. id={id}"),
            "{error}"
        );
    }

    // With a pod.
    let busybox = world.busybox().await?;
    let script = "mkdir /www; echo served > /www/index.html; httpd -f -p 8080 -h /www";
    let program = document(
        "serving",
        Some(8080),
        json!([shell("app", &busybox, script)]),
    );
    let wallet = world.wallet().await?;
    world
        .client()
        .upload(&program, 600, &wallet, PRICE_LIMIT)
        .await
        .with_context(|| world.log())?;
    let hash = hash_of(&program).to_string();
    ensure!(ask(&world, "/getPods").await?.1 == json!({ "running": [hash] }));
    let (status, pod) = ask(&world, &format!("/getPodInfo?id={hash}")).await?;
    ensure!(status == 200, "{pod}");
    let members: Vec<&String> = pod
        .as_object()
        .map(|pod| pod.keys().collect())
        .unwrap_or_default();
    let expected = [
        "id",
        "running",
        "start",
        "expiry",
        "memory",
        "totalUptime",
        "port",
        "ip",
    ];
    ensure!(members == expected, "{pod}");
    ensure!(
        pod["id"] == hash && pod["running"] == true && pod["memory"] == 512,
        "{pod}"
    );
    ensure!(pod["totalUptime"] == 600 && pod["port"] == 8080, "{pod}");
    let ip = pod["ip"].as_str().context("no address")?;
    let [a, b, c, _] = world.pool().octets();
    ensure!(ip.starts_with(&format!("{a}.{b}.{c}.")), "{pod}");
    ensure!(ask(&world, "/getAllUptime").await?.1["aggregate_pod_uptime"] == "600");

    let (done, text) = tool(&world, &["pods"])?;
    ensure!(done && text == format!("POD\n{hash}\n"), "{text}");
    let (done, text) = tool(&world, &["pods", "--json"])?;
    ensure!(
        done && serde_json::from_str::<Value>(&text)? == json!({ "running": [hash] }),
        "{text}"
    );
    let (done, text) = tool(&world, &["pod", &hash])?;
    ensure!(
        done && text.contains(&format!("address   {ip}:8080")),
        "{text}"
    );
    let (done, text) = tool(&world, &["pod", &"a".repeat(52)])?;
    ensure!(!done && text.contains("no pod found with id"), "{text}");
    let (done, text) = tool(&world, &["uptime"])?;
    ensure!(
        done && text.contains("running pods are paid for  600 s"),
        "{text}"
    );
    // What the wallet paid came over the clients' account, and is a debt of theirs.
    let paid = wallet.moved().paid;
    let (done, text) = tool(&world, &["accounts", "--json"])?;
    let accounts: Value = serde_json::from_str(&text)?;
    let clients = accounts["accounts"].as_array().and_then(|accounts| {
        let paid = paid.to_string();
        accounts
            .iter()
            .find(|account| account["amount_from"] == paid.as_str())
    });
    let clients = clients.with_context(|| format!("{paid} was paid: {text}"))?;
    ensure!(
        done && clients["balance"] == format!("-{paid}"),
        "{clients}"
    );
    let (done, text) = tool(&world, &["accounts"])?;
    ensure!(
        done && text.contains("ACCOUNT") && text.contains(&format!("-{paid}")),
        "{text}"
    );
    let (done, text) = tool(&world, &["peers"])?;
    ensure!(done && text.starts_with("PEER"), "{text}");

    // The price is for new leases; nothing is a price, too.
    let other = document("other", None, json!([shell("app", &busybox, "sleep 60")]));
    let before = quote(&world, &other).await?;
    for bad in [
        r#"{"hostCostPerMonth":-1}"#,
        r#"{"hostCostPerMonth":"5"}"#,
        r#"{"other":1}"#,
        "[]",
        "",
    ] {
        let (status, text) = configure(&world, bad).await?;
        ensure!(
            status == 400 && text.contains("\"Invalid request payload\""),
            "{bad}: {text}"
        );
    }
    ensure!(configure(&world, "{}").await? == (StatusCode::NO_CONTENT, String::new()));
    ensure!(quote(&world, &other).await? == before);
    let answer = configure(&world, r#"{"hostCostPerMonth":0}"#).await?;
    ensure!(
        answer == (StatusCode::NO_CONTENT, String::new()),
        "{answer:?}"
    );
    ensure!(quote(&world, &other).await? == "0");
    ensure!(info(&world).await?["costPerMonth"] == 0);
    ensure!(
        quote(&world, &program).await? == before,
        "the one that runs keeps its price"
    );
    let (done, text) = tool(&world, &["set-price", "2.5"])?;
    ensure!(done && text.contains("2.5 a month"), "{text}");
    ensure!(info(&world).await?["costPerMonth"] == 2.5);

    through_the_port(&world).await?;
    egress(&world, &hash).await?;
    rules(&world, &program, &other, &busybox).await?;

    // It holds over a restart; the tool says so when nobody is there.
    world.stop()?;
    ensure!(!world.data_dir().join("admin.sock").exists());
    let (done, text) = tool(&world, &["pods"])?;
    ensure!(!done && text.contains("start codiusd"), "{text}");
    world.run()?;
    ensure!(info(&world).await?["costPerMonth"] == 2.5);
    let (_, text) = tool(&world, &["rules"])?;
    ensure!(
        text.contains(&hash),
        "a rule holds over a restart, too: {text}"
    );
    let (_, text) = tool(&world, &["egress", "list"])?;
    ensure!(
        text.contains(&format!("{hash}  25/tcp\n")),
        "so does a permit: {text}"
    );
    Ok(())
}

/// What a pod may reach is changed while it runs, and what it has sent is counted.
async fn egress(world: &World, hash: &str) -> Result<()> {
    let allow = ["egress", "allow", hash, "--port", "25/tcp"];
    let (done, text) = tool(
        world,
        &[&allow[..], &["--range", "192.168.0.0/16"]].concat(),
    )?;
    ensure!(
        done && text.contains("may reach 25/tcp, 192.168.0.0/16 besides"),
        "{text}"
    );
    // The pod's own table knows of it, while it runs.
    let instance = Instance::of_data_dir(&fs::canonicalize(world.data_dir())?);
    let namespace = format!("cd{instance}-0");
    let listed = Command::new("ip")
        .args(["netns", "exec", &namespace, "nft", "list", "ruleset"])
        .output()?;
    let rules = String::from_utf8(listed.stdout)?;
    ensure!(
        rules.contains("192.168.0.0/16") && rules.contains("tcp dport 25 goto"),
        "{rules}"
    );
    let (done, text) = tool(
        world,
        &["egress", "remove", hash, "--range", "192.168.0.0/16"],
    )?;
    ensure!(done && text.contains("may reach 25/tcp besides"), "{text}");

    for (arguments, reason) in [
        (["allow", hash, "--range", "0.0.0.0/0"], "host itself"),
        (["allow", hash, "--range", "10.0.0.1/8"], "below its length"),
        (["allow", hash, "--port", "25/sctp"], "137-139/udp"),
        (["remove", hash, "--port", "26"], "admin egress list"),
    ] {
        let (done, text) = tool(world, &[&["egress"], &arguments[..]].concat())?;
        ensure!(!done && text.contains(reason), "{arguments:?}: {text}");
    }

    world.visit(hash, "/").await?;
    let (done, text) = tool(world, &["egress", "traffic"])?;
    ensure!(done && text.contains(hash), "{text}");
    let metrics = socket(world)?
        .get("http://localhost/metrics")
        .send()
        .await?;
    let kind = metrics.headers()[header::CONTENT_TYPE].clone();
    ensure!(
        kind == "text/plain; version=0.0.4; charset=utf-8",
        "{kind:?}"
    );
    let metrics = metrics.text().await?;
    let sent = "codius_pod_network_bytes_total{pod=\"HASH\",with=\"visitors\",direction=\"sent\"} ";
    let sent = sent.replace("HASH", hash);
    let bytes = metrics.lines().find_map(|line| line.strip_prefix(&sent));
    let bytes: u64 = bytes.with_context(|| metrics.clone())?.parse()?;
    ensure!(bytes > 100, "{metrics}");
    Ok(())
}

/// What is denied is refused before anybody pays, and what runs of it can be stopped.
async fn rules(world: &World, program: &str, other: &str, busybox: &str) -> Result<()> {
    let hash = hash_of(program).to_string();
    let (done, text) = tool(world, &["images"])?;
    ensure!(
        done && text.contains(busybox) && text.contains("MiB in all"),
        "{text}"
    );
    let (done, text) = tool(world, &["deny", "busybox"])?;
    ensure!(!done && text.contains("docker.io/busybox"), "{text}");

    let registry = busybox.split('/').next().context("no registry")?;
    let (done, text) = tool(world, &["deny", registry])?;
    let advice = format!("codiusd admin stop {hash}");
    ensure!(done && text.contains(&advice), "{text}");
    let wallet = world.wallet().await?;
    let refused = world
        .client()
        .upload(other, 600, &wallet, PRICE_LIMIT)
        .await;
    let refused = format!("{:?}", refused.err().context("it was taken")?);
    ensure!(
        refused.contains("403") && refused.contains("NotAllowed"),
        "{refused}"
    );
    ensure!(
        refused.contains(&format!("deny = \\\"{registry}\\\"")),
        "{refused}"
    );
    ensure!(wallet.moved().paid == 0, "{:?}", wallet.moved());
    let (done, text) = tool(world, &["undeny", registry])?;
    ensure!(done, "{text}");
    let (done, text) = tool(world, &["undeny", registry])?;
    ensure!(!done && text.contains("admin rules"), "{text}");

    // By its hash; it runs until it is stopped, and nobody makes it longer.
    let (done, text) = tool(world, &["deny", &hash])?;
    ensure!(done && text.contains(&advice), "{text}");
    let refused = world
        .client()
        .upload(program, 600, &wallet, PRICE_LIMIT)
        .await;
    ensure!(refused.is_err() && wallet.moved().paid == 0, "{refused:?}");
    let (done, text) = tool(world, &["stop", &hash])?;
    ensure!(done && text.contains("are owed"), "{text}");
    let (_, text) = tool(world, &["pods"])?;
    ensure!(text == "POD\n", "{text}");
    let (done, text) = tool(world, &["stop", &hash])?;
    ensure!(!done && text.contains("no pod found"), "{text}");
    Ok(())
}

/// The same on a port of 127.0.0.1, with the token only.
async fn through_the_port(world: &World) -> Result<()> {
    let log = world.log();
    let line = log
        .lines()
        .find(|line| line.contains("admin API on a TCP port"));
    let address = line
        .and_then(|line| line.rsplit("address=").next())
        .context("no port")?;
    ensure!(address.starts_with("127.0.0.1:"), "{address}");
    let path = world.data_dir().join("admin.token");
    ensure!(fs::metadata(&path)?.permissions().mode() & 0o777 == 0o600);
    let token = fs::read_to_string(&path)?;
    let url = format!("http://{address}/getPods");
    for wrong in [None, Some("Bearer"), Some("Bearer x"), Some("Basic x")] {
        let mut request = Client::new().get(&url);
        if let Some(value) = wrong {
            request = request.header(header::AUTHORIZATION, value);
        }
        let response = request.send().await?;
        ensure!(response.status() == 401, "{wrong:?}: {}", response.status());
        ensure!(response.headers()[header::WWW_AUTHENTICATE] == "Bearer");
    }
    let response = Client::new()
        .get(&url)
        .bearer_auth(token.trim())
        .send()
        .await?;
    ensure!(response.status() == 200, "{}", response.status());
    Ok(())
}
