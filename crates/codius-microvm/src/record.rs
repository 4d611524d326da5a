//! What is durable of a pod: enough to find everything of it again after the daemon was killed.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use codius_manifest::ManifestHash;
use serde::{Deserialize, Serialize};

use crate::{limits::MAX_RECORD_BYTES, process::ProcessIdentity};

/// Written before anything of the pod exists, removed after everything of it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) version: u32,
    pub(crate) hash: ManifestHash,
    /// Decides addresses, user id and all names.
    pub(crate) slot: u16,
    pub(crate) phase: Phase,
    /// The QEMU process; not known yet for a moment after it was started.
    pub(crate) process: Option<ProcessIdentity>,
    /// The port that visitors are taken to.
    pub(crate) port: Option<u16>,
    /// Ids, in the order of the pod's specification.
    pub(crate) containers: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Not whole: whoever finds it removes it.
    Starting,
    /// All containers have been started: whoever finds it takes it up.
    Running,
}

pub(crate) const RECORD_VERSION: u32 = 1;

/// The records of one state directory.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("records");
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    fn path(&self, hash: &ManifestHash) -> PathBuf {
        self.dir.join(format!("{hash}.json"))
    }

    /// Durable when it returns.
    pub(crate) fn write(&self, record: &PodRecord) -> io::Result<()> {
        let temporary = self.dir.join(format!("{}.new", record.hash));
        let written = self.write_by(&temporary, record);
        if written.is_err() {
            // A full disk leaves a half-written file, which nobody else would remove before the next start.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn write_by(&self, temporary: &Path, record: &PodRecord) -> io::Result<()> {
        let mut file = File::create(temporary)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.sync_all()?;
        fs::rename(temporary, self.path(&record.hash))?;
        self.sync()
    }

    /// `None` if there is none.
    pub(crate) fn read(&self, hash: &ManifestHash) -> io::Result<Option<PodRecord>> {
        match read_file(&self.path(hash)) {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Also right if there is none.
    pub(crate) fn remove(&self, hash: &ManifestHash) -> io::Result<()> {
        match fs::remove_file(self.path(hash)) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All that can be read. One that cannot is removed: what it stood for has no record then, and is
    /// removed by name as such.
    pub(crate) fn all(&self) -> io::Result<Vec<PodRecord>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let is_record = path
                .extension()
                .is_some_and(|extension| extension == "json");
            match is_record.then(|| read_file(&path)) {
                Some(Ok(record)) if self.path(&record.hash) == path => records.push(record),
                Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Some(Ok(_) | Err(_)) => {
                    tracing::warn!(path = %path.display(), "removing a pod record that cannot be read");
                    fs::remove_file(&path)?;
                }
                // Half written when the daemon was killed.
                None => fs::remove_file(&path)?,
            }
        }
        records.sort_by_key(|record| record.slot);
        Ok(records)
    }

    /// Only the hashes, while pods come and go.
    pub(crate) fn hashes(&self) -> io::Result<Vec<ManifestHash>> {
        let mut hashes = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let hash = name
                .to_str()
                .and_then(|name| name.strip_suffix(".json"))
                .map(str::parse::<ManifestHash>);
            hashes.extend(hash.and_then(Result::ok));
        }
        Ok(hashes)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

fn read_file(path: &Path) -> io::Result<PodRecord> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_RECORD_BYTES)
        .read_to_end(&mut bytes)?;
    let record: PodRecord = serde_json::from_slice(&bytes)?;
    if record.version != RECORD_VERSION {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a record of another version",
        ));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(byte: u8, slot: u16) -> PodRecord {
        PodRecord {
            version: RECORD_VERSION,
            hash: ManifestHash::from_bytes([byte; 32]),
            slot,
            phase: Phase::Starting,
            process: Some(ProcessIdentity {
                pid: 7,
                start_time: 8,
                boot_id: "b".into(),
            }),
            port: Some(80),
            containers: vec!["web".into()],
        }
    }

    #[test]
    fn a_record_that_cannot_be_written_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let one = record(1, 4);
        // Nothing can take the name of a directory.
        fs::create_dir(records.path(&one.hash)).unwrap();
        records.write(&one).unwrap_err();
        assert_eq!(fs::read_dir(dir.path().join("records")).unwrap().count(), 1);
    }

    #[test]
    fn records_come_back_and_broken_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let (one, two) = (record(1, 4), record(2, 3));
        records.write(&one).unwrap();
        records.write(&two).unwrap();
        let running = PodRecord {
            phase: Phase::Running,
            ..one.clone()
        };
        records.write(&running).unwrap();
        fs::write(dir.path().join("records/half.new"), "{").unwrap();
        fs::write(records.path(&record(3, 0).hash), "{").unwrap();

        assert_eq!(records.all().unwrap(), [two.clone(), running.clone()]);
        assert_eq!(records.hashes().unwrap().len(), 2);
        assert_eq!(records.read(&one.hash).unwrap(), Some(running));
        records.remove(&two.hash).unwrap();
        records.remove(&two.hash).unwrap();
        assert_eq!(records.read(&two.hash).unwrap(), None);
    }
}
