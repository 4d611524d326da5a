//! What programs are told of their lease: `/dev/codius/lease.json`, the same in all containers of the pod,
//! which they can read and not write. It is replaced as a whole, so whoever reads it sees one state of it;
//! whoever wants to wait for the next watches the directory (`inotify(7)`).
//!
//! ```json
//! {"expires_at_unix_ms":1795874400000}
//! ```

use std::{fs, io};

use rustix::mount::{MountFlags, mount};

/// Where the agent has it. Each container gets a read-only view.
pub(crate) const NOTICES: &str = "/run/codius";
/// Where a container sees it.
pub(crate) const SEEN_AT: &str = "/dev/codius";

pub(crate) fn prepare() -> Result<(), String> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("codius", NOTICES, "tmpfs", safe, c"mode=0755,size=64k")
        .map_err(|error| format!("no place for what the pod is told: {error}"))
}

pub(crate) fn tell(expires_at_unix_ms: u64) -> io::Result<()> {
    let (new, path) = (
        format!("{NOTICES}/.lease.json"),
        format!("{NOTICES}/lease.json"),
    );
    fs::write(
        &new,
        format!("{{\"expires_at_unix_ms\":{expires_at_unix_ms}}}\n"),
    )?;
    fs::rename(new, path)
}
