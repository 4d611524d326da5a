//! The pod: its containers from configuration to the end.
//!
//! ```text
//! configured ─▶ starting ─▶ started ─▶ listening
//!      │            │           │          │
//!      └─▶ failed ◀─┘           └── stop ──┴─▶ stopping ─▶ stopped
//! ```
//! `failed` and `stopped` end nothing by themselves: the host kills the VM.

use std::{
    fs,
    io::{self, Read},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use codius_guest_protocol::{
    AgentMessage, ContainerConfig, ContainerStatus, LogStream, MAX_CONTAINERS, PodConfig,
    SCRATCH_SERIAL,
};
use rustix::process::{Pid, WaitOptions, wait};

use crate::{
    cgroup,
    container::{Container, Piece},
    disks::{self, Disks},
    exec::Sessions,
    forward, kernel_log, network,
    outbox::Outbox,
    root::EtcFiles,
    settings,
    sockets::{Reach, reach},
    sys::{self, Forked},
    watch::PortWatch,
};

/// How long killed processes may take to go before the pod counts as stopped anyway.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
const MAX_GRACE: Duration = Duration::from_secs(600);
const FORWARD_RESTART: Duration = Duration::from_secs(1);
/// The most that is read of a table of sockets; listening ones come first in it.
const MAX_TABLE_BYTES: u64 = 256 * 1024;
const READ_BYTES: usize = 16 * 1024;

/// Stopping, once it was asked for.
#[derive(Debug)]
struct Stop {
    kill_at: Instant,
    killed: bool,
}

/// The Interledger forward: where to, and its process or when to start it again.
#[derive(Debug)]
struct Forward {
    gateway: Ipv4Addr,
    process: Result<Pid, Instant>,
}

#[derive(Debug)]
pub(crate) struct Pod {
    port: Option<u16>,
    address: Option<Ipv4Addr>,
    /// In the order of the configuration, without those that got no process.
    containers: Vec<Container>,
    /// How many containers the configuration has.
    configured: usize,
    /// What every container finds in its `/etc`.
    etc: Option<EtcFiles>,
    forward: Option<Forward>,
    /// As told to the host: at most one a container and one for the pod.
    failures: Vec<AgentMessage>,
    started: Option<Instant>,
    watch: PortWatch,
    next_look: Instant,
    stop: Option<Stop>,
    stopped: bool,
}

/// Does what every pod needs, whatever it is: nothing here may depend on a pod, because the machine may
/// become the template of others. The error is for the uploader.
pub(crate) fn prepare() -> Result<(), String> {
    network::prepare()
        .map_err(|error| format!("network: {error}"))
        .and_then(|()| cgroup::prepare().map_err(|error| format!("control groups: {error}")))?;
    settings::apply();
    Ok(())
}

impl Pod {
    /// Does all of `Configure`. A failure is queued for the host; the pod then only waits for its end.
    pub(crate) fn configure(
        config: &PodConfig,
        prepared: Result<(), String>,
        now: Instant,
        outbox: &mut Outbox,
    ) -> Self {
        let mut pod = Self {
            port: config.port,
            address: config.network.as_ref().map(|network| network.address),
            containers: Vec::new(),
            configured: config.containers.len(),
            etc: None,
            forward: None,
            failures: Vec::new(),
            started: None,
            watch: PortWatch::default(),
            next_look: now,
            stop: None,
            stopped: false,
        };
        if let Err(message) = prepared.and_then(|()| pod.bring_up(config, now, outbox)) {
            pod.fail(None, message, outbox);
        }
        pod
    }

    fn bring_up(
        &mut self,
        config: &PodConfig,
        now: Instant,
        outbox: &mut Outbox,
    ) -> Result<(), String> {
        if config.containers.is_empty() || config.containers.len() > MAX_CONTAINERS {
            return Err(format!("a pod has 1 to {MAX_CONTAINERS} containers"));
        }
        let io = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let entropy = entropy(&config.entropy_hex).ok_or("the entropy is not 32 bytes in hex")?;
        sys::add_entropy(&entropy).map_err(io("entropy"))?;
        sys::set_clock(config.now_unix_ms).map_err(io("clock"))?;
        rustix::system::sethostname(config.hostname.as_bytes())
            .map_err(|error| format!("host name: {error}"))?;
        network::configure(config.network.as_ref()).map_err(io("network"))?;
        let mut serials = vec![SCRATCH_SERIAL];
        let images = config.containers.iter();
        serials.extend(images.map(|container| container.image_serial.as_str()));
        let disks = Disks::find(&serials).map_err(io("disks"))?;
        disks.mount_scratch()?;
        if let Some(network) = &config.network {
            self.forward = Some(Forward {
                gateway: network.gateway,
                process: start_forward(network.gateway),
            });
        }
        let nameservers = config
            .network
            .as_ref()
            .map_or(&[][..], |network| network.nameservers.as_slice());
        let etc = EtcFiles {
            hostname: config.hostname.clone(),
            hosts: network::hosts(&config.hostname, self.address),
            resolv_conf: network::resolv_conf(nameservers),
        };
        for (number, container) in (0..).zip(&config.containers) {
            // One that fails does not hide what is wrong with the next.
            match start(&disks, number, container, &etc, now) {
                Ok(started) => self.containers.push(started),
                Err(message) => self.fail(Some(number), message, outbox),
            }
        }
        self.etc = Some(etc);
        Ok(())
    }

    fn fail(&mut self, container: Option<u16>, message: String, outbox: &mut Outbox) {
        let failure = AgentMessage::Failed { container, message };
        outbox.push(failure.clone());
        self.failures.push(failure);
    }

    /// For a `Hello`.
    pub(crate) fn statuses(&self) -> Vec<ContainerStatus> {
        let mut statuses = vec![ContainerStatus::Waiting; self.configured];
        for container in &self.containers {
            statuses[usize::from(container.number)] = container.status();
        }
        statuses
    }

    /// Every lasting state, for a host that may have missed the message about it.
    pub(crate) fn states(&self, now: Instant) -> Vec<AgentMessage> {
        let started = self.started.map(|_| AgentMessage::Started);
        let stopped = self.stopped.then_some(AgentMessage::Stopped);
        let failures = self.failures.iter().cloned();
        let containers = self.containers.iter();
        let standings = containers.map(|container| AgentMessage::Standing(container.standing(now)));
        started
            .into_iter()
            .chain(self.watch.state())
            .chain(standings)
            .chain(failures)
            .chain(stopped)
            .collect()
    }

    pub(crate) fn containers(&self) -> &[Container] {
        &self.containers
    }

    pub(crate) fn hostname(&self) -> &str {
        self.etc.as_ref().map_or("", |etc| &etc.hostname)
    }

    /// Whether nothing is left to hurry for: the port is open, or has been waited for long enough.
    pub(crate) fn is_settled(&self, now: Instant, patience: Duration) -> bool {
        !self.failures.is_empty()
            || self.watch.is_done()
            || self
                .started
                .is_some_and(|started| now.saturating_duration_since(started) > patience)
    }

    /// A container's report pipe can be read.
    pub(crate) fn hear(&mut self, number: u16, now: Instant, outbox: &mut Outbox) {
        let Some(container) = self
            .containers
            .iter_mut()
            .find(|container| container.number == number)
        else {
            return;
        };
        match container.hear() {
            None => {}
            Some(Err(message)) if container.restarts().count() > 0 => {
                complain(outbox, number, &message);
            }
            Some(Err(message)) => {
                self.fail(Some(number), message, outbox);
            }
            Some(Ok(())) => {
                if container.restarts().count() > 0 {
                    outbox.push(AgentMessage::Standing(container.standing(now)));
                }
                let all_run = self
                    .containers
                    .iter()
                    .all(|container| container.report_pipe.is_none());
                if all_run && self.failures.is_empty() && self.started.is_none() {
                    self.started = Some(now);
                    self.next_look = now;
                    outbox.push(AgentMessage::Started);
                }
            }
        }
    }

    /// Reads one piece of a container's output. False if there is nothing more now.
    pub(crate) fn read_output(&mut self, number: u16, output: usize, outbox: &mut Outbox) -> bool {
        let Some(container) = self
            .containers
            .iter_mut()
            .find(|container| container.number == number)
        else {
            return false;
        };
        let output = &mut container.outputs[output];
        let mut buffer = [0; READ_BYTES];
        match output.read(&mut buffer) {
            Piece::Bytes(length) => {
                outbox.push_log(number, output.stream, &buffer[..length]);
                true
            }
            Piece::Empty => false,
            Piece::End => {
                output.pipe = None;
                false
            }
        }
    }

    /// Collects every process that has ended.
    pub(crate) fn reap(&mut self, sessions: &mut Sessions, now: Instant) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(container) = self
                .containers
                .iter_mut()
                .find(|container| container.is(pid))
            {
                container.reaped(status);
            } else if let Some(forward) = &mut self.forward
                && forward.process == Ok(pid)
            {
                kernel_log::write("the Interledger forward has ended");
                forward.process = Err(now + FORWARD_RESTART);
            } else {
                sessions.reaped(pid, status);
            }
        }
    }

    /// Reads what ended containers have left behind, as long as there is room, and then tells their
    /// end, or that they are started again.
    pub(crate) fn tell_exits(
        &mut self,
        may_read: impl Fn(&Outbox) -> bool,
        now: Instant,
        outbox: &mut Outbox,
    ) {
        for index in 0..self.containers.len() {
            let container = &self.containers[index];
            let number = container.number;
            let Some(exit) = container.untold_end() else {
                continue;
            };
            let mut drained = true;
            for output in 0..self.containers[index].outputs.len() {
                loop {
                    if !may_read(outbox) {
                        drained = false;
                        break;
                    }
                    if !self.read_output(number, output, outbox) {
                        break;
                    }
                }
            }
            if drained {
                let container = &mut self.containers[index];
                outbox.push(if container.ends(exit, now) {
                    AgentMessage::Standing(container.standing(now))
                } else {
                    AgentMessage::Exited {
                        container: number,
                        exit,
                    }
                });
            }
        }
    }

    /// Begins to stop, or hurries a stop that has begun.
    pub(crate) fn stop(&mut self, grace: Duration, now: Instant, outbox: &mut Outbox) {
        if self.stopped {
            outbox.push(AgentMessage::Stopped);
            return;
        }
        let kill_at = now + grace.min(MAX_GRACE);
        match &mut self.stop {
            Some(stop) => stop.kill_at = stop.kill_at.min(kill_at),
            None => {
                self.stop = Some(Stop {
                    kill_at,
                    killed: false,
                });
                for container in &mut self.containers {
                    container.terminate();
                }
            }
        }
    }

    /// Does what is due by time. Gives the containers that were started again.
    pub(crate) fn tick(&mut self, now: Instant, outbox: &mut Outbox) -> Vec<usize> {
        self.look_at_port(now, outbox);
        let started = self.start_again(now, outbox);
        if let Some(forward) = &mut self.forward
            && forward.process.is_err_and(|restart_at| restart_at <= now)
        {
            forward.process = start_forward(forward.gateway);
        }
        let Some(stop) = self.stop.as_mut().filter(|_| !self.stopped) else {
            return started;
        };
        if now >= stop.kill_at && !stop.killed {
            stop.killed = true;
            self.containers.iter().for_each(Container::kill);
        }
        if self.containers.iter().all(Container::is_over) || now >= stop.kill_at + KILL_PATIENCE {
            disks::flush();
            self.stopped = true;
            outbox.push(AgentMessage::Stopped);
        }
        started
    }

    fn start_again(&mut self, now: Instant, outbox: &mut Outbox) -> Vec<usize> {
        let Some(etc) = &self.etc else {
            return Vec::new();
        };
        let mut started = Vec::new();
        for (index, container) in self.containers.iter_mut().enumerate() {
            if container.restarts().next().is_none_or(|next| next > now) {
                continue;
            }
            match container.start_again(etc, now) {
                Ok(()) => started.push(index),
                Err(message) => complain(outbox, container.number, &message),
            }
        }
        started
    }

    fn look_at_port(&mut self, now: Instant, outbox: &mut Outbox) {
        let (Some(port), Some(started)) = (self.watched_port(), self.started) else {
            return;
        };
        if now < self.next_look {
            return;
        }
        let reach = ["/proc/net/tcp", "/proc/net/tcp6"]
            .map(|table| reach(&read_table(table), port, self.address))
            .into_iter()
            .max()
            .unwrap_or(Reach::Nowhere);
        let waited = now.saturating_duration_since(started);
        outbox_extend(outbox, self.watch.look(waited, reach));
        self.next_look = now + PortWatch::pause(waited);
    }

    /// The port, as long as it is worth looking at.
    fn watched_port(&self) -> Option<u16> {
        let watching = self.started.is_some() && self.stop.is_none() && !self.watch.is_done();
        self.port.filter(|_| watching)
    }

    /// When `tick` is needed at the latest.
    pub(crate) fn next_tick(&self) -> Option<Instant> {
        let look = self.watched_port().map(|_| self.next_look);
        let restart = self
            .forward
            .as_ref()
            .and_then(|forward| forward.process.err());
        let stop = self.stop.as_ref().filter(|_| !self.stopped).map(|stop| {
            if stop.killed {
                stop.kill_at + KILL_PATIENCE
            } else {
                stop.kill_at
            }
        });
        let containers = self.containers.iter();
        let again = containers.filter_map(|container| container.restarts().next());
        let due = [look, restart, stop].into_iter().flatten();
        due.chain(again).min()
    }
}

/// What a container's program cannot say itself, among its output.
fn complain(outbox: &mut Outbox, container: u16, message: &str) {
    outbox.push_log(
        container,
        LogStream::Stderr,
        format!("{message}\n").as_bytes(),
    );
}

fn outbox_extend(outbox: &mut Outbox, message: Option<AgentMessage>) {
    if let Some(message) = message {
        outbox.push(message);
    }
}

fn start(
    disks: &Disks,
    number: u16,
    config: &ContainerConfig,
    etc: &EtcFiles,
    now: Instant,
) -> Result<Container, String> {
    let image = disks.mount_image(&config.image_serial)?;
    Container::start(number, config, image, etc, now)
}

/// Starts the process that forwards to the gateway; if that fails, gives the time to try again.
fn start_forward(gateway: Ipv4Addr) -> Result<Pid, Instant> {
    match sys::fork(0) {
        Ok(Forked::Parent(pid)) => Pid::from_raw(pid).ok_or_else(Instant::now),
        Ok(Forked::Child) => {
            sys::close_descriptors();
            if let Err(error) = forward::run(gateway) {
                kernel_log::write(&format!("no Interledger forward: {error}"));
            }
            sys::exit(1);
        }
        Err(error) => {
            kernel_log::write(&format!("no Interledger forward: {error}"));
            Err(Instant::now() + FORWARD_RESTART)
        }
    }
}

fn read_table(path: &str) -> String {
    let mut table = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        // A table cut short still has the listening sockets.
        let _ = file.take(MAX_TABLE_BYTES).read_to_end(&mut table);
    }
    String::from_utf8_lossy(&table).into_owned()
}

fn entropy(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 2 * bytes.len() || !hex.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_exactly_32_bytes() {
        assert_eq!(entropy(&"0a".repeat(32)), Some([10; 32]));
        for wrong in [
            "0a".repeat(31),
            "0a".repeat(33),
            "zz".repeat(32),
            "é".repeat(32),
        ] {
            assert_eq!(entropy(&wrong), None, "{wrong}");
        }
    }
}
