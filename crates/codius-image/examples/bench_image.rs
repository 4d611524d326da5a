//! Pull and block image of a 100 MB image, side by side with `skopeo copy` and `umoci unpack`.
//!
//! Prints one JSON line: the median of our time in seconds, and its ratio to the median of theirs.
//! Both read from the same registry on loopback and write to the same disk. Ours ends with a file
//! that is synced; theirs with a directory that is not, which is in their favour. The runs alternate,
//! so that a noisy neighbour disturbs both. The first pair warms the caches and is not counted.
//!
//! Run with `cargo run --release -p codius-image --example bench_image [-- RUNS]`; needs root (umoci
//! sets owners) and the Debian packages docker-registry, skopeo, umoci and squashfs-tools.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use codius_image::{ImageLimits, ImageStore, RegistryConfig};
use codius_pod::{Images, NoProgress};
use codius_testkit::{ImageBuilder, Layer, Registry};

/// Counted pairs of runs, if none are asked for.
const RUNS: usize = 7;
/// What the ratio is to stay below.
const AIM: f64 = 1.0;
/// Contents of all files together.
const IMAGE_BYTES: usize = 100_000_000;
/// Files are of four sizes, as in a distribution's image: many small ones, few large ones.
const FILE_BYTES: [usize; 4] = [2_000, 20_000, 200_000, 4_000_000];

#[tokio::main]
async fn main() -> Result<()> {
    let runs = std::env::args()
        .skip(1)
        .find(|argument| argument != "--runs")
        .map_or(Ok(RUNS), |text| text.parse())?;
    let registry = Registry::start()?;
    let pushed = image().push(&registry, "bench:1").await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..=runs {
        let pair = (
            pull(&registry, &pushed.reference).await?,
            peer(&pushed.reference)?,
        );
        eprintln!(
            "run {run}: ours {:.3} s, skopeo and umoci {:.3} s",
            pair.0, pair.1
        );
        if run > 0 {
            ours.push(pair.0);
            theirs.push(pair.1);
        }
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = ours / theirs;
    let line = serde_json::json!({
        "name": "image/pull-and-build",
        "median": (ours * 1000.0).round() / 1000.0,
        "ratio": (ratio * 1000.0).round() / 1000.0,
        "aim": "< 1",
        "met": ratio < AIM,
    });
    println!("{line}");
    Ok(())
}

/// Three layers: a large one below, two smaller ones above.
fn image() -> ImageBuilder {
    let shares = [IMAGE_BYTES * 7 / 10, IMAGE_BYTES * 2 / 10, IMAGE_BYTES / 10];
    let mut state = 0x5eed_u64;
    shares
        .iter()
        .enumerate()
        .fold(ImageBuilder::new(), |builder, (number, share)| {
            let (mut layer, mut left, mut count) = (Layer::new(), *share, 0);
            while left > 0 {
                let size = FILE_BYTES[[0, 0, 0, 0, 1, 1, 2, 3][count % 8]].min(left);
                let path = format!("layer{number}/dir{}/file{count}", count / 50);
                layer = layer.file(&path, 0o644, mixed(size, &mut state));
                left -= size;
                count += 1;
            }
            builder.layer(layer)
        })
}

/// Contents that gzip makes about 2.5 times smaller, as it does a distribution's files: random words
/// out of a small vocabulary, with some noise. The generator is xorshift64.
fn mixed(size: usize, state: &mut u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 16);
    while bytes.len() < size {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let word = *state % 4096;
        if state.is_multiple_of(3) {
            bytes.extend_from_slice(&state.to_le_bytes());
        } else {
            bytes.extend_from_slice(format!("{:x}/lib/", word * word).as_bytes());
        }
    }
    bytes.truncate(size);
    bytes
}

async fn pull(registry: &Registry, reference: &str) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let config = RegistryConfig {
        insecure: vec![registry.host()],
        ..RegistryConfig::default()
    };
    let store = ImageStore::open(directory.path(), ImageLimits::default(), &config)?;
    let start = Instant::now();
    let resolved = store.resolve(reference).await?;
    let prepared = store.prepare(&resolved, Arc::new(NoProgress)).await?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(
        std::fs::metadata(prepared.block_image)?.len() > IMAGE_BYTES as u64,
        "all is there"
    );
    Ok(seconds)
}

fn peer(reference: &str) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let start = Instant::now();
    let source = format!("docker://{reference}");
    run(
        directory.path(),
        "skopeo",
        &[
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            &source,
            "oci:image:1",
        ],
    )?;
    run(
        directory.path(),
        "umoci",
        &["unpack", "--image", "image:1", "bundle"],
    )?;
    Ok(start.elapsed().as_secs_f64())
}

fn run(directory: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .stdout(Stdio::null())
        .status()
        .with_context(|| {
            format!("{program} cannot be started; install the Debian package {program}")
        })?;
    ensure!(status.success(), "{program} ended with {status}");
    Ok(())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
