//! Packages from npm, pinned, installed once for all tests that want the same ones.
//!
//! A directory of installed packages is found by the digest of what was asked for. It is made under
//! another name and renamed when it is complete, so its presence means that it is complete. Tests
//! that are started together wait for each other with a file lock.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::{background::output_of, image::digest};

/// What to install. Every version is exact; `overrides` replaces versions deeper in the tree.
#[derive(Debug, Clone, Copy)]
pub struct Packages<'a> {
    /// Name and version of each.
    pub packages: &'a [(&'a str, &'a str)],
    /// Versions that packages get instead of those they ask for.
    pub overrides: &'a [(&'a str, &'a str)],
}

impl Packages<'_> {
    /// The `node_modules` directory below `cache` that holds them, installed now if it is not there.
    pub fn install(&self, cache: &Path) -> Result<PathBuf> {
        let wanted = self.package_json().to_string();
        let key = &digest(wanted.as_bytes())["sha256:".len()..][..16];
        let installed = cache.join(format!("npm-{key}"));
        fs::create_dir_all(cache)?;
        let lock = File::create(cache.join(format!("npm-{key}.lock")))?;
        lock.lock().context("waiting for another installation")?;
        if !installed.exists() {
            let making = tempfile::Builder::new().prefix("npm-").tempdir_in(cache)?;
            fs::write(making.path().join("package.json"), &wanted)?;
            let mut npm = Command::new("npm");
            npm.args([
                "install",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--loglevel=error",
            ])
            .current_dir(making.path());
            output_of(&mut npm, "npm")?;
            fs::rename(making.path(), &installed)?;
            // It has another name now, and nothing is left to remove.
            let _ = making.keep();
        }
        Ok(installed.join("node_modules"))
    }

    fn package_json(&self) -> Value {
        let object = |pairs: &[(&str, &str)]| -> Map<String, Value> {
            let entries = pairs.iter().map(|(name, version)| (*name, *version));
            entries
                .map(|(name, version)| (name.to_owned(), version.into()))
                .collect()
        };
        json!({
            "private": true,
            "dependencies": object(self.packages),
            "overrides": object(self.overrides),
        })
    }
}
