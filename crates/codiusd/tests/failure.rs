//! What fails on the way costs nothing, says why, and leaves nothing behind.

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use codius_api::{ErrorBody, FailureCause, Trouble};
use codius_client::{ClientError, PayToken};
use codius_testkit::{ImageBuilder, Layer};
use ilp_connector::{Clock, SystemClock};
use ilp_link::{
    BtpClient, RequestHandler,
    stream::{PacketSender, StreamConnection, SystemEntropy},
};
use ilp_packet::{ErrorCode, Prepare, Reject, Reply};
use ilp_stream::{Config, Connection, SharedSecret};
use serde_json::json;
use support::{Settings, World, document, shell};

const PRICE_LIMIT: u64 = 1_000_000_000;

/// Uploads for a minute and expects the host to say no.
async fn refused(world: &World, upload: &str) -> Result<(ErrorBody, codius_client::Receipt)> {
    let wallet = world.wallet().await?;
    match world
        .client()
        .upload(upload, 60, &wallet, PRICE_LIMIT)
        .await
    {
        Err(ClientError::Refused { body, paid }) => Ok((*body, paid)),
        Err(error) => bail!("another error: {error:?}"),
        Ok(answer) => bail!("it worked: {answer:?}"),
    }
}

fn cause(body: &ErrorBody) -> Option<Trouble> {
    match body.cause {
        Some(FailureCause::Known(trouble)) => Some(trouble),
        Some(FailureCause::Other(_)) | None => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_known_before_is_refused_before_money_is_asked_for() -> Result<()> {
    let mut world = World::start(Settings {
        memory_mib: 1000,
        max_unpacked_mib: 64,
        ..Settings::default()
    })?;
    let busybox = world.busybox().await?;
    let host = world.registry.host();
    let of_image =
        |name: &str, image: &str| document(name, None, json!([shell("app", image, "sleep 1000")]));

    let missing = of_image("missing", &format!("{host}/test/no-such-image:1"));
    let (body, paid) = refused(&world, &missing).await?;
    ensure!(
        cause(&body) == Some(Trouble::ImageNotFound) && body.status_code == 422,
        "{body:?}"
    );
    ensure!(
        body.message.contains("no-such-image") && paid.paid == 0,
        "{body:?}"
    );

    let invalid = of_image("invalid", "UPPER case/!");
    let (body, paid) = refused(&world, &invalid).await?;
    ensure!(
        cause(&body) == Some(Trouble::ImageInvalid) && paid.paid == 0,
        "{body:?}"
    );

    // There is room for one pod.
    let wallet = world.wallet().await?;
    world
        .client()
        .upload(&of_image("one", &busybox), 60, &wallet, PRICE_LIMIT)
        .await?;
    let (body, paid) = refused(&world, &of_image("two", &busybox)).await?;
    ensure!(
        body.status_code == 503 && body.message == "Memory usage exceeded. Send pod request later.",
        "{body:?}"
    );
    ensure!(
        cause(&body) == Some(Trouble::HostFull) && paid.paid == 0,
        "{body:?}"
    );
    world.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_come_up_is_paid_back_and_gone() -> Result<()> {
    let mut world = World::start(Settings {
        port_timeout_secs: 6,
        max_unpacked_mib: 8,
        ..Settings::default()
    })?;
    let busybox = world.busybox().await?;
    let cases = [
        (
            "ends",
            Some(8080),
            "echo out of luck >&2; exit 3",
            Trouble::ProgramFailed,
            "exit code 3",
        ),
        (
            "ends without a port",
            None,
            "exit 4",
            Trouble::ProgramFailed,
            "exit code 4",
        ),
        (
            "never listens",
            Some(8080),
            "sleep 1000",
            Trouble::PortNotOpened,
            "port 8080 was not opened",
        ),
    ];
    for (name, port, script, trouble, said) in cases {
        let (body, paid) = refused(
            &world,
            &document(name, port, json!([shell("app", &busybox, script)])),
        )
        .await?;
        ensure!(
            cause(&body) == Some(trouble) && body.message.contains(said),
            "{name}: {body:?}"
        );
        ensure!(
            paid.paid > 0 && paid.refunded == paid.paid,
            "{name}: {paid:?}"
        );
        ensure!(
            body.refunded.map(|units| units.0) == Some(paid.paid) && body.owed.is_none(),
            "{name}: {body:?}"
        );
        world.nothing_remains().await?;
    }
    let no_program = document(
        "no program",
        None,
        json!([{ "id": "app", "image": busybox, "command": ["/no/such"] }]),
    );
    let (body, paid) = refused(&world, &no_program).await?;
    ensure!(
        cause(&body) == Some(Trouble::ProgramFailed) && body.message.contains("/no/such"),
        "{body:?}"
    );
    ensure!(paid.refunded == paid.paid, "{paid:?}");

    // An image whose size is only known when it is unpacked.
    let large = Layer::new().file("large", 0o644, vec![7; 16 << 20]);
    let large = ImageBuilder::new()
        .layer(large)
        .cmd(&["/large"])
        .push(&world.registry, "test/large:1")
        .await?;
    let (body, paid) = refused(
        &world,
        &document(
            "large",
            None,
            json!([{ "id": "app", "image": large.by_digest }]),
        ),
    )
    .await?;
    ensure!(
        cause(&body) == Some(Trouble::ImageTooLarge) && paid.refunded == paid.paid,
        "{body:?} {paid:?}"
    );

    world.nothing_remains().await?;
    world.stop()?;
    let balances = world.balances().await?;
    ensure!(
        balances.is_empty(),
        "somebody has money of failed orders: {balances:?}"
    );
    Ok(())
}

/// A payer that does not keep to what it began.
struct Payer {
    client: BtpClient,
    connection: StreamConnection,
    stream: ilp_stream::StreamId,
}

struct Sender(BtpClient);

#[async_trait]
impl PacketSender for Sender {
    async fn send(&self, prepare: Prepare) -> Reply {
        match self.0.send(prepare).await {
            Ok(reply) => reply,
            Err(error) => Err(Reject::new(
                ErrorCode::PeerUnreachable,
                None,
                error.to_string(),
            )),
        }
    }
}

/// Answers what the host sends, as every client of the original does.
#[derive(Default)]
struct Inbox(std::sync::OnceLock<StreamConnection>);

#[async_trait]
impl RequestHandler for Inbox {
    async fn handle(&self, prepare: Prepare) -> Reply {
        match self.0.get() {
            Some(connection) => connection.incoming(&prepare, || async { Ok(()) }).await,
            None => Err(Reject::new(ErrorCode::UnexpectedPayment, None, "")),
        }
    }
}

impl Payer {
    /// Answers a 402: opens the stream and waits until the host has seen it.
    async fn answer(world: &World, demand: &str, send_max: u64, packet: u64) -> Result<Self> {
        let words: Vec<&str> = demand.split(' ').collect();
        let [_, address, secret, _price] = words[..] else {
            bail!("not four words: {demand}")
        };
        let clock = Arc::new(SystemClock);
        let url = world
            .interledger
            .replace("btp+ws://", "btp+ws://:secret@")
            .parse()?;
        let inbox = Arc::new(Inbox::default());
        let client = BtpClient::connect(&url, inbox.clone(), clock.clone()).await?;
        let own = client.configuration().await?;
        let config = Config {
            local_address: Some(own.client_address),
            max_packet_amount: packet,
            ..Config::default()
        };
        let secret = SharedSecret(
            STANDARD
                .decode(secret)?
                .try_into()
                .ok()
                .context("not 32 bytes")?,
        );
        let machine = Connection::client(
            clock.now(),
            config,
            &secret,
            address.parse()?,
            Box::new(SystemEntropy),
        );
        let connection = StreamConnection::spawn(machine, Arc::new(Sender(client.clone())), clock);
        let _ = inbox.0.set(connection.clone());
        let stream = connection.with(|machine, _| {
            let stream = machine.open_stream()?;
            machine.set_send_max(stream, send_max)?;
            Ok::<_, ilp_stream::CommandError>(stream)
        })?;
        let ready = connection.until(|_, seen| {
            let closed = seen.closed.as_ref().map(|reason| bail!("closed: {reason}"));
            if seen.data.contains_key(&stream) {
                Some(Ok(()))
            } else {
                closed
            }
        });
        tokio::time::timeout(Duration::from_secs(20), ready).await??;
        Ok(Self {
            client,
            connection,
            stream,
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_is_too_small_or_cut_off_keeps_nothing_that_is_not_recorded() -> Result<()> {
    let mut world = World::start(Settings::default())?;
    let busybox = world.busybox().await?;
    let upload = document("short", None, json!([shell("app", &busybox, "sleep 1000")]));
    let price = world.client().quote(&upload, 600).await?.price.0;
    let http = reqwest::Client::new();
    let post = |token: &str| {
        http.post(format!("{}/pods?duration=600", world.api))
            .header("Pay-Token", token)
            .body(upload.clone())
    };
    let demanded = async |token: &str| -> Result<String> {
        let reply = post(token).send().await?;
        ensure!(reply.status() == 402, "{reply:?}");
        Ok(reply.headers()["pay"].to_str()?.to_owned())
    };

    // One who offers half the price is told at once, and pays nothing.
    let token = PayToken::random().header();
    let payer = Payer::answer(&world, &demanded(&token).await?, price / 2, u64::MAX).await?;
    let body: ErrorBody = post(&token).send().await?.json().await?;
    ensure!(
        body.status_code == 402 && cause(&body) == Some(Trouble::PaymentTooSmall),
        "{body:?}"
    );
    ensure!(
        payer
            .connection
            .with(|machine, _| machine.stream_sent(payer.stream))
            == Some(0)
    );
    // The token is spent: the same answer again. With another request it is refused.
    let again: ErrorBody = post(&token).send().await?.json().await?;
    ensure!(again == body, "{again:?}");
    let other = http
        .post(format!("{}/pods?duration=601", world.api))
        .header("Pay-Token", &token)
        .body(upload.clone());
    let other: ErrorBody = other.send().await?.json().await?;
    ensure!(
        other.status_code == 400 && cause(&other) == Some(Trouble::TokenUsed),
        "{other:?}"
    );

    // One who goes away in the middle: what had arrived is owed.
    let token = PayToken::random().header();
    let payer = Payer::answer(&world, &demanded(&token).await?, price, price / 1000).await?;
    let second = tokio::spawn(post(&token).send());
    payer
        .connection
        .until(|machine, _| (machine.stream_sent(payer.stream) > Some(0)).then_some(()))
        .await;
    payer.client.close();
    let body: ErrorBody = second.await??.json().await?;
    ensure!(body.status_code == 402, "{body:?}");
    let owed = body.owed.context("nothing is owed")?.0;
    ensure!(owed > 0 && owed < price, "{owed} of {price}");

    world.nothing_remains().await?;
    world.stop()?;
    let balances = world.balances().await?;
    let of = |name: &str| {
        balances
            .iter()
            .filter(|(account, _)| account.starts_with(name))
            .map(|(_, b)| b)
            .sum::<i64>()
    };
    let owed = i64::try_from(owed)?;
    ensure!(
        of("owed:") == owed && of("local:") == -owed && balances.len() == 2,
        "{balances:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_while_a_pod_starts_owes_the_money_and_runs_nothing() -> Result<()> {
    let mut world = World::start(Settings::default())?;
    let busybox = world.busybox().await?;
    let serve = "mkdir -p /www && echo hi > /www/index.html && exec httpd -f -p 8080 -h /www";
    let upload = document("killed", Some(8080), json!([shell("web", &busybox, serve)]));
    let hash = support::hash_of(&upload);
    let price = world.client().quote(&upload, 60).await?.price.0;
    let (client, wallet) = (world.client(), world.wallet().await?);
    let buying = tokio::spawn({
        let upload = upload.clone();
        async move { client.upload(&upload, 60, &wallet, PRICE_LIMIT).await }
    });
    // Paid, and the machine is on its way.
    while !world
        .remains()
        .iter()
        .any(|name| name.starts_with("process"))
    {
        ensure!(!buying.is_finished(), "{:?}", buying.await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.kill()?;
    let Err(ClientError::Lost(lost)) = buying.await? else {
        bail!("the uploader did not notice")
    };
    ensure!(
        lost.receipt.paid == price && lost.receipt.refunded == 0,
        "{lost:?}"
    );

    // The next start tidies up and records what is owed.
    world.run()?;
    world.nothing_remains().await?;
    world.stop()?;
    let balances = world.balances().await?;
    let signed = i64::try_from(price)?;
    ensure!(
        balances
            == [
                ("local:clients".to_owned(), -signed),
                (format!("owed:{hash}"), signed)
            ],
        "{balances:?}\n{}",
        world.log()
    );

    // It runs the program when somebody uploads it again: twice the time for once the price.
    world.run()?;
    let before = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_millis();
    let again = world
        .client()
        .upload(&upload, 60, &world.wallet().await?, PRICE_LIMIT)
        .await?;
    let bought = u128::from(again.reply.expiry.get()) - before;
    ensure!(
        bought >= 119_000,
        "{bought} ms for {price} and {price} owed"
    );
    ensure!(world.visit(&hash.to_string(), "/").await?.0 == 200);
    world.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_outlive_the_daemon() -> Result<()> {
    let mut world = World::start(Settings {
        on_shutdown: "leave",
        ..Settings::default()
    })?;
    let busybox = world.busybox().await?;
    let serve =
        "mkdir -p /www && echo $RANDOM$RANDOM > /www/index.html && exec httpd -f -p 8080 -h /www";
    let upload = document(
        "outlives",
        Some(8080),
        json!([shell("web", &busybox, serve)]),
    );
    let hash = support::hash_of(&upload).to_string();
    let answer = world
        .client()
        .upload(&upload, 300, &world.wallet().await?, PRICE_LIMIT)
        .await?;
    let before = world.visit(&hash, "/").await?;
    world.stop()?;
    ensure!(
        world
            .remains()
            .iter()
            .any(|name| name.starts_with("process")),
        "it ended with the daemon"
    );
    world.run()?;
    ensure!(
        world.visit(&hash, "/").await? == before,
        "another pod, or none:\n{}",
        world.log()
    );
    // And once more, without a good-bye.
    world.kill()?;
    world.run()?;
    ensure!(
        world.visit(&hash, "/").await? == before,
        "another pod, or none:\n{}",
        world.log()
    );
    let expiry = world.client().pod(&support::hash_of(&upload)).await?.expiry;
    ensure!(
        expiry.get().abs_diff(answer.reply.expiry.get()) <= 200,
        "{expiry} {}",
        answer.reply.expiry
    );
    world.settings.on_shutdown = "stop";
    world.stop()?;
    world.run()?;
    world.stop()?;
    world.nothing_remains().await
}

/// An image without a digest is what it was when it was uploaded, also when its pod has to be started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_does_not_change_what_runs() -> Result<()> {
    let mut world = World::start(Settings {
        on_shutdown: "leave",
        ..Settings::default()
    })?;
    let push = async |page: &str| -> Result<()> {
        let layer = Layer::new().file("www/index.html", 0o644, page);
        let image = codius_testkit::busybox(ImageBuilder::new().layer(layer))?;
        image.push(&world.registry, "test/moving:1").await?;
        Ok(())
    };
    push("first").await?;
    let image = world.registry.reference("test/moving:1");
    let serve = "exec httpd -f -p 8080 -h /www";
    let upload = document("moving", Some(8080), json!([shell("web", &image, serve)]));
    let hash = support::hash_of(&upload).to_string();
    let wallet = world.wallet().await?;
    let client = world.client();
    client.upload(&upload, 300, &wallet, PRICE_LIMIT).await?;
    ensure!(world.visit(&hash, "/").await? == (200, "first".to_owned()));

    push("second").await?;
    world.kill()?;
    for machine in world.machines() {
        kill(machine)?;
    }
    world.run()?;
    // Visitors are told to come back until the pod runs again.
    let deadline = Instant::now() + Duration::from_secs(60);
    let page = loop {
        let (status, page) = world.visit(&hash, "/").await?;
        if status == 200 {
            break page;
        }
        ensure!(
            Instant::now() < deadline,
            "{status} {page}\n{}",
            world.log()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    ensure!(page == "first", "{page}");
    // Nor when more time is bought with the same manifest.
    let wallet = world.wallet().await?;
    let client = world.client();
    client.upload(&upload, 60, &wallet, PRICE_LIMIT).await?;
    ensure!(world.visit(&hash, "/").await? == (200, "first".to_owned()));
    world.settings.on_shutdown = "stop";
    world.stop()?;
    world.run()?;
    world.stop()
}

fn kill(process: u32) -> Result<()> {
    let killed = std::process::Command::new("kill")
        .args(["-KILL", &process.to_string()])
        .status()?;
    ensure!(killed.success(), "{killed}");
    Ok(())
}
