//! Starting the program of a container: which user, which directory, which file. This runs in the
//! container's own process, inside its root, and either becomes the program or says why not.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
};

use codius_guest_protocol::ContainerConfig;
use rustix::fs::{Access, access};

use crate::{accounts, privileges, sys};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The largest `/etc/passwd` or `/etc/group` that is read.
const MAX_ACCOUNT_FILE_BYTES: u64 = 4 << 20;

/// Why a program was not started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotRun {
    /// As shells give it.
    pub(crate) code: i32,
    /// For the uploader.
    pub(crate) message: String,
}

/// The program is there and cannot be started.
pub(crate) const NOT_EXECUTABLE: i32 = 126;
/// There is no such program, or it does not come so far.
pub(crate) const NOT_FOUND: i32 = 127;

impl From<String> for NotRun {
    fn from(message: String) -> Self {
        Self {
            code: NOT_EXECUTABLE,
            message,
        }
    }
}

/// Becomes the program. Returns only if that fails.
pub(crate) fn run(config: &ContainerConfig, hostname: &str) -> NotRun {
    match prepare(config, hostname) {
        Ok(program) => {
            if let Err(error) = privileges::filter_calls() {
                return format!("the system calls cannot be filtered: {error}").into();
            }
            let error = sys::execute(&program.path, &program.args, &program.env);
            explain(&program.path.to_string_lossy(), &error).into()
        }
        Err(not_run) => not_run,
    }
}

struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

fn prepare(config: &ContainerConfig, hostname: &str) -> Result<Program, NotRun> {
    let account = accounts::resolve(
        &config.user,
        &account_file("/etc/passwd")?,
        &account_file("/etc/group")?,
    )?;
    let env = environment(&config.env, &account.home, hostname);
    enter_workdir(&config.workdir)?;
    privileges::give_up(&account).map_err(|error| format!("cannot become user: {error}"))?;

    let no_command = || "the container has no command".to_owned();
    let name = config.args.first().ok_or_else(no_command)?;
    let path = find(name, variable(&env, "PATH").unwrap_or(DEFAULT_PATH))?;
    let text = |text: String| {
        CString::new(text).map_err(|_| "the command or its environment has a NUL in it".to_owned())
    };
    Ok(Program {
        path: text(path)?,
        args: config
            .args
            .iter()
            .cloned()
            .map(text)
            .collect::<Result<_, _>>()?,
        env: env
            .into_iter()
            .map(|(name, value)| text(format!("{name}={value}")))
            .collect::<Result<_, _>>()?,
    })
}

/// What was given, and what every program expects to find.
fn environment(given: &[(String, String)], home: &str, hostname: &str) -> Vec<(String, String)> {
    let mut env = given.to_vec();
    for (name, value) in [
        ("PATH", DEFAULT_PATH),
        ("HOME", home),
        ("HOSTNAME", hostname),
    ] {
        if variable(&env, name).is_none() {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    env
}

fn variable<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter()
        .find(|(variable, _)| variable == name)
        .map(|(_, value)| value.as_str())
}

/// Reads a file that an image may have made into anything; one that is missing is empty.
fn account_file(path: &str) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("{path} of the image: {error}");
    // A pipe must not make us wait for a writer.
    let file = match File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
    {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        file => file.map_err(unreadable)?,
    };
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(format!("{path} of the image is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_ACCOUNT_FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Trap: a path below `/proc/self/fd` may lead out of the container, if the process still had a directory
/// open from outside. It has none (`container`); and a place that has no path from our root is refused.
fn enter_workdir(workdir: &str) -> Result<(), String> {
    let workdir = if workdir.is_empty() { "/" } else { workdir };
    fs::create_dir_all(workdir)
        .and_then(|()| std::env::set_current_dir(workdir))
        .and_then(|()| std::env::current_dir())
        .and_then(|place| match place.is_absolute() {
            true => Ok(()),
            false => Err(io::Error::other("it is not in the container")),
        })
        .map_err(|error| format!("the working directory {workdir:?} cannot be used: {error}"))
}

/// The file of a command, looked for as a shell does.
fn find(name: &str, path: &str) -> Result<String, NotRun> {
    let missing = |message| NotRun {
        code: NOT_FOUND,
        message,
    };
    if name.is_empty() {
        return Err(missing("the command is empty".to_owned()));
    }
    let mut candidates: Vec<String> = Vec::new();
    if name.contains('/') {
        candidates.push(name.to_owned());
    } else {
        candidates.extend(path.split(':').map(|directory| match directory {
            "" => format!("./{name}"),
            directory => format!("{directory}/{name}"),
        }));
    }
    let mut blocked = None;
    for candidate in candidates {
        match fs::metadata(&candidate) {
            Ok(metadata) if metadata.is_file() => {
                if access(&candidate, Access::EXEC_OK).is_ok() {
                    return Ok(candidate);
                }
                blocked.get_or_insert(format!("the program {candidate:?} is not executable"));
            }
            Ok(_) => {
                blocked.get_or_insert(format!("the program {candidate:?} is not a file"));
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                blocked.get_or_insert(format!("the program {candidate:?} may not be reached"));
            }
            Err(_) => {}
        }
    }
    Err(match blocked {
        Some(blocked) => blocked.into(),
        None if name.contains('/') => missing(format!("the image has no program {name:?}")),
        None => missing(format!(
            "the image has no program {name:?} (looked in {path})"
        )),
    })
}

/// Why the kernel did not start a file that is there and executable.
fn explain(path: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            format!(
                "the program {path:?} needs an interpreter or loader that the image does not have"
            )
        }
        Some(libc::ENOEXEC) => format!(
            "the program {path:?} cannot run here (it has no #! line, or is for another processor)"
        ),
        Some(libc::E2BIG) => "the command and its environment are too long".to_owned(),
        _ => format!("the program {path:?} cannot be started: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn place(directory: &std::path::Path, name: &str, mode: u32) {
        let path = directory.join(name);
        fs::write(&path, "").unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_first_executable_on_the_path_is_taken() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        place(first.path(), "both", 0o644);
        place(second.path(), "both", 0o755);
        place(first.path(), "data", 0o644);
        fs::create_dir(first.path().join("folder")).unwrap();
        let (first, second) = (first.path().display(), second.path().display());
        let path = format!("/nowhere:{first}:{second}");
        assert_eq!(find("both", &path), Ok(format!("{second}/both")));
        let refused = |name: &str| {
            let NotRun { code, message } = find(name, &path).unwrap_err();
            (code, message)
        };
        let blocked = format!("the program \"{first}/data\" is not executable");
        assert_eq!(refused("data"), (NOT_EXECUTABLE, blocked));
        let blocked = format!("the program \"{first}/folder\" is not a file");
        assert_eq!(refused("folder"), (NOT_EXECUTABLE, blocked));
        let missing = format!("the image has no program \"gone\" (looked in {path})");
        assert_eq!(refused("gone"), (NOT_FOUND, missing));
        let missing = "the image has no program \"/gone\"".to_owned();
        assert_eq!(refused("/gone"), (NOT_FOUND, missing));
        assert_eq!(refused(""), (NOT_FOUND, "the command is empty".to_owned()));
    }

    #[test]
    fn what_is_given_is_not_replaced() {
        let given = [
            ("HOME".to_owned(), "/data".to_owned()),
            ("A".to_owned(), "b=c".to_owned()),
        ];
        let env = environment(&given, "/root", "pod");
        assert_eq!(env[..2], given);
        assert_eq!(variable(&env, "PATH"), Some(DEFAULT_PATH));
        assert_eq!(variable(&env, "HOME"), Some("/data"));
        assert_eq!(variable(&env, "HOSTNAME"), Some("pod"));
    }

    #[test]
    fn refusals_of_the_kernel_are_explained() {
        let say = |code| explain("/bin/x", &io::Error::from_raw_os_error(code));
        assert!(say(libc::ENOENT).contains("interpreter or loader"));
        assert!(say(libc::ENOEXEC).contains("another processor"));
        assert!(say(libc::EPERM).contains("cannot be started"));
    }
}
