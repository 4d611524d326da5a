//! The other side of a pod's wall: in place of the agent, and so with all that a kernel can do to its host. As PID 1
//! it opens the control port, answers as an agent does until the pod counts as started, and then does what the
//! first argument of the first container says.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    thread,
    time::Duration,
};

use codius_guest_protocol::{
    AgentMessage, ContainerStatus, HostMessage, Line, LineReader, LogStream, MAX_LINE_BYTES,
    PORT_NAME, PROTOCOL_VERSION, encode,
};
use rustix::{
    mount::{MountFlags, mount},
    system::finit_module,
};

const RETRY: Duration = Duration::from_millis(10);

/// Whether this is the first process of a machine rather than of a container.
pub(crate) fn is_first() -> bool {
    std::process::id() == 1 && fs::exists("/modules/list").unwrap_or(false)
}

/// Does not return while the machine runs.
pub(crate) fn run() -> io::Result<()> {
    let mut port = open_port()?;
    let mut reader = LineReader::new(MAX_LINE_BYTES);
    let mut bytes = vec![0; 64 * 1024];
    let mut plan = None;
    loop {
        let length = port.read(&mut bytes)?;
        if length == 0 {
            // No host yet.
            thread::sleep(RETRY);
            continue;
        }
        let mut messages = Vec::new();
        reader.push(&bytes[..length], |line| {
            if let Line::Message(message) = line {
                messages.push(message);
            }
        });
        for message in messages {
            match message {
                HostMessage::Attach { nonce } => say(
                    &mut port,
                    &AgentMessage::Hello {
                        nonce,
                        version: PROTOCOL_VERSION,
                        configured: plan.is_some(),
                        containers: Vec::new(),
                        sessions: 0,
                    },
                )?,
                HostMessage::Configure(config) => {
                    let first = config.containers.first();
                    let wanted = first.and_then(|container| container.args.first());
                    let wanted = wanted.cloned().unwrap_or_default();
                    // Said before the pod counts as started, by some.
                    if !wanted.starts_with("early-") {
                        say(&mut port, &AgentMessage::Started)?;
                    }
                    misbehave(&mut port, wanted.trim_start_matches("early-"))?;
                    plan = Some(wanted);
                }
                HostMessage::Ping { id } => {
                    if plan.as_deref() != Some("deaf") {
                        say(&mut port, &AgentMessage::Pong { id })?;
                    }
                }
                HostMessage::Stop { .. } => say(&mut port, &AgentMessage::Stopped)?,
                HostMessage::Lease { .. } | HostMessage::Exec { .. } | HostMessage::Warm => {}
            }
        }
    }
}

fn misbehave(port: &mut File, how: &str) -> io::Result<()> {
    match how {
        // Only what an agent would say.
        "honest" | "deaf" => Ok(()),
        "noise" => {
            let noise: Vec<u8> = (0..=255_u8).cycle().take(1 << 16).collect();
            for_ever(port, &noise)
        }
        "endless-line" => for_ever(port, &[b'x'; 1 << 16]),
        "empty-lines" => for_ever(port, &[b'\n'; 1 << 16]),
        "deep" => for_ever(port, &[vec![b'['; 60_000], vec![b'\n']].concat()),
        "wide" => {
            let many = "\"waiting\",".repeat(6000);
            let line = format!(
                "{{\"type\":\"hello\",\"nonce\":\"\",\"version\":1,\"configured\":true,\"containers\":[{many}\"waiting\"]}}\n"
            );
            for_ever(port, line.as_bytes())
        }
        "ghost" => for_ever(
            port,
            &encode(&AgentMessage::Log {
                container: 999,
                stream: LogStream::Stdout,
                data: b"boo".to_vec(),
            }),
        ),
        "large-output" => for_ever(
            port,
            &encode(&AgentMessage::Log {
                container: 0,
                stream: LogStream::Stdout,
                data: vec![0; 20_000],
            }),
        ),
        // Allowed, but never so fast: it has to be slowed down, not ended.
        "fast-output" => for_ever(
            port,
            &encode(&AgentMessage::Log {
                container: 0,
                stream: LogStream::Stdout,
                data: vec![b'o'; 16_000],
            })
            .repeat(16),
        ),
        // States in an order that no agent has, over and over.
        "disorder" => {
            let said = [
                AgentMessage::Listening,
                AgentMessage::Started,
                AgentMessage::ListeningOnLoopbackOnly,
                AgentMessage::Pong { id: u64::MAX },
                AgentMessage::LogDropped {
                    container: 0,
                    bytes: u64::MAX,
                },
                AgentMessage::Hello {
                    nonce: "other".to_owned(),
                    version: 0,
                    configured: false,
                    containers: vec![ContainerStatus::Waiting; 40],
                    sessions: 0,
                },
            ];
            for_ever(port, &said.iter().flat_map(encode).collect::<Vec<u8>>())
        }
        "failed" => say(
            port,
            &AgentMessage::Failed {
                container: None,
                message: "\x1b[2Jno\nsuch\tthing ".to_owned() + &"y".repeat(40_000),
            },
        ),
        "stopped" => say(port, &AgentMessage::Stopped),
        other => {
            let message = format!("no way to misbehave is called {other:?}");
            say(
                port,
                &AgentMessage::Failed {
                    container: None,
                    message,
                },
            )
        }
    }
}

fn for_ever(port: &mut File, bytes: &[u8]) -> io::Result<()> {
    loop {
        port.write_all(bytes)?;
    }
}

fn say(port: &mut File, message: &AgentMessage) -> io::Result<()> {
    port.write_all(&encode(message))
}

/// With the modules that the real agent loads before its hello.
fn open_port() -> io::Result<File> {
    for (kind, place) in [("devtmpfs", "/dev"), ("sysfs", "/sys")] {
        let _ = fs::create_dir(place);
        mount(kind, place, kind, MountFlags::empty(), None)?;
    }
    let list = fs::read_to_string("/modules/list")?;
    for module in list.lines().filter_map(|line| line.strip_prefix("early ")) {
        finit_module(File::open(format!("/modules/{module}"))?, c"", 0)?;
    }
    loop {
        for port in fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten()
        {
            let port = port?;
            let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
            if name.trim_end() == PORT_NAME {
                let device = port.file_name().to_string_lossy().into_owned();
                return OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(format!("/dev/{device}"));
            }
        }
        thread::sleep(RETRY);
    }
}
