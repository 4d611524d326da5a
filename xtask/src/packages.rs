//! What this project needs from the distribution, and installing what is missing: said, and asked.

use std::{
    env,
    io::{IsTerminal, Write, stdin},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};

/// A program and the Debian package that brings it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    /// Or a module of Python, as `python3 -m MODULE`; or any file, by its whole path.
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const fn need(program: &'static str, package: &'static str, why: &'static str) -> Need {
    Need {
        program,
        package,
        why,
    }
}

/// Running pods.
pub(crate) const HOST: &[Need] = &[
    need("qemu-system-x86_64", "qemu-system-x86", "runs the pods"),
    need("sqfstar", "squashfs-tools", "makes block images"),
    need("mke2fs", "e2fsprogs", "makes scratch disks"),
    need("nft", "nftables", "keeps pods apart"),
    need("ip", "iproute2", "gives pods a network"),
    need(
        "docker-registry",
        "docker-registry",
        "serves the example image on loopback",
    ),
    need("dpkg-deb", "dpkg", "unpacks the guest kernel"),
    need("cc", "build-essential", "links, and builds SQLite"),
];

/// The originals in JavaScript.
pub(crate) const JAVASCRIPT: &[Need] = &[
    need(
        "node",
        "nodejs",
        "runs the original libraries that ours are compared with",
    ),
    need("npm", "npm", "installs the original libraries"),
];

/// Beyond that, testing.
pub(crate) const TEST: &[Need] = &[
    need("busybox", "busybox-static", "is what the test images hold"),
    need("unsquashfs", "squashfs-tools", "looks into block images"),
    need("nginx", "nginx-light", "ends TLS in front of hosts"),
    need("openssl", "openssl", "certifies who is behind TLS"),
    need(
        "python3 -m ensurepip",
        "python3-venv",
        "holds schemathesis, which tries the API",
    ),
];

/// Beyond that, building a kernel.
pub(crate) const KERNEL: &[Need] = &[
    need("make", "build-essential", "builds the kernel"),
    need("flex", "flex", "reads the kernel's configuration"),
    need("bison", "bison", "reads the kernel's configuration"),
    need("bc", "bc", "computes constants of the kernel"),
    need("xz", "xz-utils", "unpacks the kernel's source"),
    need(
        "/usr/include/libelf.h",
        "libelf-dev",
        "lets the kernel's build look at what it has made",
    ),
];

/// Beyond that, comparing with others.
pub(crate) const BENCH: &[Need] = &[
    need("skopeo", "skopeo", "pulls images for comparison"),
    need("umoci", "umoci", "unpacks images for comparison"),
    need("nginx", "nginx-light", "is the proxy to compare with"),
    need("wrk", "wrk", "makes the load"),
];

/// Beyond that, comparing the start of a pod with the start of containers.
pub(crate) const CONTAINERS: &[Need] = &[
    need("podman", "podman", "runs containers for comparison"),
    need("crun", "crun", "is what podman starts them with"),
    need("runsc", "runsc", "runs them in a sandbox (gVisor)"),
];

/// Installs what is missing after saying what, and asking unless `yes` or in CI.
pub(crate) fn ensure(groups: &[&[Need]], yes: bool) -> Result<()> {
    let missing: Vec<Need> = groups
        .iter()
        .flat_map(|group| group.iter())
        .filter(|need| !is_there(need.program))
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("These packages of the distribution are missing:");
    for need in &missing {
        println!("  {:<18} {} ({})", need.package, need.why, need.program);
    }
    if Command::new("apt-get").arg("--version").output().is_err() {
        bail!(
            "there is no apt-get here: install these programs as your distribution does, then run this again"
        );
    }
    let mut packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    let install = ["install", "--yes", "--no-install-recommends"];
    let shown = format!("apt-get {} {}", install.join(" "), packages.join(" "));
    if !yes && env::var_os("CI").is_none() {
        if !stdin().is_terminal() {
            bail!(
                "not installed without being asked to: run `{shown}`, or this command again with --yes"
            );
        }
        print!("Install them with `{shown}`? [y/N] ");
        std::io::stdout().flush()?;
        let mut answer = String::new();
        stdin().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            bail!("nothing was installed; run `{shown}` when you like, then this command again");
        }
    }
    apt_get(&["update", "--quiet"])?;
    apt_get(&[install.as_slice(), packages.as_slice()].concat())?;
    match missing.iter().find(|need| !is_there(need.program)) {
        Some(need) => bail!(
            "{} was installed, but {} is still not found on PATH",
            need.package,
            need.program
        ),
        None => Ok(()),
    }
}

/// Runs apt-get as root, without questions.
fn apt_get(args: &[&str]) -> Result<()> {
    let mut command = if is_root() {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("apt-get");
        sudo
    };
    println!("> apt-get {}", args.join(" "));
    let status = command
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(std::process::Stdio::null())
        .status()
        .context("apt-get could not be run")?;
    if !status.success() {
        bail!(
            "`apt-get {}` failed ({status}); its messages are above",
            args.join(" ")
        );
    }
    Ok(())
}

/// Pods need a network of their own, which only root can make.
pub(crate) fn require_root(what: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(
        "{what} needs root, to give pods a network of their own: run `sudo -E env \"PATH=$PATH\" cargo xtask …`"
    )
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn is_there(program: &str) -> bool {
    match program.strip_prefix("python3 -m ") {
        None => on_path(program),
        Some(module) => Command::new("python3")
            .args(["-c", &format!("import {module}")])
            .output()
            .is_ok_and(|output| output.status.success()),
    }
}

/// Looks a program up on PATH and where Debian keeps those of the system administrator.
pub(crate) fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|directory: std::path::PathBuf| is_file(&directory.join(program)))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}
