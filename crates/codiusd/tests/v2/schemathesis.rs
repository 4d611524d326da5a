//! A fuzzer that reads the document and makes requests of it, right ones and wrong ones
//! (<https://schemathesis.io>): the host answers each as the document says, and never with a fault of
//! its own.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use codius_testkit::python::Venv;
use serde_json::Value;

use crate::{
    caller::{Call, Caller},
    document,
    support::{Settings, World},
};

const VENV: Venv<'_> = Venv {
    packages: &[("schemathesis", "4.32.5"), ("hypothesis", "6.170.17")],
};
/// Requests that are made up for each operation, beside those that its schema implies.
const MAX_EXAMPLES: &str = "40";
/// All that there is to check of an answer, but:
///
/// - whether every request that fits its schema is accepted: what a manifest is, is more than its
///   schema says;
/// - what is about resources that come and go, since nothing is paid for here;
/// - for version 1, what the original did not do, which had no schema: it answers 404 to methods that it
///   does not have, and does not look at all that it is sent.
const CONFIG: &str = r#"
[checks]
positive_data_acceptance.enabled = false
ignored_auth.enabled = false
use_after_free.enabled = false
ensure_resource_availability.enabled = false
object_level_authorization.enabled = false

[[operations]]
include-tag = ["v1", "payment pointers"]
checks.unsupported_method.enabled = false
checks.allow_header_conformance.enabled = false
checks.negative_data_rejection.enabled = false
checks.missing_required_header.enabled = false
"#;

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_no_fault() -> Result<()> {
    let world = World::start(Settings::default())?;
    let image = world.busybox().await?;
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = VENV.install(&cache)?;

    // The example of a manifest becomes one that this host can run, so that requests come as far as to
    // the demand for money.
    let mut document = document::document().to_string();
    let example = document::document()["paths"]["/pods"]["post"]["requestBody"]["content"]
        ["application/json"]["example"]["manifest"]["containers"][0]["image"]
        .as_str()
        .context("the document has no example of a manifest")?
        .to_owned();
    document = document.replace(&example, &image);
    let given: Value = serde_json::from_str(&document)?;
    let creation = &given["paths"]["/api/v2/leases"]["post"]["requestBody"]["content"];
    let creation = Call::post("/api/v2/leases", &creation["application/json"]["example"]);
    let demand = Caller::new(&world, 1)?.send(&creation.with_token()).await?;
    ensure!(
        demand.status == 402,
        "the example cannot be run: {demand:?}"
    );

    let place = tempfile::tempdir()?;
    let (path, config) = (
        place.path().join("openapi.json"),
        place.path().join("schemathesis.toml"),
    );
    std::fs::write(&path, document)?;
    std::fs::write(&config, CONFIG)?;

    let program = "from schemathesis.cli import schemathesis; schemathesis()";
    let output = Command::new(python)
        .args(["-c", program])
        .arg("--config-file")
        .arg(&config)
        .arg("run")
        .arg(&path)
        .args(["--url", &world.api])
        .args(["--phases", "examples,coverage,fuzzing"])
        .args(["--max-examples", MAX_EXAMPLES, "--seed", "1"])
        .args(["--generation-database", "none", "--request-timeout", "20"])
        .args(["--no-color", "--suppress-health-check", "all"])
        .current_dir(place.path())
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let operations = document::document()["paths"]
        .as_object()
        .into_iter()
        .flat_map(|paths| paths.values())
        .flat_map(|path| path.as_object().into_iter().flat_map(|item| item.keys()))
        .filter(|member| *member != "parameters")
        .count();
    let selected = format!("{operations} selected / {operations} total");
    ensure!(text.contains(&selected), "not {selected}:\n{text}");
    println!("{text}");
    Ok(())
}
