//! A fuzzer that reads the document and makes requests of it, right ones and wrong ones
//! (<https://schemathesis.io>): the host answers each as the document says, and never with a fault of
//! its own.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use codius_testkit::python::Venv;

use crate::{
    document,
    support::{Settings, World},
};

const VENV: Venv<'_> = Venv {
    packages: &[("schemathesis", "4.32.5")],
};
/// What is checked of each answer. Not whether every request that fits its schema is accepted: what a
/// manifest is, is more than its schema says.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,\
                      negative_data_rejection,missing_required_header,unsupported_method,\
                      allow_header_conformance";
/// Requests that are made up for each operation, beside those that its schema implies.
const MAX_EXAMPLES: &str = "40";
/// Version 1 does what the original did, which had no schema: it answers 404 to methods that it does not
/// have, and does not look at all that it is sent.
const CONFIG: &str = r#"
[[operations]]
exclude-path-regex = "^/api/"
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
        .args(["--url", &world.api, "--checks", CHECKS])
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
    // It has looked at every operation.
    println!("{text}");
    Ok(())
}
