//! The kit against the real registry.

use anyhow::{Context, Result};
use codius_testkit::{Compression, ImageBuilder, Layer, Registry, busybox};

#[tokio::test]
async fn a_pushed_image_is_served_under_its_digest() -> Result<()> {
    let registry = Registry::start()?;
    let image = busybox(ImageBuilder::new())?
        .layer(
            Layer::new()
                .file("www/index.html", 0o644, "hi")
                .compression(Compression::Zstd),
        )
        .entrypoint(&["httpd", "-f"])
        .index();
    let pushed = image.push(&registry, "hello:1").await?;
    assert_eq!(pushed.reference, registry.reference("hello:1"));

    let url = format!(
        "http://{}/v2/hello/manifests/{}",
        registry.host(),
        pushed.digest
    );
    let answer = reqwest::Client::builder()
        .no_proxy()
        .build()?
        .get(url)
        .header("accept", "application/vnd.oci.image.manifest.v1+json")
        .send()
        .await?
        .error_for_status()?;
    let manifest: serde_json::Value = serde_json::from_slice(&answer.bytes().await?)?;
    assert_eq!(manifest["layers"].as_array().context("layers")?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn docker_media_types_and_two_registries_at_once() -> Result<()> {
    let (first, second) = (Registry::start()?, Registry::start()?);
    assert_ne!(first.address(), second.address());
    let image = ImageBuilder::new().docker_media_types().layer(
        Layer::new()
            .file("a", 0o644, "a")
            .compression(Compression::Plain),
    );
    let here = image.push(&first, "deep/name").await?;
    let there = image.push(&second, "deep/name").await?;
    assert_eq!(here.digest, there.digest);
    assert!(here.reference.ends_with("/deep/name:latest"));
    Ok(())
}

#[test]
fn dropping_the_registry_stops_it() -> Result<()> {
    let registry = Registry::start()?;
    let address = registry.address();
    std::net::TcpStream::connect(address).context("it listens")?;
    drop(registry);
    assert!(std::net::TcpStream::connect(address).is_err());
    Ok(())
}
