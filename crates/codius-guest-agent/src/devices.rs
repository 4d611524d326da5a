//! The virtio devices of the machine, which get their drivers one by one when it is known what they are for.
//!
//! Drivers do not take devices by themselves (`drivers_autoprobe` is off once the control port is there). So
//! a machine that becomes a template has every driver loaded and has never looked at a disk or at a network
//! device: whoever is cloned from it finds its own, and nothing of them is in the template.
//!
//! Trap: a driver that is built into a kernel has its devices already when the agent starts; they are let
//! go of before the machine becomes a template ([`release`]).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

const BUS: &str = "/sys/bus/virtio";

/// Device types of the virtio specification, section 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Network = 1,
    Disk = 2,
    Balloon = 5,
}

/// From now on a device gets a driver only by [`bind`].
pub(crate) fn hold() -> io::Result<()> {
    fs::write(Path::new(BUS).join("drivers_autoprobe"), "0")
}

/// Gives the devices of a kind to their driver, one after the other, until `enough` says so.
pub(crate) fn bind(kind: Kind, mut enough: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    for device in of_kind(kind)? {
        if enough()? {
            break;
        }
        if !device.join("driver").exists() {
            let name = device.file_name().unwrap_or_default();
            fs::write(
                Path::new(BUS).join("drivers_probe"),
                name.to_string_lossy().as_bytes(),
            )?;
        }
    }
    Ok(())
}

/// Takes the devices of a kind away from their driver.
pub(crate) fn release(kind: Kind) -> io::Result<()> {
    for device in of_kind(kind)? {
        let unbind = device.join("driver/unbind");
        if unbind.exists() {
            let name = device.file_name().unwrap_or_default();
            fs::write(unbind, name.to_string_lossy().as_bytes())?;
        }
    }
    Ok(())
}

/// In the order of their numbers.
fn of_kind(kind: Kind) -> io::Result<Vec<PathBuf>> {
    let mut devices = Vec::new();
    for device in fs::read_dir(Path::new(BUS).join("devices"))? {
        let device = device?.path();
        let text = fs::read_to_string(device.join("device"))?;
        if parse(&text) == Some(kind as u32) {
            devices.push(device);
        }
    }
    devices.sort();
    Ok(devices)
}

fn parse(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim_end().strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_hexadecimal_numbers() {
        assert_eq!(parse("0x0002\n"), Some(Kind::Disk as u32));
        assert_eq!(parse("0x0010\n"), Some(16));
        assert_eq!(parse("2\n"), None);
    }
}
