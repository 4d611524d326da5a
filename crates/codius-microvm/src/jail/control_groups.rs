//! Control groups: how much of the host one machine's process may take, whatever it does.
//!
//! ```text
//!  version 2   /sys/fs/cgroup/system.slice/codiusd.service         this process
//!              /sys/fs/cgroup/system.slice/codius-IIII/cdIIII-N    the machine of slot N, all controllers
//!  version 1   /sys/fs/cgroup/memory/OURS/codius-IIII/cdIIII-N     the same, once for each controller
//! ```
//!
//! Each controller is looked for on its own: one that the host has in neither version, or does not let us use, is
//! missing, and the operator is told. What is made has the instance and the slot in its name and goes with the pod.
//!
//! Traps:
//! * In version 2 a group with limited groups below it holds no process itself, so the pods' groups are beside the
//!   daemon's own, not below: a service that is started again is put into its old group, and that would fail.
//! * A pod that outlives a daemon stays where that one put it, and the next may live elsewhere: before a process is
//!   ended, its own groups are read ([`ControlGroups::of_process`]).
//! * A memory limit ends pods. It counts everything: the guest's memory, what QEMU keeps, page tables, and the cache of
//!   the pod's files, which the kernel gives up first.

use std::{
    collections::BTreeMap,
    fmt, fs,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use super::hierarchy::{Hierarchy, Version, hierarchies, own_path};
use crate::{
    Instance,
    limits::{
        CONTROL_GROUP_DEADLINE, CONTROL_GROUP_LOOK_INTERVAL, DISK_BYTES_PER_SEC,
        DISK_OPERATIONS_PER_SEC,
    },
};

/// The period in which processor time is counted out, in microseconds.
const PROCESSOR_PERIOD_MICROS: u64 = 100_000;
const WEIGHT_OF_A_PROCESSOR: u64 = 100;
/// The same in version 1.
const SHARES_OF_A_PROCESSOR: u64 = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Controller {
    Memory,
    Processor,
    Processes,
    Disk,
}

impl Controller {
    const ALL: [Self; 4] = [Self::Memory, Self::Processor, Self::Processes, Self::Disk];

    fn name(self, version: Version) -> &'static str {
        match (self, version) {
            (Self::Memory, _) => "memory",
            (Self::Processor, _) => "cpu",
            (Self::Processes, _) => "pids",
            (Self::Disk, Version::One) => "blkio",
            (Self::Disk, Version::Two) => "io",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Memory => "memory",
            Self::Processor => "processor",
            Self::Processes => "processes",
            Self::Disk => "disk throughput",
        })
    }
}

/// What one machine may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) memory_bytes: u64,
    /// Of one processor, in hundredths.
    pub(crate) processor_percent: u64,
    /// How much of it when processors are short, in hundredths of what one that is sold gets.
    pub(crate) weight_percent: u64,
    /// Processes and threads.
    pub(crate) processes: u64,
}

/// A file of a control group and what is written to it.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    file: &'static str,
    text: String,
    /// Not every kernel has it, and the limit holds without.
    optional: bool,
}

/// A disk as the kernel numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Device {
    major: u32,
    minor: u32,
}

/// The groups of one host's machines.
#[derive(Debug)]
pub(crate) struct ControlGroups {
    trees: Vec<Tree>,
    missing: BTreeMap<Controller, String>,
    device: Option<Device>,
    mounts: Vec<Hierarchy>,
    /// Held while groups are made or removed: the last one takes the tree with it.
    changing: Mutex<()>,
}

/// A directory for the groups of all machines, in one hierarchy.
#[derive(Debug)]
struct Tree {
    dir: PathBuf,
    /// Where its hierarchy is mounted.
    mount: PathBuf,
    version: Version,
    controllers: Vec<Controller>,
}

impl ControlGroups {
    /// Finds out what this host can limit, by doing it. `disk` is where the pods' files are. Blocks.
    pub(crate) fn open(instance: &Instance, disk: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mounts = hierarchies(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        Self::in_hierarchies(mounts, instance, device_of(disk))
    }

    fn in_hierarchies(
        mounts: Vec<Hierarchy>,
        instance: &Instance,
        device: Result<Device, String>,
    ) -> Self {
        let (device, no_device) = match device {
            Ok(device) => (Some(device), None),
            Err(reason) => (None, Some(reason)),
        };
        let mut groups = Self {
            trees: Vec::new(),
            missing: BTreeMap::new(),
            device,
            mounts,
            changing: Mutex::default(),
        };
        let probe = format!("{}probe", instance.pod_prefix());
        for controller in Controller::ALL {
            let found = match (&no_device, controller) {
                (Some(reason), Controller::Disk) => Err(reason.clone()),
                _ => groups.find(controller, instance).and_then(|tree| {
                    let tried = groups.try_out(&tree, &probe);
                    tried.map(|()| tree).map_err(|error| error.to_string())
                }),
            };
            match found {
                Ok(tree) => groups.add(tree),
                Err(reason) => {
                    groups.missing.insert(controller, reason);
                }
            }
        }
        groups
    }

    fn add(&mut self, tree: Tree) {
        match self.trees.iter_mut().find(|known| known.dir == tree.dir) {
            Some(known) => known.controllers.extend(tree.controllers),
            None => self.trees.push(tree),
        }
    }

    /// Where a controller is, if there is one.
    fn find(&self, controller: Controller, instance: &Instance) -> Result<Tree, String> {
        let name = format!("codius-{instance}");
        let offered = |hierarchy: &&Hierarchy| match hierarchy.version {
            Version::One => {
                let wanted = controller.name(Version::One);
                hierarchy.controllers.iter().any(|known| known == wanted)
            }
            Version::Two => fs::read_to_string(hierarchy.mount.join("cgroup.controllers"))
                .is_ok_and(|known| has_word(&known, controller.name(Version::Two))),
        };
        let hierarchy = self.mounts.iter().find(offered);
        let hierarchy =
            hierarchy.ok_or("no control group hierarchy of this machine has it".to_owned())?;
        Ok(Tree {
            dir: hierarchy.place().join(name),
            mount: hierarchy.mount.clone(),
            version: hierarchy.version,
            controllers: vec![controller],
        })
    }

    /// A machine's group with limits that stop nobody.
    fn try_out(&self, tree: &Tree, name: &str) -> io::Result<()> {
        let bounds = Bounds {
            memory_bytes: 1 << 30,
            processor_percent: 100,
            weight_percent: 100,
            processes: 100,
        };
        let made = tree.make(name, &bounds, self.device).map(|_| ());
        let removed = tree.remove(name);
        made.and(removed)
    }

    /// Makes the groups of a machine. The result is what a process has to write "0" to, to be in them. Blocks.
    pub(crate) fn make(&self, name: &str, bounds: &Bounds) -> io::Result<Vec<File>> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.trees
            .iter()
            .map(|tree| tree.make(name, bounds, self.device))
            .collect()
    }

    /// Removes the groups of a machine whose process has ended; right if there are none. Blocks.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.trees.iter().try_for_each(|tree| tree.remove(name))
    }

    /// The groups of that name which a process is in: of a daemon that lived elsewhere, they are others than ours.
    pub(crate) fn of_process(&self, pid: i32, name: &str) -> Vec<PathBuf> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let found = self.mounts.iter().filter_map(|hierarchy| {
            let path = own_path(&text, &hierarchy.controllers, hierarchy.version)?;
            (path.file_name()? == name).then(|| hierarchy.dir_of(&path))
        });
        found.collect()
    }

    /// Removes such groups, and the trees that they were the last of.
    pub(crate) fn remove_dirs(&self, dirs: &[PathBuf]) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        for dir in dirs {
            remove_group(dir)?;
            remove_empty_tree(dir.parent());
        }
        Ok(())
    }

    /// The names of all groups there are.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .trees
            .iter()
            .filter_map(|tree| fs::read_dir(&tree.dir).ok())
            .flat_map(|entries| entries.flatten())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What is limited, and what is not and why: a sentence for the operator.
    pub(crate) fn report(&self) -> String {
        let held: Vec<String> = Controller::ALL
            .iter()
            .filter(|controller| !self.missing.contains_key(controller))
            .map(ToString::to_string)
            .collect();
        let mut report = if held.is_empty() {
            "machines are NOT limited by control groups".to_owned()
        } else {
            format!("each machine is limited in {}", held.join(", "))
        };
        for (controller, reason) in &self.missing {
            report.push_str(&format!("; NOT in {controller}: {reason}"));
        }
        report
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }
}

impl Tree {
    fn make(&self, name: &str, bounds: &Bounds, device: Option<Device>) -> io::Result<File> {
        let dir = self.dir.join(name);
        make_group(&self.dir)?;
        if self.version == Version::Two {
            // Each group counts for those below it only what the one above does.
            let mut above: Vec<&Path> = self
                .dir
                .ancestors()
                .take_while(|group| group.starts_with(&self.mount))
                .collect();
            above.reverse();
            for &controller in &self.controllers {
                for group in &above {
                    pass_down(group, controller.name(self.version))?;
                }
            }
        }
        make_group(&dir)?;
        for &controller in &self.controllers {
            for setting in settings(self.version, controller, bounds, device) {
                let file = dir.join(setting.file);
                match fs::write(&file, &setting.text) {
                    Ok(()) => {}
                    Err(_) if setting.optional => {}
                    Err(error) => {
                        let what = format!("{}: {error}", file.display());
                        return Err(io::Error::new(error.kind(), what));
                    }
                }
            }
        }
        File::options().write(true).open(dir.join("cgroup.procs"))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        remove_group(&self.dir.join(name))?;
        remove_empty_tree(Some(&self.dir));
        Ok(())
    }
}

fn make_group(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("{}: {error}", dir.display()),
        )),
        Ok(()) => Ok(()),
    }
}

/// Has the groups below `dir` counted by a controller, unless they are already.
fn pass_down(dir: &Path, controller: &str) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    if fs::read_to_string(&file).is_ok_and(|on| has_word(&on, controller)) {
        return Ok(());
    }
    fs::write(&file, format!("+{controller}"))
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

/// Waits for processes in it that are ending.
fn remove_group(dir: &Path) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        match fs::remove_dir(dir) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy
                    && begin.elapsed() < CONTROL_GROUP_DEADLINE =>
            {
                thread::sleep(CONTROL_GROUP_LOOK_INTERVAL);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                let what = format!("{}: {error}", dir.display());
                return Err(io::Error::new(error.kind(), what));
            }
            Ok(()) => return Ok(()),
        }
    }
}

/// The directory of all machines, when the last one is gone. That others are left is no error.
fn remove_empty_tree(dir: Option<&Path>) {
    let ours = |dir: &&Path| {
        let name = dir.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("codius-")
    };
    if let Some(dir) = dir.filter(ours) {
        let _ = fs::remove_dir(dir);
    }
}

/// What is written where. Pure.
fn settings(
    version: Version,
    controller: Controller,
    bounds: &Bounds,
    device: Option<Device>,
) -> Vec<Setting> {
    let setting = |file, text: String| Setting {
        file,
        text,
        optional: false,
    };
    let optional = |file, text: String| Setting {
        file,
        text,
        optional: true,
    };
    let quota = bounds.processor_percent * PROCESSOR_PERIOD_MICROS / 100;
    let share = bounds.processor_percent * bounds.weight_percent;
    let (bytes, operations) = (DISK_BYTES_PER_SEC, DISK_OPERATIONS_PER_SEC);
    match (version, controller) {
        (Version::Two, Controller::Memory) => vec![
            setting("memory.max", bounds.memory_bytes.to_string()),
            // What is sold as memory is memory. Without swap in the kernel there is no such file.
            optional("memory.swap.max", "0".into()),
            optional("memory.oom.group", "1".into()),
        ],
        (Version::One, Controller::Memory) => vec![
            setting("memory.limit_in_bytes", bounds.memory_bytes.to_string()),
            optional(
                "memory.memsw.limit_in_bytes",
                bounds.memory_bytes.to_string(),
            ),
            optional("memory.swappiness", "0".into()),
        ],
        (Version::Two, Controller::Processor) => {
            let weight = (WEIGHT_OF_A_PROCESSOR * share / 10_000).clamp(1, 10_000);
            vec![
                setting("cpu.max", format!("{quota} {PROCESSOR_PERIOD_MICROS}")),
                setting("cpu.weight", weight.to_string()),
            ]
        }
        (Version::One, Controller::Processor) => {
            let shares = (SHARES_OF_A_PROCESSOR * share / 10_000).clamp(2, 262_144);
            vec![
                setting("cpu.cfs_period_us", PROCESSOR_PERIOD_MICROS.to_string()),
                setting("cpu.cfs_quota_us", quota.to_string()),
                setting("cpu.shares", shares.to_string()),
            ]
        }
        (_, Controller::Processes) => vec![setting("pids.max", bounds.processes.to_string())],
        (Version::Two, Controller::Disk) => device
            .map(|device| {
                setting(
                    "io.max",
                    format!(
                        "{device} rbps={bytes} wbps={bytes} riops={operations} wiops={operations}"
                    ),
                )
            })
            .into_iter()
            .collect(),
        (Version::One, Controller::Disk) => device.map_or_else(Vec::new, |device| {
            vec![
                setting(
                    "blkio.throttle.read_bps_device",
                    format!("{device} {bytes}"),
                ),
                setting(
                    "blkio.throttle.write_bps_device",
                    format!("{device} {bytes}"),
                ),
                setting(
                    "blkio.throttle.read_iops_device",
                    format!("{device} {operations}"),
                ),
                setting(
                    "blkio.throttle.write_iops_device",
                    format!("{device} {operations}"),
                ),
            ]
        }),
    }
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.major, self.minor)
    }
}

/// The whole disk that a file system is on: limits are for disks, not for parts of them.
fn device_of(dir: &Path) -> Result<Device, String> {
    let metadata = fs::metadata(dir).map_err(|error| error.to_string())?;
    let (major, minor) = (
        rustix::fs::major(metadata.dev()),
        rustix::fs::minor(metadata.dev()),
    );
    let known = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"));
    let Ok(device) = known else {
        return Err(format!(
            "the file system of {} is on no disk",
            dir.display()
        ));
    };
    let disk = match device.parent() {
        Some(disk) if device.join("partition").exists() => disk.to_owned(),
        _ => device,
    };
    let numbers = fs::read_to_string(disk.join("dev")).map_err(|error| error.to_string())?;
    parse_device(&numbers).ok_or_else(|| format!("unknown disk {}", disk.display()))
}

fn parse_device(text: &str) -> Option<Device> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(Device {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_ascii_whitespace().any(|found| found == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        memory_bytes: 500_000_000,
        processor_percent: 225,
        weight_percent: 100,
        processes: 98,
    };
    const DISK: Device = Device {
        major: 254,
        minor: 16,
    };
    fn texts(version: Version, controller: Controller) -> Vec<String> {
        settings(version, controller, &BOUNDS, Some(DISK))
            .into_iter()
            .map(|setting| format!("{} = {}", setting.file, setting.text))
            .collect()
    }

    #[test]
    fn both_versions_are_told_the_same() {
        let two = |controller| texts(Version::Two, controller);
        let one = |controller| texts(Version::One, controller);
        assert_eq!(
            two(Controller::Memory),
            [
                "memory.max = 500000000",
                "memory.swap.max = 0",
                "memory.oom.group = 1"
            ]
        );
        assert_eq!(
            one(Controller::Memory),
            [
                "memory.limit_in_bytes = 500000000",
                "memory.memsw.limit_in_bytes = 500000000",
                "memory.swappiness = 0"
            ]
        );
        assert_eq!(
            two(Controller::Processor),
            ["cpu.max = 225000 100000", "cpu.weight = 225"]
        );
        assert_eq!(
            one(Controller::Processor),
            [
                "cpu.cfs_period_us = 100000",
                "cpu.cfs_quota_us = 225000",
                "cpu.shares = 2304"
            ]
        );
        assert_eq!(two(Controller::Processes), ["pids.max = 98"]);
        assert_eq!(one(Controller::Processes), ["pids.max = 98"]);
        assert_eq!(
            two(Controller::Disk),
            ["io.max = 254:16 rbps=268435456 wbps=268435456 riops=10000 wiops=10000"]
        );
        assert_eq!(
            one(Controller::Disk),
            [
                "blkio.throttle.read_bps_device = 254:16 268435456",
                "blkio.throttle.write_bps_device = 254:16 268435456",
                "blkio.throttle.read_iops_device = 254:16 10000",
                "blkio.throttle.write_iops_device = 254:16 10000"
            ]
        );
    }

    /// A directory that looks like a hierarchy of version 2, for what a kernel does not need to do.
    fn pretended(dir: &Path, controllers: &str) -> Vec<Hierarchy> {
        let parent = dir.join("system.slice");
        fs::create_dir_all(&parent).unwrap();
        fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
        vec![Hierarchy {
            mount: dir.to_owned(),
            root: "/".into(),
            version: Version::Two,
            controllers: Vec::new(),
            own: "/system.slice/codiusd.service".into(),
        }]
    }

    #[test]
    fn what_a_host_cannot_limit_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let instance: Instance = "ab12".parse().unwrap();
        // The kernel would have made the files in it: here nothing can be limited.
        let groups =
            ControlGroups::in_hierarchies(pretended(dir.path(), "cpu memory"), &instance, Ok(DISK));
        assert!(!groups.is_whole());
        let report = groups.report();
        assert!(
            report.starts_with("machines are NOT limited by control groups; NOT in memory: "),
            "{report}"
        );
        assert!(
            report.contains("NOT in disk throughput: no control group hierarchy"),
            "{report}"
        );
        let nowhere = Err("the file system of /x is on no disk".to_owned());
        let groups = ControlGroups::in_hierarchies(Vec::new(), &instance, nowhere);
        assert!(groups.report().ends_with("/x is on no disk"));
        assert!(groups.make("cdab12-1", &BOUNDS).unwrap().is_empty());
    }

    #[test]
    fn a_group_of_version_two_is_beside_ours_and_gets_its_controllers() {
        let dir = tempfile::tempdir().unwrap();
        let instance: Instance = "ab12".parse().unwrap();
        let mounts = pretended(dir.path(), "cpu io memory pids");
        let groups = ControlGroups {
            trees: vec![Tree {
                dir: mounts[0].place().join("codius-ab12"),
                mount: mounts[0].mount.clone(),
                version: Version::Two,
                controllers: vec![Controller::Memory],
            }],
            missing: BTreeMap::new(),
            device: Some(DISK),
            mounts,
            changing: Mutex::default(),
        };
        let found = groups.find(Controller::Disk, &instance).unwrap();
        assert_eq!(found.dir, groups.trees[0].dir);
        let leaf = groups.trees[0].dir.join("cdab12-1");
        fs::create_dir_all(&leaf).unwrap();
        fs::write(leaf.join("cgroup.procs"), "").unwrap();
        assert_eq!(groups.make("cdab12-1", &BOUNDS).unwrap().len(), 1);
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(read(leaf.join("memory.max")), "500000000");
        for group in ["", "system.slice", "system.slice/codius-ab12"] {
            let file = dir.path().join(group).join("cgroup.subtree_control");
            assert_eq!(read(file), "+memory", "{group}");
        }
        assert_eq!(groups.names(), ["cdab12-1"]);
    }

    #[test]
    fn a_device_is_two_numbers() {
        let device = parse_device("254:0\n");
        assert_eq!(device.map(|it| (it.major, it.minor)), Some((254, 0)));
        assert_eq!(parse_device("254"), None);
    }
}
