//! The loop of the agent: one `epoll` over the control port, signals, and the containers' pipes.
//!
//! Output flows only as fast as the host reads it: when too much waits, the pipes are left alone and the
//! programs wait, as they would for a terminal. When no host is there, or it does not read, the oldest
//! output is dropped instead, so that no program depends on the host being well.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use codius_guest_protocol::{AgentMessage, HostMessage, MAX_EXEC_SESSIONS, PROTOCOL_VERSION};
use rustix::{
    event::{Timespec, epoll},
    fd::AsFd,
    io::Errno,
};

use crate::{
    boot::Boot,
    container::Container,
    devices::{self, Kind},
    exec::{Part, Sessions},
    kernel_log,
    modules::{Modules, Phase},
    notice,
    outbox::Outbox,
    pod::{self, Pod},
    port::Port,
    sys,
};

/// How long programs wait for a host that is connected and does not read.
const STALL_PATIENCE: Duration = Duration::from_secs(2);
/// How often the port is tried although nothing said that it is ready.
const PORT_RETRY: Duration = Duration::from_secs(1);
/// When a pod without an open port is left to itself and the last modules are loaded.
const SPARE_PATIENCE: Duration = Duration::from_secs(3);
const MAX_EVENTS: usize = 32;

/// What an event is about, as a number in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Port,
    Signals,
    Report(u16),
    Output(u16, usize),
    /// By its place among the sessions of `exec`.
    Session(u8, Part),
}

/// Above the numbers of all containers.
const SESSIONS: u64 = 1 << 32;

impl Source {
    fn token(self) -> u64 {
        match self {
            Self::Session(place, part) => SESSIONS + 4 * u64::from(place) + part.number(),
            Self::Port => 0,
            Self::Signals => 1,
            Self::Report(container) => 4 + 4 * u64::from(container),
            Self::Output(container, output) => 5 + 4 * u64::from(container) + u64::from(output > 0),
        }
    }

    fn from_token(token: u64) -> Self {
        if let Some(token) = token.checked_sub(SESSIONS) {
            let place = u8::try_from(token / 4).unwrap_or(u8::MAX);
            return Self::Session(place, Part::from_number(token % 4));
        }
        let container = u16::try_from(token / 4).unwrap_or(0).saturating_sub(1);
        match (token, token % 4) {
            (0, _) => Self::Port,
            (1, _) => Self::Signals,
            (_, 0) => Self::Report(container),
            (_, 1) => Self::Output(container, 0),
            _ => Self::Output(container, 1),
        }
    }
}

/// What can wait until there is nothing else to do.
#[derive(Debug, Clone, Copy)]
enum IdleWork {
    Load(Phase),
    BindBalloon,
}

#[derive(Debug)]
pub(crate) struct Agent {
    port: Port,
    modules: Modules,
    epoll: OwnedFd,
    signals: OwnedFd,
    outbox: Outbox,
    /// How [`Agent::prepare`] went.
    prepared: Option<Result<(), String>>,
    pod: Option<Pod>,
    sessions: Sessions,
    /// A host has attached and not gone since.
    attached: bool,
    /// When the host last took a byte, or there was nothing to take.
    last_progress: Instant,
    /// Whether the output pipes are in the epoll set.
    reading: bool,
    /// Whether unused memory is given back.
    balloon_bound: bool,
}

impl Agent {
    pub(crate) fn new(boot: Boot) -> io::Result<Self> {
        let Boot { port, modules } = boot;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let signals = sys::signal_descriptor(&[libc::SIGCHLD])?;
        let edges = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        add(&epoll, port.as_fd(), Source::Port, edges)?;
        add(
            &epoll,
            signals.as_fd(),
            Source::Signals,
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            port,
            modules,
            epoll,
            signals,
            outbox: Outbox::default(),
            prepared: None,
            pod: None,
            sessions: Sessions::default(),
            balloon_bound: false,
            attached: false,
            last_progress: Instant::now(),
            reading: true,
        })
    }

    /// Runs until the control port breaks, which it does not.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        loop {
            self.receive()?;
            let now = Instant::now();
            self.tick(now)?;
            self.tell_exits(now);
            self.sessions.finish(&mut self.outbox);
            self.send(now)?;
            self.choose_reading(now)?;
            self.watch_sessions()?;

            let idle_work = self.idle_work(now);
            let timeout = if idle_work.is_some() {
                Some(now)
            } else {
                self.next_deadline(now)
            };
            events.clear();
            self.wait(&mut events, timeout)?;
            if events.is_empty()
                && let Some(work) = idle_work
            {
                self.work(work);
            }
            for event in events.drain(..) {
                self.handle(Source::from_token(event))?;
            }
        }
    }

    /// Does what is due by time.
    fn tick(&mut self, now: Instant) -> io::Result<()> {
        let Some(pod) = &mut self.pod else {
            return Ok(());
        };
        let started = pod.tick(now, &mut self.outbox);
        for container in started.into_iter().map(|index| &pod.containers()[index]) {
            watch_report(&self.epoll, container)?;
            if self.reading {
                watch_outputs(&self.epoll, container, true)?;
            }
        }
        Ok(())
    }

    /// Takes the descriptors of sessions into the epoll set and out of it, as they are of use now.
    fn watch_sessions(&mut self) -> io::Result<()> {
        let epoll = &self.epoll;
        self.sessions.watch(|place, part, descriptor, wanted| {
            if !wanted {
                return Ok(epoll::delete(epoll, descriptor)?);
            }
            let flags = match part {
                Part::Input => epoll::EventFlags::OUT,
                Part::Report | Part::Output(_) => epoll::EventFlags::IN,
            };
            add(epoll, descriptor, Source::Session(place, part), flags)
        })
    }

    fn wait(&self, events: &mut Vec<u64>, until: Option<Instant>) -> io::Result<()> {
        let timeout = until.map(|until| {
            // Rounded up to the next millisecond, lest the loop spins just before a deadline.
            let left = until.saturating_duration_since(Instant::now());
            let left = if left.is_zero() {
                left
            } else {
                left + Duration::from_micros(100)
            };
            Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut buffer = Vec::with_capacity(MAX_EVENTS);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut buffer),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {
                events.extend(buffer.iter().map(|event| event.data.u64()));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn handle(&mut self, source: Source) -> io::Result<()> {
        let now = Instant::now();
        match (source, &mut self.pod) {
            (Source::Signals, pod) => {
                let mut information = [0; 1024];
                while rustix::io::read(&self.signals, &mut information).is_ok() {}
                if let Some(pod) = pod {
                    pod.reap(&mut self.sessions, now);
                }
            }
            (Source::Report(container), Some(pod)) => {
                pod.hear(container, now, &mut self.outbox);
            }
            (Source::Output(container, output), Some(pod)) => {
                pod.read_output(container, output, &mut self.outbox);
            }
            (Source::Session(place, part), _) => {
                self.sessions.ready(place, part, &mut self.outbox);
            }
            // Every turn of the loop looks at the port.
            (Source::Port | Source::Report(_) | Source::Output(..), _) => {}
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        let (messages, closed) = self.port.receive()?;
        for message in messages {
            self.obey(message)?;
        }
        if closed {
            self.attached = false;
            self.sessions.kill_all();
        }
        Ok(())
    }

    fn obey(&mut self, message: HostMessage) -> io::Result<()> {
        let now = Instant::now();
        match message {
            HostMessage::Attach { nonce } => {
                self.attached = true;
                self.last_progress = now;
                self.port.break_line();
                self.sessions.kill_all();
                let mut messages = vec![AgentMessage::Hello {
                    nonce,
                    version: PROTOCOL_VERSION,
                    configured: self.pod.is_some(),
                    containers: self.pod.as_ref().map(Pod::statuses).unwrap_or_default(),
                    sessions: u16::try_from(MAX_EXEC_SESSIONS).unwrap_or_default(),
                }];
                messages.extend(self.pod.iter().flat_map(|pod| pod.states(now)));
                self.outbox.restart(messages);
            }
            HostMessage::Configure(config) => {
                if self.pod.is_some() {
                    kernel_log::write("configured again; ignored");
                    return Ok(());
                }
                self.modules.load(Phase::Late);
                let prepared = self.prepare();
                let pod = Pod::configure(&config, prepared, now, &mut self.outbox);
                for container in pod.containers() {
                    watch_report(&self.epoll, container)?;
                }
                self.pod = Some(pod);
                if self.reading {
                    self.watch_outputs(true)?;
                }
            }
            HostMessage::Lease { expires_at_unix_ms } => {
                if self.pod.is_some()
                    && let Err(error) = notice::tell(expires_at_unix_ms)
                {
                    kernel_log::write(&format!("the lease's end cannot be told: {error}"));
                }
            }
            HostMessage::Warm => {
                if self.pod.is_some() {
                    kernel_log::write("a pod does not become a template; ignored");
                    return Ok(());
                }
                self.warm();
            }
            HostMessage::Exec { session, ask } => {
                self.sessions
                    .obey(session, ask, self.pod.as_ref(), &mut self.outbox)?;
            }
            HostMessage::Ping { id } => self.outbox.push(AgentMessage::Pong { id }),
            HostMessage::Stop { grace_ms } => match &mut self.pod {
                Some(pod) => pod.stop(Duration::from_millis(grace_ms), now, &mut self.outbox),
                None => self.outbox.push(AgentMessage::Stopped),
            },
        }
        Ok(())
    }

    /// What every pod needs; done once.
    fn prepare(&mut self) -> Result<(), String> {
        self.prepared.get_or_insert_with(pod::prepare).clone()
    }

    /// Makes the machine ready to be cloned. Devices stay without a driver: a clone has others.
    fn warm(&mut self) {
        self.modules.load(Phase::Spare);
        let warmed = [Kind::Disk, Kind::Network, Kind::Balloon]
            .into_iter()
            .try_for_each(devices::release)
            .map_err(|error| format!("devices: {error}"))
            .and_then(|()| self.prepare());
        self.outbox.push(match warmed {
            Ok(()) => AgentMessage::Warmed,
            Err(message) => AgentMessage::Failed {
                container: None,
                message,
            },
        });
    }

    fn send(&mut self, now: Instant) -> io::Result<()> {
        if self.attached {
            let progress = self.port.send(|| self.outbox.pop())?;
            if progress || !self.has_unsent() {
                self.last_progress = now;
            }
        }
        Ok(())
    }

    fn has_unsent(&self) -> bool {
        self.port.has_unsent() || !self.outbox.is_empty()
    }

    fn tell_exits(&mut self, now: Instant) {
        let patient = self.is_patient(now);
        if let Some(pod) = &mut self.pod {
            let may_read = |outbox: &Outbox| !patient || outbox.has_room();
            pod.tell_exits(may_read, now, &mut self.outbox);
        }
    }

    /// Whether programs are to wait for the host rather than lose output.
    fn is_patient(&self, now: Instant) -> bool {
        self.attached && now.saturating_duration_since(self.last_progress) < STALL_PATIENCE
    }

    /// Takes the output pipes into the epoll set or out of it.
    fn choose_reading(&mut self, now: Instant) -> io::Result<()> {
        let reading = self.outbox.has_room() || !self.is_patient(now);
        if reading != self.reading {
            self.watch_outputs(reading)?;
            self.reading = reading;
        }
        Ok(())
    }

    fn watch_outputs(&self, watch: bool) -> io::Result<()> {
        let mut containers = self.pod.iter().flat_map(Pod::containers);
        containers.try_for_each(|container| watch_outputs(&self.epoll, container, watch))
    }

    /// What to do when there is nothing else to do.
    fn idle_work(&self, now: Instant) -> Option<IdleWork> {
        let settled = self
            .pod
            .as_ref()
            .is_some_and(|pod| pod.is_settled(now, SPARE_PATIENCE));
        let phase = if settled { Phase::Spare } else { Phase::Late };
        if self.modules.has(phase) {
            return Some(IdleWork::Load(phase));
        }
        (settled && !self.balloon_bound).then_some(IdleWork::BindBalloon)
    }

    fn work(&mut self, work: IdleWork) {
        match work {
            IdleWork::Load(phase) => {
                self.modules.load_next(phase);
            }
            IdleWork::BindBalloon => {
                self.balloon_bound = true;
                // Without it unused memory is not given back, and nothing else is different.
                if let Err(error) = devices::bind(Kind::Balloon, || Ok(false)) {
                    kernel_log::write(&format!("memory balloon: {error}"));
                }
            }
        }
    }

    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let pod = self.pod.as_ref();
        let retry = (!self.attached || self.has_unsent()).then_some(now + PORT_RETRY);
        let stall = (!self.reading).then_some(self.last_progress + STALL_PATIENCE);
        let spare = pod
            .filter(|_| !self.balloon_bound)
            .map(|_| now + SPARE_PATIENCE);
        [pod.and_then(Pod::next_tick), retry, stall, spare]
            .into_iter()
            .flatten()
            .min()
    }
}

fn watch_report(epoll: &OwnedFd, container: &Container) -> io::Result<()> {
    let Some(pipe) = &container.report_pipe else {
        return Ok(());
    };
    let source = Source::Report(container.number);
    add(epoll, pipe.as_fd(), source, epoll::EventFlags::IN)
}

fn watch_outputs(epoll: &OwnedFd, container: &Container, watch: bool) -> io::Result<()> {
    for (index, output) in container.outputs.iter().enumerate() {
        let Some(pipe) = &output.pipe else {
            continue;
        };
        if watch {
            let source = Source::Output(container.number, index);
            add(epoll, pipe.as_fd(), source, epoll::EventFlags::IN)?;
        } else {
            epoll::delete(epoll, pipe)?;
        }
    }
    Ok(())
}

fn add(
    epoll: &OwnedFd,
    descriptor: BorrowedFd<'_>,
    source: Source,
    flags: epoll::EventFlags,
) -> io::Result<()> {
    Ok(epoll::add(
        epoll,
        descriptor,
        epoll::EventData::new_u64(source.token()),
        flags,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_found_again_by_its_number() {
        let containers = (0..16).flat_map(|container| {
            [
                Source::Report(container),
                Source::Output(container, 0),
                Source::Output(container, 1),
            ]
        });
        let parts = [Part::Report, Part::Input, Part::Output(0), Part::Output(1)];
        let sessions = (0..16).flat_map(|place| parts.map(|part| Source::Session(place, part)));
        for source in [Source::Port, Source::Signals]
            .into_iter()
            .chain(containers)
            .chain(sessions)
        {
            assert_eq!(Source::from_token(source.token()), source);
        }
    }
}
