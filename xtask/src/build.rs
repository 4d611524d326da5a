//! Building our own programs.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// The programs that a host and an uploader run.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) codiusd: PathBuf,
    pub(crate) codius: PathBuf,
}

pub(crate) fn programs(profile: Profile) -> Result<Programs> {
    let mut args = vec!["build", "--workspace", "--bins"];
    if profile == Profile::Release {
        args.push("--release");
    }
    cargo(&args)?;
    let directory = target_dir().join(match profile {
        Profile::Dev => "debug",
        Profile::Release => "release",
    });
    Ok(Programs {
        codiusd: directory.join("codiusd"),
        codius: directory.join("codius"),
    })
}

/// Runs cargo in the workspace, with its output shown.
pub(crate) fn cargo(args: &[&str]) -> Result<()> {
    let status = Command::new(cargo_program())
        .args(args)
        .current_dir(workspace())
        .status()?;
    if !status.success() {
        bail!(
            "`cargo {}` failed ({status}); its messages are above",
            args.join(" ")
        );
    }
    Ok(())
}

/// The cargo that runs us.
pub(crate) fn cargo_program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is one level below the workspace")
}

pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}
