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

/// How often, and how soon after each other, something is looked for that comes by itself.
const LOOKS: usize = 300;
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

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

/// What has to come back over all ways together, to the unit.
const PRICE_OF_600_SECS: u64 = 2_283_106;

#[tokio::test]
async fn an_uploader_draws_what_is_due_to_him_and_sees_it_before() -> Result<()> {
    let mut world = World::start(Settings::default())?;
    let busybox = world.busybox().await?;
    let uploader = Uploader::new(&manifest(&busybox, "sleep 3"))?;
    let host = world.api.clone();
    let upload = ["upload", "-y", "-o", "--json", "--host", &host, "-d", "600"];

    // Given a program that has ended by itself before its time,
    let uploaded = uploader.run(&world, &upload).await?;
    ensure!(uploaded.code == Some(0), "{uploaded:#?}");
    let hash = uploaded.json()?["manifestHash"].clone();
    let hash = hash.as_str().context("no hash")?;
    let look = ["status", hash, "--json"];
    let status = ended(&uploader, &world, hash).await?;
    let units = |value: &Value| -> Result<u64> {
        let text = value.as_str();
        Ok(text.with_context(|| format!("{value:#}"))?.parse()?)
    };
    let due = units(&status["refund"]["due"])?;
    ensure!(due > 0 && due < PRICE_OF_600_SECS, "{status:#}");
    let shown = uploader.run(&world, &["status", hash]).await?;
    ensure!(shown.out.contains("  due         0.00"), "{shown:#?}");
    ensure!(shown.out.contains("codius refund"), "{shown:#?}");

    // then nobody else gets what is due, and a pointer that no host pays is refused;
    let home = tempfile::tempdir()?;
    let named = ["refund", hash, "--host", &host];
    let stranger = uploader.run_at(&world, home.path(), &named).await?;
    ensure!(stranger.code == Some(4), "{stranger:#?}");
    let wrong = [&named[..], &["--to", "$10.0.0.1"]].concat();
    let refused = uploader.run(&world, &wrong).await?;
    ensure!(refused.code == Some(4), "{refused:#?}");

    // its owner can have it sent to a pointer, and sees that this one does not work;
    let nobody = "http://127.0.0.1:1/";
    let sent = uploader.run(&world, &["refund", "--to", nobody]).await?;
    ensure!(sent.code == Some(0), "{sent:#?}");
    let to = format!("the host sends it to {nobody}");
    ensure!(sent.out.contains(&to), "{sent:#?}");
    let mut tried = Value::Null;
    for _ in 0..LOOKS {
        tried = uploader.run(&world, &look).await?.json()?;
        if tried["refund"]["trouble"].is_string() {
            break;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let asked = format!("{nobody}.well-known/pay");
    ensure!(tried["refund"]["to"] == asked, "{tried:#}");
    ensure!(tried["refund"]["trouble"].is_string(), "{tried:#}");
    let shown = uploader.run(&world, &["status", hash]).await?;
    ensure!(shown.out.contains("  last try "), "{shown:#?}");

    // and he gets it over his own connection, once.
    let drawn = uploader.run(&world, &["refund", "--json"]).await?;
    ensure!(drawn.code == Some(0), "{drawn:#?}");
    let drawn = drawn.json()?;
    let of = &drawn["hosts"][0];
    ensure!(units(&of["received"])? == due, "{drawn:#}");
    ensure!(
        of["owed"] == "0" && of["refunded"] == of["received"],
        "{drawn:#}"
    );
    let again = uploader.run(&world, &["refund"]).await?;
    ensure!(again.code == Some(0), "{again:#?}");
    ensure!(again.out == "nothing is due\n", "{again:#?}");
    let shown = uploader.run(&world, &["status", hash]).await?;
    ensure!(shown.out.contains("  went back   0.00"), "{shown:#?}");
    ensure!(!shown.out.contains("  due "), "{shown:#?}");

    // What a stop has left with the host is found again without a name.
    let uploaded = uploader.run(&world, &upload).await?;
    ensure!(uploaded.code == Some(0), "{uploaded:#?}");
    let stopped = uploader.run(&world, &["stop", "-y", "--no-refund"]).await?;
    ensure!(stopped.code == Some(0), "{stopped:#?}");
    ensure!(
        stopped.out.contains("codius refund gets it"),
        "{stopped:#?}"
    );
    fs::remove_file(uploader.place.path().join("default.codiusstate.json"))?;
    let all = uploader.run(&world, &["refund", "--all", "--json"]).await?;
    ensure!(all.code == Some(0), "{all:#?}");
    let all = all.json()?;
    let second = units(&all["hosts"][0]["received"])?;
    ensure!(second > 0 && all["failed"] == json!([]), "{all:#}");
    let none = uploader.run(&world, &["refund", "--all"]).await?;
    ensure!(none.out == "nothing is due\n", "{none:#?}");

    // Then the books hold nothing of his.
    world.stop()?;
    let balances = world.balances().await?;
    let earned = i64::try_from(2 * PRICE_OF_600_SECS - due - second)?;
    let expected = [
        ("local:clients".to_owned(), -earned),
        ("earned".to_owned(), earned),
    ];
    ensure!(balances == expected, "{balances:?}");
    Ok(())
}

/// How a program stands once it has ended.
async fn ended(uploader: &Uploader, world: &World, hash: &str) -> Result<Value> {
    for _ in 0..LOOKS {
        let status = uploader.run(world, &["status", hash, "--json"]).await?;
        let status = status.json()?;
        if status["state"] == "ended" {
            return Ok(status);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    anyhow::bail!("it has not ended\n{}", world.log())
}

impl Uploader {
    /// With this on its standard input.
    async fn feed(&self, world: &World, words: &[&str], input: Vec<u8>) -> Result<Told> {
        use std::io::Write;
        let mut tool = Command::new(&self.tool);
        tool.args(words)
            .env_clear()
            .env("HOME", self.place.path())
            .env("ILP_BTP_SERVER", &world.interledger)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = tokio::task::spawn_blocking(move || -> Result<_> {
            let mut child = tool.spawn()?;
            let mut stdin = child.stdin.take().context("no input")?;
            stdin.write_all(&input)?;
            drop(stdin);
            Ok(child.wait_with_output()?)
        });
        let output = output.await??;
        Ok(Told {
            code: output.status.code(),
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }

    /// The container of this name, when it is as it should be.
    async fn container(
        &self,
        world: &World,
        hash: &str,
        name: &str,
        enough: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let words = ["status", hash, "--host", &world.api, "--json"];
        let mut seen = Value::Null;
        for _ in 0..LOOKS {
            let told = self.run(world, &words).await?.json()?;
            let containers = told["containers"].as_array().cloned().unwrap_or_default();
            let found = containers.into_iter().find(|one| one["container"] == name);
            if let Some(container) = found {
                if enough(&container) {
                    return Ok(container);
                }
                seen = container;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        anyhow::bail!("container {name} stays {seen}")
    }
}

/// Given a pod of which one program crashes again and again, when its owner looks and goes in, then he sees how
/// often and why, and is in his container with his terminal, also after the host was killed.
#[tokio::test]
async fn an_owner_sees_crashes_and_goes_into_his_containers() -> Result<()> {
    let mut world = World::start(Settings::default())?;
    let image = world.busybox().await?;
    let mut crash = shell("crash", &image, "echo try; exit 3");
    crash["restart"] = json!("on-failure");
    let mut manifest = manifest(&image, "while :; do sleep 1; done");
    manifest["containers"]
        .as_array_mut()
        .context("a list")?
        .push(crash);
    let uploader = Uploader::new(&manifest)?;
    let api = world.api.clone();
    let host = api.as_str();
    let words = ["upload", "-y", "--json", "-d", "600", "--host", host];
    let uploaded = uploader.run(&world, &words).await?.json()?;
    let hash = uploaded["manifestHash"]
        .as_str()
        .context("no hash")?
        .to_owned();
    let hash = hash.as_str();
    let exec =
        |words: &'static [&'static str]| [&["exec", hash, "--host", host][..], words].concat();

    // How it crashes.
    let restarted = |times: u64| move |one: &Value| one["restarts"].as_u64() >= Some(times);
    let crash = uploader
        .container(&world, hash, "crash", restarted(1))
        .await?;
    ensure!(
        crash["last_exit"] == json!({ "reason": "exit_code", "code": 3 }),
        "{crash}"
    );
    let waiting = |one: &Value| one["state"] == "waiting";
    let crash = uploader.container(&world, hash, "crash", waiting).await?;
    ensure!(
        crash["crash_loop"] == true && crash["next_try"].is_string(),
        "{crash}"
    );
    let in_words = uploader
        .run(&world, &["status", hash, "--host", host])
        .await?;
    ensure!(
        in_words.out.contains("crash: ") && in_words.out.contains("exit code 3"),
        "{in_words:#?}"
    );
    let logs = uploader
        .run(&world, &["logs", hash, "--host", host])
        .await?;
    ensure!(
        logs.out
            .contains("codius: the program ended with exit code 3; it is started again in"),
        "{logs:#?}"
    );

    // Output, error output and exit code; what cannot be run.
    let told = uploader
        .run(
            &world,
            &exec(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"]),
        )
        .await?;
    ensure!(
        told.code == Some(7) && told.out == "out\n" && told.err == "err\n",
        "{told:#?}"
    );
    let told = uploader
        .run(&world, &exec(&["--", "no-such-program"]))
        .await?;
    ensure!(
        told.code == Some(127) && told.err.contains("no program"),
        "{told:#?}"
    );
    let told = uploader
        .run(&world, &exec(&["--", "sh", "-c", "kill -9 $$"]))
        .await?;
    ensure!(told.code == Some(137), "{told:#?}");
    let told = uploader
        .run(&world, &exec(&["--container", "web", "--", "true"]))
        .await?;
    ensure!(
        told.code == Some(5) && told.err.contains("one of app, crash"),
        "{told:#?}"
    );

    // More input and output than any buffer on the way holds.
    let input: Vec<u8> = (0..600_000_u32)
        .flat_map(|n| [b'a' + u8::try_from(n % 26).unwrap_or(0)])
        .collect();
    let told = uploader
        .feed(
            &world,
            &exec(&["--interactive", "--", "cat"]),
            input.clone(),
        )
        .await?;
    ensure!(
        told.code == Some(0) && told.err.is_empty(),
        "{:?} {}",
        told.code,
        told.err
    );
    ensure!(
        told.out.as_bytes() == input,
        "{} bytes came back",
        told.out.len()
    );

    // Nobody else.
    let stranger = tempfile::tempdir()?;
    let words = exec(&["--", "true"]);
    let told = uploader.run_at(&world, stranger.path(), &words).await?;
    ensure!(told.code == Some(4), "{told:#?}");

    // This terminal, which is as it was when it is over.
    let line = format!(
        "stty rows 33 cols 91; stty -a >before; {} exec {hash} --host {host} -it -- sh -c 'tty; stty size; exit 9'; \
         echo code $?; stty -a >after; cmp before after && echo same",
        uploader.tool.display()
    );
    let mut script = Command::new("script");
    script
        .args(["-q", "-c", &line, "/dev/null"])
        .current_dir(uploader.place.path())
        .env("HOME", uploader.place.path())
        .stdin(Stdio::null());
    let shown = tokio::task::spawn_blocking(move || script.output()).await??;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for part in ["/dev/pts/0\r\n", "33 91\r\n", "code 9\r\n", "same\r\n"] {
        ensure!(shown.contains(part), "{part:?} in {shown:?}");
    }

    // Another process of the host knows it all, and carries sessions.
    let before = uploader
        .container(&world, hash, "crash", restarted(2))
        .await?;
    world.kill()?;
    world.run()?;
    // It listens elsewhere.
    let api = world.api.clone();
    let host = api.as_str();
    let exec =
        |words: &'static [&'static str]| [&["exec", hash, "--host", host][..], words].concat();
    let times = before["restarts"].as_u64().unwrap_or(u64::MAX);
    let crash = uploader
        .container(&world, hash, "crash", restarted(times))
        .await?;
    ensure!(crash["last_exit"]["code"] == 3, "{crash}");
    let app = uploader
        .container(&world, hash, "app", |one| one["state"] == "running")
        .await?;
    ensure!(app["restarts"] == 0 && app["since"].is_string(), "{app}");
    let told = uploader
        .run(&world, &exec(&["--", "echo", "again"]))
        .await?;
    ensure!(told.code == Some(0) && told.out == "again\n", "{told:#?}");

    let words = ["stop", hash, "--host", host, "-y", "--no-refund"];
    let stopped = uploader.run(&world, &words).await?;
    ensure!(stopped.code == Some(0), "{stopped:#?}");
    let told = uploader.run(&world, &exec(&["--", "true"])).await?;
    ensure!(
        told.code == Some(4) && told.err.contains("does not run"),
        "{told:#?}"
    );
    Ok(())
}
