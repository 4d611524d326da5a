//! The `codius` tool at a real host: what an uploader does from the first look to the money that comes
//! back.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use support::{Settings, World, hash_of, shell};

/// A directory to work in and a home with the uploader's key.
struct Uploader {
    place: tempfile::TempDir,
    tool: PathBuf,
}

/// What the tool has said.
#[derive(Debug)]
struct Told {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Told {
    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("{self:#?}"))
    }
}

impl Uploader {
    fn new(manifest: &Value) -> Result<Self> {
        let tool = Path::new(env!("CARGO_BIN_EXE_codiusd")).with_file_name("codius");
        ensure!(
            tool.is_file(),
            "{} is missing; run `cargo build -p codius`",
            tool.display()
        );
        let place = tempfile::tempdir()?;
        let file = json!({ "manifest": manifest });
        fs::write(place.path().join("codius.json"), file.to_string())?;
        Ok(Self { place, tool })
    }

    async fn run(&self, world: &World, words: &[&str]) -> Result<Told> {
        self.run_at(world, self.place.path(), words).await
    }

    /// With the key of another home.
    async fn run_at(&self, world: &World, home: &Path, words: &[&str]) -> Result<Told> {
        let mut tool = Command::new(&self.tool);
        tool.args(words)
            .current_dir(self.place.path())
            .env_clear()
            .env("HOME", home)
            .env("ILP_BTP_SERVER", &world.interledger)
            .stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || tool.output()).await??;
        Ok(Told {
            code: output.status.code(),
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }
}

fn manifest(image: &str, script: &str) -> Value {
    json!({
        "name": "tool", "version": "1", "machine": "small",
        "containers": [shell("app", image, script)]
    })
}

#[tokio::test]
async fn a_price_is_shown_and_nothing_is_bought_without_a_yes() -> Result<()> {
    let world = World::start(Settings::default())?;
    let manifest = manifest(&world.busybox().await?, "true");
    let uploader = Uploader::new(&manifest)?;
    let host = world.api.as_str();
    let asked = uploader.run(&world, &["upload", "--host", host]).await?;
    ensure!(asked.code == Some(2), "{asked:#?}");
    let hash = hash_of(&json!({ "manifest": manifest }).to_string());
    for line in [
        format!("  hash        {hash}\n"),
        "  price       0.002283106 XRP\n".to_owned(),
        "  isolation   tcg\n".to_owned(),
    ] {
        ensure!(asked.err.contains(&line), "{line} {asked:#?}");
    }
    for limit in [["--max-price", "0.002283105"], ["-m9.9", "-uXRP"]] {
        let words = [&["upload", "-y", "--host", host][..], &limit].concat();
        let refused = uploader.run(&world, &words).await?;
        ensure!(refused.code == Some(3), "{refused:#?}");
        ensure!(refused.err.contains("over the limit"), "{refused:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_uploader_owns_what_he_has_paid_and_gets_back_what_he_has_not_used() -> Result<()> {
    let world = World::start(Settings::default())?;
    let script = "echo hello from here; echo over there >&2; sleep 1000";
    let uploader = Uploader::new(&manifest(&world.busybox().await?, script))?;
    let host = world.api.as_str();

    let words = ["upload", "-y", "--json", "--host", host, "-d", "600"];
    let uploaded = uploader.run(&world, &words).await?;
    ensure!(uploaded.code == Some(0), "{uploaded:#?}");
    let uploaded = uploaded.json()?;
    let hash = uploaded["manifestHash"].as_str().context("no hash")?;
    ensure!(uploaded["paid"] == "2283106", "{uploaded:#}");

    let at = ["--host", host];
    let status = uploader
        .run(&world, &[&["status", hash, "--json"][..], &at].concat())
        .await?
        .json()?;
    ensure!(status["state"] == "running", "{status:#}");
    ensure!(status["owner"].is_string(), "{status:#}");

    let mut logs = Told {
        code: None,
        out: String::new(),
        err: String::new(),
    };
    for _ in 0..50 {
        logs = uploader
            .run(&world, &[&["logs", hash][..], &at].concat())
            .await?;
        if logs.out.lines().count() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(
        logs.out.contains("_app stdout hello from here\n"),
        "{logs:#?}"
    );
    ensure!(logs.out.contains("_app stderr over there\n"), "{logs:#?}");

    // Somebody else has another key.
    let home = tempfile::tempdir()?;
    for words in [&["logs", hash][..], &["stop", "-y", hash]] {
        let words = [words, &at].concat();
        let stranger = uploader.run_at(&world, home.path(), &words).await?;
        ensure!(stranger.code == Some(4), "{stranger:#?}");
    }

    let extended = uploader
        .run(&world, &["extend", "-y", "--json", "-d", "300"])
        .await?;
    ensure!(extended.code == Some(0), "{extended:#?}");
    ensure!(extended.json()?["paid"] == "1141553", "{extended:#?}");

    // Without a name it is the program of the state file.
    let stopped = uploader.run(&world, &["stop", "-y", "--json"]).await?;
    ensure!(stopped.code == Some(0), "{stopped:#?}");
    let stopped = stopped.json()?;
    let amount = |member: &str| -> Result<u64> {
        let text = stopped["hosts"][0][member].as_str();
        Ok(text.with_context(|| format!("{stopped:#}"))?.parse()?)
    };
    let (used, received) = (amount("used")?, amount("received")?);
    ensure!(used > 0 && received > 0, "{stopped:#}");
    ensure!(used + received == 2_283_106 + 1_141_553, "{stopped:#}");
    ensure!(amount("owed")? == 0, "{stopped:#}");
    let ended = uploader
        .run(&world, &[&["status", hash, "--json"][..], &at].concat())
        .await?
        .json()?;
    ensure!(ended["state"] == "ended", "{ended:#}");
    ensure!(ended["ended"]["reason"] == "stopped", "{ended:#}");
    Ok(())
}
