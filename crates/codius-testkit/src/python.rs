//! Packages from PyPI, pinned, in a virtual environment of their own, made once for all tests that want
//! the same ones. As with npm: a directory that is there is complete.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{background::output_of, image::digest};

/// What to install. Every version is exact; what the packages need themselves is chosen by pip.
#[derive(Debug, Clone, Copy)]
pub struct Venv<'a> {
    /// Name and version of each.
    pub packages: &'a [(&'a str, &'a str)],
}

impl Venv<'_> {
    /// The Python of an environment below `cache` that has them, installed now if it is not there.
    pub fn install(&self, cache: &Path) -> Result<PathBuf> {
        let wanted: Vec<String> = self
            .packages
            .iter()
            .map(|(name, version)| format!("{name}=={version}"))
            .collect();
        let key = &digest(wanted.join(" ").as_bytes())["sha256:".len()..][..16];
        let installed = cache.join(format!("venv-{key}"));
        fs::create_dir_all(cache)?;
        let lock = File::create(cache.join(format!("venv-{key}.lock")))?;
        lock.lock().context("waiting for another installation")?;
        if !installed.exists() {
            let making = tempfile::Builder::new().prefix("venv-").tempdir_in(cache)?;
            let mut venv = Command::new("python3");
            venv.args(["-m", "venv"]).arg(making.path());
            output_of(&mut venv, "python3-venv")?;
            let mut pip = Command::new(python(making.path()));
            pip.args(["-m", "pip", "install", "--quiet", "--no-input"])
                .arg("--disable-pip-version-check")
                .args(&wanted);
            output_of(&mut pip, "python3-venv")?;
            // Its programs name the directory that they were made in; Python itself does not.
            fs::rename(making.path(), &installed)?;
            // It has another name now, and nothing is left to remove.
            let _ = making.keep();
        }
        Ok(python(&installed))
    }
}

fn python(venv: &Path) -> PathBuf {
    venv.join("bin").join("python3")
}
