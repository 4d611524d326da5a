//! `codius init`: writes `codius.json`, and `codiusvars.json` if there are variables, for an image.
//!
//! What is not said by flags is asked on a terminal. Both files are checked together as `codius upload`
//! does it before either is written, and none that is there is overwritten without `--force`.

use std::{
    env,
    io::{IsTerminal, stdin},
    path::{Path, PathBuf},
};

use clap::Args;
use codius_manifest::source;
use serde_json::{Map, Value, json};

use crate::{
    failure::{Failure, USAGE},
    nonce,
    project::{CODIUS_FILE, VARS_FILE},
    question, whole_file,
};

const FIRST_VERSION: &str = "1.0.0";
/// What an image is called in a manifest of one container.
const CONTAINER: &str = "app";

#[derive(Debug, Args)]
pub(crate) struct InitArguments {
    /// The program, like docker.io/library/nginx:1.27
    #[arg(value_name = "IMAGE", conflicts_with = "image")]
    positional: Option<String>,
    /// The same
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// What it is called [default: the last word of the image's name]
    #[arg(long)]
    name: Option<String>,
    /// Its version [default: the image's tag if that is a version, else 1.0.0]
    #[arg(long)]
    version: Option<String>,
    /// The port that visitors reach; without it they reach none
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// A variable of its environment, for everyone to see; can be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A variable whose value only hosts see; NAME alone takes the value from this tool's own environment;
    /// can be repeated
    #[arg(long, value_name = "NAME[=VALUE]")]
    private: Vec<String>,
    /// Where to write the program
    #[arg(long, value_name = "FILE", default_value = CODIUS_FILE)]
    codius_file: PathBuf,
    /// Where to write its variables, if there are any
    #[arg(long, value_name = "FILE", default_value = VARS_FILE)]
    codius_vars_file: PathBuf,
    /// Overwrite files that are there
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short = 'y', long)]
    assume_yes: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What goes into the files.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    image: String,
    name: String,
    version: String,
    port: Option<u16>,
    environment: Vec<(String, String)>,
    private: Vec<(String, String)>,
}

pub(crate) async fn init(arguments: InitArguments) -> Result<(), Failure> {
    for file in [&arguments.codius_file, &arguments.codius_vars_file] {
        if file.exists() && !arguments.force {
            return Err(
                Failure::new(USAGE, format!("{} is there already", file.display())).note(
                    "Next: --force overwrites it; --codius-file and --codius-vars-file name others.",
                ),
            );
        }
    }
    let asking = !arguments.assume_yes && !arguments.json && stdin().is_terminal();
    let program = program(&arguments, asking).await?;
    let codius = program.codius();
    let vars = program.vars();
    check(&codius, vars.as_ref())?;

    write(&arguments.codius_file, &codius, whole_file::PUBLIC)?;
    if let Some(vars) = &vars {
        write(&arguments.codius_vars_file, vars, whole_file::PRIVATE)?;
    } else if arguments.force && arguments.codius_vars_file.exists() {
        eprintln!(
            "codius: {} is left as it was; its variables go with the new program",
            arguments.codius_vars_file.display()
        );
    }
    tell(&arguments, &program, vars.is_some());
    Ok(())
}

/// Flags, then answers, then defaults.
async fn program(arguments: &InitArguments, asking: bool) -> Result<Program, Failure> {
    let image = arguments.positional.as_ref().or(arguments.image.as_ref());
    let image = match image {
        Some(image) => image.clone(),
        None if asking => question::line("Image, like docker.io/library/nginx:1.27", "").await?,
        None => {
            return Err(Failure::new(USAGE, "no image is named")
                .note("Next: codius init docker.io/library/nginx:1.27"));
        }
    };
    check_image(&image)?;
    let (name, version) = suggested(&image);
    let name = said_or_asked(&arguments.name, "Name", &name, asking).await?;
    let version = said_or_asked(&arguments.version, "Version", &version, asking).await?;
    let port = match arguments.port {
        Some(port) => Some(port),
        None if asking => {
            port_of(&question::line("Port that visitors reach, or none", "none").await?)?
        }
        None => None,
    };
    let mut environment = Vec::new();
    for text in &arguments.env {
        environment.push(assigned(text).ok_or_else(|| no_assignment("--env", text))?);
    }
    let mut private = Vec::new();
    for text in &arguments.private {
        private.push(private_variable(text)?);
    }
    if asking && environment.is_empty() && private.is_empty() {
        environment = asked_variables("Variable for everyone, NAME=VALUE, or nothing").await?;
        private = asked_variables("Private variable, NAME=VALUE, or nothing").await?;
    }
    Ok(Program {
        image,
        name,
        version,
        port,
        environment,
        private,
    })
}

async fn said_or_asked(
    said: &Option<String>,
    question: &str,
    default: &str,
    asking: bool,
) -> Result<String, Failure> {
    match said {
        Some(said) => Ok(said.clone()),
        None if asking => question::line(question, default).await,
        None => Ok(default.to_owned()),
    }
}

/// Until nothing is answered.
async fn asked_variables(question: &str) -> Result<Vec<(String, String)>, Failure> {
    let mut variables = Vec::new();
    loop {
        let answer = question::line(question, "").await?;
        if answer.is_empty() {
            return Ok(variables);
        }
        match assigned(&answer) {
            Some(variable) => variables.push(variable),
            None => eprintln!("{answer} is not NAME=VALUE"),
        }
    }
}

fn port_of(answer: &str) -> Result<Option<u16>, Failure> {
    if answer == "none" {
        return Ok(None);
    }
    match answer.parse() {
        Ok(port) if port > 0 => Ok(Some(port)),
        _ => Err(Failure::new(USAGE, format!("{answer} is not a port"))
            .note("Next: a number from 1 to 65535, or nothing.")),
    }
}

fn assigned(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
}

fn private_variable(text: &str) -> Result<(String, String), Failure> {
    if let Some(variable) = assigned(text) {
        return Ok(variable);
    }
    if text.is_empty() || text.contains('=') {
        return Err(no_assignment("--private", text));
    }
    match env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(_) => Err(
            Failure::new(USAGE, format!("{text} is not set in this environment"))
                .note(format!("Next: set it, or give --private {text}=VALUE.")),
        ),
    }
}

fn no_assignment(flag: &str, text: &str) -> Failure {
    Failure::new(USAGE, format!("{flag} {text} is not NAME=VALUE"))
        .note(format!("Next: write it like {flag} KEY=value."))
}

/// What can be seen without a registry: hosts look closer.
fn check_image(image: &str) -> Result<(), Failure> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "._-/:@+".contains(letter);
    let reason = if image.is_empty() {
        "no image is named".to_owned()
    } else if image.contains("://") {
        format!("{image} is a URL and not the name of an image")
    } else if !image.chars().all(allowed) || image.starts_with(['/', ':', '@', '-']) {
        format!("{image} is not the name of an image")
    } else if image.contains('@') && !source::is_pinned(image) {
        format!("what follows the @ of {image} is not sha256: and 64 digits")
    } else {
        return Ok(());
    };
    Err(Failure::new(USAGE, reason)
        .note("Next: name it like docker.io/library/nginx:1.27, or REGISTRY/NAME@sha256:DIGEST."))
}

/// Name and version that follow from an image.
fn suggested(image: &str) -> (String, String) {
    let without_digest = image.split('@').next().unwrap_or_default();
    let last = without_digest.rsplit('/').next().unwrap_or_default();
    let (name, tag) = last.split_once(':').unwrap_or((last, ""));
    let is_version = tag.starts_with(|letter: char| letter.is_ascii_digit());
    let version = if is_version { tag } else { FIRST_VERSION };
    (name.to_owned(), version.to_owned())
}

impl Program {
    fn codius(&self) -> Value {
        let mut manifest = Map::new();
        manifest.insert("name".to_owned(), self.name.clone().into());
        manifest.insert("version".to_owned(), self.version.clone().into());
        manifest.insert("machine".to_owned(), "small".into());
        if let Some(port) = self.port {
            manifest.insert("port".to_owned(), port.to_string().into());
        }
        let mut environment = Map::new();
        for (name, value) in &self.environment {
            let value = match is_reference(value) {
                true => format!("${name}"),
                false => value.clone(),
            };
            environment.insert(name.clone(), value.into());
        }
        for (name, _) in &self.private {
            environment.insert(name.clone(), format!("${name}").into());
        }
        let mut container = json!({ "id": CONTAINER, "image": self.image });
        if !environment.is_empty() {
            container["environment"] = Value::Object(environment);
        }
        manifest.insert("containers".to_owned(), json!([container]));
        json!({ "manifest": manifest })
    }

    /// Private variables, and public ones whose value looks like the name of another.
    fn vars(&self) -> Option<Value> {
        let members = |variables: &mut dyn Iterator<Item = &(String, String)>| {
            let members = variables.map(|(name, value)| (name.clone(), json!({ "value": value })));
            members.collect::<Map<_, _>>()
        };
        let public = members(
            &mut self
                .environment
                .iter()
                .filter(|(_, value)| is_reference(value)),
        );
        let private = members(&mut self.private.iter());
        if public.is_empty() && private.is_empty() {
            return None;
        }
        Some(json!({ "vars": { "public": public, "private": private } }))
    }
}

/// In the environment of a manifest such a value stands for a variable.
fn is_reference(value: &str) -> bool {
    value.starts_with('$')
}

fn check(codius: &Value, vars: Option<&Value>) -> Result<(), Failure> {
    let mut nonce = |_: &str, _: &str| nonce::random();
    match source::generate(codius, vars, &mut nonce) {
        Ok(_) => Ok(()),
        Err(errors) => {
            let failure = Failure::new(
                USAGE,
                "a host would refuse this program; nothing is written",
            );
            Err(errors.iter().fold(failure, |failure, error| {
                failure.note(format!("{error} ({})", error.next_step))
            }))
        }
    }
}

fn write(file: &Path, content: &Value, mode: u32) -> Result<(), Failure> {
    whole_file::write(file, format!("{content:#}\n").as_bytes(), mode).map_err(|error| {
        Failure::new(1, format!("{} cannot be written: {error}", file.display()))
            .note("Next: go to a directory of your own, or name another with --codius-file.")
    })
}

fn tell(arguments: &InitArguments, program: &Program, has_vars: bool) {
    let pinned = source::is_pinned(&program.image);
    if arguments.json {
        let vars_file = has_vars.then(|| arguments.codius_vars_file.display().to_string());
        let whole = json!({
            "codius_file": arguments.codius_file.display().to_string(),
            "codius_vars_file": vars_file,
            "image": program.image,
            "pinned": pinned,
        });
        println!("{whole:#}");
        return;
    }
    println!("Wrote {}", arguments.codius_file.display());
    if has_vars {
        println!(
            "Wrote {} (for you alone: it holds the values of variables)",
            arguments.codius_vars_file.display()
        );
    }
    if !pinned {
        eprintln!(
            "{} is not pinned here: each host pins it to what it is when you upload.",
            program.image
        );
    }
    if program.port.is_none() {
        eprintln!("It has no port: visitors do not reach it. --port says which.");
    }
    eprintln!("Next: codius price, then codius upload.");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program {
            image: "registry.example:5000/team/web:2.1".into(),
            name: "web".into(),
            version: "2.1".into(),
            port: Some(80),
            environment: vec![("A".into(), "1".into()), ("PRICE".into(), "$5".into())],
            private: vec![("KEY".into(), "secret".into())],
        }
    }

    #[test]
    fn what_is_written_is_valid_and_hides_what_is_private() {
        let (codius, vars) = (program().codius(), program().vars().unwrap());
        check(&codius, Some(&vars)).unwrap();
        assert!(!codius.to_string().contains("secret"));
        insta::assert_snapshot!(format!("{codius:#}\n{vars:#}"));
    }

    #[test]
    fn without_variables_there_is_one_file() {
        let plain = Program {
            environment: vec![("A".into(), "1".into())],
            private: Vec::new(),
            port: None,
            ..program()
        };
        assert_eq!(plain.vars(), None);
        check(&plain.codius(), None).unwrap();
    }

    #[test]
    fn a_name_and_a_version_follow_from_the_image() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (image, name, version) in [
            ("nginx", "nginx", "1.0.0"),
            ("docker.io/library/nginx:1.27", "nginx", "1.27"),
            ("localhost:5000/a/b:latest", "b", "1.0.0"),
            (&format!("a.example/b:3@{digest}"), "b", "3"),
        ] {
            assert_eq!(
                suggested(image),
                (name.to_owned(), version.to_owned()),
                "{image}"
            );
            check_image(image).unwrap();
        }
        for image in [
            "",
            "https://a.example/b",
            "a b",
            "-x",
            "a@sha256:00",
            "a\nb",
        ] {
            assert!(check_image(image).is_err(), "{image}");
        }
    }
}
