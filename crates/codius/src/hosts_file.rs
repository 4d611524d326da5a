//! `codiushosts.json`: `{"hosts": ["https://host.example", …]}`, the hosts to upload to.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::{
    candidates,
    failure::{Failure, USAGE},
    project, whole_file,
};

pub(crate) const HOSTS_FILE: &str = "codiushosts.json";

/// The hosts in a file, in its order.
pub(crate) fn read(file: &Path) -> Result<Vec<String>, Failure> {
    parse(&project::parse(file)?).ok_or_else(|| not_a_list(file))
}

fn parse(content: &Value) -> Option<Vec<String>> {
    let hosts = content.get("hosts")?.as_array()?;
    let hosts: Option<Vec<_>> = hosts
        .iter()
        .map(|host| host.as_str().map(str::to_owned))
        .collect();
    hosts.filter(|hosts| !hosts.is_empty())
}

fn not_a_list(file: &Path) -> Failure {
    Failure::new(USAGE, format!("{} is not a list of hosts", file.display()))
        .note(r#"Next: write {"hosts": ["https://host.example"]}."#)
}

/// The file while it is edited. Members that are not ours are kept; a list without hosts is not one, so
/// that with its last host the file goes, too.
#[derive(Debug)]
pub(crate) struct HostsFile {
    path: PathBuf,
    content: Map<String, Value>,
    hosts: Vec<String>,
}

impl HostsFile {
    /// What is there, or nothing yet.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let mut file = Self {
            path: path.to_owned(),
            content: Map::new(),
            hosts: Vec::new(),
        };
        if path.exists() {
            let content = project::parse(path)?;
            file.hosts = parse(&content).ok_or_else(|| not_a_list(path))?;
            if let Value::Object(content) = content {
                file.content = content;
            }
        }
        Ok(file)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Adds a host, unless it is there under this or another spelling.
    pub(crate) fn add(&mut self, origin: &str) {
        if self.place(origin).is_none() {
            self.hosts.push(origin.to_owned());
        }
    }

    pub(crate) fn remove(&mut self, origin: &str) -> Result<(), Failure> {
        let place = self.place(origin).ok_or_else(|| {
            Failure::new(USAGE, format!("{origin} is not in {}", self.path.display()))
                .note("Next: codius hosts --no-discovery shows those that are.")
        })?;
        self.hosts.remove(place);
        Ok(())
    }

    pub(crate) fn write(&self) -> Result<(), Failure> {
        let outcome = if self.hosts.is_empty() {
            match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        } else {
            let mut content = self.content.clone();
            content.insert("hosts".to_owned(), json!(self.hosts));
            let text = format!("{:#}\n", Value::Object(content));
            whole_file::write(&self.path, text.as_bytes(), whole_file::PUBLIC)
        };
        outcome.map_err(|error| {
            Failure::new(
                1,
                format!("{} cannot be written: {error}", self.path.display()),
            )
            .note("Next: name another with --codius-hosts-file.")
        })
    }

    fn place(&self, origin: &str) -> Option<usize> {
        self.hosts.iter().position(|host| {
            host == origin
                || candidates::origins(std::slice::from_ref(host))
                    .is_ok_and(|spelled| spelled == [origin])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_hosts_is_what_the_original_reads() {
        let two = json!({"hosts": ["https://a.example", "b.example"], "note": "mine"});
        assert_eq!(parse(&two).unwrap(), ["https://a.example", "b.example"]);
        for other in [
            json!({}),
            json!({"hosts": []}),
            json!({"hosts": [1]}),
            json!(["a"]),
        ] {
            assert_eq!(parse(&other), None, "{other}");
        }
    }

    #[test]
    fn editing_keeps_what_is_not_ours_and_knows_a_host_by_its_origin() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(HOSTS_FILE);
        std::fs::write(&path, r#"{"note":"mine","hosts":["a.example"]}"#).unwrap();
        let mut file = HostsFile::open(&path).unwrap();
        file.add("https://a.example");
        file.add("https://b.example");
        file.write().unwrap();
        let written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            written,
            json!({"note": "mine", "hosts": ["a.example", "https://b.example"]})
        );
        file.remove("https://a.example").unwrap();
        assert!(file.remove("https://a.example").is_err());
        file.remove("https://b.example").unwrap();
        file.write().unwrap();
        assert!(!path.exists());
        file.write().unwrap();
    }
}
