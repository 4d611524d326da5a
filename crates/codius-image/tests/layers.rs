//! What becomes of layers: real images from a real registry, looked at with `unsquashfs`.

mod kit;

use anyhow::{Context, Result};
use codius_image::ImageLimits;
use codius_pod::ImageError;
use codius_testkit::{Compression, Entry, ImageBuilder, Layer, busybox};
use kit::{contents, listing, paths, pulled, refusal, unsquashfs};

fn image(layers: impl IntoIterator<Item = Layer>) -> ImageBuilder {
    layers
        .into_iter()
        .fold(ImageBuilder::new(), ImageBuilder::layer)
}

#[tokio::test]
async fn files_keep_owner_mode_links_and_attributes() -> Result<()> {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Layer::new()
        .entry(Entry::dir("./", 0o711).owner(5, 6))
        .entry(Entry::dir("d", 0o2750).owner(1000, 70_000))
        .entry(Entry::file("d/suid", 0o4755, "abc").owner(0, 3_000_000))
        .entry(Entry::file("d/ping", 0o755, "p").xattr("security.capability", capability))
        .entry(
            Entry::file("d/note", 0o644, "n")
                .xattr("user.note", "hello")
                .xattr("trusted.overlay.opaque", "y"),
        )
        .hard_link("d/again", "d/suid")
        .symlink("s", "/nowhere/../x")
        .entry(Entry::new(tar::EntryType::Fifo, "pipe", 0o600))
        .entry(Entry::char_device("null", 0o666, 1, 3));
    let (prepared, _host) = pulled(image([layer])).await?;
    assert_eq!(
        listing(&prepared)?,
        [
            "drwx--x--x 5/6 ",
            "drwxr-s--- 1000/70000 /d",
            "-rwsr-xr-x 0/3000000 /d/again",
            "-rw-r--r-- 0/0 /d/note",
            "-rwxr-xr-x 0/0 /d/ping",
            "-rwsr-xr-x 0/3000000 /d/suid",
            "prw------- 0/0 /pipe",
            "lrwxrwxrwx 0/0 /s -> /nowhere/../x",
        ]
    );
    assert_eq!(contents(&prepared, "d/again")?, "abc");

    // Unpacking needs root, as mounting would; it shows attributes and that links are one file.
    let unpacked = tempfile::tempdir()?;
    let target = unpacked.path().join("root");
    unsquashfs(
        &["-no-progress", "-dest", target.to_str().context("utf-8")?],
        &prepared,
        &[],
    )?;
    let inode = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(target.join(name)).map(|file| (file.ino(), file.nlink()))
    };
    assert_eq!(inode("d/again")?, inode("d/suid")?);
    assert_eq!(inode("d/suid")?.1, 2);
    let mut value = [0; 64];
    let length =
        rustix::fs::getxattr(target.join("d/ping"), "security.capability", &mut value[..])?;
    assert_eq!(value[..length], capability);
    let length = rustix::fs::getxattr(target.join("d/note"), "user.note", &mut value[..])?;
    assert_eq!(&value[..length], b"hello");
    assert!(
        rustix::fs::getxattr(
            target.join("d/note"),
            "trusted.overlay.opaque",
            &mut value[..]
        )
        .is_err()
    );
    Ok(())
}

#[tokio::test]
async fn a_whiteout_hides_lower_layers_only() -> Result<()> {
    let (prepared, _host) = pulled(image([
        Layer::new()
            .file("a/old", 0o644, "1")
            .file("a/kept", 0o644, "1")
            .file("b/x/y", 0o644, "1")
            .file("c", 0o644, "1"),
        Layer::new()
            .file("a/new", 0o644, "2")
            .whiteout("a/old")
            .file("a/both", 0o644, "2")
            .whiteout("a/both")
            .whiteout("b")
            .file("c", 0o644, "2")
            .whiteout("c")
            .whiteout("never/there"),
    ]))
    .await?;
    assert_eq!(paths(&prepared)?, ["a", "a/both", "a/kept", "a/new", "c"]);
    assert_eq!(contents(&prepared, "c")?, "2");
    Ok(())
}

#[tokio::test]
async fn an_opaque_directory_hides_lower_layers_wherever_its_marker_is() -> Result<()> {
    for marker_first in [true, false] {
        let base = Layer::new()
            .file("d/a", 0o644, "1")
            .file("d/sub/b", 0o644, "1")
            .file("e", 0o644, "1");
        let new = |layer: Layer| layer.file("d/new", 0o644, "2").file("d/sub/c", 0o644, "2");
        let top = if marker_first {
            new(Layer::new().opaque("d"))
        } else {
            new(Layer::new()).opaque("d")
        };
        let (prepared, _host) = pulled(image([base, top])).await?;
        assert_eq!(paths(&prepared)?, ["d", "d/new", "d/sub", "d/sub/c", "e"]);
    }
    Ok(())
}

#[tokio::test]
async fn hard_links_reach_into_lower_layers_even_to_hidden_files() -> Result<()> {
    let (prepared, _host) = pulled(image([
        Layer::new()
            .file("a", 0o644, "one")
            .file("b", 0o644, "two")
            .file("d/c", 0o644, "three"),
        Layer::new()
            .hard_link("to-a", "a")
            .whiteout("b")
            .hard_link("to-b", "/b")
            .whiteout("d")
            .hard_link("to-c", "./d/c")
            // A repeated link replaces itself.
            .hard_link("to-a", "a"),
        Layer::new().file("a", 0o644, "other"),
    ]))
    .await?;
    assert_eq!(paths(&prepared)?, ["a", "to-a", "to-b", "to-c"]);
    for (path, expected) in [
        ("a", "other"),
        ("to-a", "one"),
        ("to-b", "two"),
        ("to-c", "three"),
    ] {
        assert_eq!(contents(&prepared, path)?, expected, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn symbolic_links_as_parents_lead_inside_the_image() -> Result<()> {
    let (prepared, _host) = pulled(image([
        Layer::new()
            .dir("usr/lib", 0o755)
            .symlink("lib", "usr/lib")
            .symlink("out", "../../../../etc")
            .symlink("gone", "/not/yet")
            .symlink("replaced", "usr"),
        Layer::new()
            .file("lib/x", 0o644, "x")
            .file("out/passwd", 0o644, "inside")
            .file("gone/y", 0o644, "y")
            .dir("replaced", 0o700)
            .file("replaced/z", 0o644, "z"),
        Layer::new().whiteout("lib/x"),
    ]))
    .await?;
    assert_eq!(
        paths(&prepared)?,
        [
            "etc",
            "etc/passwd",
            "gone",
            "lib",
            "not",
            "not/yet",
            "not/yet/y",
            "out",
            "replaced",
            "replaced/z",
            "usr",
            "usr/lib"
        ]
    );
    assert_eq!(contents(&prepared, "etc/passwd")?, "inside");
    Ok(())
}

#[tokio::test]
async fn odd_names_and_duplicates_end_as_one_clean_tree() -> Result<()> {
    let long = format!("{}/{}", "n".repeat(200), "m".repeat(255));
    let (prepared, _host) = pulled(image([Layer::new()
        .file("./dot", 0o644, "1")
        .file("/absolute", 0o644, "1")
        .file("twice//slash", 0o644, "1")
        .file("dup", 0o644, "first")
        .file("dup", 0o600, "second")
        .file("was-file", 0o644, "1")
        .dir("was-file", 0o755)
        .dir("was-dir", 0o755)
        .file("was-dir/below", 0o644, "1")
        .symlink("was-dir", "dot")
        .file("new\nline and space", 0o644, "1")
        .file(".wh..wh.aufs", 0o644, "1")
        .file(".wh..wh.plnk/1.2", 0o644, "1")
        .file(&long, 0o644, "long")]))
    .await?;
    let n = "n".repeat(200);
    assert_eq!(
        unsquashfs(&["-l"], &prepared, &[])?
            .replace("squashfs-root/", "")
            .lines()
            .skip(1)
            .collect::<Vec<_>>(),
        [
            "absolute",
            "dot",
            "dup",
            "new",
            "line and space",
            &n,
            &long,
            "twice",
            "twice/slash",
            "was-dir",
            "was-file"
        ]
    );
    assert_eq!(contents(&prepared, "dup")?, "second");
    assert_eq!(contents(&prepared, &long)?, "long");
    Ok(())
}

#[tokio::test]
async fn every_compression_and_both_families_of_media_types() -> Result<()> {
    for compression in [Compression::Gzip, Compression::Zstd, Compression::Plain] {
        let layer = Layer::new()
            .file("a", 0o644, "x".repeat(300_000))
            .compression(compression);
        let (prepared, _host) = pulled(image([layer]).index()).await?;
        assert_eq!(contents(&prepared, "a")?.len(), 300_000);
    }
    let layer = Layer::new().file("a", 0o644, "docker");
    let (prepared, _host) = pulled(image([layer]).docker_media_types().index()).await?;
    assert_eq!(contents(&prepared, "a")?, "docker");
    Ok(())
}

#[tokio::test]
async fn an_image_without_layers_is_an_empty_root() -> Result<()> {
    let (prepared, _host) = pulled(image([])).await?;
    assert_eq!(listing(&prepared)?, ["drwxr-xr-x 0/0 "]);
    Ok(())
}

/// Wherever its inode lies: a file before it takes 36 bytes, an empty one 32, and a metadata block 8192.
/// So it begins 8 and 4 bytes before the end of the first, and in the second.
#[tokio::test]
async fn the_root_has_the_time_that_the_image_says_and_not_that_of_its_making() -> Result<()> {
    for (files, empty) in [(0, 0), (1, 0), (6, 249), (7, 248), (300, 0)] {
        let root = Entry::dir("./", 0o755).mtime(1_000_000_000);
        let layer = (0..files).fold(Layer::new().entry(root), |layer, number| {
            layer.file(&format!("{number}"), 0o644, format!("{number}"))
        });
        let layer = (0..empty).fold(layer, |layer, number| {
            layer.file(&format!("empty{number}"), 0o644, "")
        });
        let (prepared, _host) = pulled(image([layer])).await?;
        let text = unsquashfs(&["-llnumeric", "-UTC"], &prepared, &[])?;
        let root = text.lines().find(|line| line.ends_with(" squashfs-root"));
        let root = root.context("no root")?;
        assert!(root.contains("2001-09-09 01:46"), "{files} files: {root}");
    }
    Ok(())
}

/// The kernel's own reader, which is what a pod has.
#[tokio::test]
async fn the_kernel_mounts_a_busybox_image() -> Result<()> {
    let (prepared, host) = pulled(busybox(ImageBuilder::new())?).await?;
    let target = host.directory.path().join("mounted");
    std::fs::create_dir(&target)?;
    // In a mount namespace of its own, which takes the mount away with it.
    let script = "mount -t squashfs -o loop,ro \"$1\" \"$2\" && chroot \"$2\" /bin/sh -c 'echo mounted; ls -l /bin/sh'";
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-ec", script, "sh"])
        .args([prepared.block_image.as_os_str(), target.as_os_str()])
        .output()
        .context("unshare cannot be started; install the Debian package util-linux")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.starts_with("mounted\n") && text.contains("busybox"),
        "{text}{errors}"
    );
    Ok(())
}

#[tokio::test]
async fn paths_that_lead_out_are_refused() -> Result<()> {
    for (layer, reason) in [
        (Layer::new().file("../x", 0o644, "1"), ".. in its path"),
        (Layer::new().file("a/../../x", 0o644, "1"), ".. in its path"),
        (
            Layer::new().hard_link("x", "../../etc/passwd"),
            ".. in its path",
        ),
        (
            Layer::new().file("a/.wh...", 0o644, ""),
            "whiteout of nothing",
        ),
        (Layer::new().file(".wh.a/b", 0o644, ""), "below a whiteout"),
        (Layer::new().hard_link("x", "missing"), "which is not there"),
        (
            Layer::new().dir("d", 0o755).hard_link("x", "d"),
            "hard link to a directory",
        ),
        (
            Layer::new().file("f", 0o644, "").file("f/g", 0o644, ""),
            "not a directory",
        ),
        (
            Layer::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", 0o644, ""),
            "too many symbolic links",
        ),
        (
            Layer::new().file(&"x".repeat(256), 0o644, ""),
            "too long a name",
        ),
        (
            Layer::new().file(&"x/".repeat(2100), 0o644, ""),
            "too long a path",
        ),
        (Layer::raw(vec![7; 1024]), "not a tar archive"),
        (Layer::raw(vec![0; 100]), "ends early"),
        (
            Layer::new().entry(Entry::new(tar::EntryType::GNUSparse, "s", 0o644)),
            "sparse",
        ),
        (
            Layer::new().entry(Entry::new(tar::EntryType::new(b'Q'), "s", 0o644)),
            "unknown type",
        ),
    ] {
        match refusal(image([layer]), ImageLimits::default()).await? {
            ImageError::Invalid { reason: said, .. } => {
                assert!(said.contains(reason), "{reason}: {said}");
            }
            other => anyhow::bail!("{reason}: {other}"),
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_limit_of_size_and_number_refuses_an_image() -> Result<()> {
    let limits = ImageLimits::default;
    let files = (0..20).fold(Layer::new(), |layer, n| {
        layer.file(&format!("f{n}"), 0o644, "x")
    });
    let zeros = |bytes: usize| Layer::new().file("zeros", 0o644, vec![0; bytes]);
    for (layers, limits, reason) in [
        (
            vec![files.clone()],
            ImageLimits {
                entries: 19,
                ..limits()
            },
            "more than 19 files",
        ),
        (
            vec![files.clone(); 4],
            ImageLimits {
                layers: 3,
                ..limits()
            },
            "4 layers",
        ),
        (
            vec![files.clone()],
            ImageLimits {
                metadata_bytes: 500,
                ..limits()
            },
            "500 bytes",
        ),
        (
            vec![files.clone()],
            ImageLimits {
                compressed_bytes: 100,
                ..limits()
            },
            "compressed",
        ),
        (
            vec![zeros(5000)],
            ImageLimits {
                file_bytes: 4999,
                ..limits()
            },
            "5000 bytes",
        ),
        (
            vec![zeros(50_000)],
            ImageLimits {
                uncompressed_bytes: 40_000,
                ..limits()
            },
            "40000 bytes unpacked",
        ),
        // Two layers that only together are too much.
        (
            vec![zeros(30_000), zeros(30_000)],
            ImageLimits {
                uncompressed_bytes: 50_000,
                ..limits()
            },
            "50000 bytes unpacked",
        ),
        // A bomb: 80 MiB of zeros in some 80 KiB.
        (vec![zeros(80 << 20)], limits(), "100 times its size"),
        // What follows the end of the archive counts too.
        (
            vec![Layer::raw(vec![0; 80 << 20])],
            limits(),
            "100 times its size",
        ),
        (
            vec![files.clone()],
            ImageLimits {
                config_bytes: 10,
                ..limits()
            },
            "its config",
        ),
        (
            vec![files],
            ImageLimits {
                manifest_bytes: 10,
                ..limits()
            },
            "its manifest",
        ),
    ] {
        match refusal(image(layers), limits).await? {
            ImageError::TooLarge { reason: said, .. } => {
                assert!(said.contains(reason), "{reason}: {said}");
            }
            other => anyhow::bail!("{reason}: {other}"),
        }
    }
    Ok(())
}
