//! Unmodified JavaScript programs from npm at our port 7768, as at that of moneyd.
//!
//! Every script runs twice, each time in a network of its own: beside the real `moneyd local`, which
//! shows that the script is right, and beside the real `codiusd --local`. The results are the same but
//! for the differences that are listed here by name. Needs root, for the networks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use codius_testkit::{
    Background, Listen, Moneyd, NetworkNamespace, Packages,
    moneyd::{MONEYD, MONEYD_OVERRIDE},
};
use serde_json::{Map, Value, json};

/// Exactly these were looked at. Of `ilp-protocol-stream`, this is the first that runs on Node.js 18.
const STREAM: (&str, &str) = ("ilp-protocol-stream", "2.7.2-alpha.3");
const PACKAGES: Packages<'_> = Packages {
    packages: &[
        MONEYD,
        STREAM,
        ("ilp-plugin", "3.5.4"),
        ("ilp-plugin-btp", "1.5.0"),
        ("ilp-protocol-ildcp", "2.2.3"),
        ("ilp-protocol-spsp", "3.0.0"),
        ("ilp-fetch", "1.4.0"),
        ("ws", "7.5.10"),
    ],
    overrides: &[MONEYD_OVERRIDE, STREAM],
};
const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(240);

fn node_modules() -> Result<PathBuf> {
    PACKAGES.install(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// Runs a script of `tests/node` to its end, and gives what it printed.
fn run_script(
    network: &NetworkNamespace,
    modules: &Path,
    name: &str,
    arguments: &[&str],
) -> Result<Map<String, Value>> {
    let mut node = network.command("node");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node");
    node.arg(script.join(name))
        .args(arguments)
        .env("NODE_PATH", modules);
    for inherited in ["ILP_PLUGIN", "ILP_CREDENTIALS", "ILP_BTP_SERVER"] {
        node.env_remove(inherited);
    }
    let running = Background::start(&node, Listen::Output)?;
    let line = running.line(SCRIPT_TIMEOUT)?;
    running.wait(STOP_TIMEOUT)?;
    let Value::Object(result) = serde_json::from_str(&line)? else {
        bail!("{name} printed {line}");
    };
    Ok(result)
}

/// `codiusd --local` with the ports it has by default, in a network of its own.
struct Host {
    network: NetworkNamespace,
    program: Background,
    data: tempfile::TempDir,
}

impl Host {
    fn start(settings: &str) -> Result<Self> {
        let network = NetworkNamespace::new()?;
        let data = tempfile::Builder::new()
            .prefix("codius-interop-")
            .tempdir()?;
        let config = data.path().join("codiusd.toml");
        fs::write(
            &config,
            format!(
                "[pods]\naccelerator = \"tcg\"\nwarm = false\non_shutdown = \"stop\"\n{settings}"
            ),
        )?;
        let mut command = network.command(env!("CARGO_BIN_EXE_codiusd"));
        command
            .arg("--local")
            .arg("--config")
            .arg(&config)
            .arg("--data-dir")
            .arg(data.path().join("data"))
            .env("RUST_LOG", "info");
        let program = Background::start(&command, Listen::Output)?;
        let ready = program.line(START_TIMEOUT)?;
        ensure!(
            ready.contains("interledger=btp+ws://127.0.0.1:7768"),
            "{ready}"
        );
        Ok(Self {
            network,
            program,
            data,
        })
    }

    /// Ends it and looks into its books: they add up, and play money is nobody's gain.
    async fn end(self) -> Result<()> {
        self.program.terminate(STOP_TIMEOUT)?;
        let store = codius_store::Store::open(&self.data.path().join("data/codius.db"))?;
        store.verify().await?;
        let balances = store.balances().await?;
        store.close().await;
        ensure!(
            balances.iter().all(|(_, balance)| *balance == 0),
            "{balances:?}"
        );
        Ok(())
    }
}

/// What the script sees at moneyd, and at ours.
async fn at_both(script: &str, settings: &str) -> Result<[Map<String, Value>; 2]> {
    let modules = node_modules()?;
    let original = {
        let network = NetworkNamespace::new()?;
        let _moneyd = Moneyd::local(&network, &modules)?;
        run_script(&network, &modules, script, &[]).context("at moneyd")?
    };
    let host = Host::start(settings)?;
    let ours = run_script(&host.network, &modules, script, &[])
        .with_context(|| format!("at codiusd, which said:\n{}", host.program.errors()))?;
    host.end().await?;
    Ok([original, ours])
}

/// Checks that both are the same, but for the differences: name, moneyd's result, ours.
fn compare(
    original: &Map<String, Value>,
    ours: &Map<String, Value>,
    differences: &[(&str, Value, Value)],
) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, theirs) in original {
        let expected = differences.iter().find(|(case, _, _)| case == name);
        let (expected_theirs, expected_ours) =
            expected.map_or((theirs, theirs), |(_, theirs, ours)| (theirs, ours));
        let found = ours.get(name).unwrap_or(&Value::Null);
        if theirs != expected_theirs {
            wrong.push(format!("{name}: moneyd now says {theirs}"));
        }
        if found != expected_ours {
            wrong.push(format!("{name}: {found} instead of {expected_ours}"));
        }
    }
    wrong.extend(
        ours.keys()
            .filter(|name| !original.contains_key(*name))
            .cloned(),
    );
    wrong.extend(
        differences
            .iter()
            .filter(|(name, _, _)| !original.contains_key(*name))
            .map(|(name, _, _)| format!("{name}: no such case")),
    );
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[tokio::test]
async fn programs_get_along_with_us_as_with_moneyd() -> Result<()> {
    let [original, ours] = at_both("stack.js", "").await?;
    let who = |parent: &str, name: &str| json!([parent, name, "XRP", 9]);
    let moneyd = |name: &str| who("private.moneyd.local", name);
    let codius = |name: &str| who("private.codius.local", name);
    // User names and hashes of tokens are apart, so that nobody can take another's address.
    let differences = [
        ("ilp-plugin by default", moneyd("HASH"), codius("t-HASH")),
        ("ilp-plugin with a name", moneyd("shop"), codius("u-shop")),
        (
            "ilp-plugin and ILP_BTP_SERVER",
            moneyd("HASH"),
            codius("t-HASH"),
        ),
        (
            "ilp-plugin and ILP_CREDENTIALS",
            moneyd("HASH"),
            codius("t-HASH"),
        ),
        (
            "ilp-plugin-btp with account and token",
            moneyd("mill"),
            codius("u-mill"),
        ),
    ];
    compare(&original, &ours, &differences)?;
    // What is the same must be right, too.
    let payment = &ours["a payment"];
    ensure!(
        [
            &payment["sent"],
            &payment["delivered"],
            &payment["received"]
        ] == ["1000"; 3],
        "{payment}"
    );
    ensure!(ours["money both ways in one connection"] == json!(["700", "300", "700", "300"]));
    ensure!(ours["data both ways"] == json!([true, true]));
    let many = &ours["a large payment in many packets"];
    ensure!(
        many["many"] == true && many["received"] == 2_000_000,
        "{many}"
    );
    Ok(())
}

#[tokio::test]
async fn every_case_of_btp_is_answered_as_by_moneyd_or_better() -> Result<()> {
    let [original, ours] = at_both("btp_probe.js", "").await?;
    let by = |code: &str| json!(format!("reject {code} by the connector"));
    let by_account = |code: &str| json!(format!("reject {code} by private.moneyd.local"));
    let outcome = |answers: &[&str], then: &str| json!({ "answers": answers, "then": then });
    let not_accepted = "BTP error F00 NotAcceptedError";
    let fulfilled = "fulfill \"\"";
    let differences = [
        (
            "connector",
            json!("private.moneyd"),
            json!("private.codius"),
        ),
        // User names and hashes of tokens are apart, so that nobody can take another's address.
        (
            "address of a token",
            json!("PARENT.HASH"),
            json!("PARENT.t-HASH"),
        ),
        (
            "address of a user name",
            json!("PARENT.alice"),
            json!("PARENT.u-alice"),
        ),
        (
            "a token whose hash is taken as a user name",
            json!("kept out"),
            json!("let in"),
        ),
        // We remember no tokens: the newest connection of a name wins, and is the only one.
        (
            "a user name with another token",
            json!("kept out"),
            json!("let in"),
        ),
        (
            "two connections with one token",
            json!([fulfilled, 2, ["open", "open"]]),
            json!([fulfilled, 1, ["closed", "open"]]),
        ),
        (
            "an empty token",
            outcome(&[not_accepted], "closed"),
            outcome(&["BTP response with []"], "open"),
        ),
        // We have no cache that answers a packet with the Fulfill of another.
        (
            "the same packet twice at once",
            json!([fulfilled, fulfilled, 1]),
            json!([fulfilled, fulfilled, 2]),
        ),
        // A packet has a greatest amount here.
        ("the greatest amount", json!(fulfilled), by("F08")),
        // The address is the connector's own, not one that no packet could be sent to.
        ("a Fulfill that does not fit", by_account("F05"), by("F05")),
        (
            "configuration with another condition",
            by_account("F00"),
            by("F00"),
        ),
        // A payee that leaves is noticed at once, and the payer may try again.
        (
            "the payee leaves instead of answering",
            by("R00"),
            by("T01"),
        ),
        // Taken for a request of the payee, as interledger-rs writes them.
        ("a Prepare for an answer", by("F00"), by("R00")),
        ("the payer itself", json!("reject F99 by nobody"), by("F02")),
        (
            "an address that is too long",
            by("F00"),
            json!(not_accepted),
        ),
        // A frame that cannot be read says nothing about the next one.
        (
            "a frame of another type",
            outcome(&[], "closed"),
            outcome(&[], "XRP"),
        ),
        (
            "a frame that is cut off",
            outcome(&[], "closed"),
            outcome(&[], "XRP"),
        ),
    ];
    compare(&original, &ours, &differences)
}

#[tokio::test]
async fn a_payment_through_a_narrow_path_goes_in_many_packets() -> Result<()> {
    let modules = node_modules()?;
    let host = Host::start("[interledger]\nmax_packet_amount = 1000\n")?;
    let paid = run_script(&host.network, &modules, "narrow.js", &[])?;
    host.end().await?;
    ensure!(
        paid["sent"] == "300000" && paid["delivered"] == "300000" && paid["received"] == "100000",
        "{paid:?}"
    );
    ensure!(paid["packets"].as_u64() >= Some(300), "{paid:?}");
    ensure!(paid["tooLarge"].as_u64() >= Some(1), "{paid:?}");
    Ok(())
}
