//! The end of a host at an awkward moment, and commands that have nothing to work with.

use std::{fs, process::Command, time::Duration};

use anyhow::{Result, bail, ensure};
use codius_testkit::{Background, Listen};

const PATIENCE: Duration = Duration::from_secs(60);

/// The signal comes while the host starts, when nobody waits for it yet.
#[test]
fn a_host_that_is_told_to_end_while_it_starts_ends() -> Result<()> {
    let place = tempfile::Builder::new().prefix("codius-end-").tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_codiusd"));
    command
        .args(["--local", "--listen", "127.0.0.1:0"])
        .args(["--interledger-listen", "127.0.0.1:0"])
        .arg("--data-dir")
        .arg(place.path().join("data"));
    let host = Background::start(&command, Listen::Errors)?;
    host.line_with("ledger adds up", PATIENCE)?;
    host.terminate(PATIENCE)
}

/// The processes that one process has started.
fn children(process: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let text = fs::read_to_string(thread?.path().join("children"))?;
        found.extend(text.split_whitespace().map(str::to_owned));
    }
    Ok(found)
}

/// A disk that fails in the middle of a write: the host cannot know what is on it, and makes room for one that
/// looks.
#[test]
fn a_host_whose_database_has_failed_ends_by_itself_and_the_next_goes_on() -> Result<()> {
    let place = tempfile::Builder::new().prefix("codius-end-").tempdir()?;
    let data = place.path().join("data");
    let program = env!("CARGO_BIN_EXE_codiusd");
    // Given a host that is kept, and hears of a write that is too long as of an error,
    let script = r#"echo "$$"; trap "" XFSZ; exec "$@""#;
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh", program, "keep"])
        .args(["--local", "--listen", "127.0.0.1:0"])
        .args(["--interledger-listen", "127.0.0.1:0"])
        .arg("--data-dir")
        .arg(&data);
    let keeper = Background::start(&command, Listen::Output)?;
    let keeper_id = keeper.line(PATIENCE)?;
    keeper.line_with("ready api=", PATIENCE)?;
    let [host] = &children(&keeper_id)?[..] else {
        bail!("the keeper has not one child");
    };
    let drain = |word: &str| {
        let mut drain = Command::new(program);
        drain
            .args(["drain", word, "--data-dir"])
            .arg(&data)
            .output()
    };

    // when no byte more can be written, and something has to be,
    let limited = Command::new("prlimit")
        .args(["--pid", host, "--fsize=1"])
        .status()?;
    ensure!(limited.success(), "{limited}");
    let refused = drain("--json")?;
    ensure!(!refused.status.success(), "{refused:?}");

    // then it ends with an error that says so, and another one takes its place and works.
    keeper.line_with("ready api=", PATIENCE)?;
    let log = keeper.errors();
    for said in [
        "the database has failed (pods are left to the next process)",
        "codius.db has failed, so this process cannot know what is written",
        "the host ended; its pods go on status=exit status: 1",
    ] {
        ensure!(log.contains(said), "{said}:\n{log}");
    }
    ensure!(!children(&keeper_id)?.contains(host), "{log}");
    let drained = drain("--json")?;
    ensure!(drained.status.success(), "{drained:?}");
    keeper.terminate(PATIENCE)
}

/// What is asked for is not there: the answer says what to name instead, and nothing is made.
#[test]
fn a_file_that_is_not_there_is_answered_with_a_next_step() -> Result<()> {
    let place = tempfile::Builder::new().prefix("codius-end-").tempdir()?;
    let path = |name: &str| place.path().join(name).display().to_string();
    let (missing, copy, data) = (path("missing"), path("copy"), path("data"));
    for (words, said) in [
        (["backup", &copy, "--data-dir", &data], "--data-dir"),
        (
            ["restore", &missing, "--data-dir", &data],
            "`codiusd backup`",
        ),
        (["config", "check", "--config", &missing], "--local"),
    ] {
        let told = Command::new(env!("CARGO_BIN_EXE_codiusd"))
            .args(words)
            .output()?;
        let text = String::from_utf8(told.stderr)?;
        ensure!(!told.status.success(), "{words:?}: {text}");
        ensure!(text.contains(said), "{words:?}: {text}");
        ensure!(text.contains("No such file"), "{words:?}: {text}");
    }
    ensure!(
        fs::read_dir(place.path())?.next().is_none(),
        "something was made"
    );
    Ok(())
}
