//! From the first instruction of PID 1 to the open control port.
//!
//! Trap: the initramfs is the one root that `pivot_root` refuses to leave, so the agent first moves a
//! tmpfs over it; the containers pivot away from that. The modules stay behind in the initramfs and are
//! reached through a directory that was opened before.

use std::io;

use rustix::{
    fs::{Mode, OFlags, open},
    mount::{MountFlags, mount, mount_move, mount_remount},
    process::{chdir, chroot},
};

use crate::{
    devices,
    modules::{Modules, Phase},
    port::Port,
};

/// What the agent starts with.
#[derive(Debug)]
pub(crate) struct Boot {
    pub(crate) port: Port,
    /// Those not loaded yet.
    pub(crate) modules: Modules,
}

pub(crate) fn boot() -> io::Result<Boot> {
    let directory = open(
        "/modules",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut modules = Modules::read(directory)?;
    modules.load(Phase::Early);
    leave_initramfs()?;
    devices::hold()?;
    // The kernel kills by this number when the whole machine is out of memory: anyone but us.
    std::fs::write("/proc/self/oom_score_adj", "-1000")?;
    Ok(Boot {
        port: Port::open()?,
        modules,
    })
}

fn leave_initramfs() -> io::Result<()> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // The one program here runs already. An image whose program is a link to `/proc/self/exe` must not get
    // it to run again: it would lead out of the container.
    mount_remount(
        "/",
        MountFlags::BIND | MountFlags::NOSUID | MountFlags::NOEXEC,
        c"",
    )?;
    std::fs::create_dir("/newroot")?;
    mount(
        "tmpfs",
        "/newroot",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=0755,size=1m",
    )?;
    chdir("/newroot")?;
    for directory in [
        "dev",
        "proc",
        "sys",
        "run",
        "run/images",
        "run/scratch",
        "run/codius",
        "run/root",
    ] {
        std::fs::create_dir(directory)?;
    }
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    mount(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=0755",
    )?;
    mount("proc", "/proc", "proc", plain, None)?;
    mount("sysfs", "/sys", "sysfs", plain, None)?;
    Ok(())
}
