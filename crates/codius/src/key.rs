//! The uploader's key: who owns a lease, and what the nonces of private variables follow from.

use std::{
    env, fmt, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use codius_client::Signer;

use crate::{
    failure::{Failure, USAGE},
    whole_file,
};

/// Bytes of the seed of an Ed25519 key.
const SEED_BYTES: usize = 32;

/// 32 random bytes that nobody else knows.
#[derive(Clone)]
pub(crate) struct Key([u8; SEED_BYTES]);

impl Key {
    /// The key in `file`, or in the place where it is by default; made if there is none.
    pub(crate) fn open(file: Option<&Path>) -> Result<Self, Failure> {
        let path = match file {
            Some(file) => file.to_owned(),
            None => default_path()?,
        };
        Self::at(&path).unwrap_or_else(|| Self::make(&path))
    }

    /// The same, and none is made.
    pub(crate) fn existing(file: Option<&Path>) -> Result<Option<Self>, Failure> {
        let path = match file {
            Some(file) => Some(file.to_owned()),
            None => default_path().ok(),
        };
        path.and_then(|path| Self::at(&path)).transpose()
    }

    fn at(path: &Path) -> Option<Result<Self, Failure>> {
        Some(match fs::metadata(path) {
            Ok(metadata) => {
                if metadata.permissions().mode() & 0o077 != 0 {
                    return Some(Err(Failure::new(
                        USAGE,
                        format!("the key {} can be read by others", path.display()),
                    )
                    .note(format!("Next: chmod 600 {}", path.display()))));
                }
                Self::read(path)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(unreadable(path, &error)),
        })
    }

    /// What signs requests.
    pub(crate) fn signer(&self) -> Signer {
        Signer::new(codius_client::Key::from_seed(self.0))
    }

    pub(crate) fn seed(&self) -> &[u8; SEED_BYTES] {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn from_seed(seed: [u8; SEED_BYTES]) -> Self {
        Self(seed)
    }

    fn read(path: &Path) -> Result<Self, Failure> {
        let bytes = whole_file::read(path).map_err(|error| unreadable(path, &error))?;
        let seed = URL_SAFE_NO_PAD
            .decode(bytes.trim_ascii())
            .ok()
            .and_then(|seed| seed.try_into().ok());
        seed.map(Self).ok_or_else(|| {
            Failure::new(
                USAGE,
                format!("{} is not a key of this tool", path.display()),
            )
            .note("A key is 32 bytes in base64url. Next: name another with --key-file, or move this file away.")
        })
    }

    fn make(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::new(
                1,
                format!("the key {} cannot be made: {error}", path.display()),
            )
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let key = Self(rand::random());
        let text = format!("{}\n", URL_SAFE_NO_PAD.encode(key.0));
        match whole_file::create(path, text.as_bytes(), whole_file::PRIVATE) {
            Ok(()) => Ok(key),
            // Another run was faster; its key counts.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::read(path),
            Err(error) => Err(failed(error)),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Key(…)")
    }
}

/// `$XDG_CONFIG_HOME/codius`, or `~/.config/codius`.
pub(crate) fn configuration_directory() -> Option<PathBuf> {
    let named = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let configuration =
        named("XDG_CONFIG_HOME").or_else(|| Some(named("HOME")?.join(".config")))?;
    Some(configuration.join("codius"))
}

fn default_path() -> Result<PathBuf, Failure> {
    configuration_directory()
        .map(|directory| directory.join("key"))
        .ok_or_else(|| {
            Failure::new(
                USAGE,
                "there is no place for the key: neither XDG_CONFIG_HOME nor HOME is set",
            )
            .note("Next: give --key-file.")
        })
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        USAGE,
        format!("the key {} cannot be read: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("codius/key");
        let made = Key::open(Some(&path)).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(Key::open(Some(&path)).unwrap().seed(), made.seed());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = Key::open(Some(&path)).unwrap_err();
        assert!(refused.message().ends_with("can be read by others"));
    }

    #[test]
    fn another_file_is_not_taken_for_a_key() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("key");
        whole_file::create(&path, b"too short", whole_file::PRIVATE).unwrap();
        assert!(Key::open(Some(&path)).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"too short");
    }
}
