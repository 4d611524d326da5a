//! The program as people write it down: `codius.json` and `codiusvars.json`.

use std::path::{Path, PathBuf};

use codius_manifest::{
    FieldError, parse_document,
    source::{self, Generated},
};
use serde_json::Value;

use crate::{
    example,
    failure::{Failure, USAGE},
    key::Key,
    manifest::invalid,
    nonce, question, whole_file,
};

pub(crate) const CODIUS_FILE: &str = "codius.json";
pub(crate) const VARS_FILE: &str = "codiusvars.json";

/// Where a project is.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    pub(crate) codius_file: PathBuf,
    /// Variables, if somebody said where; otherwise they are looked for beside the working directory's
    /// `codius.json`.
    pub(crate) vars_file: Option<PathBuf>,
}

/// Where the nonces of private variables come from.
#[derive(Debug)]
pub(crate) enum Nonces {
    Derived(Key),
    Random,
}

/// The size that every host has.
pub(crate) const SMALL: &str = "small";

/// The size of pod that a posted document asks for.
pub(crate) fn machine_of(document: &Value) -> &str {
    document["manifest"]["machine"].as_str().unwrap_or(SMALL)
}

impl Project {
    /// Reads the files and makes the document that is posted.
    pub(crate) fn generate(&self, nonces: &Nonces) -> Result<Generated, Failure> {
        let codius = parse(&self.codius_file)?;
        let vars_file = self
            .vars_file
            .clone()
            .or_else(|| Some(PathBuf::from(VARS_FILE)).filter(|file| file.is_file()));
        let vars = vars_file.as_deref().map(parse).transpose()?;
        if is_debug(&codius) {
            return Err(Failure::new(
                USAGE,
                format!("debug does not belong into {}", self.codius_file.display()),
            )
            .note(
                "Next: remove it, and give --debug if what the program writes shall be public.",
            ));
        }
        let mut nonce = |name: &str, value: &str| match nonces {
            Nonces::Derived(key) => nonce::derived(key, name, value),
            Nonces::Random => nonce::random(),
        };
        source::generate(&codius, vars.as_ref(), &mut nonce)
            .map_err(|errors| not_valid(&self.codius_file, &errors))
    }

    /// Without any file in the usual places the original offers an example, and with `-y` writes it.
    pub(crate) async fn offer_example(&self, assume_yes: bool) -> Result<(), Failure> {
        let usual = self.codius_file == Path::new(CODIUS_FILE)
            && self
                .vars_file
                .as_deref()
                .is_none_or(|file| file == Path::new(VARS_FILE));
        if !usual || Path::new(CODIUS_FILE).exists() || Path::new(VARS_FILE).exists() {
            return Ok(());
        }
        eprintln!("There is no {CODIUS_FILE} and no {VARS_FILE} here.");
        question::ask("Write an example of both, and go on with it?", assume_yes).await?;
        for (file, content, mode) in [
            (CODIUS_FILE, example::codius(), whole_file::PUBLIC),
            (VARS_FILE, example::codius_vars(), whole_file::PRIVATE),
        ] {
            whole_file::create(Path::new(file), format!("{content:#}\n").as_bytes(), mode)
                .map_err(|error| Failure::new(1, format!("{file} cannot be written: {error}")))?;
            eprintln!("Wrote {file}");
        }
        Ok(())
    }
}

/// Reads a JSON file as JavaScript does.
pub(crate) fn parse(file: &Path) -> Result<Value, Failure> {
    let bytes = whole_file::read(file).map_err(|error| {
        let failure = Failure::new(USAGE, format!("{} cannot be read: {error}", file.display()));
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                failure.note("Next: go to where it is, or say where with --codius-file.")
            }
            _ => failure,
        }
    })?;
    parse_document(&bytes).map_err(|error| invalid(error).note(format!("in {}", file.display())))
}

/// Name and version of what is posted, for people.
pub(crate) fn title(document: &Value) -> String {
    let text = |member: &str| {
        let text = document["manifest"][member].as_str().unwrap_or_default();
        crate::failure::printable(text)
    };
    format!("{} {}", text("name"), text("version"))
}

fn is_debug(codius: &Value) -> bool {
    !matches!(
        codius["manifest"]["debug"],
        Value::Null | Value::Bool(false)
    )
}

fn not_valid(file: &Path, errors: &[FieldError]) -> Failure {
    let failure = Failure::new(USAGE, format!("{} is not valid", file.display()));
    errors.iter().fold(failure, |failure, error| {
        failure.note(format!("{error} ({})", error.next_step))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn project(place: &Path, codius: &Value, vars: Option<&Value>) -> Project {
        let codius_file = place.join(CODIUS_FILE);
        fs::write(&codius_file, codius.to_string()).unwrap();
        let vars_file = vars.map(|vars| {
            let file = place.join(VARS_FILE);
            fs::write(&file, vars.to_string()).unwrap();
            file
        });
        Project {
            codius_file,
            vars_file,
        }
    }

    #[test]
    fn the_same_files_and_key_give_the_same_hash() {
        let place = tempfile::tempdir().unwrap();
        let project = project(
            place.path(),
            &example::codius(),
            Some(&example::codius_vars()),
        );
        let nonces = Nonces::Derived(Key::from_seed([1; 32]));
        let hash = project.generate(&nonces).unwrap().hash();
        assert_eq!(project.generate(&nonces).unwrap().hash(), hash);
        let other = Nonces::Derived(Key::from_seed([2; 32]));
        assert_ne!(project.generate(&other).unwrap().hash(), hash);
        assert_ne!(
            project.generate(&Nonces::Random).unwrap().hash(),
            project.generate(&Nonces::Random).unwrap().hash()
        );
    }

    #[test]
    fn debug_is_a_flag_and_not_in_the_file() {
        let place = tempfile::tempdir().unwrap();
        let mut codius = example::codius();
        codius["manifest"]["debug"] = json!(true);
        let refused = project(place.path(), &codius, None)
            .generate(&Nonces::Random)
            .unwrap_err();
        assert!(refused.message().starts_with("debug does not belong"));
    }
}
