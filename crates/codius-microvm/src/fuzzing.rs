//! What the fuzz targets in `fuzz/` reach of this crate. Nobody else uses it.

use codius_guest_protocol::{
    ExecAnswer, MAX_CONTAINERS, MAX_EXEC_PIECE_BYTES, MAX_GUEST_LINE_BYTES, MAX_LOG_BYTES,
};
use codius_pod::PodEvent;

use crate::{
    hearing::{Heard, hear},
    intake::Intake,
    limits::MAX_REASON_CHARS,
};

/// What a guest says, in these pieces, from its first byte to the end of its pod. It is in step before piece
/// `in_step_at`. Gives what came of it, as text, to be compared.
pub fn guest(pieces: &[&[u8]], in_step_at: usize, containers: usize) -> Vec<String> {
    let containers = containers.min(MAX_CONTAINERS);
    let mut intake = Intake::new();
    let mut outcome = Vec::new();
    for (number, piece) in pieces.iter().enumerate() {
        if number == in_step_at {
            intake.set_in_step();
        }
        let lines = intake.take(piece);
        assert!(lines <= piece.len());
        assert!(intake.held_bytes() <= 2 * MAX_GUEST_LINE_BYTES);
        while let Some(next) = intake.next() {
            let heard = next.and_then(|message| hear(message, containers));
            let over = !matches!(
                heard,
                Ok(Heard::Event(_) | Heard::Exec { .. } | Heard::Nothing)
            );
            match &heard {
                Ok(Heard::Event(
                    PodEvent::LogDropped { container, .. }
                    | PodEvent::Exited { container, .. }
                    | PodEvent::Standing { container, .. },
                )) => assert!(*container < containers),
                Ok(Heard::Event(PodEvent::Log {
                    container, data, ..
                })) => assert!(*container < containers && data.len() <= MAX_LOG_BYTES),
                Ok(Heard::Failed { reason, .. }) => {
                    assert!(reason.chars().count() <= MAX_REASON_CHARS);
                    assert!(!reason.chars().any(char::is_control));
                }
                Ok(Heard::Exec { answer, .. }) => match answer {
                    ExecAnswer::Output { data, .. } => assert!(data.len() <= MAX_EXEC_PIECE_BYTES),
                    ExecAnswer::Failed { message, .. } => {
                        assert!(message.chars().count() <= MAX_REASON_CHARS);
                    }
                    ExecAnswer::Started | ExecAnswer::Taken { .. } | ExecAnswer::Ended(_) => {}
                },
                Ok(Heard::Event(_) | Heard::Stopped | Heard::Nothing) | Err(_) => {}
            }
            outcome.push(match heard {
                Ok(heard) => format!("{heard:?}"),
                // How the parser puts it depends on where a line was cut.
                Err(_) => "given up".to_owned(),
            });
            if over {
                return outcome;
            }
        }
    }
    outcome
}
