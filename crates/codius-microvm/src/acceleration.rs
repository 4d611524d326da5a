//! Whether virtual machines of this host run under KVM.
//!
//! `/dev/kvm` may exist and yet be of no use: on some rented machines it accepts a guest and dies in the
//! middle of its kernel's start. So the answer is a real boot of our guest up to its agent's first word.
//! It is kept for as long as QEMU, the kernel and the boot of this machine stay the same.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use codius_pod::{Isolation, Machine};
use serde::{Deserialize, Serialize};

use crate::{
    AcceleratorChoice, OpenError,
    channel::{Channel, hello},
    limits::{PROBE_DEADLINE, PROGRAM_DEADLINE},
    machine::{
        Accelerator, GuestFiles, Launch, Origin, ShortDir, create_console, listen_for_agent,
        measure_tsc_khz,
    },
    process::boot_id,
    programs::first_line,
    remains::Places,
};

const DEVICE: &str = "/dev/kvm";
/// The name of the trial machine is that of a slot no pool reaches: what is left of it is found as a stray.
const TRIAL_SLOT: u16 = u16::MAX;
const TRIAL_MACHINE: Machine = Machine {
    vcpus: 1,
    memory_mib: 192,
    scratch_mib: 16,
};

/// What was found, with a sentence for the operator.
#[derive(Debug)]
pub(crate) struct Acceleration {
    pub(crate) accelerator: Accelerator,
    pub(crate) reason: String,
}

/// The result of a test boot, kept on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Trial {
    /// Of what this is the result; another one makes it void.
    of: TrialSubject,
    /// Why it failed; none if KVM works.
    failure: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TrialSubject {
    qemu: String,
    /// Size and change time of kernel and initramfs: they are replaced as whole files.
    guest: Vec<(u64, u128)>,
    boot_id: String,
}

#[cfg(test)]
impl TrialSubject {
    pub(crate) fn named(qemu: &str) -> Self {
        Self {
            qemu: qemu.into(),
            guest: Vec::new(),
            boot_id: String::new(),
        }
    }
}

/// Decides, by a test boot if need be.
pub(crate) async fn choose(
    choice: AcceleratorChoice,
    places: &Places,
    guest: &GuestFiles,
    state_dir: &Path,
) -> Result<Acceleration, OpenError> {
    let emulation = |reason: String| async move {
        let tsc_khz = tokio::task::spawn_blocking(measure_tsc_khz)
            .await
            .unwrap_or_default();
        Acceleration {
            accelerator: Accelerator::Tcg { tsc_khz },
            reason,
        }
    };
    if choice == AcceleratorChoice::Tcg {
        return Ok(
            emulation("emulation, as configured: for development and tests only".into()).await,
        );
    }
    let group = match usable_group() {
        Ok(group) => group,
        Err(reason) if choice == AcceleratorChoice::Kvm => return Err(OpenError::Kvm { reason }),
        Err(reason) => return Ok(emulation(emulated_because(&reason)).await),
    };
    if choice == AcceleratorChoice::Auto && !processor_has_virtualisation() {
        let reason = "the processor shows no virtualisation extension (vmx or svm)";
        return Ok(emulation(emulated_because(reason)).await);
    }
    match tried(places, guest, state_dir, group)
        .await
        .map_err(OpenError::host("test KVM"))?
    {
        None => Ok(Acceleration {
            accelerator: Accelerator::Kvm { group },
            reason: "hardware virtualisation (KVM), shown to work by a test boot".into(),
        }),
        Some(reason) if choice == AcceleratorChoice::Kvm => Err(OpenError::Kvm { reason }),
        Some(reason) => Ok(emulation(emulated_because(&reason)).await),
    }
}

fn emulated_because(reason: &str) -> String {
    format!("emulation, for development and tests only, because {reason}")
}

/// The group through which an unprivileged QEMU can open the device.
fn usable_group() -> Result<u32, String> {
    let device =
        fs::metadata(DEVICE).map_err(|error| format!("{DEVICE} cannot be used ({error})"))?;
    if device.mode() & 0o060 == 0o060 || device.mode() & 0o006 == 0o006 {
        Ok(device.gid())
    } else {
        Err(format!(
            "{DEVICE} is open to root only; give it to a group (on Debian: group kvm, mode 0660)"
        ))
    }
}

fn processor_has_virtualisation() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| has_virtualisation(&text))
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_ascii_whitespace()
                .any(|flag| matches!(flag, "vmx" | "svm"))
        })
}

/// Why KVM does not work; from an earlier trial of the same, or from a new one.
async fn tried(
    places: &Places,
    guest: &GuestFiles,
    state_dir: &Path,
    group: u32,
) -> io::Result<Option<String>> {
    let kept = state_dir.join("kvm-trial.json");
    let of = subject(places, guest)?;
    if let Ok(bytes) = fs::read(&kept)
        && let Ok(trial) = serde_json::from_slice::<Trial>(&bytes)
        && trial.of == of
    {
        return Ok(trial.failure);
    }
    tracing::info!("testing KVM by a boot");
    let failure = boot(places, guest, group).await?.err();
    fs::write(
        &kept,
        serde_json::to_vec_pretty(&Trial {
            of,
            failure: failure.clone(),
        })?,
    )?;
    Ok(failure)
}

pub(crate) fn subject(places: &Places, guest: &GuestFiles) -> io::Result<TrialSubject> {
    let print = |path: &PathBuf| -> io::Result<(u64, u128)> {
        let metadata = fs::metadata(path)?;
        let changed = metadata
            .modified()?
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Ok((metadata.len(), changed.as_nanos()))
    };
    Ok(TrialSubject {
        qemu: first_line(&places.programs.qemu, "--version", PROGRAM_DEADLINE)?,
        guest: vec![print(&guest.kernel)?, print(&guest.initramfs)?],
        boot_id: boot_id()?,
    })
}

async fn boot(places: &Places, guest: &GuestFiles, group: u32) -> io::Result<Result<(), String>> {
    let dir = places.pods_dir.join("kvm-trial");
    fs::create_dir_all(&dir)?;
    let socket_dir = ShortDir::open(&dir)?;
    let launch = Launch {
        name: places.instance.pod_name(TRIAL_SLOT),
        uid: places.uid(TRIAL_SLOT),
        accelerator: Accelerator::Kvm { group },
        machine: TRIAL_MACHINE,
        origin: Origin::Boot {
            kernel: fs::File::open(&guest.kernel)?,
            initramfs: fs::File::open(&guest.initramfs)?,
            memory: None,
        },
        console: create_console(&dir)?,
        agent: listen_for_agent(&dir)?,
        monitor: None,
        disks: Vec::new(),
        network: None,
        yields: false,
    };
    let process = launch.start(&places.jail)?;
    let outcome = async {
        let mut channel = Channel::connect(&socket_dir.path("agent.sock")).await?;
        let Some(handle) = process.find()? else {
            return Ok(Err("QEMU ends at once with KVM".to_owned()));
        };
        let watch = handle.watch()?;
        Ok(tokio::select! {
            answered = tokio::time::timeout(PROBE_DEADLINE, hello(&mut channel)) => match answered {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(format!("a test boot with KVM failed: {error}")),
                Err(_) => Err(format!("a test boot with KVM did not end within {PROBE_DEADLINE:?}")),
            },
            () = watch.ended() => Err("QEMU ended during a test boot with KVM".to_owned()),
        })
    }
    .await;
    if let Some(handle) = process.find()? {
        tokio::task::spawn_blocking(move || handle.kill_and_wait())
            .await
            .map_err(io::Error::other)??;
    }
    places.jail.forget(&places.instance.pod_name(TRIAL_SLOT))?;
    fs::remove_dir_all(&dir)?;
    outcome
}

/// For the log: the whole answer in one line.
pub(crate) fn announce(acceleration: &Acceleration) {
    let isolation = acceleration.accelerator.isolation();
    if isolation == Isolation::Kvm {
        tracing::info!(%isolation, "pods run with {}", acceleration.reason);
    } else {
        tracing::warn!(%isolation, "pods run with {}", acceleration.reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_whole_words() {
        assert!(has_virtualisation("model\t: x\nflags\t\t: fpu svm nx\n"));
        assert!(has_virtualisation("flags\t\t: fpu vmx\n"));
        assert!(!has_virtualisation(
            "flags\t\t: fpu vmxnot svm_lock\nbugs: svm\n"
        ));
    }
}
