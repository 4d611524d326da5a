//! `codius upload`: choose hosts, quote, ask, pay, wait, tell.

use codius_manifest::source::Generated;
use futures_util::future::join_all;

use crate::{
    candidates::{Said, candidates},
    choice::{Choice, Wish, choose, fill, too_few},
    command::UploadArguments,
    failure::{Failure, USAGE},
    key::Key,
    offer::LeftOut,
    plan::Plan,
    pod_record::{self, Pod},
    project::{Nonces, Project, title},
    purchase::{Order, Placed, buy, own_asset},
    report,
    state_file::{Bought, Options, StateFile, units_of},
    tail,
};

pub(crate) async fn upload(arguments: UploadArguments) -> Result<(), Failure> {
    let payment = &arguments.payment;
    let project = Project {
        codius_file: arguments.codius_file.clone(),
        vars_file: arguments.codius_vars_file.clone(),
    };
    let state_path = &arguments.codius_state_file;
    StateFile::check_place(state_path, arguments.overwrite_codius_state)?;
    project.offer_example(payment.assume_yes).await?;
    let key = Key::open(arguments.key.key_file.as_deref())?;
    let signer = key.signer();
    let generated = generate(&arguments, &project, key)?;

    let candidates = candidates(Said {
        hosts: &arguments.host,
        count: arguments.host_count.map(usize::from),
        hosts_file: &arguments.codius_hosts_file,
        bootstrap: &arguments.bootstrap,
    })
    .await?;
    let ceiling = payment.ceiling(None);
    let wallet = payment.wallet().await?;
    let mut wish = Wish {
        document: generated.document().clone(),
        hash: generated.hash(),
        duration_secs: arguments.duration,
        ceiling: &ceiling,
        wallet: &wallet,
        signer: &signer,
        timeout: payment.timeout(),
        extends: false,
        refund_to: arguments.refund_to.as_deref(),
    };
    let mut choice = choose(&candidates, &wish).await?;
    let mut posted = generated.clone();
    if arguments.add_host_env {
        (posted, choice) = with_hosts(&generated, choice, &mut wish).await?;
    }

    let mut plan = Plan::default();
    plan.line("program", title(posted.document()));
    plan.line("hash", wish.hash.to_string());
    plan.hosts(
        &choice.chosen,
        &ceiling,
        arguments.duration,
        !choice.spare.is_empty(),
    );
    if choice.chosen.iter().any(|offer| offer.runs) {
        plan.warn("It runs there already: this adds time.");
    }
    plan.warn("The manifest is public; private variables are not.");
    if arguments.debug {
        plan.warn("What the program writes will be public.");
    }
    plan.confirm("Upload this program?", payment.assume_yes)
        .await?;

    let mut state = StateFile::new(state_path.clone(), posted.document());
    if let Some(first) = choice.chosen.first() {
        let (rate, units) = ceiling.as_rate(&first.look.asset, arguments.duration);
        state.set_options(&Options {
            rate,
            units,
            duration_secs: arguments.duration,
        });
    }
    let own = own_asset(&wallet);
    let units = units_of(&own.code, own.scale);
    let mut record = |placed: &Placed| remember(&mut state, placed, &units);
    let mut purchases = buy(
        Order::Upload,
        choice.chosen,
        choice.spare,
        &wish,
        &mut record,
    )
    .await;

    let hosts: Vec<_> = purchases
        .placed
        .iter()
        .map(|one| one.host.clone())
        .collect();
    let failure = if payment.json {
        let state_file = (!hosts.is_empty()).then_some(state_path.as_path());
        let whole = report::in_json(
            &wish.hash,
            &purchases,
            &choice.left_out,
            &wallet,
            state_file,
        );
        println!("{whole:#}");
        purchases.failure(&wish.hash, &wallet)
    } else {
        report::in_words(&purchases, &wallet);
        purchases.failure(&wish.hash, &wallet)
    };
    if let Some(failure) = failure {
        return Err(failure);
    }
    if arguments.tail {
        return tail::follow(&hosts, &wish.hash, payment.json).await;
    }
    Ok(())
}

fn generate(
    arguments: &UploadArguments,
    project: &Project,
    key: Key,
) -> Result<Generated, Failure> {
    let nonces = match arguments.random_nonce {
        true => Nonces::Random,
        false => Nonces::Derived(key),
    };
    let mut generated = project.generate(&nonces)?;
    if arguments.debug {
        generated.set_debug();
    }
    Ok(generated)
}

/// Puts the chosen hosts into the manifest, which makes another program of it: every host is quoted
/// again, and one that says no now is left out like any other. There is no spare host afterwards,
/// because its name is not in the manifest.
async fn with_hosts(
    generated: &Generated,
    mut choice: Choice,
    wish: &mut Wish<'_>,
) -> Result<(Generated, Choice), Failure> {
    let count = choice.chosen.len();
    let plain = wish.clone();
    loop {
        let hosts: Vec<_> = choice
            .chosen
            .iter()
            .map(|offer| offer.look.origin().to_owned())
            .collect();
        let mut posted = generated.clone();
        posted.add_hosts(&hosts).ok_or_else(|| {
            Failure::new(USAGE, "a container has HOSTS in its environment already")
                .note("Next: remove it there, or leave --add-host-env out.")
        })?;
        wish.document = posted.document().clone();
        wish.hash = posted.hash();
        let looks: Vec<_> = choice
            .chosen
            .iter()
            .map(|offer| offer.look.clone())
            .collect();
        let answers = join_all(looks.into_iter().map(|look| wish.quote(look))).await;
        let (good, bad): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        if bad.is_empty() {
            choice.chosen = good.into_iter().flatten().collect();
            choice.spare.clear();
            return Ok((posted, choice));
        }
        choice
            .left_out
            .extend(bad.into_iter().filter_map(Result::err));
        let left_out: Vec<String> = choice
            .left_out
            .iter()
            .map(|LeftOut { host, .. }| host.clone())
            .collect();
        choice
            .chosen
            .retain(|offer| !left_out.contains(&offer.look.origin().to_owned()));
        fill(&mut choice, count, &plain).await;
        if choice.chosen.len() < count {
            return Err(too_few(count, count, choice));
        }
    }
}

/// Writes down what was bought, at once: what comes after may fail.
pub(crate) fn remember(state: &mut StateFile, placed: &Placed, units: &str) {
    let url = match &placed.run.url {
        Some(url) => url.clone(),
        // As version 1 answers for a program without a port.
        None => {
            placed
                .host
                .replacen("://", &format!("://{}.", placed.run.hash), 1)
                + "/"
        }
    };
    state.record(&Bought {
        host: &placed.host,
        url: &url,
        expiry: placed.run.expiry,
        paid: report::net(placed),
        units,
    });
    pod_record::bought(Pod::of(
        state.document(),
        state.hash(),
        vec![placed.host.clone()],
    ));
    // The program runs and was paid; that the file is missing must not hide it.
    if let Err(failure) = state.write() {
        eprintln!("codius: {}", failure.message());
    }
}
