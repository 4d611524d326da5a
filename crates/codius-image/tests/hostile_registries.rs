//! Registries that mean harm: to this host's network, its memory or its time. Spoken over plain
//! sockets, because a well-behaved server cannot say most of this.

mod kit;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use codius_image::ImageLimits;
use codius_pod::{ImageError, Images};
use kit::Host;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What a registry says to every request, after it has heard some of it.
#[derive(Clone)]
struct Script {
    /// At once.
    first: Vec<u8>,
    /// Then this, again and again, until the other side has enough.
    forever: Vec<u8>,
    /// Between two times.
    pause: Duration,
}

impl Script {
    /// Says it and is silent, but stays.
    fn once(first: impl Into<Vec<u8>>) -> Self {
        Self {
            first: first.into(),
            forever: Vec::new(),
            pause: Duration::ZERO,
        }
    }

    fn then(self, forever: impl Into<Vec<u8>>, pause_ms: u64) -> Self {
        Self {
            forever: forever.into(),
            pause: Duration::from_millis(pause_ms),
            ..self
        }
    }
}

async fn registry(script: Script) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let script = script.clone();
            tokio::spawn(async move { say(stream, &script).await });
        }
    });
    Ok(address)
}

async fn say(mut stream: TcpStream, script: &Script) -> Result<()> {
    let mut heard = [0; 4096];
    let _ = stream.read(&mut heard).await?;
    stream.write_all(&script.first).await?;
    if script.forever.is_empty() {
        // Ends with the other side.
        while stream.read(&mut heard).await? > 0 {}
        return Ok(());
    }
    loop {
        stream.write_all(&script.forever).await?;
        tokio::time::sleep(script.pause).await;
    }
}

/// Listens, and counts who comes.
async fn trap() -> Result<(u16, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let caught = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&caught);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok((port, caught))
}

fn impatient() -> ImageLimits {
    ImageLimits {
        idle: Duration::from_millis(300),
        resolve: Duration::from_secs(2),
        ..ImageLimits::default()
    }
}

/// What becomes of asking it for an image.
async fn asked(script: Script) -> Result<ImageError> {
    let address = registry(script).await?;
    let host = Host::with_limits(&[address.to_string()], impatient())?;
    // Far above every limit: that it comes to an end by itself is what is tested.
    let reference = format!("{address}/test:1");
    let answer = tokio::time::timeout(Duration::from_secs(60), host.store.resolve(&reference));
    let Err(error) = answer.await? else {
        bail!("it was taken for an image");
    };
    ensure!(host.files()?.is_empty(), "left behind: {:?}", host.files()?);
    Ok(error)
}

/// Addresses that no stranger's registry may lead to, in every spelling, with a port where somebody
/// listens.
fn private_places(port: u16) -> Vec<String> {
    let hosts = [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "10.0.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.0.1",
        "192.0.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::7f00:1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "[::ffff:a00:1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b::169.254.169.254]",
        "[64:ff9b:1::10.0.0.1]",
        "[2002:7f00:1::]",
        "[2002:a9fe:a9fe::1]",
        "[2001::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[fec0::1]",
        "[ff02::1]",
    ];
    hosts
        .iter()
        .flat_map(|host| {
            [
                format!("https://{host}:{port}/x"),
                format!("http://{host}:{port}/x"),
            ]
        })
        .chain(
            [
                "ftp://127.0.0.1/x",
                "file:///etc/passwd",
                "gopher://127.0.0.1:70/x",
                "data:text/plain,x",
                "unix:/run/docker.sock",
                "http://example.com/x",
                "javascript:x",
            ]
            .map(str::to_owned),
        )
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_leads_to_no_private_address_and_no_other_scheme() -> Result<()> {
    let (port, caught) = trap().await?;
    let mut places = private_places(port);
    places.push(format!("//127.0.0.1:{port}/x"));
    for place in places {
        let said = format!("HTTP/1.1 307 Go\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n");
        let error = asked(Script::once(said)).await?;
        let ImageError::Invalid { reason, .. } = &error else {
            bail!("{place}: {error}");
        };
        ensure!(
            reason.contains("not at a public address") || reason.contains("not https"),
            "{place}: {reason}"
        );
    }
    ensure!(
        caught.load(Ordering::Relaxed) == 0,
        "somebody was connected to"
    );
    for place in ["http://[", "https://", "http://a b/", "\u{fc}"] {
        let said = format!("HTTP/1.1 307 Go\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n");
        let error = asked(Script::once(said)).await?;
        ensure!(
            error.to_string().contains("redirects to no valid address"),
            "{place}: {error}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_leads_to_no_private_address_and_no_other_scheme() -> Result<()> {
    let (port, caught) = trap().await?;
    for place in private_places(port) {
        let said = format!(
            "HTTP/1.1 401 Who\r\nwww-authenticate: Bearer realm=\"{place}\",service=\"x\"\r\ncontent-length: 0\r\n\r\n"
        );
        let error = asked(Script::once(said)).await?;
        let ImageError::Invalid { reason, .. } = &error else {
            bail!("{place}: {error}");
        };
        ensure!(
            reason.contains("not at a public address") || reason.contains("not https"),
            "{place}: {reason}"
        );
    }
    ensure!(
        caught.load(Ordering::Relaxed) == 0,
        "somebody was connected to"
    );
    // Challenges that lead nowhere.
    for challenge in [
        "Basic realm=\"x\"",
        "Bearer",
        "Bearer realm=\"",
        "Bearer service=\"x\"",
        "Negotiate",
    ] {
        let said = format!(
            "HTTP/1.1 401 Who\r\nwww-authenticate: {challenge}\r\ncontent-length: 0\r\n\r\n"
        );
        let error = asked(Script::once(said)).await?;
        ensure!(
            error.to_string().contains("wants credentials"),
            "{challenge}: {error}"
        );
    }
    let said = "HTTP/1.1 401 Who\r\nwww-authenticate: Bearer realm=\"/token\"\r\ncontent-length: 0\r\n\r\n";
    let error = asked(Script::once(said)).await?;
    ensure!(
        error.to_string().contains("no valid token server"),
        "{error}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_an_end_are_given_up() -> Result<()> {
    let ok = "HTTP/1.1 200 OK\r\n";
    let chunked = Script::once(format!("{ok}transfer-encoding: chunked\r\n\r\n"));
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(65_536));
    // Which of two bounds is reached first can depend on the machine.
    for (name, script, reason) in [
        // Of the head.
        (
            "a silent registry",
            Script::once(""),
            "did not answer in time",
        ),
        (
            "a head that never ends",
            Script::once(ok).then("x", 20),
            "did not answer in time",
        ),
        (
            "headers without end",
            Script::once(ok).then("x-more: again\r\n", 0),
            "broke|in time",
        ),
        (
            "one header without end",
            Script::once(format!("{ok}x: ")).then("x".repeat(65_536), 0),
            "broke|in time",
        ),
        (
            "interim answers without end",
            Script::once("").then("HTTP/1.1 103 Early\r\n\r\n", 1),
            "did not answer in time",
        ),
        (
            "no HTTP",
            Script::once("220 ftp ready\r\n"),
            "broke|in time",
        ),
        // Of the body.
        (
            "a body of any length",
            Script::once(format!("{ok}\r\n")).then("x".repeat(65_536), 0),
            "more than",
        ),
        (
            "chunks without end",
            chunked.clone().then(chunk, 0),
            "more than",
        ),
        (
            "a length beyond the limit",
            Script::once(format!("{ok}content-length: 99999999999\r\n\r\n")),
            "more than",
        ),
        (
            "a slow body",
            Script::once(format!("{ok}\r\n")).then("x", 20),
            "too slow",
        ),
        (
            "a chunk's extension without end",
            chunked
                .clone()
                .then("1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 0),
            "broke|too slow",
        ),
        (
            "chunks of nothing to read",
            chunked.then("1\r\nx\r\n", 20),
            "too slow",
        ),
        // Just fast enough, for ever: the whole question has an end, too.
        (
            "a steady trickle",
            Script::once(format!("{ok}\r\n")).then("x".repeat(40_000), 50),
            "did not answer in time",
        ),
    ] {
        let error = asked(script).await?;
        let said = error.to_string();
        ensure!(
            reason.split('|').any(|reason| said.contains(reason)),
            "{name}: {said}"
        );
        ensure!(
            matches!(
                error,
                ImageError::Unavailable { .. } | ImageError::TooLarge { .. }
            ),
            "{name}: {said}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_have_a_bound_together_and_each_has_its_own_end() -> Result<()> {
    let silent = registry(Script::once("")).await?;
    let limits = ImageLimits {
        parallel_resolves: 2,
        idle: Duration::from_secs(20),
        resolve: Duration::from_millis(400),
        ..ImageLimits::default()
    };
    let host = Host::with_limits(&[silent.to_string()], limits)?;
    let asks = (0..12).map(|number| {
        let (store, reference) = (host.store.clone(), format!("{silent}/test:{number}"));
        async move { store.resolve(&reference).await }
    });
    let mut busy = 0;
    for answer in futures_util::future::join_all(asks).await {
        let Err(ImageError::Unavailable { reason, .. }) = answer else {
            bail!("{answer:?}");
        };
        busy += usize::from(reason.contains("asks about too many"));
    }
    ensure!(busy > 0, "none was refused for its number");
    Ok(())
}
