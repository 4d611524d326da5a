//! `*.codiusstate.json`: what was uploaded where, until when, and for how much. `codius extend`, `tail`
//! and `cron` go on from it. Its shape is the original's, whose tool reads and writes it too:
//!
//! ```text
//! { description, manifestHash, generatedManifest: { manifest, private },
//!   options: { maxMonthlyRate, units, duration }, hostList: [ … ],
//!   status: { hostDetails: { HOST: { url, expirationDate, price: { totalPaid, lastPaid, units } } },
//!             cronJobs: [ { job, creationDate } ] } }
//! ```
//!
//! Traps: it holds the private values in clear text, so only its owner may read it. Members that we do
//! not know are kept. `totalPaid` and `lastPaid` are decimal text in the smallest unit of the payer's
//! connection, whose size is in the letters before the asset's code (`nXRP`: 10⁻⁹).

use std::{
    fs,
    path::{Path, PathBuf},
};

use codius_api::UnixMillis;
use codius_manifest::{ManifestHash, hash_value};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value, json};

use crate::{
    failure::{Failure, USAGE},
    monthly_rate::MonthlyRate,
    whole_file,
};

/// What an upload writes unless told otherwise.
pub(crate) const DEFAULT_FILE: &str = "default.codiusstate.json";
const SUFFIX: &str = ".codiusstate.json";
const DESCRIPTION: &str = "Codius State File which is generated from the provided codius.json, codiusvars.json, and codiushosts.json files.";
/// `MM-DD-YYYY HH:mm:ss ZZ` of the original.
const EXPIRATION_FORMAT: &str = "%m-%d-%Y %H:%M:%S %z";

/// A state file in memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StateFile {
    path: PathBuf,
    content: Map<String, Value>,
}

/// How the last upload or extension was bought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) rate: MonthlyRate,
    pub(crate) units: String,
    pub(crate) duration_secs: u64,
}

/// Something that was bought at a host.
#[derive(Debug, Clone)]
pub(crate) struct Bought<'a> {
    pub(crate) host: &'a str,
    pub(crate) url: &'a str,
    pub(crate) expiry: UnixMillis,
    /// What it has cost, in the payer's smallest units.
    pub(crate) paid: u64,
    /// Of the payer's connection; see [`units_of`].
    pub(crate) units: &'a str,
}

impl StateFile {
    /// Of something that has not been uploaded yet: `document` is what is posted.
    pub(crate) fn new(path: PathBuf, document: &Value) -> Self {
        let mut content = Map::new();
        content.insert("description".to_owned(), DESCRIPTION.into());
        let hash = hash_value(&document["manifest"]);
        content.insert("manifestHash".to_owned(), hash.to_string().into());
        content.insert("generatedManifest".to_owned(), document.clone());
        content.insert("options".to_owned(), json!({}));
        content.insert("hostList".to_owned(), json!([]));
        content.insert(
            "status".to_owned(),
            json!({ "hostDetails": {}, "cronJobs": [] }),
        );
        Self { path, content }
    }

    /// The file of that name, or if it is the default one the only one in this directory.
    pub(crate) fn open(named: &Path) -> Result<Self, Failure> {
        if named == Path::new(DEFAULT_FILE) {
            Self::read(&find(Path::new("."))?)
        } else {
            Self::read(named)
        }
    }

    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let bytes = whole_file::read(path).map_err(|error| {
            Failure::new(USAGE, format!("{} cannot be read: {error}", path.display()))
                .note("Next: upload first, or name the state file with --codius-state-file.")
        })?;
        let content = codius_manifest::parse_document(&bytes).ok();
        let state = content.and_then(|content| match content {
            Value::Object(content) => Some(Self {
                path: path.to_owned(),
                content,
            }),
            _ => None,
        });
        let state = state.filter(|state| {
            state.document()["manifest"].is_object() && state.content["hostList"].is_array()
        });
        state.ok_or_else(|| {
            Failure::new(
                USAGE,
                format!("{} is not a state file of codius", path.display()),
            )
            .note("Next: name another with --codius-state-file, or upload again with -o.")
        })
    }

    /// Refuses to take the place of a file that is there already, unless told to.
    pub(crate) fn check_place(path: &Path, overwrite: bool) -> Result<(), Failure> {
        if path.exists() && !overwrite {
            return Err(
                Failure::new(USAGE, format!("{} is there already", path.display())).note(
                    "Next: codius extend buys more time for what it says; -o overwrites it; --codius-state-file names another.",
                ),
            );
        }
        whole_file::check_writable(path).map_err(|error| unwritable(path, &error))
    }

    pub(crate) fn write(&self) -> Result<(), Failure> {
        let text = format!("{:#}\n", Value::Object(self.content.clone()));
        whole_file::write(&self.path, text.as_bytes(), whole_file::PRIVATE)
            .map_err(|error| unwritable(&self.path, &error))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What was posted: `{"manifest": …, "private"?: …}`.
    pub(crate) fn document(&self) -> &Value {
        self.content
            .get("generatedManifest")
            .unwrap_or(&Value::Null)
    }

    /// Computed, because the manifest counts and not what is written beside it.
    pub(crate) fn hash(&self) -> ManifestHash {
        hash_value(&self.document()["manifest"])
    }

    pub(crate) fn hosts(&self) -> Vec<String> {
        let hosts = self.content.get("hostList").and_then(Value::as_array);
        hosts
            .into_iter()
            .flatten()
            .filter_map(|host| host.as_str().map(str::to_owned))
            .collect()
    }

    /// What was chosen last; the original's defaults where nothing is said.
    pub(crate) fn options(&self) -> Options {
        let options = self.content.get("options").unwrap_or(&Value::Null);
        Options {
            rate: MonthlyRate::from_json(&options["maxMonthlyRate"])
                .unwrap_or(MonthlyRate::DEFAULT),
            units: options["units"]
                .as_str()
                .unwrap_or(crate::ceiling::DEFAULT_UNITS)
                .to_owned(),
            duration_secs: options["duration"].as_u64().unwrap_or(600),
        }
    }

    pub(crate) fn set_options(&mut self, options: &Options) {
        let members = self.object("options");
        members.insert("maxMonthlyRate".to_owned(), options.rate.to_json());
        members.insert("units".to_owned(), options.units.clone().into());
        members.insert("duration".to_owned(), options.duration_secs.into());
    }

    /// Until when a host runs it, as it was known last.
    pub(crate) fn expiration(&self, host: &str) -> Option<Timestamp> {
        let text = self.details(host)?.get("expirationDate")?.as_str()?;
        Timestamp::strptime(EXPIRATION_FORMAT, text).ok()
    }

    /// Records that something was bought.
    pub(crate) fn record(&mut self, bought: &Bought<'_>) {
        let mut hosts = self.hosts();
        if !hosts.iter().any(|host| host == bought.host) {
            hosts.push(bought.host.to_owned());
        }
        self.content.insert("hostList".to_owned(), hosts.into());

        let before = self.details(bought.host).and_then(|details| {
            let price = details.get("price")?;
            // Amounts of another unit cannot be added; then the sum begins again.
            (price["units"] == bought.units).then(|| whole_number(&price["totalPaid"]))?
        });
        let total = before.unwrap_or(0).saturating_add(bought.paid.into());
        let expiry = Timestamp::from_millisecond(i64::try_from(bought.expiry.get()).unwrap_or(0));
        let expiry = expiry
            .unwrap_or_default()
            .to_zoned_datetime(TimeZone::system());
        let status = self.object("status");
        let all = status.entry("hostDetails").or_insert_with(|| json!({}));
        if !all.is_object() {
            *all = json!({});
        }
        let details = &mut all[bought.host];
        if !details.is_object() {
            *details = json!({});
        }
        details["url"] = bought.url.into();
        details["expirationDate"] = expiry.strftime(EXPIRATION_FORMAT).to_string().into();
        details["price"] = json!({
            "totalPaid": total.to_string(),
            "lastPaid": bought.paid.to_string(),
            "units": bought.units,
        });
    }

    pub(crate) fn cron_jobs(&mut self) -> &mut Vec<Value> {
        let jobs = self
            .object("status")
            .entry("cronJobs")
            .or_insert_with(|| json!([]));
        if !jobs.is_array() {
            *jobs = json!([]);
        }
        match jobs {
            Value::Array(jobs) => jobs,
            _ => unreachable!("it has just been made an array"),
        }
    }

    fn details(&self, host: &str) -> Option<&Value> {
        self.content.get("status")?.get("hostDetails")?.get(host)
    }

    fn object(&mut self, name: &str) -> &mut Map<String, Value> {
        let member = self
            .content
            .entry(name)
            .or_insert_with(|| Value::Object(Map::new()));
        if !member.is_object() {
            *member = Value::Object(Map::new());
        }
        member
            .as_object_mut()
            .expect("it has just been made an object")
    }
}

/// The units of an account as the original writes them: SI letters for the scales that have one.
pub(crate) fn units_of(code: &str, scale: u8) -> String {
    let prefix = match scale {
        0 => "",
        1 => "d",
        2 => "c",
        3 => "m",
        6 => "\u{b5}",
        9 => "n",
        // The original writes the code twice and no number.
        scale => return format!("{code}e-{scale}"),
    };
    format!("{prefix}{code}")
}

/// The state files of a directory, by name.
fn named_in(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)?
        .filter_map(|entry| Some(PathBuf::from(entry.ok()?.file_name())))
        .filter(|name| name.to_string_lossy().ends_with(SUFFIX))
        .collect();
    found.sort();
    Ok(found)
}

/// The same; none of a directory that cannot be read.
pub(crate) fn all_in(directory: &Path) -> Vec<PathBuf> {
    let names = named_in(directory).unwrap_or_default();
    names.iter().map(|name| directory.join(name)).collect()
}

/// The only state file of a directory.
fn find(directory: &Path) -> Result<PathBuf, Failure> {
    let found = named_in(directory)
        .map_err(|error| Failure::new(USAGE, format!("this directory cannot be read: {error}")))?;
    match found.as_slice() {
        [one] => Ok(directory.join(one)),
        [] => Err(
            Failure::new(USAGE, format!("there is no *{SUFFIX} in this directory")).note(
                "Next: upload first, go to where it is, or name it with --codius-state-file.",
            ),
        ),
        several => {
            let failure = Failure::new(
                USAGE,
                format!("there are {} state files in this directory", several.len()),
            );
            let failure = several
                .iter()
                .fold(failure, |failure, name| {
                    failure.note(name.display().to_string())
                })
                .note("Next: say which with --codius-state-file.");
            Err(failure)
        }
    }
}

/// Numbers that the original has written as text or as numbers.
fn whole_number(value: &Value) -> Option<u128> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_u64().map(u128::from),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        USAGE,
        format!("{} cannot be written: {error}", path.display()),
    )
    .note("Next: name another with --codius-state-file.")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn document() -> Value {
        json!({"manifest": {"name": "n", "version": "1", "containers": []}, "private": {"vars": {}}})
    }

    fn bought(paid: u64, units: &'static str) -> Bought<'static> {
        Bought {
            host: "https://one.example",
            url: "https://h.one.example/",
            expiry: UnixMillis::new(1_795_622_400_000),
            paid,
            units,
        }
    }

    /// As `codius@3.1.0` writes it, with a member that only a later one knows.
    fn of_the_original() -> Value {
        json!({
            "description": DESCRIPTION,
            "manifestHash": "written beside it",
            "generatedManifest": document(),
            "options": {"maxMonthlyRate": 10.5, "units": "XRP", "duration": 600, "later": true},
            "hostList": ["https://one.example"],
            "status": {
                "hostDetails": {"https://one.example": {
                    "url": "https://h.one.example/",
                    "expirationDate": "11-25-2026 16:00:00 +0100",
                    "price": {"totalPaid": "100", "lastPaid": "100", "units": "nXRP"},
                    "later": [1]
                }},
                "cronJobs": [{"job": "@hourly x", "creationDate": "y"}]
            },
            "later": {"a": 1}
        })
    }

    #[test]
    fn a_new_file_has_the_shape_of_the_original() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(DEFAULT_FILE);
        let mut state = StateFile::new(path.clone(), &document());
        state.set_options(&Options {
            rate: MonthlyRate::DEFAULT,
            units: "XRP".into(),
            duration_secs: 600,
        });
        state.record(&bought(7, "nXRP"));
        state.write().unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );

        let mut written: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let date = written["status"]["hostDetails"]["https://one.example"]["expirationDate"].take();
        let date = Timestamp::strptime(EXPIRATION_FORMAT, date.as_str().unwrap()).unwrap();
        assert_eq!(date.as_millisecond(), 1_795_622_400_000);
        assert_eq!(
            written,
            json!({
                "description": DESCRIPTION,
                "manifestHash": hash_value(&document()["manifest"]).to_string(),
                "generatedManifest": document(),
                "options": {"maxMonthlyRate": 10, "units": "XRP", "duration": 600},
                "hostList": ["https://one.example"],
                "status": {
                    "hostDetails": {"https://one.example": {
                        "url": "https://h.one.example/",
                        "expirationDate": null,
                        "price": {"totalPaid": "7", "lastPaid": "7", "units": "nXRP"}
                    }},
                    "cronJobs": []
                }
            })
        );
        assert_eq!(StateFile::read(&path).unwrap().hosts(), state.hosts());
    }

    #[test]
    fn a_file_of_the_original_is_gone_on_with() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x.codiusstate.json");
        fs::write(&path, of_the_original().to_string()).unwrap();
        let mut state = StateFile::read(&path).unwrap();
        assert_eq!(state.hash(), hash_value(&document()["manifest"]));
        assert_eq!(state.options().rate.to_string(), "10.5");
        let expiration = state.expiration("https://one.example").unwrap();
        assert_eq!(expiration.to_string(), "2026-11-25T15:00:00Z");

        state.record(&bought(11, "nXRP"));
        state.write().unwrap();
        let written: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let details = &written["status"]["hostDetails"]["https://one.example"];
        assert_eq!(details["price"]["totalPaid"], "111");
        assert_eq!(details["price"]["lastPaid"], "11");
        // What we do not know is kept.
        assert_eq!(details["later"], json!([1]));
        assert_eq!(written["options"], of_the_original()["options"]);
        assert_eq!(written["later"], json!({"a": 1}));
        assert_eq!(
            written["status"]["cronJobs"],
            of_the_original()["status"]["cronJobs"]
        );
    }

    #[test]
    fn amounts_of_another_unit_are_not_added() {
        let mut state = StateFile::new("x".into(), &document());
        state.record(&bought(7, "nXRP"));
        state.record(&bought(2, "\u{b5}XRP"));
        let details = state.details("https://one.example").unwrap();
        assert_eq!(details["price"]["totalPaid"], "2");
        assert_eq!(state.hosts().len(), 1);
    }

    #[test]
    fn units_are_those_of_the_original() {
        for (scale, units) in [
            (9, "nXRP"),
            (6, "µXRP"),
            (3, "mXRP"),
            (0, "XRP"),
            (4, "XRPe-4"),
        ] {
            assert_eq!(units_of("XRP", scale), units);
        }
    }

    #[test]
    fn one_file_is_found_and_several_are_an_error_that_says_what_to_do() {
        let place = tempfile::tempdir().unwrap();
        assert!(
            find(place.path())
                .unwrap_err()
                .message()
                .starts_with("there is no *")
        );
        fs::write(place.path().join("a.codiusstate.json"), "").unwrap();
        assert!(find(place.path()).unwrap().ends_with("a.codiusstate.json"));
        fs::write(place.path().join("b.codiusstate.json"), "").unwrap();
        let several = find(place.path()).unwrap_err();
        assert_eq!(
            several.message(),
            "there are 2 state files in this directory"
        );
        assert_eq!(
            several.notes().last().unwrap(),
            "Next: say which with --codius-state-file."
        );
    }

    #[test]
    fn a_file_that_is_there_is_only_overwritten_on_request() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(DEFAULT_FILE);
        StateFile::check_place(&path, false).unwrap();
        fs::write(&path, "{}").unwrap();
        assert!(StateFile::check_place(&path, false).is_err());
        StateFile::check_place(&path, true).unwrap();
        assert!(StateFile::read(&path).is_err());
    }
}
