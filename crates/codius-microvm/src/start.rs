//! Starting a pod: from nothing to containers that were told to run.
//!
//! ```text
//!  record ┬▶ namespace, tap ┬▶ machine: clone, or boot ─▶ Hello ─┬▶ Configure ─▶ Started
//!         └▶ files, sockets ┼▶ firewall, links, port ────────────┤      │
//!                           └▶ scratch disk is formatted ────────┘      │
//!                                                                       ▼
//!                 a clone fails, before or after its Hello: it is ended, a new disk, boot
//! ```
//!
//! Nothing is polled for: each step ends with a message, a process or a file system call. A clone that fails
//! costs time and nothing else: the pod is booted with the same images and the same network. Only a failure
//! of a container (its program is not there) is the uploader's, and the same in a boot: it is not tried again.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use codius_guest_protocol::{HostMessage, PodConfig, SCRATCH_SERIAL};
use codius_pod::{DriverError, Isolation, Machine, PodEvent, PodEvents, PodStart};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::{
    channel::{Channel, hello},
    configuration::{distinct_images, image_serial, pod_config},
    driver::Shared,
    interledger::InterledgerPort,
    limits::{clone_deadline, containers_deadline, hello_deadline},
    machine::{
        AGENT_SOCKET, Disk, Launch, LaunchNetwork, MONITOR_SOCKET, Origin, ShortDir,
        create_console, listen_for_agent, listen_for_monitor,
    },
    network::PodNetwork,
    pod::{Live, Stillness, boot_failure, containers_started, guest_step, host, millis, step},
    process::{ProcessIdentity, ProcessWatch},
    programs,
    qmp::{Qmp, restore_commands},
    record::{Phase, PodRecord, RECORD_VERSION},
    sessions::Sessions,
    template::{self, Shape, Template},
};

/// What a machine of a pod is made of; enough to make it twice.
struct Parts {
    slot: u16,
    machine: Machine,
    dir: PathBuf,
    images: Vec<File>,
    network: PodNetwork,
}

/// A machine whose agent has answered.
struct Booted {
    process: ProcessIdentity,
    channel: Channel,
    watch: ProcessWatch,
    spawned_at: Instant,
}

/// Starts a pod. What it has made when it fails is removed by the caller.
pub(crate) async fn launch(
    shared: &Arc<Shared>,
    pod: &PodStart,
    slot: u16,
    events: &Arc<dyn PodEvents>,
    steps: &TaskTracker,
) -> Result<Live, DriverError> {
    let begin = Instant::now();
    let isolation = shared.accelerator.isolation();
    let (images, serials) = distinct_images(pod);
    let block = shared.pool.block(slot);
    let shape = Shape::of(pod.machine, images.len());
    let template = shared
        .templates
        .as_ref()
        .and_then(|templates| templates.find(shape));
    let mut record = PodRecord {
        version: RECORD_VERSION,
        hash: pod.hash,
        slot,
        phase: Phase::Starting,
        process: None,
        port: pod.port,
        containers: pod
            .containers
            .iter()
            .map(|container| container.id.clone())
            .collect(),
    };

    // Durable first; everything after this is found again by the record.
    let dir = shared.places.pod_dir(&pod.hash);
    let (places, noted, made) = (shared.places.clone(), record.clone(), dir.clone());
    step(steps, "note the pod", move || {
        places.records.write(&noted)?;
        // Something may be left of a pod that could not be removed completely.
        if made.exists() {
            fs::remove_dir_all(&made)?;
        }
        fs::create_dir(&made)
    })
    .await?;
    let noted_at = begin.elapsed();

    let name = shared.places.instance.pod_name(slot);
    let (places, network_name) = (shared.places.clone(), name.clone());
    let network = step(steps, "make the pod's network", move || {
        PodNetwork::create(&places.programs, &network_name)
    });
    let (scratch, scratch_mib) = (scratch_path(&dir), pod.machine.scratch_mib);
    let files = step(steps, "make the pod's disk", move || {
        make_scratch(&scratch, scratch_mib)?;
        images.iter().map(File::open).collect::<io::Result<_>>()
    });
    let (network, images) = tokio::try_join!(network, files)?;
    let namespace = network
        .namespace
        .try_clone()
        .map_err(host("hold the pod's network"))?;
    let made_at = begin.elapsed();
    let parts = Arc::new(Parts {
        slot,
        machine: pod.machine,
        dir: dir.clone(),
        images,
        network,
    });

    // While the guest boots: let the network through, open the Interledger port, format the disk.
    let (connecting, hash) = (Arc::clone(shared), pod.hash);
    let connected = step(steps, "connect the pod's network", move || {
        connecting.egress.connect(&namespace, &name, &hash, slot)?;
        InterledgerPort::bind(&namespace, block)
    });
    let (mke2fs, scratch) = (shared.places.programs.mke2fs.clone(), scratch_path(&dir));
    let formatted = step(steps, "format the pod's disk", move || {
        format_scratch(&mke2fs, &scratch)
    });
    let prepared = async {
        let (interledger, ()) = tokio::try_join!(connected, formatted)?;
        Ok((interledger, begin.elapsed()))
    };
    let up = async {
        let (booted, cloned) = machine(shared, &parts, shape, template, &record, steps).await?;
        Ok((booted, cloned, begin.elapsed()))
    };
    let ((interledger, prepared_at), (mut booted, mut cloned, mut hello_at)) =
        tokio::try_join!(prepared, up)?;
    let configure = async |booted: &mut Booted| {
        events.event(PodEvent::Booted);
        let config = pod_config(shared, pod, slot, &serials);
        booted
            .configure(config, &record, isolation, &dir, events)
            .await
    };
    let mut started = configure(&mut booted).await;
    if let (Some(of), Err(error @ DriverError::Boot { .. })) = (&cloned, &started) {
        give_up(shared, of, error, slot, steps).await?;
        cloned = None;
        let (mke2fs, scratch) = (shared.places.programs.mke2fs.clone(), scratch_path(&dir));
        step(steps, "make the pod's disk anew", move || {
            fs::remove_file(&scratch)?;
            make_scratch(&scratch, scratch_mib)?;
            format_scratch(&mke2fs, &scratch)
        })
        .await?;
        booted = run(shared, &parts, None, &record, steps).await?;
        hello_at = begin.elapsed();
        started = configure(&mut booted).await;
    }
    started?;
    if let Some(of) = &cloned {
        of.went(shared, true);
    }
    let Booted {
        process,
        channel,
        watch,
        spawned_at,
    } = booted;
    record.process = Some(process);
    let started_at = begin.elapsed();

    record.phase = Phase::Running;
    let (places, noted) = (shared.places.clone(), record.clone());
    step(steps, "note the pod", move || places.records.write(&noted)).await?;
    info!(
        pod = %pod.hash,
        cloned = cloned.is_some(),
        noted_ms = millis(noted_at),
        made_ms = millis(made_at),
        spawned_ms = millis(spawned_at.saturating_duration_since(begin)),
        hello_ms = millis(hello_at),
        prepared_ms = millis(prepared_at),
        started_ms = millis(started_at),
        durable_ms = millis(begin.elapsed()),
        "a pod has been started"
    );
    // The next one of this machine need not boot.
    template::want(shared, shape);
    Ok(Live {
        record,
        channel,
        watch,
        interledger,
        stillness: Stillness::No,
        // Its agent is this version's.
        sessions: Sessions::offered(),
    })
}

/// The template that a machine is a clone of.
#[derive(Clone)]
struct Of {
    shape: Shape,
    template: Arc<Template>,
}

impl Of {
    /// Notes how a clone went.
    fn went(&self, shared: &Shared, well: bool) {
        if let Some(templates) = &shared.templates {
            templates.cloned(self.shape, &self.template, well);
        }
    }
}

/// A clone if there is a template and its agent answers, otherwise a boot. Says which it is.
async fn machine(
    shared: &Arc<Shared>,
    parts: &Arc<Parts>,
    shape: Shape,
    template: Option<Arc<Template>>,
    record: &PodRecord,
    steps: &TaskTracker,
) -> Result<(Booted, Option<Of>), DriverError> {
    if let Some(template) = template {
        let of = Of { shape, template };
        match run(shared, parts, Some(of.clone()), record, steps).await {
            Ok(booted) => return Ok((booted, Some(of))),
            Err(error) => give_up(shared, &of, &error, parts.slot, steps).await?,
        }
    }
    Ok((run(shared, parts, None, record, steps).await?, None))
}

/// Ends a clone that has failed.
async fn give_up(
    shared: &Arc<Shared>,
    of: &Of,
    error: &DriverError,
    slot: u16,
    steps: &TaskTracker,
) -> Result<(), DriverError> {
    warn!(
        error = error as &dyn std::error::Error,
        "a clone has failed; the pod is booted instead"
    );
    of.went(shared, false);
    let places = shared.places.clone();
    step(steps, "end the clone that failed", move || {
        places.kill_strays(|stray| stray == slot).map(|_| ())
    })
    .await
}

/// One machine up to its agent's first answer.
async fn run(
    shared: &Arc<Shared>,
    parts: &Arc<Parts>,
    template: Option<Of>,
    record: &PodRecord,
    steps: &TaskTracker,
) -> Result<Booted, DriverError> {
    let isolation = shared.accelerator.isolation();
    let cloning = template.is_some();
    let (starting, made) = (Arc::clone(shared), Arc::clone(parts));
    let (process, state) = step(steps, "start QEMU", move || {
        let launch = made.launch(&starting, template)?;
        let state = launch.origin.state();
        Ok((launch.start(&starting.places.jail)?, state))
    })
    .await?;
    let spawned_at = Instant::now();
    let (places, mut noted) = (shared.places.clone(), record.clone());
    noted.process = Some(process.clone());
    let noting = step(steps, "note the pod", move || places.records.write(&noted));

    let dir = &parts.dir;
    let answering = async {
        let Some(handle) = process.find().map_err(host("watch QEMU"))? else {
            return Err(boot_failure(dir, "the virtual machine ended at once"));
        };
        let watch = handle.watch().map_err(host("watch QEMU"))?;
        let sockets = ShortDir::open(dir).map_err(host("reach the virtual machine"))?;
        let agent = sockets.path(AGENT_SOCKET);
        let mut channel = Channel::connect(&agent)
            .await
            .map_err(host("reach the guest agent"))?;
        let deadline = if cloning {
            clone_deadline(isolation)
        } else {
            hello_deadline(isolation)
        };
        let talk = async {
            if let Some(state) = state {
                let restored = async {
                    let mut qemu = Qmp::connect(&sockets.path(MONITOR_SOCKET)).await?;
                    qemu.run(&restore_commands(state)).await
                };
                restored.await.map_err(|error| error.to_string())?;
            }
            let met = hello(&mut channel).await;
            met.map_err(|error| error.to_string())
        };
        let met = guest_step(deadline, &watch, talk)
            .await
            .map_err(|reason| boot_failure(dir, &reason))?;
        if met.configured {
            return Err(boot_failure(
                dir,
                "the guest agent says it is configured already",
            ));
        }
        Ok((channel, watch))
    };
    let ((), (channel, watch)) = tokio::try_join!(noting, answering)?;
    Ok(Booted {
        process,
        channel,
        watch,
        spawned_at,
    })
}

impl Booted {
    /// Tells the agent what the pod is, and waits until its containers were started.
    async fn configure(
        &mut self,
        config: PodConfig,
        record: &PodRecord,
        isolation: Isolation,
        dir: &Path,
        events: &Arc<dyn PodEvents>,
    ) -> Result<(), DriverError> {
        let told = self.channel.send(&HostMessage::Configure(Box::new(config)));
        told.map_err(|error| boot_failure(dir, &error.to_string()))?;
        let started = containers_started(&mut self.channel, &record.containers, events);
        guest_step(containers_deadline(isolation), &self.watch, started)
            .await
            .map_err(|reason| boot_failure(dir, &reason))?
    }
}

impl Parts {
    fn launch(&self, shared: &Shared, template: Option<Of>) -> io::Result<Launch> {
        let mut disks = Vec::new();
        for (index, image) in self.images.iter().enumerate() {
            disks.push(Disk {
                serial: image_serial(index),
                file: Some(image.try_clone()?),
                writable: None,
            });
        }
        let scratch = scratch_path(&self.dir);
        disks.push(Disk {
            serial: SCRATCH_SERIAL.into(),
            file: Some(File::open(&scratch)?),
            writable: Some(File::options().read(true).write(true).open(&scratch)?),
        });
        let (origin, disks) = match template {
            Some(of) => (of.template.origin()?, of.shape.fill(disks)),
            None => (
                Origin::Boot {
                    kernel: File::open(&shared.guest.kernel)?,
                    initramfs: File::open(&shared.guest.initramfs)?,
                    memory: None,
                },
                disks,
            ),
        };
        Ok(Launch {
            name: shared.places.instance.pod_name(self.slot),
            uid: shared.places.uid(self.slot),
            accelerator: shared.accelerator,
            machine: self.machine,
            origin,
            console: create_console(&self.dir)?,
            agent: listen_for_agent(&self.dir)?,
            monitor: Some(listen_for_monitor(&self.dir)?),
            disks,
            network: Some(LaunchNetwork::Tap {
                namespace: self.network.namespace.try_clone()?,
                tap: self.network.tap.try_clone()?,
            }),
            yields: false,
        })
    }
}

pub(crate) fn scratch_path(dir: &Path) -> PathBuf {
    dir.join("scratch.img")
}

/// The sparse scratch disk: its size is the pod's disk quota.
fn make_scratch(path: &Path, mib: u32) -> io::Result<()> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.set_len(u64::from(mib) * 1024 * 1024)
}

/// QEMU may have it open already; the guest looks at it only when it is configured. Deleted with the pod, so
/// no journal.
fn format_scratch(mke2fs: &Path, path: &Path) -> io::Result<()> {
    let options = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-m",
        "0",
        "-O",
        "^has_journal",
        "-E",
        "lazy_itable_init=1,nodiscard",
    ];
    let mut arguments: Vec<&std::ffi::OsStr> = options.iter().map(std::ffi::OsStr::new).collect();
    arguments.push(path.as_os_str());
    programs::run(mke2fs, &arguments, "", None)
}
