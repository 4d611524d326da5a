//! Images that stay: shared by all pods, kept for leases and pins, removed by least use under a budget,
//! and in order again after every crash.

mod kit;

use std::{
    collections::BTreeSet,
    error::Error as StdError,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use codius_image::{ImageLimits, ImagePolicy, ImageStore, Leaseholders, RegistryConfig};
use codius_pod::{ImageError, Images, NoProgress, PreparedImage};
use codius_testkit::{Background, Compression, ImageBuilder, Layer, Listen, Registry};
use kit::{Host, contents, files_below};

const MIB: u64 = 1 << 20;
/// Contents of an image of these tests.
const IMAGE_BYTES: u64 = 8 * MIB;
/// Room for two of them and the making of a third (its contents twice, 16 MiB for the file system
/// around them, and 8 MiB that are asked for ahead), but not of a fourth.
const BUDGET: u64 = 60 * MIB;
/// Room for one of them and the making of a second.
const SMALL_BUDGET: u64 = 52 * MIB;

/// Bytes that are different for each image and do not shrink.
fn noise(number: u32, bytes: u64) -> Vec<u8> {
    let mut state = u64::from(number) + 0x9e37_79b9_7f4a_7c15;
    let mut noise = Vec::new();
    while (noise.len() as u64) < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise
}

/// Image `number`: its name, and noise.
fn image(number: u32, bytes: u64) -> ImageBuilder {
    let layer = Layer::new()
        .file("name", 0o644, format!("image {number}"))
        .file("noise", 0o644, noise(number, bytes))
        .compression(Compression::Plain);
    ImageBuilder::new().layer(layer)
}

async fn push(
    registry: &Registry,
    numbers: std::ops::Range<u32>,
    bytes: u64,
) -> Result<Vec<String>> {
    let mut references = Vec::new();
    for number in numbers {
        let name = format!("image{number}:1");
        let pushed = image(number, bytes).push(registry, &name).await?;
        references.push(pushed.reference);
    }
    Ok(references)
}

fn small() -> ImageLimits {
    ImageLimits {
        cache_bytes: BUDGET,
        ..ImageLimits::default()
    }
}

/// The names of the images that are here, and whether the books of the disk are right.
fn here(host: &Host) -> Result<Vec<String>> {
    let images = host.store.list();
    let sum: u64 = images.iter().map(|image| image.block_image_bytes).sum();
    ensure!(
        host.store.bytes_taken() == sum,
        "{} and not {sum}",
        host.store.bytes_taken()
    );
    ensure!(
        host.files()?.len() == 2 * images.len(),
        "{:?}",
        host.files()?
    );
    let mut names: Vec<_> = images
        .iter()
        .filter_map(|image| image.reference.rsplit('/').next().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

/// Leases that need what is said here.
#[derive(Default)]
struct Leases(Mutex<BTreeSet<String>>);

impl Leases {
    fn need(&self, image: &PreparedImage) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(image.digest.clone());
    }

    fn end_all(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

#[async_trait]
impl Leaseholders for Leases {
    async fn needed_images(&self) -> Result<Vec<String>, Box<dyn StdError + Send + Sync>> {
        Ok(self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_pods_of_one_image_open_one_file() -> Result<()> {
    let registry = Registry::start()?;
    let host = Host::new(&[registry.host()])?;
    let references = push(&registry, 0..1, MIB).await?;
    let by_digest = image(0, MIB).build()?.digest();
    let other_name = format!("{}@{by_digest}", registry.reference("image0"));
    let pods = (0..50).map(|number| {
        let reference = if number % 2 == 0 {
            &references[0]
        } else {
            &other_name
        };
        host.pull(reference)
    });
    let mut files = BTreeSet::new();
    for prepared in futures_util::future::join_all(pods).await {
        let file = std::fs::metadata(prepared?.block_image)?;
        files.insert((file.dev(), file.ino()));
    }
    ensure!(files.len() == 1, "{files:?}");
    ensure!(here(&host)?.len() == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_goes_even_after_a_restart() -> Result<()> {
    let registry = Registry::start()?;
    let references = push(&registry, 0..4, IMAGE_BYTES).await?;
    let mut host = Host::with_limits(&[registry.host()], small())?;
    host.pull(&references[0]).await?;
    host.pull(&references[1]).await?;
    assert_eq!(here(&host)?, ["image0:1", "image1:1"]);
    // Asking what it means is no use; starting a pod with it is.
    host.pull(&references[0]).await?;
    host.store.resolve(&references[1]).await?;
    host = host.opened_again(&[registry.host()], small())?;
    host.pull(&references[2]).await?;
    host.pull(&references[3]).await?;
    let left = here(&host)?;
    ensure!(!left.contains(&"image1:1".to_owned()), "{left:?}");
    ensure!(left.contains(&"image3:1".to_owned()), "{left:?}");
    // What was removed can be had again.
    host.pull(&references[1]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leases_need_and_what_is_pinned_is_never_removed() -> Result<()> {
    let registry = Registry::start()?;
    let references = push(&registry, 0..4, IMAGE_BYTES).await?;
    let host = Host::with_limits(&[registry.host()], small())?;
    let leases = Arc::new(Leases::default());
    host.store.ask_before_removing(Arc::clone(&leases) as _);
    host.store.set_policy(ImagePolicy {
        pin: vec![format!("{}/image1:1", registry.host()).parse()?],
        ..ImagePolicy::default()
    });
    leases.need(&host.pull(&references[0]).await?);
    host.pull(&references[1]).await?;
    host.pull(&references[2]).await?;
    assert_eq!(here(&host)?, ["image0:1", "image1:1", "image2:1"]);

    host.pull(&references[3]).await?;
    assert_eq!(
        here(&host)?,
        ["image0:1", "image1:1", "image3:1"],
        "by least use it was 0"
    );

    // If all are needed there is no room, nothing is removed, and it is said before anybody pays.
    leases.need(&host.pull(&references[3]).await?);
    let error = host.pull(&references[2]).await.expect_err("no room");
    ensure!(matches!(error, ImageError::NoRoom { .. }), "{error}");
    ensure!(error.to_string().contains("all needed"), "{error}");
    assert_eq!(here(&host)?, ["image0:1", "image1:1", "image3:1"]);

    // With the leases their need ends.
    leases.end_all();
    host.pull(&references[2]).await?;
    ensure!(here(&host)?.contains(&"image1:1".to_owned()), "pinned");
    Ok(())
}

/// Takes up an image while it is asked whether anybody needs it.
struct Racing {
    store: ImageStore,
    reference: String,
}

#[async_trait]
impl Leaseholders for Racing {
    async fn needed_images(&self) -> Result<Vec<String>, Box<dyn StdError + Send + Sync>> {
        let resolved = self.store.resolve(&self.reference).await?;
        self.store.prepare(&resolved, Arc::new(NoProgress)).await?;
        Ok(Vec::new())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_taken_up_at_the_last_moment_stays() -> Result<()> {
    let registry = Registry::start()?;
    let references = push(&registry, 0..3, IMAGE_BYTES).await?;
    let limits = ImageLimits {
        cache_bytes: SMALL_BUDGET,
        ..ImageLimits::default()
    };
    let host = Host::with_limits(&[registry.host()], limits)?;
    host.pull(&references[0]).await?;
    host.store.ask_before_removing(Arc::new(Racing {
        store: host.store.clone(),
        reference: references[0].clone(),
    }));
    host.pull(&references[1]).await?;
    let error = host.pull(&references[2]).await;
    ensure!(
        here(&host)?.contains(&"image0:1".to_owned()),
        "{:?} {error:?}",
        here(&host)?
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_a_clear_error_if_there_is_no_room() -> Result<()> {
    struct Unreadable;
    #[async_trait]
    impl Leaseholders for Unreadable {
        async fn needed_images(&self) -> Result<Vec<String>, Box<dyn StdError + Send + Sync>> {
            Err("the database is gone".into())
        }
    }
    let registry = Registry::start()?;
    let references = push(&registry, 0..3, IMAGE_BYTES).await?;
    let with = |cache_bytes, free_bytes| {
        let limits = ImageLimits {
            cache_bytes,
            free_bytes,
            ..ImageLimits::default()
        };
        Host::with_limits(&[registry.host()], limits)
    };
    // Known before anything is fetched, from the size of its layers.
    let host = with(IMAGE_BYTES - 1, 0)?;
    let error = host
        .store
        .resolve(&references[0])
        .await
        .expect_err("larger than the cache");
    ensure!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    // Known only while it is made.
    let host = with(2 * IMAGE_BYTES, 0)?;
    let error = host
        .pull(&references[0])
        .await
        .expect_err("larger than the cache");
    ensure!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    ensure!(
        error
            .to_string()
            .contains("all that this host has for images"),
        "{error}"
    );
    ensure!(here(&host)?.is_empty());
    // The disk, not the budget.
    let host = with(BUDGET, 1 << 60)?;
    let error = host
        .store
        .resolve(&references[0])
        .await
        .expect_err("below the floor");
    ensure!(
        error.to_string().contains("its disk is too full"),
        "{error}"
    );
    // Who cannot be asked needs everything.
    let host = with(SMALL_BUDGET, 0)?;
    host.store.ask_before_removing(Arc::new(Unreadable));
    host.pull(&references[0]).await?;
    host.pull(&references[1]).await?;
    let error = host
        .pull(&references[2])
        .await
        .expect_err("nobody can be asked");
    ensure!(error.to_string().contains("cannot tell"), "{error}");
    assert_eq!(here(&host)?, ["image0:1", "image1:1"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_budget_is_kept_to_at_the_next_start() -> Result<()> {
    let registry = Registry::start()?;
    let references = push(&registry, 0..2, IMAGE_BYTES).await?;
    let mut host = Host::with_limits(&[registry.host()], small())?;
    host.pull(&references[0]).await?;
    host.pull(&references[1]).await?;
    let limits = ImageLimits {
        cache_bytes: IMAGE_BYTES + MIB,
        ..ImageLimits::default()
    };
    host = host.opened_again(&[registry.host()], limits)?;
    host.store.trim().await.map_err(anyhow::Error::msg)?;
    assert_eq!(here(&host)?, ["image1:1"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_denies_is_not_run_and_its_registry_not_asked() -> Result<()> {
    let registry = Registry::start()?;
    let references = push(&registry, 0..2, MIB).await?;
    let host = Host::new(&[registry.host()])?;
    let deny = |pattern: String| -> Result<()> {
        host.store.set_policy(ImagePolicy {
            deny: vec![pattern.parse()?],
            ..ImagePolicy::default()
        });
        Ok(())
    };
    let resolved = host.store.resolve(&references[0]).await?;
    // Denied between being resolved and prepared, and while it is here.
    for cached in [false, true] {
        deny(resolved.digest.clone())?;
        for error in [
            host.store.resolve(&references[0]).await.map(drop),
            host.store
                .prepare(&resolved, Arc::new(NoProgress))
                .await
                .map(drop),
        ] {
            let Err(ImageError::Denied { rule, .. }) = error else {
                bail!("{error:?}");
            };
            ensure!(
                rule == format!("the rule deny = \"{}\" says so", resolved.digest),
                "{rule}"
            );
        }
        ensure!(here(&host)?.is_empty() != cached);
        host.store.set_policy(ImagePolicy::default());
        host.pull(&references[0]).await?;
        host.pull(&references[1]).await?;
    }
    // By name: nobody is there to answer, and nobody is asked.
    deny("127.0.0.1:9/evil/*".to_owned())?;
    let error = host
        .store
        .resolve("127.0.0.1:9/evil/x")
        .await
        .expect_err("denied");
    ensure!(matches!(error, ImageError::Denied { .. }), "{error}");
    host.store.set_policy(ImagePolicy {
        allow: vec!["docker.io/library/*".parse()?],
        ..ImagePolicy::default()
    });
    let error = host
        .store
        .resolve(&references[1])
        .await
        .expect_err("not allowed");
    ensure!(
        error
            .to_string()
            .contains("runs only images of docker.io/library/*"),
        "{error}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_crash_leaves_is_put_in_order() -> Result<()> {
    let registry = Registry::start()?;
    let references = push(&registry, 0..5, MIB).await?;
    let mut host = Host::new(&[registry.host()])?;
    let mut prepared = Vec::new();
    for reference in &references {
        prepared.push(host.pull(reference).await?.block_image);
    }
    let record = |number: usize| prepared[number].with_extension("json");
    std::fs::remove_file(record(0))?;
    std::fs::remove_file(&prepared[1])?;
    std::fs::OpenOptions::new()
        .append(true)
        .open(&prepared[2])?
        .set_len(MIB / 2)?;
    std::fs::write(record(3), "{\"version\":1")?;
    let images = host.directory.path().join("images");
    std::fs::create_dir_all(images.join("strange/deep"))?;
    std::fs::write(images.join("readme"), "mine")?;
    // A link in place of an image, to something of the same length.
    let outside = tempfile::NamedTempFile::new()?;
    std::fs::copy(&prepared[4], outside.path())?;
    let linked = format!("{}.squashfs", "0".repeat(64));
    std::os::unix::fs::symlink(outside.path(), images.join(linked))?;
    std::fs::write(host.directory.path().join("tmp/half"), "x")?;

    host = host.opened_again(&[registry.host()], ImageLimits::default())?;
    assert_eq!(here(&host)?, ["image4:1"]);
    ensure!(
        outside.path().exists(),
        "a link is removed, not what it leads to"
    );
    for (number, reference) in references.iter().enumerate() {
        let image = host.pull(reference).await?;
        assert_eq!(contents(&image, "name")?, format!("image {number}"));
    }
    Ok(())
}

/// Names of the images and where they are: what a killed process is told.
const CHILD: &str = "CODIUS_TEST_CACHE_CHILD";
/// How often it is killed.
const KILLS: u32 = 25;

/// Pulls and removes without end. Run by the next test, as a process of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is the process that the next test kills"]
async fn child_that_is_killed() -> Result<()> {
    let told = std::env::var(CHILD).context("only the next test runs this")?;
    let mut words = told.split(' ');
    let mut word = || words.next().context("too few words");
    let (directory, host, seed) = (word()?, word()?, word()?);
    let config = RegistryConfig {
        insecure: vec![host.to_owned()],
        ..RegistryConfig::default()
    };
    let store = ImageStore::open(directory, small(), &config)?;
    let mut random: u64 = seed.parse()?;
    println!("begins");
    loop {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let reference = format!("{host}/image{}:1", (random >> 33) % 6);
        let resolved = store.resolve(&reference).await?;
        store.prepare(&resolved, Arc::new(NoProgress)).await?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_killed_anywhere_is_whole_again() -> Result<()> {
    let registry = Registry::start()?;
    push(&registry, 0..6, IMAGE_BYTES).await?;
    let directory = tempfile::tempdir()?;
    let seed = std::env::var("CODIUS_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("repeat with CODIUS_TEST_SEED={seed}");
    let mut random = seed;
    let (mut found, mut left) = (0, 0);
    for kill in 0..KILLS {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(kill.into());
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args([
                "--exact",
                "child_that_is_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(
                CHILD,
                format!(
                    "{} {} {}",
                    directory.path().display(),
                    registry.host(),
                    random >> 8
                ),
            );
        let child = Background::start(&command, Listen::Output)?;
        child.line_with("begins", Duration::from_secs(60))?;
        tokio::time::sleep(Duration::from_millis((random >> 40) % 900)).await;
        // Killed, not told.
        drop(child);
        left += files_below(directory.path())?
            .iter()
            .filter(|file| file.starts_with("tmp/"))
            .count();
        let whole = check(directory.path(), &registry).await;
        found += whole.with_context(|| format!("after kill {kill}, seed {seed}"))?;
    }
    ensure!(found > 0, "no image was ever found again");
    eprintln!("{KILLS} kills, {found} images found whole, {left} half-made files removed");
    Ok(())
}

/// Opens what a killed process has left, and looks into everything.
async fn check(directory: &Path, registry: &Registry) -> Result<usize> {
    let config = RegistryConfig {
        insecure: vec![registry.host()],
        ..RegistryConfig::default()
    };
    let store = ImageStore::open(directory, small(), &config)?;
    let images = store.list();
    let sum: u64 = images.iter().map(|image| image.block_image_bytes).sum();
    ensure!(store.bytes_taken() == sum && sum <= BUDGET, "{sum}");
    let files = files_below(directory)?;
    ensure!(files.len() == 2 * images.len(), "{files:?}");
    for image in &images {
        let resolved = store.resolve(&image.reference).await?;
        ensure!(resolved.cached && resolved.digest == image.digest);
        let prepared = store.prepare(&resolved, Arc::new(NoProgress)).await?;
        let name = contents(&prepared, "name")?;
        let number: u32 = name.trim_start_matches("image ").parse()?;
        ensure!(
            image.reference.contains(&format!("image{number}:")),
            "{name}"
        );
        let file = kit::bytes(&prepared, "noise")?;
        ensure!(
            file == noise(number, IMAGE_BYTES),
            "{name} has other contents"
        );
    }
    Ok(images.len())
}
