//! Programs that run beside a test, and end with it.
//!
//! Trap: the kernel's parent-death signal is bound to the thread that made the child, not to the
//! process. The child is therefore made by a thread that lives exactly as long as it, so that it
//! dies with the test even if the test is killed.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// How often it is looked whether a program has ended.
const END_POLL: Duration = Duration::from_millis(10);

/// Which output of a program is read line by line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Standard output; standard error is kept for the message of a failure.
    Output,
    /// Standard error; there is no standard output.
    Errors,
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Background {
    name: String,
    child: Child,
    lines: mpsc::Receiver<String>,
    errors: Arc<Mutex<String>>,
}

impl Background {
    /// Starts the program, with nothing to read from.
    pub fn start(command: &Command, listen: Listen) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut command = dying_with_its_parent(command);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        match listen {
            Listen::Output => command.stdout(Stdio::piped()),
            Listen::Errors => command.stdout(Stdio::null()),
        };
        let (send_child, child) = mpsc::channel();
        let (send_line, lines) = mpsc::channel();
        let errors = Arc::new(Mutex::new(String::new()));
        let kept = errors.clone();
        thread::Builder::new().name(name.clone()).spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = send_child.send(Err(error));
                    return;
                }
            };
            let (output, errors) = (child.stdout.take(), child.stderr.take());
            if send_child.send(Ok(child)).is_err() {
                return;
            }
            // Reading goes on after nobody listens any more, so that the program never blocks on a
            // full pipe.
            match output {
                Some(output) => {
                    let keeping = thread::spawn(move || keep(errors, &kept));
                    pass_on(output, &send_line);
                    let _ = keeping.join();
                }
                None => errors.into_iter().for_each(|it| pass_on(it, &send_line)),
            }
        })?;
        let child = child
            .recv()
            .context("the thread that starts a program ended")?
            .context("setpriv cannot be started; install the Debian package util-linux")?;
        Ok(Self {
            name,
            child,
            lines,
            errors,
        })
    }

    /// The next line it prints.
    pub fn line(&self, patience: Duration) -> Result<String> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!(
                "{} said nothing for {} s{}",
                self.name,
                patience.as_secs(),
                self.complaint()
            ),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("{} ended{}", self.name, self.complaint())
            }
        }
    }

    /// The next line that contains `text`; those before it are dropped.
    pub fn line_with(&self, text: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        let mut passed = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.line(left) {
                Ok(line) if line.contains(text) => return Ok(line),
                Ok(line) => {
                    passed.push_str(&line);
                    passed.push('\n');
                }
                Err(error) => {
                    return Err(error.context(format!("no line with {text:?} in:\n{passed}")));
                }
            }
        }
    }

    /// Waits until it has ended by itself, successfully.
    pub fn wait(mut self, patience: Duration) -> Result<()> {
        let status = self.ended(patience)?;
        ensure!(
            status.success(),
            "{}: {status}{}",
            self.name,
            self.complaint()
        );
        Ok(())
    }

    /// Waits until it has ended by itself, and gives whether it succeeded and what it has printed that
    /// was not read yet.
    pub fn output(mut self, patience: Duration) -> Result<(bool, String)> {
        let deadline = Instant::now() + patience;
        let mut text = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => text.extend([line.as_str(), "\n"]),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} does not end; it printed:\n{text}", self.name)
                }
            }
        }
        Ok((self.ended(END_POLL * 100)?.success(), text))
    }

    /// Asks it to end, as an operator does, and waits until it has, successfully.
    pub fn terminate(self, patience: Duration) -> Result<()> {
        let asked = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()?;
        ensure!(asked.success(), "kill: {asked}");
        self.wait(patience)
    }

    fn ended(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "{} does not end{}",
                self.name,
                self.complaint()
            );
            thread::sleep(END_POLL);
        }
    }

    /// What it wrote to standard error so far, unless that is what is listened to.
    pub fn errors(&self) -> String {
        self.errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn complaint(&self) -> String {
        let errors = self.errors();
        if errors.is_empty() {
            String::new()
        } else {
            format!("; it complained:\n{errors}")
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Both fail only if it is gone already, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same command, killed by the kernel when the thread that starts it ends.
fn dying_with_its_parent(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped
        .args(["--pdeathsig", "KILL"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        wrapped.current_dir(directory);
    }
    wrapped
}

fn pass_on(pipe: impl Read, lines: &mpsc::Sender<String>) {
    for line in BufReader::new(pipe).lines() {
        let Ok(line) = line else { break };
        let _ = lines.send(line);
    }
}

fn keep(pipe: Option<impl Read>, kept: &Mutex<String>) {
    for line in pipe.into_iter().flat_map(|it| BufReader::new(it).lines()) {
        let Ok(line) = line else { break };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_str(&line);
        kept.push('\n');
    }
}

/// Runs a program to its end and gives what it printed.
pub fn output_of(command: &mut Command, package: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| {
        format!("{program} cannot be started; install the Debian package {package}")
    })?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}\n{errors}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
