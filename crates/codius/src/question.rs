//! Questions that are asked before anything is paid or removed.

use std::io::{IsTerminal, Write, stderr, stdin};

use crate::failure::{Failure, INTERRUPTED, USAGE};

/// Asks for a line of text; the default if nothing is answered.
pub(crate) async fn line(question: &str, default: &str) -> Result<String, Failure> {
    match default {
        "" => eprint!("{question}: "),
        default => eprint!("{question} [{default}]: "),
    }
    let _ = stderr().flush();
    let asked = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        stdin()
            .read_line(&mut answer)
            .map(|length| (length, answer))
    });
    let answer = tokio::select! {
        answer = asked => answer,
        _ = tokio::signal::ctrl_c() => return Err(Failure::new(INTERRUPTED, "interrupted; nothing was written")),
    };
    match answer {
        Ok(Ok((length, answer))) if length > 0 => match answer.trim() {
            "" => Ok(default.to_owned()),
            answer => Ok(answer.to_owned()),
        },
        _ => Err(Failure::new(
            1,
            "the questions were not answered; nothing was written",
        )),
    }
}

/// Asks, unless the answer is yes anyway. Everything but `y` and `yes` is a no, which is a [`Failure`].
pub(crate) async fn ask(question: &str, assume_yes: bool) -> Result<(), Failure> {
    if assume_yes {
        return Ok(());
    }
    if !stdin().is_terminal() {
        return Err(Failure::new(
            USAGE,
            "there is nobody to ask; give -y to go on without a question",
        ));
    }
    eprint!("{question} [y/N] ");
    let _ = stderr().flush();
    let asked = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = tokio::select! {
        answer = asked => answer,
        _ = tokio::signal::ctrl_c() => return Err(Failure::new(INTERRUPTED, "interrupted; nothing was paid")),
    };
    match answer {
        Ok(Ok(answer)) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::new(1, "not confirmed; nothing was paid")),
    }
}
