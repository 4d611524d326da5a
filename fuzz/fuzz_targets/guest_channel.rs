//! What a hostile guest says to the host over the agent's channel: lines that make sense, made-up ones, damaged
//! ones, cut anywhere and in any order, before and after the guest is in step. What is passed on keeps to the
//! limits, memory is bounded, and where the stream is cut changes nothing.
#![no_main]

use codius_fuzz::Choices;
use codius_guest_protocol::{
    AgentMessage, ContainerExit, ContainerStanding, ContainerStatus, ExecAnswer, LogStream, Standing,
    encode,
};
use libfuzzer_sys::fuzz_target;

fn text(choices: &mut Choices<'_>) -> String {
    String::from_utf8_lossy(choices.chunk()).into_owned()
}

fn container(choices: &mut Choices<'_>) -> u16 {
    u16::try_from(choices.integer()).unwrap_or(u16::MAX)
}

fn exit(choices: &mut Choices<'_>) -> ContainerExit {
    match choices.below(3) {
        0 => ContainerExit::Code(i32::from(choices.byte()) - 128),
        1 => ContainerExit::Signal(i32::from(choices.byte())),
        _ => ContainerExit::OutOfMemory,
    }
}

fn stream(choices: &mut Choices<'_>) -> LogStream {
    if choices.coin() {
        LogStream::Stdout
    } else {
        LogStream::Stderr
    }
}

fn answer(choices: &mut Choices<'_>) -> ExecAnswer {
    match choices.below(5) {
        0 => ExecAnswer::Started,
        1 => ExecAnswer::Failed {
            code: i32::from(choices.byte()),
            message: text(choices).repeat(1 << choices.below(6)),
        },
        2 => ExecAnswer::Output {
            stream: stream(choices),
            data: choices.chunk().repeat(1 << choices.below(8)),
        },
        3 => ExecAnswer::Taken {
            bytes: u32::try_from(choices.integer()).unwrap_or(u32::MAX),
        },
        _ => ExecAnswer::Ended(exit(choices)),
    }
}

fn message(choices: &mut Choices<'_>) -> AgentMessage {
    match choices.below(12) {
        0 => AgentMessage::Hello {
            nonce: text(choices),
            version: u32::from(choices.byte()),
            configured: choices.coin(),
            containers: (0..choices.below(20))
                .map(|_| match choices.below(3) {
                    0 => ContainerStatus::Waiting,
                    1 => ContainerStatus::Running,
                    _ => ContainerStatus::Exited(exit(choices)),
                })
                .collect(),
            sessions: u16::from(choices.byte()),
        },
        1 => AgentMessage::Started,
        2 => AgentMessage::Listening,
        3 => AgentMessage::ListeningOnLoopbackOnly,
        4 => AgentMessage::Log {
            container: container(choices),
            stream: stream(choices),
            data: choices.chunk().repeat(1 << choices.below(8)),
        },
        5 => AgentMessage::LogDropped {
            container: container(choices),
            bytes: choices.integer(),
        },
        6 => AgentMessage::Exited {
            container: container(choices),
            exit: exit(choices),
        },
        7 => AgentMessage::Pong {
            id: choices.integer(),
        },
        8 => AgentMessage::Stopped,
        9 => AgentMessage::Standing(ContainerStanding {
            container: container(choices),
            now: match choices.below(3) {
                0 => Standing::Running,
                1 => Standing::Waiting {
                    next_ms: choices.integer(),
                },
                _ => Standing::Exited,
            },
            for_ms: choices.integer(),
            restarts: u32::from(choices.byte()),
            last_exit: choices.coin().then(|| exit(choices)),
        }),
        10 => AgentMessage::Exec {
            session: u32::from(choices.byte()),
            answer: answer(choices),
        },
        _ => AgentMessage::Failed {
            container: choices.coin().then(|| container(choices)),
            message: text(choices).repeat(1 << choices.below(6)),
        },
    }
}

fn line(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut line = encode(&message(choices));
    match choices.below(8) {
        // A wrong byte somewhere.
        0 => {
            let at = usize::from(u16::from_le_bytes([choices.byte(), choices.byte()])) % line.len();
            line[at] = choices.byte();
        }
        // Something else altogether.
        1 => {
            line = choices.chunk().to_vec();
            line.push(b'\n');
        }
        // An end that is missing, so that two lines become one.
        2 => {
            line.pop();
        }
        // A line that does not end for long.
        3 => line = choices.chunk().repeat(1 << choices.below(10)),
        _ => {}
    }
    line
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    let containers = choices.below(17);
    let before_step = choices.below(4);
    let mut lines = Vec::new();
    while !choices.is_empty() && lines.len() < 64 {
        lines.push(line(&mut choices));
    }
    let pieces: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
    codius_microvm::fuzzing::guest(&pieces, before_step, containers);
    // In step from the start: as one piece, byte by byte, and line by line.
    let whole = lines.concat();
    let at_once = codius_microvm::fuzzing::guest(&[&whole], 0, containers);
    let by_line = codius_microvm::fuzzing::guest(&pieces, 0, containers);
    let in_pieces: Vec<&[u8]> = whole.chunks(1 + input.len() % 37).collect();
    let cut = codius_microvm::fuzzing::guest(&in_pieces, 0, containers);
    assert_eq!(at_once, by_line);
    assert_eq!(at_once, cut);
});
