//! What a hostile image can make this process use, measured in a process of its own.

use std::{process::Command, sync::Arc};

use anyhow::{Context, Result, ensure};
use codius_image::{ImageLimits, ImageStore, RegistryConfig};
use codius_pod::{ImageError, Images, NoProgress};
use codius_testkit::{ImageBuilder, Layer, Registry};

/// What the child is told: its directory, the registry, the image, and how many entries are allowed.
const CHILD: &str = "CODIUS_TEST_MEMORY_CHILD";
/// Entries that are allowed here; by default a host allows twenty-five times as many. What is measured grows in
/// proportion (docs/images.md has the figures with as many as a host allows).
const ENTRIES: u64 = 20_000;
/// Bytes for each entry allowed, at the very most, ...
const BYTES_PER_ENTRY: u64 = 800;
/// ... and for everything else: the program, its threads, the buffers of a layer.
const BASE_BYTES: u64 = 24 << 20;

/// Pulls one image, and says what it has used. Run by the next test, as a process of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is the process that the next test measures"]
async fn child_that_is_measured() -> Result<()> {
    let told = std::env::var(CHILD).context("only the next test runs this")?;
    let words: Vec<&str> = told.split(' ').collect();
    let [directory, host, name, entries] = words[..] else {
        anyhow::bail!("four words, not {told:?}");
    };
    let config = RegistryConfig {
        insecure: vec![host.to_owned()],
        ..RegistryConfig::default()
    };
    let limits = ImageLimits {
        entries: entries.parse()?,
        ..ImageLimits::default()
    };
    let store = ImageStore::open(directory, limits, &config)?;
    let resolved = store.resolve(&format!("{host}/{name}:1")).await?;
    let outcome = match store.prepare(&resolved, Arc::new(NoProgress)).await {
        Ok(_) => "made".to_owned(),
        Err(ImageError::TooLarge { reason, .. }) => format!("refused: {reason}"),
        Err(error) => return Err(error.into()),
    };
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak
        .and_then(|text| text.trim().strip_suffix(" kB"))
        .context("no VmHWM")?;
    println!("peak-kib {peak} {outcome}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_names_costs_no_more_memory_than_is_said() -> Result<()> {
    let registry = Registry::start()?;
    let entries = std::env::var("CODIUS_TEST_ENTRIES")
        .ok()
        .and_then(|text| text.parse().ok());
    let entries: u64 = entries.unwrap_or(ENTRIES);
    let files = (0..entries - 1).fold(Layer::new(), |layer, number| {
        layer.file(&format!("a-name-of-ordinary-length-{number}"), 0o644, "")
    });
    let directories = (0..entries - 1).fold(Layer::new(), |layer, number| {
        layer.dir(&format!("d{number}"), 0o755)
    });
    // Each names a thousand directories that no entry describes.
    let deep = format!("{}x", "d/".repeat(1000));
    let implied = (0..entries / 20).fold(Layer::new(), |layer, number| {
        layer.file(&format!("{number}/{deep}"), 0o644, "")
    });
    // One file of a few, by many names deep down.
    let below = format!("{}/", "n".repeat(200)).repeat(19);
    let mut links = Layer::new().dir(&below, 0o755).symlink("s", &below);
    for number in 0..(entries - 30) / 2 {
        links = links
            .file(&format!("s/a{number}"), 0o644, "")
            .hard_link(&format!("s/b{number}"), &format!("s/a{number}"));
    }
    for (name, layer, outcome) in [
        ("files", files, "made"),
        ("directories", directories, "made"),
        ("implied", implied, "refused: it has more than"),
        ("links", links, "made"),
    ] {
        let image = ImageBuilder::new().layer(layer);
        image.push(&registry, &format!("{name}:1")).await?;
        let directory = tempfile::tempdir()?;
        let output = Command::new(std::env::current_exe()?)
            .args([
                "--exact",
                "child_that_is_measured",
                "--ignored",
                "--nocapture",
            ])
            .env(
                CHILD,
                format!(
                    "{} {} {name} {entries}",
                    directory.path().display(),
                    registry.host()
                ),
            )
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.split_once("peak-kib "));
        let (_, line) = line.with_context(|| {
            format!("{name}: {text}{}", String::from_utf8_lossy(&output.stderr))
        })?;
        let (kib, said) = line.split_once(' ').context("two words")?;
        let bytes = kib.parse::<u64>()? * 1024;
        eprintln!("{entries} {name}: {} MiB, {said}", bytes >> 20);
        ensure!(said.starts_with(outcome), "{name}: {said}");
        ensure!(
            bytes <= BASE_BYTES + entries * BYTES_PER_ENTRY,
            "{name}: {bytes} bytes for {entries} entries"
        );
    }
    Ok(())
}
