//! What can be asked, and what is answered. JSON, one value a message; an unknown field is an error.

use serde::{Deserialize, Serialize};

/// What the host wants. A slot is one of the operator's range; it decides user, names and addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Makes a pod's network: namespace and tap device. No packet passes yet.
    OpenNetwork { slot: u16 },
    /// Sets the rules of the operator's policy and lets packets through. Answered with the listener of the pod's
    /// Interledger port. Right again for a pod that is taken up.
    ConnectNetwork { slot: u16 },
    /// Starts a machine in its cell. Descriptors come with it, in the order of [`LaunchRequest::descriptors`].
    /// Answered with the process.
    Launch(Box<LaunchRequest>),
    /// For the machine of a slot.
    Signal { slot: u16, signal: Signal },
    /// Ends what there is of a slot: machine, cell, network.
    Remove { slot: u16 },
    /// Which slots there is anything of.
    List {},
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    Stop,
    Continue,
    Kill,
}

/// A machine to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchRequest {
    pub slot: u16,
    pub vcpus: u8,
    /// What is sold.
    pub memory_mib: u32,
    pub scratch_mib: u32,
    pub origin: OriginKind,
    pub disks: Vec<DiskKind>,
    /// Whether it lets others go first.
    pub yields: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OriginKind {
    /// Kernel, initramfs.
    Boot,
    /// Kernel, initramfs, memory that a template is made of.
    Template,
    /// Sealed memory, state.
    Clone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    /// No descriptor.
    Empty,
    /// One, open for reading.
    Image,
    /// Two of one file: open for reading, and for both.
    Scratch,
}

impl OriginKind {
    pub(crate) fn descriptors(self) -> usize {
        match self {
            Self::Boot | Self::Clone => 2,
            Self::Template => 3,
        }
    }
}

impl DiskKind {
    pub(crate) fn descriptors(self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Image => 1,
            Self::Scratch => 2,
        }
    }
}

impl LaunchRequest {
    /// Console, listener of the agent, listener of the monitor; then those of the origin, then those of the disks.
    pub fn descriptors(&self) -> usize {
        let disks: usize = self.disks.iter().map(|disk| disk.descriptors()).sum();
        3 + self.origin.descriptors() + disks
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Response {
    Done {},
    /// A machine, by what tells it from all others.
    Started {
        pid: i32,
        start_time: u64,
    },
    Slots {
        slots: Vec<u16>,
    },
    /// Nothing was done: it was not to be asked.
    Refused {
        reason: String,
    },
    /// Something may have been done; `Remove` clears it away.
    Failed {
        reason: String,
    },
}
