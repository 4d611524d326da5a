//! Layers that mean harm: to this host's files, its memory, its disk or its time. Each is refused
//! within its bound, or made harmless, and what is refused leaves nothing behind (`kit::refusal` looks).
//!
//! Nothing of a layer is ever written under its own name: the tree is in memory. So there is no moment
//! in which a link could be exchanged under a path that was checked before, and a link to `/etc` is a
//! link to the image's own `/etc`, whatever comes first.

mod kit;

use std::{io::Write, path::Path};

use anyhow::{Result, ensure};
use codius_image::ImageLimits;
use codius_pod::ImageError;
use codius_testkit::{Compression, Entry, ImageBuilder, Layer};
use kit::{contents, listing, paths, pulled, refusal};
use tar::{EntryType, Header};

fn image(layer: Layer) -> ImageBuilder {
    ImageBuilder::new().layer(layer)
}

/// Why it is refused: by kind and text.
async fn refused(layer: Layer, limits: ImageLimits) -> Result<(&'static str, String)> {
    Ok(match refusal(image(layer), limits).await? {
        ImageError::Invalid { reason, .. } => ("invalid", reason),
        ImageError::TooLarge { reason, .. } => ("too large", reason),
        other => ("other", other.to_string()),
    })
}

/// A header as it is given, correct in nothing but its sum.
fn header(kind: u8, name: &str, size: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(0o644);
    header.as_old_mut().size[..size.len()].copy_from_slice(size);
    header.as_old_mut().linkflag = [kind];
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// An extended header with these records, and the entry that it is for.
fn pax_raw(records: &str, entry: &[u8]) -> Vec<u8> {
    let mut tar = header(b'x', "pax", format!("{:011o}", records.len()).as_bytes());
    tar.extend_from_slice(records.as_bytes());
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar.extend_from_slice(entry);
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// The same with one record, whose length is right.
fn pax(record: &str, entry: &[u8]) -> Vec<u8> {
    let rest = record.len() + 2;
    let digits = (rest + rest.to_string().len()).to_string().len();
    pax_raw(&format!("{} {record}\n", rest + digits), entry)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(bytes)?;
    Ok(gzip.finish()?)
}

#[tokio::test]
async fn no_entry_reaches_this_hosts_files() -> Result<()> {
    let outside = tempfile::tempdir()?;
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "of this host")?;
    let [directory, secret_name] = [outside.path(), &secret].map(|path| path.display().to_string());
    let inside = |path: &str| path.trim_start_matches('/').to_owned();

    // Written through links that lead out, by all ways: they stay in the image.
    let layer = Layer::new()
        .symlink("out", &directory)
        .file("out/secret", 0o644, "overwritten")
        .symlink("up", "../../../../../../../..")
        .file(&format!("up{directory}/made"), 0o644, "made")
        .symlink("cwd", "/proc/self/cwd")
        .file("cwd/x", 0o644, "x")
        // The link is exchanged between two writes through it.
        .dir("race", 0o755)
        .file("race/a", 0o644, "a")
        .symlink("race", &directory)
        .file("race/b", 0o644, "b")
        .hard_link("stolen", &inside(&secret_name));
    let (prepared, _host) = pulled(image(layer)).await?;
    ensure!(std::fs::read_to_string(&secret)? == "of this host");
    ensure!(
        std::fs::read_dir(outside.path())?.count() == 1,
        "something was made outside"
    );
    let within = inside(&directory);
    let found = paths(&prepared)?;
    for path in ["made", "b", "secret"] {
        ensure!(
            found.contains(&format!("{within}/{path}")),
            "{path}: {found:?}"
        );
    }
    ensure!(
        contents(&prepared, "stolen")? == "overwritten",
        "a link to the image's own file"
    );
    ensure!(!Path::new("/proc/self/cwd/x").exists());
    Ok(())
}

#[tokio::test]
async fn hard_links_lead_to_the_images_own_files_or_nowhere() -> Result<()> {
    for (layer, reason) in [
        (
            Layer::new().hard_link("x", "/etc/passwd"),
            "which is not there",
        ),
        (
            Layer::new().hard_link("x", "../../etc/passwd"),
            ".. in its path",
        ),
        (
            Layer::new()
                .symlink("etc", "/etc")
                .hard_link("x", "etc/passwd"),
            "too many symbolic links",
        ),
        (Layer::new().hard_link("x", "x"), "which is not there"),
        (Layer::new().hard_link("x", ""), "which is not there"),
    ] {
        let (kind, said) = refused(layer, ImageLimits::default()).await?;
        ensure!(
            kind == "invalid" && said.contains(reason),
            "{reason}: {said}"
        );
    }
    // To a symbolic link: another name of the link, never what it leads to.
    let layer = Layer::new().symlink("s", "/etc/shadow").hard_link("h", "s");
    let (prepared, _host) = pulled(image(layer)).await?;
    ensure!(
        listing(&prepared)?[1..]
            == [
                "lrwxrwxrwx 0/0 /h -> /etc/shadow",
                "lrwxrwxrwx 0/0 /s -> /etc/shadow",
            ]
    );
    Ok(())
}

#[tokio::test]
async fn devices_are_not_made_and_take_their_name() -> Result<()> {
    let layer = Layer::new()
        .file("disk", 0o644, "below")
        .entry(Entry::new(EntryType::Block, "disk", 0o666))
        .entry(Entry::char_device("mem", 0o666, 1, 1))
        .hard_link("mem2", "mem")
        .entry(Entry::new(EntryType::Fifo, "fifo", 0o622))
        .whiteout("disk");
    let (prepared, _host) = pulled(image(layer)).await?;
    assert_eq!(paths(&prepared)?, ["fifo"]);
    Ok(())
}

#[tokio::test]
async fn whiteouts_of_the_root_and_its_parents_hide_no_more_than_the_image() -> Result<()> {
    for name in [
        ".wh.",
        ".wh..",
        ".wh...",
        "./.wh..",
        "a/.wh...",
        "..wh.x/../.wh.y",
    ] {
        let layer = Layer::new().file("a/b", 0o644, "1").file(name, 0o644, "");
        let (kind, said) = refused(layer, ImageLimits::default()).await?;
        ensure!(kind == "invalid", "{name}: {said}");
    }
    let below = Layer::new().file("a", 0o644, "1").file("b/c", 0o644, "1");
    let above = Layer::new()
        .file(".wh..wh..opq", 0o644, "")
        .file("d", 0o644, "2");
    let (prepared, _host) = pulled(ImageBuilder::new().layer(below).layer(above)).await?;
    assert_eq!(
        paths(&prepared)?,
        ["d"],
        "an opaque root hides what is below it"
    );
    Ok(())
}

#[tokio::test]
async fn headers_that_promise_too_much_are_refused_before_anything_is_kept() -> Result<()> {
    let regular = header(b'0', "f", b"00000000001\0");
    let limits = ImageLimits::default;
    let long = "n".repeat(1000);
    for (tar, kind, reason) in [
        // Sizes: octal, binary, by an extended header.
        (
            header(b'0', "f", b"77777777777\0"),
            "too large",
            "a file of 8589934591 bytes",
        ),
        (
            header(b'0', "f", b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"),
            "too large",
            "a file of 18446744073709551615 bytes",
        ),
        (
            header(b'0', "f", b"\x80\xff\0\0\0\0\0\0\0\0\0\0"),
            "invalid",
            "number",
        ),
        (
            pax("size=18446744073709551615", &regular),
            "too large",
            "a file of 18446744073709551615",
        ),
        (
            pax("size=18446744073709551616", &regular),
            "invalid",
            "extended header",
        ),
        (pax("size=-1", &regular), "invalid", "extended header"),
        // A promise that is not kept.
        (header(b'0', "f", b"00000100000\0"), "invalid", "ends early"),
        // Extended headers: as large as a file, without an end, in each other.
        (
            header(b'x', "pax", b"00010000000\0"),
            "too large",
            "extended header of more than 1 MiB",
        ),
        (
            header(b'L', "long", b"77777777777\0"),
            "too large",
            "extended header of more than 1 MiB",
        ),
        (
            pax_raw("99999999999 path=x\n", &regular),
            "invalid",
            "extended header",
        ),
        (
            pax_raw("1014 path=x\n", &regular),
            "invalid",
            "extended header",
        ),
        (
            pax("path=a/../../etc", &regular),
            "invalid",
            ".. in its path",
        ),
        (
            pax(&format!("path={long}"), &regular),
            "invalid",
            "too long a name",
        ),
        // Sparse files, in both dialects of GNU's tar.
        (
            header(b'S', "sparse", b"00000000000\0"),
            "invalid",
            "sparse",
        ),
        (
            pax_raw("22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", &regular),
            "invalid",
            "sparse",
        ),
        (
            pax("GNU.sparse.realsize=999999999", &regular),
            "invalid",
            "sparse",
        ),
        (
            pax("GNU.sparse.size=999999999", &regular),
            "invalid",
            "sparse",
        ),
        // Types that only some readers know.
        (
            header(b'M', "multi", b"00000000000\0"),
            "invalid",
            "unknown type",
        ),
        (
            header(b'V', "volume", b"00000000000\0"),
            "invalid",
            "unknown type",
        ),
        (
            header(b'D', "dump", b"00000000000\0"),
            "invalid",
            "unknown type",
        ),
    ] {
        let (said_kind, said) = refused(Layer::raw(tar), limits()).await?;
        ensure!(
            said_kind == kind && said.contains(reason),
            "{reason}: {said_kind}: {said}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn extended_attributes_are_few_small_and_of_known_kinds() -> Result<()> {
    let with = |name: &str, value: Vec<u8>| {
        Layer::new().entry(Entry::file("f", 0o755, "x").xattr(name, value))
    };
    let (kind, said) = refused(with("user.big", vec![1; 65_537]), ImageLimits::default()).await?;
    ensure!(
        kind == "too large" && said.contains("65536 bytes"),
        "{said}"
    );
    let many = (0..65).fold(Entry::file("f", 0o755, "x"), |entry, n| {
        entry.xattr(&format!("user.{n}"), "v")
    });
    let (kind, said) = refused(Layer::new().entry(many), ImageLimits::default()).await?;
    ensure!(
        kind == "too large" && said.contains("64 extended attributes"),
        "{said}"
    );

    // As large as Linux has them, and kinds that are left out.
    let layer = Layer::new().entry(
        Entry::file("f", 0o755, "x")
            .xattr("user.big", vec![1; 65_536])
            .xattr("trusted.overlay.redirect", "/etc")
            .xattr("security.selinux", "unconfined_t")
            .xattr("system.posix_acl_access", "x"),
    );
    let (prepared, _host) = pulled(image(layer)).await?;
    assert_eq!(contents(&prepared, "f")?, "x");
    Ok(())
}

#[tokio::test]
async fn decompression_bombs_of_every_build_are_refused() -> Result<()> {
    const MIB: usize = 1 << 20;
    let zeros = vec![0; 80 * MIB];
    let zstd = zstd::bulk::compress(&zeros, 19)?;
    let members = gzip(&zeros[..MIB])?.repeat(80);
    let frames = zstd::bulk::compress(&zeros[..MIB], 19)?.repeat(80);
    // 12 GiB of zeros, in blocks of 128 KiB that travel as four bytes (RFC 8878 3.1.1.2.2, RLE blocks).
    let mut runs = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
    for _ in 0..100_000 {
        runs.extend_from_slice(&[0x02, 0x00, 0x10, 0x00]);
    }
    for (name, blob, compression) in [
        ("zstd", zstd, Compression::Zstd),
        ("gzip members", members, Compression::Gzip),
        ("zstd frames", frames, Compression::Zstd),
        ("zstd runs", runs, Compression::Zstd),
    ] {
        let layer = Layer::packed(zeros.clone(), blob).compression(compression);
        let (kind, said) = refused(layer, ImageLimits::default()).await?;
        ensure!(
            kind == "too large" && said.contains("100 times its size"),
            "{name}: {kind}: {said}"
        );
    }
    // A window that needs more memory than every decoder has (RFC 8878 3.1.1.1.2): 2 GiB.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    let layer = Layer::packed(vec![], window).compression(Compression::Zstd);
    let (kind, said) = refused(layer, ImageLimits::default()).await?;
    ensure!(
        kind == "invalid" && said.contains("cannot be decompressed"),
        "{said}"
    );
    // Compressed twice: what comes out is no archive, and is not looked into.
    let noise: Vec<u8> = (0..4000u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let tar = Layer::new()
        .file("noise", 0o644, noise)
        .file("a", 0o644, "a")
        .tar()?;
    let layer = Layer::packed(tar.clone(), gzip(&gzip(&tar)?)?);
    let (kind, said) = refused(layer, ImageLimits::default()).await?;
    ensure!(
        kind == "invalid" && said.contains("not a tar archive"),
        "{said}"
    );
    // Cut off, and with something behind.
    let whole = gzip(&tar)?;
    for blob in [
        whole[..whole.len() - 4].to_vec(),
        [&whole[..], b"more"].concat(),
    ] {
        let (kind, said) =
            refused(Layer::packed(tar.clone(), blob), ImageLimits::default()).await?;
        ensure!(
            kind == "invalid" && said.contains("cannot be decompressed"),
            "{said}"
        );
    }
    // Honest members of one archive are one archive.
    let parts: Vec<_> = tar.chunks(700).map(gzip).collect::<Result<_>>()?;
    let (prepared, _host) = pulled(image(Layer::packed(tar, parts.concat()))).await?;
    assert_eq!(contents(&prepared, "a")?, "a");
    Ok(())
}

#[tokio::test]
async fn one_entry_that_needs_a_thousand_directories_counts_as_a_thousand() -> Result<()> {
    let deep = |number: usize| format!("{number}/{}x", "d/".repeat(999));
    let layer = (0..20).fold(Layer::new(), |layer, number| {
        layer.file(&deep(number), 0o644, "")
    });
    let limits = ImageLimits {
        entries: 10_000,
        ..ImageLimits::default()
    };
    let (kind, said) = refused(layer, limits).await?;
    ensure!(
        kind == "too large" && said.contains("more than 10000 files and directories"),
        "{said}"
    );
    let layer = Layer::new().file(&"d/".repeat(1025), 0o644, "");
    let (kind, said) = refused(layer, ImageLimits::default()).await?;
    ensure!(kind == "too large" && said.contains("too deep"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_directory_has_no_more_names_than_can_be_looked_through() -> Result<()> {
    let layer = (0..100_001).fold(Layer::new(), |layer, number| {
        layer.entry(Entry::file(format!("{number}"), 0o644, ""))
    });
    let (kind, said) = refused(layer, ImageLimits::default()).await?;
    ensure!(
        kind == "too large" && said.contains("more than 100000 names"),
        "{said}"
    );
    Ok(())
}

/// Forty links, each with two thousand parts to write out, for each of many entries: without a bound
/// that is an hour of work in a few kilobytes.
#[tokio::test]
async fn links_that_are_long_to_write_out_are_counted() -> Result<()> {
    let mut layer = Layer::new();
    for number in 0..39 {
        let target = format!("l{}/{}", number + 1, "./x/".repeat(1000));
        layer = layer.symlink(&format!("l{number}"), &target);
    }
    layer = layer.dir("l39", 0o755);
    for number in 0..2000 {
        layer = layer.whiteout(&format!("l0/{number}"));
    }
    let (kind, said) = refused(layer, ImageLimits::default()).await?;
    ensure!(
        kind == "too large" && said.contains("too many and too deep"),
        "{said}"
    );
    Ok(())
}

#[tokio::test]
async fn more_owners_than_a_block_image_has_room_for_are_the_images_fault() -> Result<()> {
    let layer = (0..66_000).fold(Layer::new(), |layer, number| {
        layer.entry(Entry::file(format!("{number}"), 0o644, "").owner(number + 100_000, 0))
    });
    let (kind, said) = refused(layer, ImageLimits::default()).await?;
    ensure!(
        kind == "too large" && said.contains("owners and groups"),
        "{said}"
    );
    Ok(())
}

/// Hundreds of thousands of second names of files deep down: their paths are not kept in memory.
#[tokio::test]
async fn second_names_of_deep_files_are_written_without_keeping_their_paths() -> Result<()> {
    let deep = format!("{}/", "n".repeat(200)).repeat(18);
    let mut layer = Layer::new().dir(&deep, 0o755).symlink("s", &deep);
    for number in 0..3000 {
        layer = layer
            .file(&format!("s/a{number}"), 0o644, "")
            .hard_link(&format!("s/b{number}"), &format!("s/a{number}"));
    }
    let (prepared, _host) = pulled(image(layer)).await?;
    ensure!(paths(&prepared)?.len() == 18 + 1 + 6000);
    Ok(())
}
