//! Registries that want a token, lead elsewhere, break off, lie or dawdle, and the store's own care
//! for its directory.

mod kit;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use codius_image::{ImageLimits, ImageStore, OpenError, RegistryConfig};
use codius_pod::{ImageError, Images, NoProgress, PullProgress};
use codius_testkit::{BuiltImage, ImageBuilder, Layer, Registry, image::digest};
use futures_util::StreamExt;
use kit::{Host, contents, files_below, paths};

/// How the false registry misbehaves when asked for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layers {
    Honest,
    /// Needs `Authorization: Bearer good` for everything.
    WithToken,
    /// Other bytes of the same length.
    Wrong,
    /// More bytes than announced, without a length.
    TooLong,
    /// A length that is not the announced one.
    WrongLength,
    /// Zeros without end.
    Endless,
    /// A byte now and then.
    Slow,
    /// Nothing after the headers.
    Silent,
    /// Half of it, then the connection ends; goes on where asked.
    BrokenOnce,
    /// Half of it, and never more.
    BrokenAlways,
    /// Sends on to itself for ever.
    RedirectLoop,
    /// Sends on to storage at another host that must not see the token.
    RedirectToStorage,
    /// Sends on to an address that is not listed.
    RedirectToPrivate,
    /// Answers that it has trouble.
    ServerError,
}

struct FalseRegistry {
    image: BuiltImage,
    layers: Layers,
    address: SocketAddr,
    tokens_given: AtomicUsize,
    layer_requests: AtomicUsize,
    leaked: AtomicBool,
    /// Where the storage listens; the same program under another port.
    storage: Mutex<Option<SocketAddr>>,
}

async fn answer(State(registry): State<Arc<FalseRegistry>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let token = request.headers().get(header::AUTHORIZATION).cloned();
    if path == "/token" {
        let query = request.uri().query().unwrap_or_default();
        if query != "service=false+registry&scope=repository%3Atest%3Apull" {
            return (StatusCode::BAD_REQUEST, query.to_owned()).into_response();
        }
        registry.tokens_given.fetch_add(1, Ordering::Relaxed);
        return r#"{"token":"good","expires_in":300}"#.into_response();
    }
    let wants_token = matches!(
        registry.layers,
        Layers::WithToken | Layers::RedirectToStorage
    );
    if path.starts_with("/storage/") {
        registry.leaked.fetch_or(token.is_some(), Ordering::Relaxed);
    } else if wants_token && token.is_none_or(|token| token != "Bearer good") {
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"false registry\"",
            registry.address
        );
        return (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, challenge)],
        )
            .into_response();
    }
    if path.contains("/manifests/") {
        let kind = [(header::CONTENT_TYPE, registry.image.manifest_type)];
        return (kind, registry.image.manifest.clone()).into_response();
    }
    let blobs = &registry.image.blobs;
    let Some(at) = blobs.iter().position(|blob| path.ends_with(&digest(blob))) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if at + 1 == blobs.len() {
        return blobs[at].clone().into_response();
    }
    let nth = registry.layer_requests.fetch_add(1, Ordering::Relaxed);
    layer(&registry, &path, request.headers(), &blobs[at], nth)
}

fn layer(
    registry: &FalseRegistry,
    path: &str,
    headers: &HeaderMap,
    blob: &[u8],
    nth: usize,
) -> Response {
    let half = blob.len() / 2;
    let redirect = |to: String| (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]);
    match registry.layers {
        Layers::Honest | Layers::WithToken => blob.to_vec().into_response(),
        Layers::Wrong => vec![7; blob.len()].into_response(),
        Layers::TooLong => {
            let bytes = [blob, b"more"].concat();
            Body::from_stream(futures_util::stream::iter([Ok::<_, std::io::Error>(bytes)]))
                .into_response()
        }
        Layers::WrongLength => blob[..half].to_vec().into_response(),
        Layers::Endless => {
            let zeros =
                futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0; 65536]));
            Body::from_stream(zeros).into_response()
        }
        Layers::Slow => {
            let drops = futures_util::stream::repeat(()).then(|()| async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok::<_, std::io::Error>(vec![0x1f])
            });
            Body::from_stream(drops).into_response()
        }
        Layers::Silent => {
            let never = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
            Body::from_stream(never).into_response()
        }
        Layers::BrokenOnce | Layers::BrokenAlways => {
            let range = headers
                .get(header::RANGE)
                .map(|value| value.to_str().unwrap_or_default());
            match range {
                Some(range) if registry.layers == Layers::BrokenOnce => {
                    assert_eq!(range, format!("bytes={half}-"));
                    let content = format!("bytes {half}-{}/{}", blob.len() - 1, blob.len());
                    let range = [(header::CONTENT_RANGE, content)];
                    (StatusCode::PARTIAL_CONTENT, range, blob[half..].to_vec()).into_response()
                }
                Some(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
                None => {
                    let broken = Err(std::io::Error::other("broken"));
                    let parts = [Ok(blob[..half].to_vec()), broken];
                    // A pause, so that the first half leaves before the connection is torn down.
                    let parts = futures_util::stream::iter(parts).then(|part| async {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        part
                    });
                    Body::from_stream(parts).into_response()
                }
            }
        }
        Layers::RedirectLoop => redirect(format!("{path}?n={nth}")).into_response(),
        Layers::RedirectToStorage if path.starts_with("/storage/") => blob.to_vec().into_response(),
        Layers::RedirectToStorage => {
            let storage = registry
                .storage
                .lock()
                .map(|storage| *storage)
                .ok()
                .flatten();
            redirect(format!(
                "http://{}/storage{path}",
                storage.unwrap_or(registry.address)
            ))
            .into_response()
        }
        Layers::RedirectToPrivate => redirect("https://127.0.0.1:1/x".into()).into_response(),
        Layers::ServerError => StatusCode::BAD_GATEWAY.into_response(),
    }
}

async fn false_registry(layers: Layers) -> Result<Arc<FalseRegistry>> {
    // Random-looking, so that it does not compress, and larger than one read.
    let noise: Vec<u8> = (0..200_000u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let image = ImageBuilder::new()
        .layer(Layer::new().file("noise", 0o644, noise))
        .build()?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let storage = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let registry = Arc::new(FalseRegistry {
        image,
        layers,
        address: listener.local_addr()?,
        tokens_given: AtomicUsize::new(0),
        layer_requests: AtomicUsize::new(0),
        leaked: AtomicBool::new(false),
        storage: Mutex::new(Some(storage.local_addr()?)),
    });
    for listener in [listener, storage] {
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&registry));
        tokio::spawn(async move { axum::serve(listener, router).await });
    }
    Ok(registry)
}

impl FalseRegistry {
    fn hosts(&self) -> Vec<String> {
        let storage = self.storage.lock().map(|storage| *storage).ok().flatten();
        [Some(self.address), storage]
            .iter()
            .flatten()
            .map(SocketAddr::to_string)
            .collect()
    }

    fn reference(&self) -> String {
        format!("{}/test:1", self.address)
    }
}

/// Short waits, so that a dawdling registry is given up within a second.
fn impatient() -> ImageLimits {
    ImageLimits {
        idle: Duration::from_millis(200),
        resumes: 1,
        ..ImageLimits::default()
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used() -> Result<()> {
    let registry = false_registry(Layers::WithToken).await?;
    let host = Host::new(&registry.hosts())?;
    let prepared = host.pull(&registry.reference()).await?;
    assert_eq!(paths(&prepared)?, ["noise"]);
    assert_eq!(registry.tokens_given.load(Ordering::Relaxed), 1);
    Ok(())
}

#[tokio::test]
async fn a_token_is_not_shown_to_the_storage_behind_a_redirect() -> Result<()> {
    let registry = false_registry(Layers::RedirectToStorage).await?;
    let host = Host::new(&registry.hosts())?;
    host.pull(&registry.reference()).await?;
    assert!(
        registry.layer_requests.load(Ordering::Relaxed) >= 2,
        "the storage was asked"
    );
    assert!(!registry.leaked.load(Ordering::Relaxed));
    Ok(())
}

#[tokio::test]
async fn an_interrupted_layer_goes_on_where_it_stopped() -> Result<()> {
    let registry = false_registry(Layers::BrokenOnce).await?;
    let host = Host::new(&registry.hosts())?;
    let prepared = host.pull(&registry.reference()).await?;
    assert_eq!(paths(&prepared)?, ["noise"]);
    assert_eq!(registry.layer_requests.load(Ordering::Relaxed), 2);
    Ok(())
}

#[tokio::test]
async fn registries_that_lie_or_dawdle_are_refused_and_leave_nothing() -> Result<()> {
    for (layers, kind, reason) in [
        (Layers::Wrong, "refused", "not what its digest says"),
        (Layers::TooLong, "refused", "longer than announced"),
        (Layers::WrongLength, "refused", "another size"),
        (Layers::Endless, "refused", "longer than announced"),
        (Layers::Slow, "later", "too slow"),
        (Layers::Silent, "later", "too slow"),
        (
            Layers::BrokenAlways,
            "later",
            "connection to its registry broke",
        ),
        (Layers::RedirectLoop, "later", "redirects more than 5 times"),
        (
            Layers::RedirectToPrivate,
            "refused",
            "not at a public address",
        ),
        (Layers::ServerError, "later", "502"),
    ] {
        let registry = false_registry(layers).await?;
        let host = Host::with_limits(&registry.hosts(), impatient())?;
        let start = std::time::Instant::now();
        let Err(error) = host.pull(&registry.reference()).await else {
            bail!("{layers:?} was accepted");
        };
        let (said_kind, said) = match error {
            ImageError::Invalid { reason, .. } => ("refused", reason),
            ImageError::Unavailable { reason, .. } => ("later", reason),
            other => bail!("{layers:?}: {other}"),
        };
        assert!(
            said_kind == kind && said.contains(reason),
            "{layers:?}: {said_kind}: {said}"
        );
        assert!(start.elapsed() < Duration::from_secs(20), "{layers:?}");
        assert!(
            host.files()?.is_empty(),
            "{layers:?} left {:?}",
            host.files()?
        );
    }
    Ok(())
}

#[tokio::test]
async fn unknown_images_and_other_platforms_have_errors_of_their_own() -> Result<()> {
    let registry = Registry::start()?;
    let host = Host::new(&[registry.host()])?;
    for name in ["nothing", "nothing:1", &format!("nothing@{}", digest(b"x"))] {
        let error = host
            .store
            .resolve(&registry.reference(name))
            .await
            .expect_err("no such image");
        assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    }
    for image in [
        ImageBuilder::new().architecture("arm64"),
        ImageBuilder::new().architecture("arm64").index(),
    ] {
        let pushed = image.push(&registry, "arm:1").await?;
        let error = host
            .store
            .resolve(&pushed.reference)
            .await
            .expect_err("another platform");
        assert!(matches!(error, ImageError::WrongPlatform { .. }), "{error}");
    }
    let error = host
        .store
        .resolve("Not A Reference")
        .await
        .expect_err("no reference");
    assert!(
        matches!(error, ImageError::InvalidReference { .. }),
        "{error}"
    );
    // Not listed, so https, and loopback is no public address.
    let strange = Host::new(&[])?;
    let error = strange
        .store
        .resolve(&registry.reference("x"))
        .await
        .expect_err("not listed");
    assert!(matches!(error, ImageError::Invalid { .. }), "{error}");
    let error = strange
        .store
        .resolve("localhost:1/x")
        .await
        .expect_err("a private name");
    assert!(
        error.to_string().contains("not at a public address"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn the_config_is_handed_on_and_resolving_fetches_no_layer() -> Result<()> {
    let registry = false_registry(Layers::Honest).await?;
    let host = Host::new(&registry.hosts())?;
    let resolved = host.store.resolve(&registry.reference()).await?;
    assert_eq!(registry.layer_requests.load(Ordering::Relaxed), 0);
    assert_eq!(resolved.digest, registry.image.digest());
    assert_eq!(
        resolved.compressed_bytes,
        registry.image.blobs[0].len() as u64
    );
    assert!(!resolved.cached);

    let real = Registry::start()?;
    let image = ImageBuilder::new()
        .layer(Layer::new().file("a", 0o644, "a"))
        .entrypoint(&["/a", "b"])
        .cmd(&["c"])
        .env(&["X=1", "Y=2"])
        .workdir("/w")
        .user("7:8");
    let pushed = image.push(&real, "config:1").await?;
    let host = Host::new(&[real.host()])?;
    let config = host.pull(&pushed.reference).await?.config;
    assert_eq!(config.entrypoint, ["/a", "b"]);
    assert_eq!(config.cmd, ["c"]);
    assert_eq!(config.env, ["X=1", "Y=2"]);
    assert_eq!(
        (config.workdir.as_str(), config.user.as_str()),
        ("/w", "7:8")
    );
    Ok(())
}

#[tokio::test]
async fn an_image_that_is_here_needs_no_registry_even_after_a_restart() -> Result<()> {
    let registry = Registry::start()?;
    let image = ImageBuilder::new()
        .layer(Layer::new().file("a", 0o644, "a"))
        .index();
    let pushed = image.push(&registry, "kept:1").await?;
    let Host { store, directory } = Host::new(&[registry.host()])?;
    let first = store
        .prepare(
            &store.resolve(&pushed.reference).await?,
            Arc::new(NoProgress),
        )
        .await?;
    assert!(store.resolve(&pushed.reference).await?.cached);
    let host = registry.host();
    drop((registry, store));

    let config = RegistryConfig {
        insecure: vec![host.clone()],
        ..RegistryConfig::default()
    };
    let store = ImageStore::open(directory.path(), ImageLimits::default(), &config)?;
    for reference in [
        pushed.by_digest.clone(),
        format!("{host}/kept@{}", pushed.digest),
    ] {
        let resolved = store.resolve(&reference).await?;
        assert!(resolved.cached);
        assert_eq!(resolved.digest, pushed.digest);
        assert_eq!(store.prepare(&resolved, Arc::new(NoProgress)).await?, first);
    }
    let error = store
        .resolve(&pushed.reference)
        .await
        .expect_err("the registry is gone");
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    Ok(())
}

#[derive(Default)]
struct Watch(Mutex<(u64, u64, usize)>);

impl PullProgress for Watch {
    fn pulled(&self, bytes: u64, of: u64) {
        if let Ok(mut seen) = self.0.lock() {
            (seen.0, seen.1) = (seen.0.max(bytes), of);
        }
    }

    fn building(&self) {
        if let Ok(mut seen) = self.0.lock() {
            seen.2 += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_share_one_pull_and_the_first_may_leave() -> Result<()> {
    let registry = false_registry(Layers::Honest).await?;
    let host = Host::new(&registry.hosts())?;
    let resolved = host.store.resolve(&registry.reference()).await?;
    let watches = [Arc::new(Watch::default()), Arc::new(Watch::default())];
    let [one, two] = watches.clone();
    let (first, second) = tokio::join!(
        host.store.prepare(&resolved, one),
        host.store.prepare(&resolved, two)
    );
    assert_eq!(first?, second?);
    assert_eq!(registry.layer_requests.load(Ordering::Relaxed), 1);
    for watch in watches {
        let seen = *watch.0.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        assert_eq!(
            seen,
            (resolved.compressed_bytes, resolved.compressed_bytes, 1)
        );
    }

    // The first leaves before anything has arrived; the second still gets the image.
    let host = Host::new(&registry.hosts())?;
    let resolved = host.store.resolve(&registry.reference()).await?;
    let mut leaves = host.store.prepare(&resolved, Arc::new(NoProgress));
    assert!(futures_util::poll!(&mut leaves).is_pending());
    let stays = host.store.prepare(&resolved, Arc::new(NoProgress));
    let (result, ()) = tokio::join!(stays, async move { drop(leaves) });
    assert_eq!(paths(&result?)?, ["noise"]);
    Ok(())
}

#[tokio::test]
async fn leaving_a_pull_ends_it_and_leaves_nothing() -> Result<()> {
    let registry = false_registry(Layers::Silent).await?;
    let host = Host::new(&registry.hosts())?;
    let resolved = host.store.resolve(&registry.reference()).await?;
    let pull = host.store.prepare(&resolved, Arc::new(NoProgress));
    assert!(
        tokio::time::timeout(Duration::from_millis(300), pull)
            .await
            .is_err()
    );
    assert_eq!(registry.layer_requests.load(Ordering::Relaxed), 1);
    assert!(host.files()?.is_empty(), "{:?}", host.files()?);
    Ok(())
}

#[tokio::test]
async fn what_a_killed_process_left_is_swept_and_a_broken_image_is_made_again() -> Result<()> {
    let registry = Registry::start()?;
    let image = ImageBuilder::new().layer(Layer::new().file("a", 0o644, "a"));
    let pushed = image.push(&registry, "swept:1").await?;
    let Host { store, directory } = Host::new(&[registry.host()])?;
    let prepared = store
        .prepare(
            &store.resolve(&pushed.reference).await?,
            Arc::new(NoProgress),
        )
        .await?;
    drop(store);

    // As after a kill between any two steps: a half-made file, an image without its record, and an
    // image that is shorter than its record says.
    std::fs::write(directory.path().join("tmp/.tmpAbc"), "half")?;
    let other = digest(b"other").replace("sha256:", "");
    std::fs::write(
        directory.path().join(format!("images/{other}.squashfs")),
        "no record",
    )?;
    std::fs::remove_file(&prepared.block_image)?;
    std::fs::write(&prepared.block_image, "short")?;

    let config = RegistryConfig {
        insecure: vec![registry.host()],
        ..RegistryConfig::default()
    };
    let store = ImageStore::open(directory.path(), ImageLimits::default(), &config)?;
    assert!(
        files_below(directory.path())?.is_empty(),
        "{:?}",
        files_below(directory.path())?
    );
    let resolved = store.resolve(&pushed.reference).await?;
    assert!(!resolved.cached);
    let again = store.prepare(&resolved, Arc::new(NoProgress)).await?;
    assert_eq!(contents(&again, "a")?, "a");

    // One process at a time.
    let second = ImageStore::open(directory.path(), ImageLimits::default(), &config);
    assert!(matches!(second, Err(OpenError::InUse { .. })));
    Ok(())
}

#[tokio::test]
async fn the_same_layers_make_the_same_block_image() -> Result<()> {
    let registry = false_registry(Layers::Honest).await?;
    let [first, second] = [Host::new(&registry.hosts())?, Host::new(&registry.hosts())?];
    let a = std::fs::read(first.pull(&registry.reference()).await?.block_image)?;
    let b = std::fs::read(second.pull(&registry.reference()).await?.block_image)?;
    let differ: Vec<_> = (0..a.len().max(b.len()))
        .filter(|at| a.get(*at) != b.get(*at))
        .take(8)
        .collect();
    ensure!(
        a == b,
        "two hosts made different files: {} and {} bytes, at {differ:?}",
        a.len(),
        b.len()
    );
    Ok(())
}
