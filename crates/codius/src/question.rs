//! Questions that are asked before anything is paid or removed.

use std::io::{IsTerminal, Write, stderr, stdin};

use crate::failure::{Failure, INTERRUPTED, USAGE};

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
