//! Builds what every pod boots: a kernel and an initramfs with the guest agent as PID 1.
//!
//! ```text
//! target/guest/vmlinux         the distribution's kernel, uncompressed: it starts by its PVH entry
//! target/guest/initramfs.cpio  /init (the agent), /modules/*.ko, /modules/list
//! target/guest/self-test     the program of the self-test, which the host uploads to itself
//! target/guest/guest.json      where the kernel came from, modules, a digest of each part
//! target/guest/modules/        the kernel modules, kept so that only the agent is rebuilt
//! ```
//!
//! The kernel is the one that Debian's `linux-image-cloud-amd64` depends on; it is downloaded and
//! unpacked, never installed, so that its security updates are the distribution's. Each step is
//! skipped when what it would make is there already; remove `target/guest` to take a newer kernel.
//!
//! Trap: a pod that is booting holds the old files open, so every file is replaced by renaming.

mod bzimage;
mod cpio;
mod modinfo;

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::build::cargo_command;

/// The package whose only content is the name of the current kernel package.
const KERNEL_METAPACKAGE: &str = "linux-image-cloud-amd64";
/// Loaded before the agent says hello: what the control channel needs.
const EARLY_MODULES: &[&str] = &["virtio_mmio", "virtio_console"];
/// Loaded while the host answers: disks, images, network.
const LATE_MODULES: &[&str] = &["virtio_blk", "squashfs", "overlay", "virtio_net"];
/// Loaded once the containers run: only needed to give unused memory back.
const SPARE_MODULES: &[&str] = &["virtio_balloon"];
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";
/// Static and not relocatable: the initramfs holds no loader and no libraries.
const GUEST_RUSTFLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// What to build the guest from.
#[derive(Debug, Default, Clone)]
pub(crate) struct Options {
    /// A bzImage or a vmlinux with a PVH note; by default the distribution's.
    pub(crate) kernel: Option<PathBuf>,
    /// The module directory (`/lib/modules/VERSION`) of `kernel`; without it, everything that the
    /// agent needs has to be built into that kernel.
    pub(crate) modules: Option<PathBuf>,
}

/// Where the parts are.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) description: PathBuf,
}

/// Where the guest of this workspace is.
pub(crate) fn default_dir() -> PathBuf {
    crate::build::target_dir().join("guest")
}

/// Makes `out_dir` (normally `target/guest` of the workspace) hold a current guest.
pub(crate) fn build(out_dir: &Path, options: &Options) -> Result<Guest> {
    fs::create_dir_all(out_dir).with_context(|| format!("cannot make {}", out_dir.display()))?;
    let lock = fs::File::create(out_dir.join("lock"))?;
    lock.lock().context("cannot wait for another guest build")?;
    let guest = Guest {
        kernel: out_dir.join("vmlinux"),
        initramfs: out_dir.join("initramfs.cpio"),
        description: out_dir.join("guest.json"),
    };

    let source = prepare_kernel(out_dir, &guest.kernel, options)?;
    let agent = fs::read(build_static(out_dir, "codius-guest-agent")?)
        .context("cannot read the guest agent")?;
    let self_test = fs::read(build_static(out_dir, "codius-self-test")?)
        .context("cannot read the program of the self-test")?;
    let modules = ModuleSet::load(&out_dir.join("modules"))?;
    let initramfs = initramfs(&agent, &modules);
    let description = json!({
        "kernel": { "source": source, "sha256": sha256_hex(&fs::read(&guest.kernel)?) },
        "initramfs": { "sha256": sha256_hex(&initramfs) },
        "agent": { "version": env!("CARGO_PKG_VERSION"), "sha256": sha256_hex(&agent) },
        "modules": modules.order.iter().map(|(name, phase)| format!("{phase} {name}")).collect::<Vec<_>>(),
    });
    let description = serde_json::to_string_pretty(&description)? + "\n";
    replace_if_different(&guest.initramfs, &initramfs)?;
    replace_if_different(&out_dir.join("self-test"), &self_test)?;
    replace_if_different(&guest.description, description.as_bytes())?;
    Ok(guest)
}

/// Puts the kernel and its modules in place unless they are; returns where they came from.
fn prepare_kernel(out_dir: &Path, kernel: &Path, options: &Options) -> Result<String> {
    let note = out_dir.join("kernel.txt");
    let present = fs::read_to_string(&note).ok().filter(|_| kernel.exists());
    let scratch = out_dir.join("unpack.tmp");
    let (source, image, modules) = match &options.kernel {
        Some(path) => {
            let metadata =
                fs::metadata(path).with_context(|| format!("no kernel at {}", path.display()))?;
            let changed = metadata
                .modified()?
                .duration_since(std::time::UNIX_EPOCH)?
                .as_secs();
            let source = format!("{} ({} bytes, {changed})", path.display(), metadata.len());
            if present.as_ref() == Some(&source) {
                return Ok(source);
            }
            (source, path.clone(), options.modules.clone())
        }
        None => {
            if let Some(source) = present.filter(|source| source.starts_with(DEBIAN_PREFIX)) {
                return Ok(source);
            }
            let (package, image, modules) = download_kernel(&scratch)?;
            (format!("{DEBIAN_PREFIX}{package}"), image, Some(modules))
        }
    };
    let image = fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
    let vmlinux = bzimage::extract(image)
        .context("cannot uncompress the kernel; give an uncompressed one with --kernel")?;
    ModuleSet::collect(modules.as_deref(), &out_dir.join("modules"))?;
    replace_if_different(kernel, &vmlinux)?;
    replace_if_different(&note, source.as_bytes())?;
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    Ok(source)
}

const DEBIAN_PREFIX: &str = "debian package ";

/// Downloads and unpacks the distribution's kernel package below `scratch`. Returns the package's
/// file name, the kernel image and the module directory.
fn download_kernel(scratch: &Path) -> Result<(String, PathBuf, PathBuf)> {
    if scratch.exists() {
        fs::remove_dir_all(scratch)?;
    }
    fs::create_dir_all(scratch)?;
    let package = dependency(KERNEL_METAPACKAGE, "linux-image-")
        .context("the kernel for pods cannot be had; another one can be given with --kernel")?;
    eprintln!("downloading {package}");
    output(
        Command::new("apt-get")
            .args(["-qq", "download", &package])
            .current_dir(scratch),
    )?;
    let deb = only_entry(scratch)?;
    let root = scratch.join("root");
    output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
    let release = package.trim_start_matches("linux-image-");
    let name = deb
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok((
        name.trim_end_matches(".deb").to_owned(),
        root.join("boot").join(format!("vmlinuz-{release}")),
        root.join("lib/modules").join(release),
    ))
}

/// The package whose name begins so on which a metapackage of the distribution depends.
pub(crate) fn dependency(metapackage: &str, prefix: &str) -> Result<String> {
    let depends = output(Command::new("apt-cache").args(["depends", metapackage]))?;
    depends
        .split_whitespace()
        .find(|word| word.starts_with(prefix) && *word != metapackage)
        .map(str::to_owned)
        .with_context(|| format!("apt knows no {metapackage}: run `apt-get update`"))
}

pub(crate) fn only_entry(directory: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(directory)?;
    let first = entries.next().context("apt-get downloaded nothing")??;
    ensure!(
        entries.next().is_none(),
        "apt-get downloaded more than one package"
    );
    Ok(first.path())
}

/// Builds a static program of this workspace and returns its path. It has its own target directory because its flags would
/// make cargo rebuild everything else.
pub(crate) fn build_static(out_dir: &Path, package: &str) -> Result<PathBuf> {
    let release = cargo_static(out_dir, package, &["--bins"])?;
    Ok(release.join(package))
}

/// Builds the program that tests run in a pod to see what a pod holds: an example of the guest agent, because unsafe code
/// is allowed there.
pub(crate) fn build_hostile(out_dir: &Path) -> Result<PathBuf> {
    let release = cargo_static(out_dir, "codius-guest-agent", &["--example", "hostile"])?;
    Ok(release.join("examples/hostile"))
}

/// Builds something static and returns the directory of what was built.
fn cargo_static(out_dir: &Path, package: &str, what: &[&str]) -> Result<PathBuf> {
    let target_dir = out_dir.with_file_name("guest-build");
    let status = cargo_command()
        .args(["build", "--quiet", "-p", package, "--profile", "guest"])
        .args(what)
        .args(["--target", GUEST_TARGET, "--target-dir"])
        .arg(&target_dir)
        .current_dir(workspace_root()?)
        .env("RUSTFLAGS", GUEST_RUSTFLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "{package} does not build");
    Ok(target_dir.join(GUEST_TARGET).join("guest"))
}

/// The folder of the workspace, from where this crate was built.
pub(crate) fn workspace_root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here
        .parent()
        .context("xtask is not in a workspace")?
        .to_owned())
}

/// Kernel modules in loading order, each with the phase in which the agent loads it.
#[derive(Debug)]
struct ModuleSet {
    order: Vec<(String, String)>,
    contents: BTreeMap<String, Vec<u8>>,
}

impl ModuleSet {
    /// Copies the modules that the agent needs, and those that they depend on, into `directory`.
    /// Built-in ones are left out.
    fn collect(from: Option<&Path>, directory: &Path) -> Result<()> {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)?;
        let mut list = String::new();
        if let Some(from) = from {
            let available = modinfo::find(from)?;
            let builtin = fs::read_to_string(from.join("modules.builtin")).unwrap_or_default();
            let mut order = modinfo::LoadOrder::new(&available, &builtin);
            for (phase, names) in [
                ("early", EARLY_MODULES),
                ("late", LATE_MODULES),
                ("spare", SPARE_MODULES),
            ] {
                for name in names {
                    for (name, content) in order.require(name)? {
                        fs::write(directory.join(&name), modinfo::without_signature(&content))?;
                        list += &format!("{phase} {name}\n");
                    }
                }
            }
        }
        fs::write(directory.join("list"), list)?;
        Ok(())
    }

    fn load(directory: &Path) -> Result<Self> {
        let list = fs::read_to_string(directory.join("list"))?;
        let mut set = Self {
            order: Vec::new(),
            contents: BTreeMap::new(),
        };
        for line in list.lines() {
            let (phase, name) = line.split_once(' ').context("bad module list")?;
            set.contents
                .insert(name.to_owned(), fs::read(directory.join(name))?);
            set.order.push((name.to_owned(), phase.to_owned()));
        }
        Ok(set)
    }
}

fn initramfs(agent: &[u8], modules: &ModuleSet) -> Vec<u8> {
    let mut archive = cpio::Archive::default();
    archive.directory("dev");
    archive.device("dev/console", 5, 1);
    archive.device("dev/kmsg", 1, 11);
    // Rust opens it in place of a missing console before `main`.
    archive.device("dev/null", 1, 3);
    archive.directory("modules");
    let mut list = String::new();
    for (name, phase) in &modules.order {
        archive.file(&format!("modules/{name}"), 0o444, &modules.contents[name]);
        list += &format!("{phase} {name}\n");
    }
    archive.file("modules/list", 0o444, list.as_bytes());
    archive.file("init", 0o555, agent);
    archive.finish()
}

fn replace_if_different(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(content)?;
    fs::rename(&new, path).with_context(|| format!("cannot replace {}", path.display()))
}

/// Runs a command to its end; its output if it succeeded, its complaint if not.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}; is it installed?"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn sha256_hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}
