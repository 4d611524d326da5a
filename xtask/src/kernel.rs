//! `cargo xtask kernel`: a smaller kernel for pods, from the distribution's own kernel source. Optional: it boots in
//! about half the time and needs less memory; but whoever uses it has to build it again for each security update.
//!
//! ```text
//! target/kernel/linux-source-X.Y/    the source as the distribution patches it, unpacked
//! target/kernel/source.txt           which package that is
//! target/kernel/vmlinux              the result, for `cargo xtask guest --kernel`
//! ```
//!
//! What is in it is `kernel.config`, on top of the kernel's own `tinyconfig`. Kconfig drops what it does not
//! know or cannot satisfy without a word, so the outcome is compared with what was asked for.

use std::{
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{build, guest, packages};

/// The package whose only content is the name of the current source package.
const SOURCE_METAPACKAGE: &str = "linux-source";
const WANTED: &str = include_str!("kernel.config");

pub(crate) fn run(yes: bool) -> Result<()> {
    packages::ensure(&[packages::HOST, packages::KERNEL], yes)?;
    let place = build::target_dir().join("kernel");
    fs::create_dir_all(&place)?;
    let lock = fs::File::create(place.join("lock"))?;
    lock.lock()
        .context("cannot wait for another build of the kernel")?;
    let source = unpack(&place)?;
    configure(&source)?;
    eprintln!("building the kernel (10 minutes of two processors)");
    let jobs = thread::available_parallelism().map_or(1, NonZero::get);
    done(make(&source, &format!("-j{jobs}")).arg("vmlinux"))?;
    let kernel = place.join("vmlinux");
    let new = place.join("vmlinux.new");
    let mut strip = Command::new("strip");
    done(strip.arg("-o").arg(&new).arg(source.join("vmlinux")))?;
    fs::rename(&new, &kernel)?;
    println!("{}", kernel.display());
    eprintln!(
        "use it with `cargo xtask guest --kernel {}`; `cargo xtask guest` goes back to the distribution's",
        kernel.display()
    );
    Ok(())
}

/// Has the newest source of the distribution unpacked below `place`, and says where.
fn unpack(place: &Path) -> Result<PathBuf> {
    let package = guest::dependency(SOURCE_METAPACKAGE, "linux-source-")?;
    let url =
        guest::output(Command::new("apt-get").args(["-qq", "--print-uris", "download", &package]))?;
    // 'where' file-name size digest: the file's name has the version in it.
    let file = url
        .split_whitespace()
        .nth(1)
        .with_context(|| format!("apt-get knows no source of {package}"))?
        .to_owned();
    let source = place.join(&package);
    let note = place.join("source.txt");
    if source.exists() && fs::read_to_string(&note).is_ok_and(|noted| noted == file) {
        return Ok(source);
    }
    for stale in [&source, &place.join("package")] {
        if stale.exists() {
            fs::remove_dir_all(stale)?;
        }
    }
    eprintln!("downloading {package} (140 MB)");
    let download = place.join("package");
    fs::create_dir(&download)?;
    guest::output(
        Command::new("apt-get")
            .args(["-qq", "download", &package])
            .current_dir(&download),
    )?;
    let deb = guest::only_entry(&download)?;
    guest::output(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&deb)
            .arg(download.join("root")),
    )?;
    let archive = download.join(format!("root/usr/src/{package}.tar.xz"));
    guest::output(
        Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(&archive)
            .arg("--directory")
            .arg(place),
    )?;
    ensure!(
        source.exists(),
        "{} has no directory {package}",
        archive.display()
    );
    fs::remove_dir_all(&download)?;
    fs::write(note, file)?;
    Ok(source)
}

/// Writes the kernel's `.config`, and sees that all of [`WANTED`] is in it.
fn configure(source: &Path) -> Result<()> {
    done(make(source, "--silent").arg("tinyconfig"))?;
    let fragment = source.join("pod.config");
    fs::write(&fragment, WANTED)?;
    // Later lines win.
    let path = source.join(".config");
    let tiny = fs::read_to_string(&path)?;
    fs::write(&path, format!("{tiny}\n{WANTED}"))?;
    done(make(source, "--silent").arg("olddefconfig"))?;
    let got = fs::read_to_string(&path)?;
    let lost = lost(WANTED, &got);
    if !lost.is_empty() {
        bail!(
            "this source cannot be built as wanted; change xtask/src/kernel.config:\n{}",
            lost.join("\n")
        );
    }
    Ok(())
}

/// The lines of the first configuration that the second does not fulfil.
fn lost<'a>(wanted: &'a str, got: &str) -> Vec<&'a str> {
    let is_set = |name: &str| {
        got.lines().any(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('='))
        })
    };
    wanted
        .lines()
        .filter(|line| {
            match line
                .strip_prefix("# ")
                .and_then(|line| line.strip_suffix(" is not set"))
            {
                // What does not exist is not set either.
                Some(name) => is_set(name),
                None => line.starts_with("CONFIG_") && !got.lines().any(|other| other == *line),
            }
        })
        .collect()
}

fn make(source: &Path, flag: &str) -> Command {
    let mut make = Command::new("make");
    make.arg("-C").arg(source).arg(flag);
    make
}

/// Runs a command to its end, its messages shown if it fails.
fn done(command: &mut Command) -> Result<()> {
    guest::output(command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wanted_and_is_not_there_is_named() {
        let wanted =
            "# A comment.\nCONFIG_A=y\nCONFIG_N=4\n# CONFIG_B is not set\n# CONFIG_C is not set\n";
        assert_eq!(
            lost(wanted, "CONFIG_A=y\nCONFIG_N=4\n# CONFIG_B is not set\n"),
            [""; 0]
        );
        assert_eq!(
            lost(
                wanted,
                "CONFIG_AA=y\nCONFIG_N=44\nCONFIG_B=y\nCONFIG_CC=y\n"
            ),
            ["CONFIG_A=y", "CONFIG_N=4", "# CONFIG_B is not set"]
        );
    }

    #[test]
    fn nothing_is_wanted_twice() {
        let mut names: Vec<&str> = WANTED
            .lines()
            .filter_map(|line| {
                let name = line.strip_prefix("# ").unwrap_or(line);
                name.starts_with("CONFIG_")
                    .then(|| name.split(['=', ' ']).next().unwrap_or(name))
            })
            .collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
