//! A store in a directory of its own, and a look into the block images it makes.

#![allow(dead_code, reason = "each test program uses a part of the kit")]

use std::{path::Path, process::Command, sync::Arc};

use anyhow::{Context, Result, ensure};
use codius_image::{ImageLimits, ImageStore, RegistryConfig};
use codius_pod::{Images, NoProgress, PreparedImage};
use codius_testkit::{ImageBuilder, Registry};
use tempfile::TempDir;

/// A store that may ask the given hosts over plain HTTP.
pub(crate) struct Host {
    pub(crate) store: ImageStore,
    pub(crate) directory: TempDir,
}

impl Host {
    pub(crate) fn new(insecure: &[String]) -> Result<Self> {
        Self::with_limits(insecure, ImageLimits::default())
    }

    pub(crate) fn with_limits(insecure: &[String], limits: ImageLimits) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let config = RegistryConfig {
            insecure: insecure.to_vec(),
            ..RegistryConfig::default()
        };
        let store = ImageStore::open(directory.path(), limits, &config)?;
        Ok(Self { store, directory })
    }

    /// The same directory, as another process finds it.
    pub(crate) fn opened_again(self, insecure: &[String], limits: ImageLimits) -> Result<Self> {
        let Self { store, directory } = self;
        drop(store);
        let config = RegistryConfig {
            insecure: insecure.to_vec(),
            ..RegistryConfig::default()
        };
        let store = ImageStore::open(directory.path(), limits, &config)?;
        Ok(Self { store, directory })
    }

    pub(crate) async fn pull(
        &self,
        reference: &str,
    ) -> Result<PreparedImage, codius_pod::ImageError> {
        let resolved = self.store.resolve(reference).await?;
        self.store.prepare(&resolved, Arc::new(NoProgress)).await
    }

    /// Everything in the store's directory but its lock.
    pub(crate) fn files(&self) -> Result<Vec<String>> {
        files_below(self.directory.path())
    }
}

pub(crate) fn files_below(directory: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for part in ["images", "tmp"] {
        for file in std::fs::read_dir(directory.join(part))? {
            files.push(format!("{part}/{}", file?.file_name().display()));
        }
    }
    files.sort();
    Ok(files)
}

/// Pushes an image to a registry of its own and pulls it.
pub(crate) async fn pulled(image: ImageBuilder) -> Result<(PreparedImage, Host)> {
    let registry = Registry::start()?;
    let pushed = image.push(&registry, "test:1").await?;
    let host = Host::new(&[registry.host()])?;
    let prepared = host.pull(&pushed.reference).await?;
    Ok((prepared, host))
}

/// Why an image is refused, as the uploader reads it.
pub(crate) async fn refusal(
    image: ImageBuilder,
    limits: ImageLimits,
) -> Result<codius_pod::ImageError> {
    let registry = Registry::start()?;
    let pushed = image.push(&registry, "test:1").await?;
    let host = Host::with_limits(&[registry.host()], limits)?;
    let Err(error) = host.pull(&pushed.reference).await else {
        anyhow::bail!("the image was accepted");
    };
    ensure!(host.files()?.is_empty(), "left behind: {:?}", host.files()?);
    Ok(error)
}

/// The block image's files, each as `MODE UID/GID PATH` and what `unsquashfs` adds for links,
/// without sizes and times. The root comes first.
pub(crate) fn listing(image: &PreparedImage) -> Result<Vec<String>> {
    let text = unsquashfs(&["-llnumeric"], image, &[])?;
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (mode, owner) = (words.next()?, words.next()?);
        let (_size, _date, _time) = (words.next()?, words.next()?, words.next()?);
        let rest: Vec<&str> = words.collect();
        let path = rest.join(" ").replacen("squashfs-root", "", 1);
        Some(format!("{mode} {owner} {path}"))
    });
    Ok(lines.collect())
}

/// The paths of the block image, without the root.
pub(crate) fn paths(image: &PreparedImage) -> Result<Vec<String>> {
    let text = unsquashfs(&["-l"], image, &[])?;
    Ok(text
        .lines()
        .filter_map(|line| line.strip_prefix("squashfs-root/"))
        .map(str::to_owned)
        .collect())
}

/// The contents of one file of the block image.
pub(crate) fn contents(image: &PreparedImage, path: &str) -> Result<String> {
    unsquashfs(&["-cat"], image, &[path])
}

/// The same, whatever it is.
pub(crate) fn bytes(image: &PreparedImage, path: &str) -> Result<Vec<u8>> {
    let output = Command::new("unsquashfs")
        .arg("-cat")
        .arg(&image.block_image)
        .arg(path)
        .output()
        .context("unsquashfs cannot be started; install the Debian package squashfs-tools")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

pub(crate) fn unsquashfs(
    options: &[&str],
    image: &PreparedImage,
    files: &[&str],
) -> Result<String> {
    let output = Command::new("unsquashfs")
        .args(options)
        .arg(&image.block_image)
        .args(files)
        .output()
        .context("unsquashfs cannot be started; install the Debian package squashfs-tools")?;
    ensure!(
        output.status.success(),
        "unsquashfs: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
