//! Kernel modules: finding them, and in which order they have to be loaded. The kernel's own
//! `.modinfo` section names what a module depends on, so `depmod` is not needed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// How deep below the module directory modules are looked for.
const MAX_DEPTH: usize = 16;
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";

/// Every uncompressed module below a directory, by name.
pub(super) fn find(directory: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = pending.pop() {
        for entry in fs::read_dir(&directory)
            .with_context(|| format!("cannot read {}", directory.display()))?
        {
            let entry = entry?;
            if entry.file_type()?.is_dir() && depth < MAX_DEPTH {
                pending.push((entry.path(), depth + 1));
            } else if let Some(name) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.strip_suffix(".ko"))
            {
                found.insert(canonical(name), entry.path());
            }
        }
    }
    Ok(found)
}

/// File names may have dashes where module names have underscores.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Gives each module once, after those that it depends on.
#[derive(Debug)]
pub(super) struct LoadOrder<'a> {
    available: &'a BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    done: BTreeSet<String>,
}

impl<'a> LoadOrder<'a> {
    /// `builtin` is the content of `modules.builtin`: paths, one a line.
    pub(super) fn new(available: &'a BTreeMap<String, PathBuf>, builtin: &str) -> Self {
        let builtin = builtin
            .lines()
            .filter_map(|path| path.rsplit('/').next()?.strip_suffix(".ko"))
            .map(canonical)
            .collect();
        Self {
            available,
            builtin,
            done: BTreeSet::new(),
        }
    }

    /// The module and all that it needs and that was not given before: file name and content.
    pub(super) fn require(&mut self, name: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let name = canonical(name);
        if self.builtin.contains(&name) || !self.done.insert(name.clone()) {
            return Ok(Vec::new());
        }
        let Some(path) = self.available.get(&name) else {
            bail!("the kernel has no module {name} (compressed modules are not supported)");
        };
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut order = Vec::new();
        for dependency in dependencies(&content) {
            order.extend(self.require(&dependency)?);
        }
        order.push((format!("{name}.ko"), content));
        Ok(order)
    }
}

/// The `depends=` entry of a module's `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    module
        .split(|&byte| byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .map(|names| String::from_utf8_lossy(names).into_owned())
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The module without the signature at its end. The initramfs is ours, so checking its modules
/// protects nothing, and under emulation it takes longer than loading them.
pub(super) fn without_signature(module: &[u8]) -> &[u8] {
    let Some(signed) = module.strip_suffix(SIGNATURE_MAGIC) else {
        return module;
    };
    // Above the magic: 12 bytes, the last four of which are the signature's length.
    let Some((rest, length)) = signed.split_last_chunk::<4>() else {
        return module;
    };
    let cut = usize::try_from(u32::from_be_bytes(*length))
        .ok()
        .and_then(|length| rest.len().checked_sub(length + 8));
    cut.map_or(module, |cut| &module[..cut])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, depends: &str) {
        fs::write(
            directory.join(name),
            format!("\x7fELF\0alias=x\0depends={depends}\0end"),
        )
        .unwrap();
    }

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("net")).unwrap();
        write(root, "virtio.ko", "");
        write(root, "virtio-ring.ko", "virtio");
        write(
            &root.join("net"),
            "virtio_net.ko",
            "virtio_ring,failover,crc",
        );
        write(&root.join("net"), "failover.ko", "");
        let available = find(root).unwrap();
        let mut order = LoadOrder::new(&available, "kernel/lib/crc.ko\n");
        let mut names = |name| -> Vec<String> {
            order
                .require(name)
                .unwrap()
                .into_iter()
                .map(|(name, _)| name)
                .collect()
        };
        assert_eq!(names("virtio"), ["virtio.ko"]);
        assert_eq!(
            names("virtio_net"),
            ["virtio_ring.ko", "failover.ko", "virtio_net.ko"]
        );
        assert!(order.require("overlay").is_err());
    }

    #[test]
    fn only_a_whole_signature_is_cut_off() {
        let mut signed = b"module".to_vec();
        signed.extend(b"signature");
        signed.extend([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        signed.extend(SIGNATURE_MAGIC);
        assert_eq!(without_signature(&signed), b"module");
        assert_eq!(without_signature(b"module"), b"module");
        let mut lying = signed.clone();
        lying[17] = 0xff;
        lying[23] = 0xff;
        assert_eq!(without_signature(&lying), lying);
    }
}
