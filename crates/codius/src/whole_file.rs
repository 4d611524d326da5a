//! Files that are read whole, and written whole or not at all.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The longest file that is read: a state file holds a manifest and its hosts.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// For those who own it only: it holds private values.
pub(crate) const PRIVATE: u32 = 0o600;
/// For everyone to read.
pub(crate) const PUBLIC: u32 = 0o644;

/// Reads a file.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!(
            "is longer than {MAX_BYTES} bytes"
        )));
    }
    Ok(bytes)
}

/// Puts a file into the place of an older one. Whoever looks finds the old content or the new one, also
/// after a loss of power.
pub(crate) fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = Temporary::create(path, mode)?;
    (&temporary.file).write_all(content)?;
    temporary.file.sync_all()?;
    fs::rename(&temporary.path, path)?;
    // The name is on disk as well. Some file systems cannot do that, and have it done by themselves.
    let _ = File::open(directory(path)).and_then(|directory| directory.sync_all());
    Ok(())
}

/// Finds out whether [`write`] would work, and leaves nothing behind.
pub(crate) fn check_writable(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Err(io::Error::other("is a directory"));
    }
    Temporary::create(path, PRIVATE).map(drop)
}

/// Makes a file that must not be there yet.
pub(crate) fn create(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// A file beside the one that it will replace; removed if it does not.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn create(beside: &Path, mode: u32) -> io::Result<Self> {
        let name = beside
            .file_name()
            .ok_or_else(|| io::Error::other("is not the name of a file"))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{:016x}", rand::random::<u64>()));
        let path = directory(beside).join(hidden);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)?;
        // The mode that was asked for, whatever the umask is.
        file.set_permissions(Permissions::from_mode(mode))?;
        Ok(Self { path, file })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the renaming there is nothing of this name.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_stays() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.json");
        fs::write(&path, "old").unwrap();
        check_writable(&path).unwrap();
        write(&path, b"new", PRIVATE).unwrap();
        assert_eq!(read(&path).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(names(place.path()), ["a.json"]);
    }

    #[test]
    fn what_cannot_be_written_is_known_before() {
        let place = tempfile::tempdir().unwrap();
        assert!(check_writable(&place.path().join("none/a.json")).is_err());
        assert!(check_writable(place.path()).is_err());
        assert!(names(place.path()).is_empty());
    }
}
