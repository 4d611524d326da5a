//! `codius cron`: an hour more every hour, for as long as the machine and its money last.

use std::{collections::VecDeque, env, fs, path::PathBuf};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    amount,
    choice::{Candidates, Wish, choose},
    command::{CronCreateArguments, CronRemoveArguments, CronViewArguments},
    crontab::{Crontab, Jobs, quoted},
    failure::{Failure, USAGE},
    key::Key,
    plan::Plan,
    project::title,
    purchase::{Order, Placed, buy, own_asset},
    question,
    state_file::{StateFile, units_of},
    upload::remember,
};

/// What a job buys each time it runs.
pub(crate) const EXTEND_SECS: u64 = 3600;

pub(crate) async fn create(arguments: CronCreateArguments) -> Result<(), Failure> {
    let payment = &arguments.payment;
    if payment.max_price.is_some() {
        return Err(Failure::new(USAGE, "a job has no --max-price")
            .note("Next: give -m/--max-monthly-rate and -u/--units."));
    }
    let mut state = StateFile::open(&arguments.state.codius_state_file)?;
    let hash = state.hash();
    if !Crontab::load()?.jobs(Jobs::Of(&hash)).is_empty() {
        return Err(
            Failure::new(USAGE, format!("there is a job for {hash} already"))
                .note("Next: codius cron view; codius cron remove."),
        );
    }
    if let Some(buffer_secs) = arguments.buffer_sec {
        fill_buffer(&arguments, &mut state, buffer_secs).await?;
    }
    let now = Timestamp::now();
    let hosts = state.hosts();
    let ended = hosts
        .iter()
        .find(|host| state.expiration(host).is_some_and(|until| until <= now));
    if let Some(host) = ended {
        return Err(Failure::new(USAGE, format!("what {host} ran has ended"))
            .note("Next: codius extend starts it again; then add the job."));
    }

    let command = extend_command(&arguments, &state)?;
    let mut plan = Plan::default();
    plan.line("program", title(state.document()));
    plan.line("hash", hash.to_string());
    for host in &hosts {
        plan.line("host", host.clone());
    }
    plan.line("each hour", command.clone());
    plan.confirm("Add this job?", payment.assume_yes).await?;

    // Read again: the question may have taken long.
    let mut crontab = Crontab::load()?;
    let line = crontab.add_hourly(&command, &hash);
    crontab.save()?;
    let job = json!({
        "job": line,
        "creationDate": now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(),
    });
    state.cron_jobs().push(job.clone());
    state.write()?;
    if payment.json {
        println!("{job:#}");
    } else {
        println!("{line}");
    }
    Ok(())
}

pub(crate) async fn view(arguments: &CronViewArguments) -> Result<(), Failure> {
    let crontab = Crontab::load()?;
    let hash = match arguments.all {
        true => None,
        false => Some(StateFile::open(&arguments.state.codius_state_file)?.hash()),
    };
    let jobs = existing(&crontab, hash.as_ref().map_or(Jobs::All, Jobs::Of))?;
    print(&jobs, arguments.json);
    Ok(())
}

pub(crate) async fn remove(arguments: &CronRemoveArguments) -> Result<(), Failure> {
    let state = match arguments.all {
        true => None,
        false => Some(StateFile::open(&arguments.state.codius_state_file)?),
    };
    let hash = state.as_ref().map(StateFile::hash);
    let which = hash.as_ref().map_or(Jobs::All, Jobs::Of);
    for job in existing(&Crontab::load()?, which)? {
        eprintln!("  {job}");
    }
    question::ask("Remove these jobs?", arguments.assume_yes).await?;
    let mut crontab = Crontab::load()?;
    let jobs = crontab.jobs(which);
    crontab.remove(which);
    crontab.save()?;
    if let Some(mut state) = state {
        state.cron_jobs().clear();
        state.write()?;
    }
    if arguments.json {
        print(&jobs, true);
    } else {
        println!("removed {}", jobs.len());
    }
    Ok(())
}

fn existing(crontab: &Crontab, which: Jobs<'_>) -> Result<Vec<String>, Failure> {
    let jobs = crontab.jobs(which);
    if jobs.is_empty() {
        return Err(Failure::new(1, "there is no such job").note("Next: codius cron view --all."));
    }
    Ok(jobs)
}

fn print(jobs: &[String], json: bool) {
    if json {
        let jobs: Vec<Value> = jobs.iter().map(|job| json!({ "job": job })).collect();
        println!("{:#}", Value::from(jobs));
    } else {
        for job in jobs {
            println!("{job}");
        }
    }
}

/// Buys at each host as much as is missing to `buffer_secs`.
async fn fill_buffer(
    arguments: &CronCreateArguments,
    state: &mut StateFile,
    buffer_secs: u64,
) -> Result<(), Failure> {
    let payment = &arguments.payment;
    let ceiling = payment.ceiling(Some(&state.options()));
    let signer = Key::open(arguments.key.key_file.as_deref())?.signer();
    let wallet = payment.wallet().await?;
    let mut wish = Wish {
        document: state.document().clone(),
        hash: state.hash(),
        duration_secs: buffer_secs,
        ceiling: &ceiling,
        wallet: &wallet,
        signer: &signer,
        timeout: payment.timeout(),
        extends: true,
        refund_to: None,
    };
    let now = Timestamp::now();
    let mut orders = Vec::new();
    for host in crate::candidates::origins(&state.hosts())? {
        let missing = missing_secs(state.expiration(&host), now, buffer_secs);
        if missing == 0 {
            continue;
        }
        wish.duration_secs = missing;
        let candidates = Candidates {
            hosts: vec![host],
            count: None,
        };
        let choice = choose(&candidates, &wish).await?;
        orders.extend(choice.chosen.into_iter().map(|offer| (offer, missing)));
    }
    if orders.is_empty() {
        return Ok(());
    }
    let mut plan = Plan::default();
    plan.line("program", title(state.document()));
    plan.line("hash", wish.hash.to_string());
    for (offer, missing) in &orders {
        let price = amount::format(offer.price, &offer.look.asset);
        let origin = offer.look.origin();
        plan.line("host", format!("{origin}  {missing} s  {price}"));
    }
    plan.confirm("Buy this time now?", payment.assume_yes)
        .await?;
    let own = own_asset(&wallet);
    let units = units_of(&own.code, own.scale);
    for (offer, missing) in orders {
        wish.duration_secs = missing;
        let host = offer.look.origin().to_owned();
        let mut record = |placed: &Placed| remember(state, placed, &units);
        let mut purchases = buy(
            Order::Upload,
            vec![offer],
            VecDeque::new(),
            &wish,
            &mut record,
        )
        .await;
        if let Some(failure) = purchases.failure(&wish.hash, &wallet) {
            return Err(failure.at(&host).note("No job was added."));
        }
    }
    Ok(())
}

/// What has to be bought so that `buffer_secs` are left. What has ended begins anew.
fn missing_secs(until: Option<Timestamp>, now: Timestamp, buffer_secs: u64) -> u64 {
    let left_ms = until.map_or(0, |until| until.as_millisecond() - now.as_millisecond());
    let left_secs = u64::try_from(left_ms.max(0)).unwrap_or(0) / 1000;
    buffer_secs.saturating_sub(left_secs)
}

/// What cron runs: this program, from where it is now.
fn extend_command(arguments: &CronCreateArguments, state: &StateFile) -> Result<String, Failure> {
    let program = env::current_exe()
        .map_err(|error| Failure::new(1, format!("this program cannot be found: {error}")))?;
    let directory = program.parent().map(PathBuf::from).unwrap_or_default();
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let options = state.options();
    let rate = arguments.payment.max_monthly_rate.unwrap_or(options.rate);
    let units = arguments.payment.units.clone().unwrap_or(options.units);
    let file = fs::canonicalize(state.path())
        .map_err(|error| Failure::new(USAGE, format!("the state file cannot be found: {error}")))?;
    let mut command = format!(
        "PATH={} {} extend -d {EXTEND_SECS} --max-monthly-rate {rate} --units {} -y --codius-state-file {}",
        quoted(&directory.to_string_lossy()),
        quoted(&name),
        quoted(&units),
        quoted(&file.to_string_lossy()),
    );
    // A job has not the environment of this shell.
    if let Some(file) = &arguments.key.key_file {
        let file = fs::canonicalize(file)
            .map_err(|error| Failure::new(USAGE, format!("the key cannot be found: {error}")))?;
        command.push_str(&format!(" --key-file {}", quoted(&file.to_string_lossy())));
    }
    if let Some(ilp) = arguments
        .payment
        .ilp
        .clone()
        .or_else(|| env::var("ILP_BTP_SERVER").ok())
    {
        command.push_str(&format!(" --ilp {}", quoted(&ilp)));
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_is_bought_as_is_missing() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |secs: i64| Some(Timestamp::from_second(1_000_000 + secs).unwrap());
        assert_eq!(missing_secs(at(600), now, 7200), 6600);
        assert_eq!(missing_secs(at(8000), now, 7200), 0);
        assert_eq!(missing_secs(at(-50), now, 7200), 7200);
        assert_eq!(missing_secs(None, now, 7200), 7200);
    }
}
