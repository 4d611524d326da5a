//! How long a program takes to answer once it is paid for, its image being there already.
//!
//! Ours is a whole pod: a real host, a real upload of a manifest with two containers, and a visitor at
//! the proxy. It is timed from the moment at which the host says `booting`, the first phase after the
//! payment, to the first byte that the visitor gets. The client's way back from the host is part of
//! that, because the visitor only comes when `codius upload` has returned.
//!
//! Three ways of starting are measured: *cold* (booted), *warm* (a clone of a template, as hosts do unless told
//! otherwise), and *restored* (an experiment beside the host, see `restored.rs`).
//!
//! The first peer is the same machine with nothing in it: the pod's own QEMU options (taken from a running
//! pod, so that they cannot drift apart) without disks, network and balloon, timed from the start of
//! QEMU to the agent's first word. The others are containers of others (`containers.rs`); one that cannot run
//! here is left out, and its line says why. All are run in turn, and each pair gives one ratio.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use codius_api::UnixMillis;
use codius_guest_protocol::{
    AgentMessage, HostMessage, Line, LineReader, MAX_GUEST_LINE_BYTES, PORT_NAME, encode,
};
use codius_testkit::Registry;
use serde_json::json;

use super::{
    containers::{Podman, Runsc, is_installed},
    density::{TICKS_PER_SECOND, cpu_ticks},
    figure::{self, Figure},
    phases,
    restored::Saved,
};
use crate::{
    build, demo,
    demo::{Host, Uploaded, Variant},
    guest, packages,
};

/// The most that a start may take, in bare boots.
const COLD_AIM: f64 = 1.4;
const WARM_AIM: f64 = 0.4;
const RESTORED_AIM: f64 = 0.1;
/// What each run buys: little, so that few earlier pods run beside the one that is timed.
const LEASE_SECS: u64 = 30;
/// A pod that is cut off by this is broken, not slow.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two tries to reach QEMU's socket: small against what is measured.
const POLL: Duration = Duration::from_millis(1);
/// The options that make a pod's machine, whatever is in it.
const MACHINE_OPTIONS: &[&str] = &[
    "-machine", "-accel", "-cpu", "-smp", "-m", "-object", "-append",
];
const NONCE: &str = "bench";

/// Prints the figures.
pub(super) fn run(runs: u32, yes: bool) -> Result<()> {
    packages::require_root("this benchmark")?;
    packages::ensure(&[packages::HOST], yes)?;
    // Without them the figures beside them are left out.
    if let Err(error) = packages::ensure(&[packages::CONTAINERS], yes) {
        eprintln!("{error:#}");
    }
    let programs = build::programs(super::profile())?;
    let guest_dir = guest::default_dir();
    let guest = guest::build(&guest_dir, &guest::Options::default())?;
    let hello = guest::build_static(&guest_dir, "codius-example-hello")?;

    let place = tempfile::Builder::new().prefix("codius-bench-").tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    // Ctrl-C ends the client or the bare machine of the moment, which fails the run; without this it
    // would end us as well, and leave the host behind.
    let interrupted = runtime.spawn(async { tokio::signal::ctrl_c().await });

    let registry = Registry::start()?;
    let image = demo::push_hello(&runtime, &registry, &hello)?;
    let host_of = |variant: Variant, name: &str| -> Result<(Host, PathBuf)> {
        let dir = place.path().join(name);
        fs::create_dir(&dir)?;
        let host = Host::start_as(&programs.codiusd, &dir, &guest_dir, 0, &registry, variant)?;
        Ok((host, dir))
    };
    let (mut cold_host, cold_dir) = host_of(Variant::COLD, "cold")?;
    let upload = |host: &Host, dir: &Path, name: &str| {
        let codius_json = dir.join("codius.json");
        fs::write(&codius_json, codius_file(name, &image))?;
        let before = host_machines(host.process_id())?;
        let uploaded = demo::upload(&programs.codius, host, &codius_json, LEASE_SECS)?;
        let first_byte = first_byte(&uploaded)?;
        let mut machines = host_machines(host.process_id())?;
        machines.retain(|machine| !before.contains(machine));
        let &[machine] = machines.as_slice() else {
            bail!("{} machines were started for one pod", machines.len());
        };
        Times::of(&uploaded, first_byte, cpu_millis(machine)?)
    };

    // The first one pulls the image; it is also the one whose machine is copied.
    let bare_dir = tempfile::tempdir_in(place.path())?;
    upload(&cold_host, &cold_dir, "warm-up")?;
    let options = machine_options(cold_host.process_id())?;
    let bare_boot = || bare_boot(&guest, &options, bare_dir.path());
    bare_boot()?;
    let (mut warm_host, warm_dir) = host_of(Variant::WARM, "warm")?;
    warm_host.wait_for_template()?;
    upload(&warm_host, &warm_dir, "warm-up")?;
    let saved = Saved::make(&place.path().join("saved"), &guest, &options, &hello)?;
    saved.first_byte()?;
    let mut podman = Peer::of("podman", || {
        Podman::with(&place.path().join("podman"), &image)
    });
    let mut runsc = Peer::of("runsc", || Runsc::with(&place.path().join("runsc"), &hello));

    let mut rounds = Vec::new();
    for run in 0..runs {
        ensure!(!interrupted.is_finished(), "interrupted");
        let name = format!("run-{run}");
        // Who goes first changes, so that drift of the machine hits all alike.
        let forwards = run % 2 == 0;
        let bare_first = forwards.then(&bare_boot).transpose()?;
        let cold = upload(&cold_host, &cold_dir, &name)?;
        let warm = upload(&warm_host, &warm_dir, &name)?;
        let restored = saved.first_byte()?;
        let podman = podman.measure(Podman::first_byte);
        let runsc = runsc.measure(Runsc::first_byte);
        let bare = bare_first.map_or_else(&bare_boot, Ok)?;
        let round = Round {
            bare,
            cold,
            warm,
            restored,
            podman,
            runsc,
        };
        eprintln!("{name}: {round:?}");
        rounds.push(round);
    }
    eprintln!("isolation: {}", cold_host.isolation);
    let phases = [("cold", cold_host.log()?), ("warm", warm_host.log()?)];
    cold_host.stop()?;
    warm_host.stop()?;
    report(&rounds);
    for (peer, left_out) in [("podman", podman.left_out), ("runsc", runsc.left_out)] {
        if let Some(reason) = left_out {
            figure::left_out("start/warm-cached", peer, &reason);
        }
    }
    for (kind, log) in phases {
        phases::report(kind, &log, rounds.len());
    }
    Ok(())
}

/// Everything once, in milliseconds.
#[derive(Debug)]
struct Round {
    bare: Bare,
    cold: Times,
    warm: Times,
    restored: f64,
    podman: Option<f64>,
    runsc: Option<f64>,
}

/// Who we are compared with, or why not.
struct Peer<T> {
    peer: Option<T>,
    left_out: Option<String>,
}

impl<T> Peer<T> {
    fn of(program: &str, make: impl FnOnce() -> Result<T>) -> Self {
        let made = match is_installed(program) {
            true => make(),
            false => Err(anyhow!("it is not installed")),
        };
        match made {
            Ok(peer) => Self {
                peer: Some(peer),
                left_out: None,
            },
            Err(error) => Self::without(&error),
        }
    }

    fn without(error: &anyhow::Error) -> Self {
        Self {
            peer: None,
            left_out: Some(format!("{error:#}")),
        }
    }

    /// A peer that fails once is not asked again.
    fn measure(&mut self, how: impl FnOnce(&T) -> Result<f64>) -> Option<f64> {
        match how(self.peer.as_ref()?) {
            Ok(millis) => Some(millis),
            Err(error) => {
                *self = Self::without(&error);
                None
            }
        }
    }
}

fn report(rounds: &[Round]) {
    type Time = fn(&Round) -> Option<f64>;
    let figure = |name: &str, ours: Time, peer: &str, theirs: Time| {
        let pairs = rounds
            .iter()
            .filter_map(|round| Some((ours(round)?, theirs(round)?)));
        let (ours, theirs): (Vec<f64>, Vec<f64>) = pairs.unzip();
        (!ours.is_empty()).then(|| Figure::new(name, "ms", &ours).peer(peer, &theirs))
    };
    let bare: Time = |round| Some(round.bare.hello);
    let beside_bare = |name: &str, ours: Time| figure(name, ours, "bare boot", bare);
    // The same in processor time of QEMU, which says more where others keep the machine busy.
    let bare_cpu: Time = |round| Some(round.bare.cpu);
    let cpu = |name: &str, ours: Time| figure(name, ours, "bare boot, processor time", bare_cpu);
    let warm: Time = |round| Some(round.warm.first_byte);
    let podman: Time = |round| round.podman;
    let runsc: Time = |round| round.runsc;
    for (figure, aim) in [
        (
            beside_bare("start/cold-cached", |round| Some(round.cold.first_byte)),
            COLD_AIM,
        ),
        (beside_bare("start/warm-cached", warm), WARM_AIM),
        (
            beside_bare("start/restored", |round| Some(round.restored)),
            RESTORED_AIM,
        ),
    ] {
        if let Some(figure) = figure {
            figure.at_most(aim).print();
        }
    }
    // How much of it is not the host's, and what others take; nothing is aimed at.
    let others = [
        cpu("start/cold-processor", |round| Some(round.cold.cpu)),
        cpu("start/warm-processor", |round| Some(round.warm.cpu)),
        beside_bare("start/cold-running", |round| round.cold.running),
        beside_bare("start/warm-running", |round| round.warm.running),
        figure(
            "start/warm-cached",
            warm,
            "podman run, two containers",
            podman,
        ),
        figure("start/warm-cached", warm, "runsc run, two sandboxes", runsc),
    ];
    others.into_iter().flatten().for_each(Figure::print);
}

/// A program in two containers: two roots to mount and two processes to start.
fn codius_file(name: &str, image: &str) -> String {
    let container =
        |id: &str, port: &str| json!({ "id": id, "image": image, "environment": { "PORT": port } });
    let file = json!({
        "manifest": {
            "name": name,
            "version": "1.0.0",
            "machine": "small",
            "port": "8080",
            "containers": [container("web", "8080"), container("beside", "8081")],
        }
    });
    format!("{file:#}\n")
}

/// One start of a pod, in milliseconds since it was `booting`.
#[derive(Debug)]
struct Times {
    /// The host says that the program answers. The client may end before it hears that.
    running: Option<f64>,
    /// The visitor has the first byte.
    first_byte: f64,
    /// The processor time that QEMU has used by then, from its start.
    cpu: f64,
}

impl Times {
    fn of(uploaded: &Uploaded, first_byte: SystemTime, cpu: f64) -> Result<Self> {
        let at = |name: &str| -> Result<Option<f64>> {
            let phase = uploaded.moments.iter().find(|(phase, _)| phase == name);
            phase
                .map(|(_, at)| {
                    let at = Duration::from_millis(at.parse::<UnixMillis>()?.get());
                    Ok(millis(UNIX_EPOCH + at))
                })
                .transpose()
        };
        let booting = at("booting")?.context("codius upload --json tells no phase booting")?;
        let times = Self {
            running: at("running")?.map(|running| running - booting),
            first_byte: millis(first_byte) - booting,
            cpu,
        };
        // The host's clock is ours; if it was set meanwhile, the figure is nonsense.
        ensure!(
            times.first_byte > times.running.unwrap_or(0.0),
            "the phases are not in order: {times:?}"
        );
        Ok(times)
    }
}

fn millis(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
        * 1000.0
}

/// When the first byte of the page was here. The page has to be the program's.
fn first_byte(uploaded: &Uploaded) -> Result<SystemTime> {
    let mut answer = demo::request(&uploaded.url)?;
    let mut first = [0];
    answer.read_exact(&mut first)?;
    let at = SystemTime::now();
    let page = demo::read_page(&uploaded.url, first.as_slice().chain(answer))?;
    ensure!(
        page.contains(&uploaded.hash),
        "the page does not name its own manifest hash:\n{page}"
    );
    Ok(at)
}

/// How the host starts QEMU, of one pod of it that runs, as far as it makes the machine.
fn machine_options(host: u32) -> Result<Vec<String>> {
    let machines = host_machines(host)?;
    let machine = machines.first().context("the host runs no QEMU")?;
    let line = fs::read_to_string(format!("/proc/{machine}/cmdline"))?;
    options_of(&line.split('\0').collect::<Vec<_>>())
}

/// The process ids of the host's machines.
pub(super) fn host_machines(host: u32) -> Result<Vec<u32>> {
    let mut machines = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // Processes end while we look: whatever cannot be read is not one.
        let Ok(status) = fs::read_to_string(process.join("status")) else {
            continue;
        };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if parent.map(str::trim) != Some(&host.to_string()) {
            continue;
        }
        let line = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
        let name = process.file_name().and_then(|name| name.to_str());
        if line
            .split('\0')
            .next()
            .is_some_and(|program| program.contains("qemu-system"))
            && let Some(pid) = name.and_then(|name| name.parse().ok())
        {
            machines.push(pid);
        }
    }
    Ok(machines)
}

fn options_of(line: &[&str]) -> Result<Vec<String>> {
    let mut options = Vec::new();
    for &name in MACHINE_OPTIONS {
        let at = line.iter().position(|word| *word == name);
        let value = at.and_then(|at| line.get(at + 1));
        let value = value.with_context(|| format!("the pod's QEMU has no {name}: {line:?}"))?;
        options.extend([name.to_owned(), (*value).to_owned()]);
    }
    Ok(options)
}

/// A machine with nothing in it, in milliseconds up to its agent's first word.
#[derive(Debug, Clone, Copy)]
struct Bare {
    hello: f64,
    cpu: f64,
}

/// Processor time of a process, in milliseconds.
fn cpu_millis(process: u32) -> Result<f64> {
    Ok(cpu_ticks(process)? * 1000.0 / TICKS_PER_SECOND)
}

/// Nothing but kernel, agent and the line to it.
fn bare_boot(guest: &guest::Guest, options: &[String], dir: &Path) -> Result<Bare> {
    let socket = dir.join("agent.sock");
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .arg("-no-reboot")
        .args(options)
        .arg("-kernel")
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&guest.initramfs)
        .arg("-serial")
        .arg(format!("file:{}", dir.join("console.log").display()))
        .arg("-chardev")
        .arg(format!(
            "socket,id=agent,path={},server=on,wait=off",
            socket.display()
        ))
        .args(["-device", "virtio-serial-device", "-device"])
        .arg(format!("virtserialport,chardev=agent,name={PORT_NAME}"))
        .stdin(Stdio::null());
    let begin = Instant::now();
    let mut machine = Machine(command.spawn().context("QEMU could not be started")?);
    hear_hello(&mut machine, &socket, begin)?;
    let bare = Bare {
        hello: begin.elapsed().as_secs_f64() * 1000.0,
        cpu: cpu_millis(machine.0.id())?,
    };
    drop(machine);
    fs::remove_file(&socket)?;
    Ok(bare)
}

/// A QEMU that does not outlive the measurement.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself, which has been told by then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hear_hello(machine: &mut Machine, socket: &Path, begin: Instant) -> Result<()> {
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error)
                if !matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                return Err(error).context("QEMU cannot be reached");
            }
            Err(_) => {}
        }
        if let Some(status) = machine.0.try_wait()? {
            bail!("QEMU ended at once ({status})");
        }
        ensure!(begin.elapsed() < BOOT_TIMEOUT, "QEMU does not listen");
        std::thread::sleep(POLL);
    };
    stream.set_read_timeout(Some(BOOT_TIMEOUT))?;
    stream.write_all(&encode(&HostMessage::Attach {
        nonce: NONCE.into(),
    }))?;
    let mut reader = LineReader::new(MAX_GUEST_LINE_BYTES);
    let mut buffer = [0; 4096];
    let mut heard = false;
    while !heard {
        let count = stream.read(&mut buffer).context("the guest says nothing")?;
        ensure!(count > 0, "the bare machine ended before its agent spoke");
        reader.push(&buffer[..count], |line: Line<AgentMessage>| {
            heard |= matches!(line, Line::Message(AgentMessage::Hello { nonce, .. }) if nonce == NONCE);
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uploaded(moments: &[(&str, &str)]) -> Uploaded {
        let moments = moments
            .iter()
            .map(|(phase, at)| ((*phase).to_owned(), (*at).to_owned()));
        Uploaded {
            hash: String::new(),
            url: String::new(),
            paid: String::new(),
            expiry: String::new(),
            phases: String::new(),
            moments: moments.collect(),
        }
    }

    #[test]
    fn a_start_is_timed_from_booting() {
        let told = uploaded(&[
            ("resolving", "2026-01-01T00:00:00.000Z"),
            ("booting", "2026-01-01T00:00:01.000Z"),
            ("running", "2026-01-01T00:00:02.500Z"),
        ]);
        let answered = "2026-01-01T00:00:02.750Z".parse::<UnixMillis>().unwrap();
        let answered = UNIX_EPOCH + Duration::from_millis(answered.get());
        let times = Times::of(&told, answered, 0.0).unwrap();
        assert!((times.running.unwrap() - 1500.0).abs() < 0.5, "{times:?}");
        assert!((times.first_byte - 1750.0).abs() < 0.5, "{times:?}");
        // A clock that was set back.
        assert!(Times::of(&told, UNIX_EPOCH, 0.0).is_err());
        assert!(Times::of(&uploaded(&[]), answered, 0.0).is_err());
    }

    #[test]
    fn a_bare_machine_has_neither_disks_nor_network() {
        let line = "qemu-system-x86_64 -name n -machine microvm,rtc=on -accel tcg -cpu max -smp 1 -m 576 \
            -object memory -append quiet -drive id=img0 -netdev tap,id=net -sandbox on";
        let line: Vec<&str> = line.split(' ').collect();
        assert_eq!(
            options_of(&line).unwrap().join(" "),
            "-machine microvm,rtc=on -accel tcg -cpu max -smp 1 -m 576 -object memory -append quiet"
        );
        assert!(options_of(&line[..7]).is_err());
    }
}
