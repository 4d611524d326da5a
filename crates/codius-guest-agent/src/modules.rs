//! Kernel modules. The initramfs has them in `/modules`, and in `/modules/list` one line each in
//! loading order: a phase and a file name.

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::{AtFlags, Mode, OFlags, openat, unlinkat},
    system::finit_module,
};

use crate::kernel_log;

/// The longest list that is read.
const MAX_LIST_BYTES: usize = 16 * 1024;

/// When a module is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Before hello: the control port needs it.
    Early,
    /// While the host answers the hello, at the latest when the pod is configured.
    Late,
    /// When the containers run.
    Spare,
}

/// Modules that are still to be loaded, in order.
#[derive(Debug)]
pub(crate) struct Modules {
    directory: OwnedFd,
    pending: Vec<(Phase, String)>,
}

impl Modules {
    pub(crate) fn read(directory: OwnedFd) -> io::Result<Self> {
        let list = openat(
            &directory,
            "list",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut text = vec![0; MAX_LIST_BYTES];
        let length = rustix::io::read(&list, &mut text)?;
        text.truncate(length);
        Ok(Self {
            directory,
            pending: parse(&String::from_utf8_lossy(&text)),
        })
    }

    /// Loads everything up to and including a phase.
    pub(crate) fn load(&mut self, up_to: Phase) {
        while self.load_next(up_to) {}
    }

    /// Whether any module of a phase up to this one is left.
    pub(crate) fn has(&self, up_to: Phase) -> bool {
        self.pending.iter().any(|(phase, _)| *phase <= up_to)
    }

    /// Loads one module of a phase up to `up_to`; false if there is none left.
    pub(crate) fn load_next(&mut self, up_to: Phase) -> bool {
        let Some(next) = self.pending.iter().position(|(phase, _)| *phase <= up_to) else {
            return false;
        };
        let (_, name) = self.pending.remove(next);
        // A module that does not load shows in what needs it, with a better message.
        if let Err(error) = self.insert(&name) {
            kernel_log::write(&format!("module {name}: {error}"));
        }
        true
    }

    /// Also deletes the file: it is in memory.
    fn insert(&self, name: &str) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let module = openat(&self.directory, name, flags, Mode::empty())?;
        let loaded = finit_module(&module, c"", 0);
        unlinkat(&self.directory, name, AtFlags::empty())?;
        Ok(loaded?)
    }
}

fn parse(list: &str) -> Vec<(Phase, String)> {
    list.lines()
        .filter_map(|line| {
            let (phase, name) = line.split_once(' ')?;
            let phase = match phase {
                "early" => Phase::Early,
                "late" => Phase::Late,
                "spare" => Phase::Spare,
                _ => return None,
            };
            Some((phase, name.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_keeps_its_order_and_unknown_phases_are_left_out() {
        let list = parse("early a.ko\nlate b.ko\nsome c.ko\nspare d.ko\n\nlate e.ko");
        let names: Vec<&str> = list.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["a.ko", "b.ko", "d.ko", "e.ko"]);
        assert!(list[0].0 < list[1].0 && list[1].0 < list[2].0);
    }
}
