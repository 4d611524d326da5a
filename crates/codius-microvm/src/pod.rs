//! One pod: the task that owns it from its first effect to its last.
//!
//! ```text
//!  start ─▶ launched (start.rs) ───────────────▶ running ─▶ end ─▶ removed
//!  attach ─▶ record ─▶ port, channel ─▶ Hello ─▶ running
//! ```
//!
//! An end is a stop that was asked for, a lost guest, or the end of this driver; only the last leaves the
//! machine running. What a guest says never decides more than the end of its own pod.

use std::{fs::File, future::Future, io, os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use codius_guest_protocol::{ContainerStatus, HostMessage};
use codius_manifest::ManifestHash;
use codius_pod::{DriverError, ExecError, PodEvent, PodEvents, PodStart, RunningPod};
use tokio::{sync::oneshot, time::timeout};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{info, warn};

use crate::{
    channel::{Channel, hello},
    driver::{Asked, Claim, Command, Shared},
    hearing::{Heard, hear},
    interledger::InterledgerPort,
    limits::{
        CONSOLE_TAIL_BYTES, HEARTBEAT_INTERVAL, HEARTBEATS_MISSED, MAX_CONSOLE_BYTES, STOP_MARGIN,
        hello_deadline,
    },
    machine::{AGENT_SOCKET, ShortDir},
    network,
    process::ProcessWatch,
    record::{Phase, PodRecord},
    sessions::Sessions,
    start,
};

/// Where the answer to `start` or `attach` goes.
type Answer = oneshot::Sender<Result<RunningPod, DriverError>>;

/// A pod whose containers have been started.
pub(crate) struct Live {
    pub(crate) record: PodRecord,
    pub(crate) channel: Channel,
    pub(crate) watch: ProcessWatch,
    pub(crate) interledger: InterledgerPort,
    pub(crate) stillness: Stillness,
    pub(crate) sessions: Sessions,
}

/// Whether a pod is held still (SIGSTOP for its QEMU process, which outlives this daemon).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stillness {
    No,
    Held,
    /// Since before this driver took it up: its agent has not been met.
    Found,
}

/// Starts a pod and stays with it to its end.
pub(crate) async fn start(
    shared: Arc<Shared>,
    mut claim: Claim,
    slot: u16,
    pod: PodStart,
    events: Arc<dyn PodEvents>,
    mut answer: Answer,
) {
    // Steps that block go on when their future is dropped; they must end before what they made is removed.
    let steps = TaskTracker::new();
    let given_up = |why: &str| DriverError::Boot {
        reason: why.to_owned(),
    };
    let launched = tokio::select! {
        launched = start::launch(&shared, &pod, slot, &events, &steps) => launched,
        () = answer.closed() => Err(given_up("the start was given up")),
        _ = claim.stop_asked() => Err(given_up("it was stopped while it started")),
        () = shared.closing().cancelled() => Err(given_up("this host is being shut down")),
    };
    steps.close();
    steps.wait().await;
    let error = match launched {
        Ok(live) => {
            let running = running_pod(&shared, &live.record);
            if answer.send(Ok(running)).is_ok() {
                return live.run(shared, claim, events).await;
            }
            drop(live);
            None
        }
        Err(error) => Some((answer, error)),
    };
    remove(&shared, pod.hash, slot).await;
    drop(claim);
    if let Some((answer, error)) = error {
        // Nobody waits for it when the start was given up.
        let _ = answer.send(Err(error));
    }
}

/// Takes up a pod that runs already.
pub(crate) async fn attach(
    shared: Arc<Shared>,
    mut claim: Claim,
    record: PodRecord,
    events: Arc<dyn PodEvents>,
    mut answer: Answer,
) {
    let (hash, slot) = (record.hash, record.slot);
    let attached = tokio::select! {
        attached = take_up(&shared, record, &events) => attached,
        // The machine goes on; somebody may ask again.
        () = answer.closed() => return,
        () = shared.closing().cancelled() => return,
        _ = claim.stop_asked() => Err("it was stopped meanwhile".to_owned()),
    };
    match attached {
        Ok(live) => {
            let running = RunningPod {
                frozen: live.stillness != Stillness::No,
                ..running_pod(&shared, &live.record)
            };
            if answer.send(Ok(running)).is_ok() {
                live.run(shared, claim, events).await;
            }
        }
        Err(reason) => {
            info!(pod = %hash, ?reason, "a pod cannot be taken up again");
            remove(&shared, hash, slot).await;
            drop(claim);
            let _ = answer.send(Err(DriverError::NotRunning));
        }
    }
}

fn running_pod(shared: &Shared, record: &PodRecord) -> RunningPod {
    let guest = shared.pool.block(record.slot).guest();
    RunningPod {
        address: record.port.map(|port| (guest, port).into()),
        frozen: false,
    }
}

/// Removes what there is of a pod, and frees its slot. A failure is logged: the record stays, and the next
/// `stop` tries again.
async fn remove(shared: &Arc<Shared>, hash: ManifestHash, slot: u16) {
    if let Err(error) = shared.remove_pod(hash, slot).await {
        tracing::error!(pod = %hash, error = &error as &dyn std::error::Error, "what is left of a pod could not be removed");
    }
}

/// Runs a step that blocks; it is waited for even if this future is dropped.
pub(crate) async fn step<T: Send + 'static>(
    steps: &TaskTracker,
    doing: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, DriverError> {
    let runtime = tokio::runtime::Handle::current();
    let done = steps.spawn_blocking(move || {
        let _context = runtime.enter();
        work()
    });
    done.await
        .map_err(io::Error::other)
        .and_then(|done| done)
        .map_err(host(doing))
}

pub(crate) fn host(doing: &'static str) -> impl Fn(io::Error) -> DriverError {
    move |source| DriverError::Host {
        doing: doing.to_owned(),
        source,
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A guest's step, ended by its deadline or by the end of the machine.
pub(crate) async fn guest_step<T, E: ToString>(
    deadline: Duration,
    watch: &ProcessWatch,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    // The channel ends a moment before the process does; the process is the better reason.
    const DYING: Duration = Duration::from_millis(200);
    let ended = || "the virtual machine ended".to_owned();
    tokio::select! {
        done = timeout(deadline, step) => match done {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) if timeout(DYING, watch.ended()).await.is_ok() => Err(ended()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the guest did not answer within {} s", deadline.as_secs())),
        },
        () = watch.ended() => Err(ended()),
    }
}

/// For the caller one sentence; for the operator the end of the guest's console beside it.
pub(crate) fn boot_failure(dir: &Path, reason: &str) -> DriverError {
    let console = console_tail(dir).unwrap_or_default();
    warn!(reason, ?console, "a pod did not start");
    DriverError::Boot {
        reason: reason.to_owned(),
    }
}

fn console_tail(dir: &Path) -> io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(dir.join("console.log"))?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(CONSOLE_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(crate) async fn containers_started(
    channel: &mut Channel,
    containers: &[String],
    events: &Arc<dyn PodEvents>,
) -> Result<Result<(), DriverError>, String> {
    loop {
        let message = channel.next().await.map_err(|error| error.to_string())?;
        match hear(message, containers.len())? {
            Heard::Event(PodEvent::Started) => {
                events.event(PodEvent::Started);
                return Ok(Ok(()));
            }
            Heard::Event(event) => events.event(event),
            Heard::Failed { container, reason } => {
                return Ok(Err(
                    match container.and_then(|index| containers.get(index)) {
                        Some(id) => DriverError::Container {
                            container: id.clone(),
                            reason,
                        },
                        None => DriverError::Boot { reason },
                    },
                ));
            }
            Heard::Stopped => return Err("the guest stopped by itself".to_owned()),
            Heard::Nothing | Heard::Exec { .. } => {}
        }
    }
}

async fn take_up(
    shared: &Arc<Shared>,
    record: PodRecord,
    events: &Arc<dyn PodEvents>,
) -> Result<Live, String> {
    let failed =
        |doing: &'static str| move |error: io::Error| format!("could not {doing}: {error}");
    let handle = match &record.process {
        Some(process) if record.phase == Phase::Running => {
            process.find().map_err(failed("find QEMU"))?
        }
        _ => None,
    };
    let Some(handle) = handle else {
        return Err("its virtual machine does not run".to_owned());
    };
    let watch = handle.watch().map_err(failed("watch QEMU"))?;
    let name = shared.places.instance.pod_name(record.slot);
    let namespace = network::open_namespace(&name).map_err(failed("enter its network"))?;
    // The policy may be another than when it was started.
    renew_rules(shared, &namespace, &record)
        .await
        .map_err(failed("set its firewall rules"))?;
    let interledger = InterledgerPort::bind(&namespace, shared.pool.block(record.slot))
        .map_err(failed("open its Interledger port"))?;
    let socket = ShortDir::open(&shared.places.pod_dir(&record.hash))
        .map_err(failed("find its directory"))?;
    let mut channel = Channel::connect(&socket.path(AGENT_SOCKET))
        .await
        .map_err(failed("reach its agent"))?;
    let mut sessions = Sessions::default();
    let stillness = match &record.process {
        Some(process) if process.is_stopped().map_err(failed("look at QEMU"))? => Stillness::Found,
        Some(_) | None => {
            let offered = meet_again(shared, &record, &mut channel, &watch, events).await?;
            sessions.set_offered(offered);
            Stillness::No
        }
    };
    Ok(Live {
        record,
        channel,
        watch,
        interledger,
        stillness,
        sessions,
    })
}

async fn renew_rules(
    shared: &Arc<Shared>,
    namespace: &OwnedFd,
    record: &PodRecord,
) -> io::Result<()> {
    let (shared, namespace) = (Arc::clone(shared), namespace.try_clone()?);
    let (hash, slot) = (record.hash, record.slot);
    let renewed =
        tokio::task::spawn_blocking(move || shared.egress.renew(&namespace, &hash, slot)).await;
    renewed
        .map_err(io::Error::other)
        .and_then(|renewed| renewed)
}

/// Gets in step with the agent of a pod that was started earlier, and tells what ended while nobody
/// listened. Says whether it carries sessions of `exec`.
async fn meet_again(
    shared: &Shared,
    record: &PodRecord,
    channel: &mut Channel,
    watch: &ProcessWatch,
    events: &Arc<dyn PodEvents>,
) -> Result<bool, String> {
    let deadline = hello_deadline(shared.accelerator.isolation());
    let met = guest_step(deadline, watch, hello(channel)).await?;
    if !met.configured || met.containers.len() != record.containers.len() {
        return Err("its agent does not know its containers".to_owned());
    }
    for (container, status) in met.containers.into_iter().enumerate() {
        if let ContainerStatus::Exited(exit) = status {
            events.event(PodEvent::Exited { container, exit });
        }
    }
    Ok(met.sessions)
}

/// How a pod's running time ends.
enum End {
    Stop {
        grace: Duration,
    },
    Lost {
        reason: String,
    },
    /// This driver ends, the pod does not.
    Detach,
}

impl Live {
    async fn run(self, shared: Arc<Shared>, mut claim: Claim, events: Arc<dyn PodEvents>) {
        claim.set_running();
        let Self {
            record,
            mut channel,
            watch,
            interledger,
            mut stillness,
            mut sessions,
        } = self;
        let interledger =
            AbortOnDropHandle::new(tokio::spawn(interledger.serve(Arc::clone(&events))));
        let end = watch_over(
            &shared,
            &mut claim,
            &record,
            &mut channel,
            &watch,
            &events,
            &mut stillness,
            &mut sessions,
        )
        .await;
        // Whoever is in one hears of the end at once, not when the containers have ended.
        drop(sessions);
        let reason = match end {
            End::Detach => return,
            End::Lost { reason } => Some(reason),
            // A pod that is held still does not hear.
            End::Stop { .. } if stillness != Stillness::No => None,
            End::Stop { grace } => {
                say_stop(&record, &mut channel, &watch, &events, grace).await;
                None
            }
        };
        drop((channel, watch));
        // Its connections keep the network namespace alive.
        interledger.abort();
        let _ = interledger.await;
        remove(&shared, record.hash, record.slot).await;
        drop(claim);
        if let Some(reason) = reason {
            warn!(pod = %record.hash, reason, "a pod was lost");
            events.event(PodEvent::Lost { reason });
        }
    }
}

/// Passes on what the guest says until something ends that.
#[expect(clippy::too_many_arguments, reason = "all that a running pod is")]
async fn watch_over(
    shared: &Shared,
    claim: &mut Claim,
    record: &PodRecord,
    channel: &mut Channel,
    watch: &ProcessWatch,
    events: &Arc<dyn PodEvents>,
    stillness: &mut Stillness,
    sessions: &mut Sessions,
) -> End {
    let console = shared.places.pod_dir(&record.hash).join("console.log");
    let first = tokio::time::Instant::now() + HEARTBEAT_INTERVAL;
    let mut heartbeat = tokio::time::interval_at(first, HEARTBEAT_INTERVAL);
    let (mut heartbeats, mut unanswered) = (0, 0);
    let lost = |reason: String| End::Lost { reason };
    loop {
        tokio::select! {
            message = channel.next() => {
                unanswered = 0;
                match message {
                    Ok(message) => match hear(message, record.containers.len()) {
                        Ok(Heard::Event(event)) => events.event(event),
                        Ok(Heard::Nothing) => {}
                        Ok(Heard::Exec { session, answer }) => {
                            if let Err(fault) = sessions.hear(session, answer) {
                                return lost(fault);
                            }
                        }
                        Ok(Heard::Stopped) => return lost("the guest stopped by itself".into()),
                        Ok(Heard::Failed { reason, .. }) => return lost(reason),
                        Err(fault) => return lost(fault),
                    },
                    Err(error) => return lost(error.to_string()),
                }
            }
            () = watch.ended() => {
                last_words(record, channel, events).await;
                return lost("its virtual machine ended unexpectedly".into());
            }
            asked = claim.asked() => {
                match asked {
                    Asked::Stop(grace) => return End::Stop { grace },
                    Asked::Command(Command::Freeze(answer)) => {
                        let held = watch.hold_still().await;
                        if held.is_ok() && *stillness == Stillness::No {
                            *stillness = Stillness::Held;
                        }
                        let _ = answer.send(held);
                    }
                    Asked::Command(Command::Thaw(answer)) => {
                        let going = watch.go_on();
                        if going.is_ok() {
                            let found = *stillness == Stillness::Found;
                            *stillness = Stillness::No;
                            unanswered = 0;
                            if found {
                                match meet_again(shared, record, channel, watch, events).await {
                                    Ok(offered) => sessions.set_offered(offered),
                                    Err(reason) => return lost(reason),
                                }
                            }
                        }
                        let _ = answer.send(going);
                    }
                    Asked::Command(Command::Exec(_, answer)) if *stillness != Stillness::No => {
                        let _ = answer.send(Err(ExecError::Frozen));
                    }
                    Asked::Command(Command::Exec(start, answer)) => {
                        let (message, begun) = match sessions.begin(start) {
                            Ok((message, session)) => (Some(message), Ok(session)),
                            Err(error) => (None, Err(error)),
                        };
                        if let Some(message) = message
                            && let Err(error) = channel.send(&message)
                        {
                            return lost(error.to_string());
                        }
                        // Who asked may be gone: then the session is dropped here, and killed.
                        let _ = answer.send(begun);
                    }
                    Asked::Command(Command::Tell(notice)) => {
                        let message = HostMessage::Lease {
                            expires_at_unix_ms: notice.expires_at_unix_ms,
                        };
                        // A pod that is held still is told anew when it goes on.
                        if *stillness == Stillness::No
                            && let Err(error) = channel.send(&message)
                        {
                            return lost(error.to_string());
                        }
                    }
                }
            }
            message = sessions.next() => {
                if let Err(error) = channel.send(&message) {
                    return lost(error.to_string());
                }
            }
            // A pod that is held still answers no heartbeat.
            _ = heartbeat.tick(), if *stillness == Stillness::No => {
                if unanswered >= HEARTBEATS_MISSED {
                    return lost("the guest does not answer any more".into());
                }
                unanswered += 1;
                heartbeats += 1;
                if let Err(error) = channel.send(&HostMessage::Ping { id: heartbeats }) {
                    return lost(error.to_string());
                }
                bound_console(&console);
            }
            () = shared.closing().cancelled() => return End::Detach,
        }
    }
}

/// What was written before the end and not read yet.
async fn last_words(record: &PodRecord, channel: &mut Channel, events: &Arc<dyn PodEvents>) {
    const WAIT: Duration = Duration::from_millis(200);
    let read_rest = async {
        while let Ok(message) = channel.next().await {
            if let Ok(Heard::Event(event)) = hear(message, record.containers.len()) {
                events.event(event);
            }
        }
    };
    let _ = timeout(WAIT, read_rest).await;
}

/// Lets the containers end by themselves. However this goes, the machine is killed afterwards.
async fn say_stop(
    record: &PodRecord,
    channel: &mut Channel,
    watch: &ProcessWatch,
    events: &Arc<dyn PodEvents>,
    grace: Duration,
) {
    if channel
        .send(&HostMessage::Stop {
            grace_ms: millis(grace),
        })
        .is_err()
    {
        return;
    }
    let stopped = async {
        loop {
            let message = channel.next().await.map_err(|error| error.to_string())?;
            match hear(message, record.containers.len())? {
                Heard::Event(event) => events.event(event),
                Heard::Nothing | Heard::Exec { .. } => {}
                Heard::Stopped | Heard::Failed { .. } => return Ok::<_, String>(()),
            }
        }
    };
    if let Err(reason) = guest_step(grace + STOP_MARGIN, watch, stopped).await {
        info!(pod = %record.hash, reason, "a pod is ended without its consent");
    }
}

/// QEMU appends to the file; a guest must not fill the disk with it.
fn bound_console(path: &Path) {
    let Ok(file) = File::options().write(true).open(path) else {
        return;
    };
    if file
        .metadata()
        .is_ok_and(|metadata| metadata.len() > MAX_CONSOLE_BYTES)
    {
        let _ = file.set_len(0);
    }
}
