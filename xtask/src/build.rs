//! Building our own programs.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// How the variables begin by which cargo describes the package of a program that it runs.
const ABOUT_US: [&str; 2] = ["CARGO_PKG_", "CARGO_MANIFEST_"];

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
    let status = cargo_command()
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

/// The cargo that runs us, without what it told us of ourselves: build scripts that look at these
/// variables (ring's does) would run again after every build by hand, and all that needs them is built
/// again.
pub(crate) fn cargo_command() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if ABOUT_US
            .iter()
            .any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        {
            cargo.env_remove(name);
        }
    }
    cargo
}

pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is one level below the workspace")
}

pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_does_not_hear_of_this_package() {
        let cargo = cargo_command();
        let removed: Vec<_> = cargo
            .get_envs()
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| name.to_string_lossy().into_owned())
            .collect();
        // Those that ring's build script looks at; they are set for a test as for a program.
        for name in [
            "CARGO_MANIFEST_DIR",
            "CARGO_PKG_NAME",
            "CARGO_PKG_VERSION_MAJOR",
        ] {
            assert!(removed.iter().any(|it| it == name), "{name}: {removed:?}");
        }
        assert!(!removed.iter().any(|it| it == "CARGO_HOME"));
    }
}
