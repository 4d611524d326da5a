//! Templates: machines that were booted once, up to the point where a pod is needed to go on, and of which
//! pods are clones.
//!
//! ```text
//! wanted ─▶ on disk? ──yes──────────────────────▶ loaded ─▶ ready ─▶ cloned, cloned, …
//!              └no─▶ boot ─▶ Warm ─▶ save ─▶ write ──┘         └─ fails thrice ─▶ given up
//! ```
//!
//! A template is for one [`Shape`] of machine. It holds nothing of any pod: no disk and no network device
//! has been looked at. On disk it is a directory `templates/SHAPE` with `memory`, `state` and `note.json`
//! (of what it was made); it is made under another name and renamed when it is whole, so a kill at any time
//! leaves nothing that counts. Where that would leave too little room to everything else, it is in memory
//! only. Another QEMU, kernel or initramfs, or another boot of this host make it void.
//!
//! Traps:
//! * The memory is kept in a sealed memfd, which is this process's memory: about 90 MiB a template.
//! * Everything that a kernel decides once is the same in all clones: the layout of its memory (KASLR), its
//!   hash seeds, its stack canaries of tasks that live since the boot. Random numbers, clock, addresses and
//!   names are not: the agent gets them anew before anything else. See ARCHITECTURE.md, Templates.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use codius_guest_protocol::{AgentMessage, HostMessage, MAX_CONTAINERS, SCRATCH_SERIAL};
use codius_pod::Machine;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    acceleration::{TrialSubject, subject},
    channel::{Channel, hello},
    configuration::image_serial,
    driver::Shared,
    limits::{
        KERNEL_MEMORY_MIB, MAX_CLONE_FAILURES, MAX_TEMPLATE_MACHINE_MIB, MAX_TEMPLATE_NOTE_BYTES,
        MAX_TEMPLATES, TEMPLATE_DEADLINE, TEMPLATE_LEAVES_BYTES,
    },
    machine::{
        AGENT_SOCKET, Disk, Launch, LaunchNetwork, MONITOR_SOCKET, Origin, ShortDir,
        create_console, listen_for_agent, listen_for_monitor,
    },
    process::ProcessIdentity,
    qmp::{Qmp, save_commands, save_to},
    remains::remove_tree,
};

/// The name of a machine that becomes a template is that of a slot no pool reaches: what is left of it is
/// found as a stray.
const TEMPLATE_SLOT: u16 = u16::MAX - 1;
/// Which form templates have on disk, and what an agent does to become one.
const VERSION: u32 = 1;
/// How many disks for images a template has: the least of these that is enough for a pod. A disk too many costs
/// next to nothing, a template too many its memory.
const IMAGE_SLOTS: [usize; 3] = [2, 4, MAX_CONTAINERS];
/// What QEMU saves of a machine beside its memory is about 64 KiB.
const MAX_STATE_BYTES: u64 = 16 << 20;
const PAGE_BYTES: usize = 4096;
const COPY_BYTES: usize = 64 * PAGE_BYTES;

/// What pods must have in common to be clones of one template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Shape {
    vcpus: u8,
    memory_mib: u32,
    image_slots: usize,
}

impl Shape {
    pub(crate) fn of(machine: Machine, images: usize) -> Self {
        let slots = IMAGE_SLOTS.into_iter().find(|&slots| slots >= images);
        Self {
            vcpus: machine.vcpus,
            memory_mib: machine.memory_mib,
            image_slots: slots.unwrap_or(MAX_CONTAINERS),
        }
    }

    fn name(self) -> String {
        let Self {
            vcpus,
            memory_mib,
            image_slots,
        } = self;
        format!("{vcpus}-{memory_mib}-{image_slots}")
    }

    /// All disks of the machine, empty. The guest stops looking when it has what it needs, so those that a pod
    /// may lack come last.
    fn disks(self) -> Vec<Disk> {
        let images = (0..self.image_slots).map(image_serial);
        let serials = [SCRATCH_SERIAL.to_owned()].into_iter().chain(images);
        serials.map(Disk::empty).collect()
    }

    /// A pod's disks in the order in which the template has them.
    pub(crate) fn fill(self, pod: Vec<Disk>) -> Vec<Disk> {
        let mut disks = self.disks();
        for disk in pod {
            if let Some(place) = disks.iter_mut().find(|place| place.serial == disk.serial) {
                *place = disk;
            }
        }
        disks
    }
}

/// A machine that can be cloned.
#[derive(Debug)]
pub(crate) struct Template {
    memory: Arc<File>,
    state: File,
    /// Clones that have failed since the last one that has not.
    failures: AtomicU32,
}

impl Template {
    /// Copies both.
    fn of(memory: &File, state: &File) -> io::Result<Self> {
        Ok(Self {
            memory: Arc::new(sealed(memory)?),
            state: sealed(state)?,
            failures: AtomicU32::new(0),
        })
    }

    /// What a clone begins with.
    pub(crate) fn origin(&self) -> io::Result<Origin> {
        Ok(Origin::Clone {
            memory: Arc::clone(&self.memory),
            // Opened anew: each clone reads from the beginning.
            state: File::open(format!("/proc/self/fd/{}", self.state.as_raw_fd()))?,
        })
    }
}

/// All templates of a host.
#[derive(Debug)]
pub(crate) struct Templates {
    dir: PathBuf,
    state: Mutex<State>,
    /// Whether one is being made.
    making: watch::Sender<bool>,
    /// None is made any more.
    ending: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    ready: BTreeMap<Shape, Arc<Template>>,
    /// Not tried again by this process.
    given_up: BTreeSet<Shape>,
}

/// Of what a template was made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    version: u32,
    shape: Shape,
    isolation: String,
    of: TrialSubject,
}

impl Templates {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.join("templates"),
            state: Mutex::default(),
            making: watch::Sender::new(false),
            ending: CancellationToken::new(),
        }
    }

    pub(crate) fn find(&self, shape: Shape) -> Option<Arc<Template>> {
        self.lock().ready.get(&shape).cloned()
    }

    /// Waits until no template is being made.
    pub(crate) async fn idle(&self) {
        // The sender is in `self`.
        let _ = self.making.subscribe().wait_for(|making| !making).await;
    }

    /// Gives up what is being made; returns when nothing of it is left.
    pub(crate) async fn end(&self) {
        self.ending.cancel();
        self.idle().await;
    }

    /// Notes how a clone went. A template that fails again and again is not used any more.
    pub(crate) fn cloned(&self, shape: Shape, template: &Template, well: bool) {
        if well {
            template.failures.store(0, Ordering::Relaxed);
            return;
        }
        if template.failures.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_CLONE_FAILURES {
            tracing::error!(
                shape = shape.name(),
                "clones of a template fail: pods are booted until the next start of this daemon"
            );
            let mut state = self.lock();
            state.ready.remove(&shape);
            state.given_up.insert(shape);
            drop(state);
            // It is made anew then.
            let _ = remove_tree(&self.dir.join(shape.name()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic happens under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the right to make one, if it is worth it.
    fn begin(&self, shape: Shape) -> bool {
        let state = self.lock();
        let known = state.ready.contains_key(&shape) || state.given_up.contains(&shape);
        let too_many = state.ready.len() >= MAX_TEMPLATES;
        let too_large = shape.memory_mib > MAX_TEMPLATE_MACHINE_MIB;
        if known || too_many || too_large || self.ending.is_cancelled() {
            return false;
        }
        self.making
            .send_if_modified(|making| !std::mem::replace(making, true))
    }
}

/// For a host that makes none.
pub(crate) fn remove_all(state_dir: &Path) -> io::Result<()> {
    remove_tree(&Templates::new(state_dir).dir)
}

/// Makes a template for a shape in the background, unless there is one, or one is being made.
pub(crate) fn want(shared: &Arc<Shared>, shape: Shape) {
    let Some(templates) = shared.templates.as_ref().filter(|of| of.begin(shape)) else {
        return;
    };
    let (shared, templates) = (Arc::clone(shared), Arc::clone(templates));
    tokio::spawn(async move {
        let begin = Instant::now();
        let made = tokio::select! {
            made = timeout(TEMPLATE_DEADLINE, obtain(&shared, &templates, shape)) => {
                made.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
            }
            () = shared.closing().cancelled() => Err(io::Error::from(io::ErrorKind::Interrupted)),
            () = templates.ending.cancelled() => Err(io::Error::from(io::ErrorKind::Interrupted)),
        };
        // A machine that was given up in the middle; normally there is none.
        let (places, dir) = (shared.places.clone(), templates.unfinished(shape));
        let cleared = tokio::task::spawn_blocking(move || {
            places.kill_strays(|slot| slot == TEMPLATE_SLOT)?;
            places
                .jail
                .forget(&places.instance.pod_name(TEMPLATE_SLOT))?;
            remove_tree(&dir)
        });
        if let Ok(Err(error)) = cleared.await {
            tracing::warn!(%error, "what is left of a template could not be removed");
        }
        match made {
            Ok((template, how)) => {
                templates.lock().ready.insert(shape, Arc::new(template));
                tracing::info!(
                    shape = shape.name(),
                    millis = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
                    "{how}: pods of this machine are cloned from now on"
                );
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(
                    shape = shape.name(),
                    %error,
                    "a template could not be made: pods of this machine are booted"
                );
                templates.lock().given_up.insert(shape);
            }
        }
        templates.making.send_replace(false);
    });
}

/// From disk, or by booting a machine.
async fn obtain(
    shared: &Arc<Shared>,
    templates: &Arc<Templates>,
    shape: Shape,
) -> io::Result<(Template, &'static str)> {
    let (looking, store) = (Arc::clone(shared), Arc::clone(templates));
    let (note, found) = blocking(move || {
        let note = Note {
            version: VERSION,
            shape,
            isolation: looking.accelerator.isolation().to_string(),
            of: subject(&looking.places, &looking.guest)?,
        };
        store.sweep(&note)?;
        let found = store.load(shape);
        Ok((note, found.ok()))
    })
    .await?;
    if let Some(template) = found {
        return Ok((template, "a template was found on disk"));
    }
    let memory = make(shared, templates, shape).await?;
    let store = Arc::clone(templates);
    let template = blocking(move || {
        let state = File::open(store.unfinished(shape).join("state"))?;
        let template = Template::of(&memory, &state)?;
        // What is on disk only saves the next start a boot.
        if let Err(error) = store.write(shape, &memory, &note) {
            tracing::info!(%error, "a template is not kept on disk; the next start makes it again");
        }
        Ok(template)
    })
    .await?;
    Ok((template, "a template has been made"))
}

/// A machine that is to become a template. It ends with what waits for it, also when this process ends.
struct Unsaved(ProcessIdentity);

impl Drop for Unsaved {
    fn drop(&mut self) {
        if let Ok(Some(handle)) = self.0.find()
            && let Err(error) = handle.kill_and_wait()
        {
            tracing::warn!(%error, "a machine that was to be a template does not end");
        }
    }
}

/// Boots a machine and saves its state to `state` in the unfinished directory; returns its memory.
async fn make(shared: &Arc<Shared>, templates: &Templates, shape: Shape) -> io::Result<File> {
    let dir = templates.unfinished(shape);
    let (starting, at) = (Arc::clone(shared), dir.clone());
    let (machine, memory, state) = blocking(move || {
        remove_tree(&at)?;
        fs::create_dir_all(&at)?;
        let bytes = memory_bytes(shape);
        let memory = File::from(memfd_create("template", MemfdFlags::CLOEXEC)?);
        memory.set_len(bytes)?;
        let state = File::create(at.join("state"))?;
        let launch = Launch {
            name: starting.places.instance.pod_name(TEMPLATE_SLOT),
            uid: starting.places.uid(TEMPLATE_SLOT),
            accelerator: starting.accelerator,
            machine: Machine {
                vcpus: shape.vcpus,
                memory_mib: shape.memory_mib,
                scratch_mib: 0,
            },
            origin: Origin::Boot {
                kernel: File::open(&starting.guest.kernel)?,
                initramfs: File::open(&starting.guest.initramfs)?,
                memory: Some(memory.try_clone()?),
            },
            console: create_console(&at)?,
            agent: listen_for_agent(&at)?,
            monitor: Some(listen_for_monitor(&at)?),
            disks: shape.disks(),
            network: Some(LaunchNetwork::Unconnected),
            yields: true,
        };
        Ok((Unsaved(launch.start(&starting.places.jail)?), memory, state))
    })
    .await?;
    let sockets = ShortDir::open(&dir)?;
    let mut agent = Channel::connect(&sockets.path(AGENT_SOCKET)).await?;
    hello(&mut agent).await.map_err(io::Error::other)?;
    agent.send(&HostMessage::Warm).map_err(io::Error::other)?;
    loop {
        match agent.next().await.map_err(io::Error::other)? {
            AgentMessage::Warmed => break,
            AgentMessage::Failed { message, .. } => return Err(io::Error::other(message)),
            _ => {}
        }
    }
    let monitor = sockets.path(MONITOR_SOCKET);
    let saved = async {
        let mut qemu = Qmp::connect(&monitor).await?;
        qemu.run(&save_commands()).await?;
        qemu.pass("state", state.as_fd()).await?;
        qemu.run(&[save_to("state")]).await?;
        qemu.migrated().await
    };
    saved.await.map_err(io::Error::other)?;
    let (places, name) = (
        shared.places.clone(),
        shared.places.instance.pod_name(TEMPLATE_SLOT),
    );
    blocking(move || {
        if let Some(handle) = machine.0.find()? {
            handle.kill_and_wait()?;
        }
        places.jail.forget(&name)
    })
    .await?;
    Ok(memory)
}

impl Templates {
    fn unfinished(&self, shape: Shape) -> PathBuf {
        self.dir.join(format!("{}.new", shape.name()))
    }

    /// Removes what is not whole, and what was made of something else.
    fn sweep(&self, current: &Note) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let valid = read_note(&path).is_ok_and(|note| {
                path == self.dir.join(note.shape.name())
                    && note
                        == Note {
                            shape: note.shape,
                            version: current.version,
                            isolation: current.isolation.clone(),
                            of: current.of.clone(),
                        }
            });
            if !valid {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Puts a template on disk, without the pages that are zero.
    fn write(&self, shape: Shape, memory: &File, note: &Note) -> io::Result<()> {
        let new = self.unfinished(shape);
        let disk = rustix::fs::statvfs(&new)?;
        let takes = memory.metadata()?.blocks() * 512;
        if disk.f_bavail * disk.f_frsize < takes + TEMPLATE_LEAVES_BYTES {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        for left in [AGENT_SOCKET, MONITOR_SOCKET, "console.log"] {
            fs::remove_file(new.join(left))?;
        }
        // Not forced to the disk: after a power cut it is another boot, and void.
        let file = File::create(new.join("memory"))?;
        file.set_len(memory_bytes(shape))?;
        copy_pages(memory, &file)?;
        fs::write(new.join("note.json"), serde_json::to_vec_pretty(note)?)?;
        fs::rename(&new, self.dir.join(shape.name()))
    }

    fn load(&self, shape: Shape) -> io::Result<Template> {
        let dir = self.dir.join(shape.name());
        let stored = File::open(dir.join("memory"))?;
        let bytes = memory_bytes(shape);
        if stored.metadata()?.len() != bytes {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let state = File::open(dir.join("state"))?;
        if state.metadata()?.len() > MAX_STATE_BYTES {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        Template::of(&stored, &state)
    }
}

/// A copy in memory that nobody can change any more.
fn sealed(stored: &File) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = File::from(memfd_create("template", flags)?);
    copy.set_len(stored.metadata()?.len())?;
    copy_pages(stored, &copy)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&copy, seals)?;
    Ok(copy)
}

fn memory_bytes(shape: Shape) -> u64 {
    u64::from(shape.memory_mib + KERNEL_MEMORY_MIB) * 1024 * 1024
}

fn read_note(dir: &Path) -> io::Result<Note> {
    let mut bytes = Vec::new();
    File::open(dir.join("note.json"))?
        .take(MAX_TEMPLATE_NOTE_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Copies what is not a hole and not zero to the same places of a file that is empty and long enough.
fn copy_pages(from: &File, to: &File) -> io::Result<()> {
    use rustix::fs::{SeekFrom as Place, seek};
    let mut buffer = vec![0; COPY_BYTES];
    let length = from.metadata()?.len();
    let mut position = 0;
    while position < length {
        position = match seek(from, Place::Data(position)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, Place::Hole(position))?;
        let mut source = from;
        source.seek(SeekFrom::Start(position))?;
        while position < end {
            let left = usize::try_from(end - position).unwrap_or(COPY_BYTES);
            let piece = &mut buffer[..left.min(COPY_BYTES)];
            source.read_exact(piece)?;
            for page in piece.chunks(PAGE_BYTES) {
                if page.iter().any(|&byte| byte != 0) {
                    to.write_all_at(page, position)?;
                }
                position += page.len() as u64;
            }
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_fills_the_disks_of_its_template() {
        let shape = Shape::of(Machine::SMALL, 3);
        let disks = shape.fill(vec![
            Disk {
                serial: image_serial(1),
                file: Some(File::open("/dev/null").unwrap()),
                writable: None,
            },
            Disk {
                serial: SCRATCH_SERIAL.into(),
                file: Some(File::open("/dev/null").unwrap()),
                writable: None,
            },
        ]);
        let filled: Vec<(&str, bool)> = disks
            .iter()
            .map(|disk| (disk.serial.as_str(), disk.file.is_some()))
            .collect();
        assert_eq!(
            filled,
            [
                ("scratch", true),
                ("img0", false),
                ("img1", true),
                ("img2", false),
                ("img3", false)
            ]
        );
        for images in 1..=MAX_CONTAINERS {
            assert!(Shape::of(Machine::SMALL, images).image_slots >= images);
        }
    }

    #[test]
    fn a_copy_has_the_same_bytes_and_no_page_of_zeros() {
        let make = || {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(memfd_create("test", flags).unwrap());
            file.set_len(4 << 20).unwrap();
            file
        };
        let (from, to) = (make(), make());
        from.write_all_at(&[7; 5000], 8192).unwrap();
        from.write_all_at(&[0; 3 << 18], 1 << 20).unwrap();
        from.write_all_at(b"last", (4 << 20) - 4).unwrap();
        copy_pages(&from, &to).unwrap();
        let read = |mut file: &File| {
            let mut bytes = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert!(read(&from) == read(&to));
        assert_eq!(to.metadata().unwrap().blocks() * 512, 3 * 4096);
    }

    #[test]
    fn half_made_and_foreign_templates_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::new(dir.path());
        let shape = Shape::of(Machine::SMALL, 1);
        let note = |qemu: &str| Note {
            version: VERSION,
            shape,
            isolation: "tcg".into(),
            of: TrialSubject::named(qemu),
        };
        let write = |path: PathBuf, note: &Note| {
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("note.json"), serde_json::to_vec(note).unwrap()).unwrap();
        };
        let whole = templates.dir.join(shape.name());
        write(whole.clone(), &note("7.2"));
        write(templates.unfinished(shape), &note("7.2"));
        templates.sweep(&note("7.2")).unwrap();
        assert!(whole.exists() && !templates.unfinished(shape).exists());
        templates.sweep(&note("8.0")).unwrap();
        assert!(!whole.exists());
        // There is no memory in it: an error, and no template.
        write(whole, &note("7.2"));
        assert!(templates.load(shape).is_err());
    }
}
