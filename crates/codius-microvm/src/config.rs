//! What a driver has to be told.

use std::{fmt, net::Ipv4Addr, os::unix::ffi::OsStrExt, path::Path, path::PathBuf, str::FromStr};

use codius_pod::{EgressPolicy, Machine};
use thiserror::Error;

use crate::network::Ipv4Pool;

/// The settings of a [`MicrovmDriver`](crate::MicrovmDriver).
#[derive(Debug, Clone)]
pub struct MicrovmConfig {
    /// Records, scratch disks and sockets of the pods; made if it does not exist.
    pub state_dir: PathBuf,
    /// Where `vmlinux` and `initramfs.cpio` are.
    pub guest_dir: PathBuf,
    /// Part of the name of everything the driver makes outside of `state_dir`.
    pub instance: Instance,
    pub accelerator: AcceleratorChoice,
    /// Addresses for pods, eight for each; private ones, used for nothing else.
    pub pool: Ipv4Pool,
    /// Name servers of the pods. They are reachable for pods at port 53 even if they are private.
    pub nameservers: Vec<Ipv4Addr>,
    /// What pods may reach, and how much.
    pub egress: EgressPolicy,
    /// The machine that most pods have. A template of it is made at once, in the background, and of others when
    /// a pod of them was started; pods are clones of templates. None: every pod is booted.
    pub warm: Option<Machine>,
    /// The QEMU process of slot n runs as user and group `uid_base + n`.
    pub uid_base: u32,
}

impl MicrovmConfig {
    /// The first user id of QEMU processes unless the operator says otherwise.
    pub const DEFAULT_UID_BASE: u32 = 20_000;
}

/// Which accelerator the virtual machines get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM if a test boot under it works, else emulation.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Emulation.
    Tcg,
}

/// Four hexadecimal digits that tell the hosts of one machine apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Instance(String);

impl Instance {
    /// The instance of a data directory: the same directory always gives the same instance. Two
    /// directories may share one by chance; `open` then refuses the second, and the operator chooses.
    pub fn of_data_dir(path: &Path) -> Self {
        // FNV-1a, 64 bits, folded to 16: short, stable over versions, and nothing depends on it being hard.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in path.as_os_str().as_bytes() {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
        let folded = (hash ^ (hash >> 16) ^ (hash >> 32) ^ (hash >> 48)) & 0xffff;
        Self(format!("{folded:04x}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a slot's network namespace, host-side interface and QEMU guest. At most 15 characters,
    /// as an interface name must be.
    pub(crate) fn pod_name(&self, slot: u16) -> String {
        format!("{}{slot}", self.pod_prefix())
    }

    /// What the names of all its pods begin with. No other instance's names begin with it.
    pub(crate) fn pod_prefix(&self) -> String {
        format!("cd{}-", self.0)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// The text is not four hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an instance is four digits 0-9, a-f")]
pub struct InvalidInstance;

impl FromStr for Instance {
    type Err = InvalidInstance;

    fn from_str(text: &str) -> Result<Self, InvalidInstance> {
        let valid = text.len() == 4
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidInstance)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_an_interface() {
        let instance = Instance::of_data_dir(Path::new("/var/lib/codius"));
        assert!(instance.as_str().parse::<Instance>().is_ok());
        assert!(instance.pod_name(u16::MAX).len() <= 15);
        assert!("ABCD".parse::<Instance>().is_err());
        assert!("abc".parse::<Instance>().is_err());
    }

    #[test]
    fn an_instance_is_the_same_in_every_version() {
        assert_eq!(
            Instance::of_data_dir(Path::new("/var/lib/codius")),
            Instance::of_data_dir(Path::new("/var/lib/codius"))
        );
        assert_ne!(
            Instance::of_data_dir(Path::new("/a")),
            Instance::of_data_dir(Path::new("/b"))
        );
    }
}
