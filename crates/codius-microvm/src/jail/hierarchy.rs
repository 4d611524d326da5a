//! Where control groups are: the hierarchies that are mounted, and the place of a process in each.
//!
//! Source: `cgroups(7)`, `proc_pid_mountinfo(5)`.

use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    One,
    Two,
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) mount: PathBuf,
    /// Which of the hierarchy's groups is mounted there.
    pub(super) root: PathBuf,
    pub(super) version: Version,
    /// In version 1.
    pub(super) controllers: Vec<String>,
    /// Where this process is in it.
    pub(super) own: PathBuf,
}

impl Hierarchy {
    /// Where the tree of an instance belongs.
    pub(super) fn place(&self) -> PathBuf {
        let own = self.dir_of(&self.own);
        match self.version {
            Version::One => own,
            Version::Two if own == self.mount => own,
            Version::Two => own.parent().map_or(own.clone(), Path::to_owned),
        }
    }

    /// The directory of a group.
    pub(super) fn dir_of(&self, group: &Path) -> PathBuf {
        let below = group.strip_prefix(&self.root).unwrap_or(Path::new(""));
        if below.as_os_str().is_empty() {
            return self.mount.clone();
        }
        self.mount.join(below)
    }
}

/// The mounted hierarchies that this process is in (`proc_pid_mountinfo(5)`, `cgroups(7)`).
pub(super) fn hierarchies(mountinfo: &str, own: &str) -> Vec<Hierarchy> {
    let found = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, mount) = (unescape(before.next()?), unescape(before.next()?));
        let mut after = after.split(' ');
        let version = match after.next()? {
            "cgroup" => Version::One,
            "cgroup2" => Version::Two,
            _ => return None,
        };
        let controllers: Vec<String> = match version {
            Version::One => after.nth(1)?.split(',').map(str::to_owned).collect(),
            Version::Two => Vec::new(),
        };
        let own = own_path(own, &controllers, version)?;
        Some(Hierarchy {
            mount: mount.into(),
            root: root.into(),
            version,
            controllers,
            own,
        })
    });
    let mut hierarchies: Vec<Hierarchy> = found.collect();
    // A controller is in one version only; if both say so, the second one is right.
    hierarchies.sort_by_key(|hierarchy| std::cmp::Reverse(hierarchy.version));
    hierarchies
}

/// Which group a process is in, by its `/proc/PID/cgroup`: `4:memory:/path`, and `0::/path` in version 2.
pub(super) fn own_path(text: &str, controllers: &[String], version: Version) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (names, path) = rest.split_once(':')?;
        let is_it = match version {
            Version::Two => number == "0" && names.is_empty(),
            Version::One => {
                !names.is_empty()
                    && names
                        .split(',')
                        .all(|name| controllers.iter().any(|known| known == name))
            }
        };
        is_it.then(|| PathBuf::from(path))
    })
}

/// Blanks, tabs, line ends and backslashes are written as three octal digits.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (code, meant)| {
        text.replace(code, meant)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
        24 1 0:22 / /proc rw - proc proc rw\n\
        31 23 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        35 23 0:30 / /sys/fs/cgroup/my\\040memory rw,relatime - cgroup cgroup rw,memory\n\
        39 23 0:34 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,name=systemd\n\
        40 23 0:35 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const HYBRID_OWN: &str = "9:name=systemd:/a\n4:memory:/b\n3:cpu,cpuacct:/\n0::/u\n";

    #[test]
    fn hierarchies_are_found_with_our_place_in_each() {
        let found = hierarchies(HYBRID, HYBRID_OWN);
        let places: Vec<(String, Vec<String>)> = found
            .iter()
            .map(|hierarchy| {
                (
                    hierarchy.place().display().to_string(),
                    hierarchy.controllers.clone(),
                )
            })
            .collect();
        let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            places,
            [
                // Beside us.
                ("/sys/fs/cgroup/unified".to_owned(), Vec::new()),
                (
                    "/sys/fs/cgroup/cpu,cpuacct".to_owned(),
                    words("rw,cpu,cpuacct")
                ),
                ("/sys/fs/cgroup/my memory/b".to_owned(), words("rw,memory")),
                (
                    "/sys/fs/cgroup/systemd/a".to_owned(),
                    words("rw,name=systemd")
                ),
            ]
        );
    }

    #[test]
    fn in_a_container_only_what_is_mounted_counts() {
        let mountinfo = "1 2 0:3 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let [inside] = hierarchies(mountinfo, "0::/docker/ab/svc/d\n")
            .try_into()
            .unwrap();
        assert_eq!(inside.place(), Path::new("/sys/fs/cgroup/svc"));
        let [at_the_root] = hierarchies(mountinfo, "0::/docker/ab\n")
            .try_into()
            .unwrap();
        assert_eq!(at_the_root.place(), Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn a_process_is_found_in_its_groups() {
        let text = "4:memory:/b/codius-ab12/cdab12-7\n3:cpu,cpuacct:/\n0::/x/cdab12-7\n";
        let memory = ["rw", "memory"].map(str::to_owned);
        assert_eq!(
            own_path(text, &memory, Version::One),
            Some("/b/codius-ab12/cdab12-7".into())
        );
        assert_eq!(
            own_path(text, &[], Version::Two),
            Some("/x/cdab12-7".into())
        );
        assert_eq!(own_path("nonsense", &[], Version::Two), None);
    }
}
