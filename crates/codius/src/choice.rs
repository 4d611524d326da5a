//! Which hosts a program goes to.
//!
//! ```text
//! candidates ──look──▶ ranked ──quote the best──▶ chosen      (the rest: spare, best first)
//!                                   │ no ──▶ left out, the next one is quoted
//! ```

use std::{collections::VecDeque, time::Duration};

use codius_client::{Signer, Wallet};
use codius_manifest::ManifestHash;
use futures_util::future::join_all;
use serde_json::Value;

use crate::{
    ceiling::Ceiling,
    failure::{Failure, REFUSED},
    offer::{ASKED_AT_ONCE, LeftOut, Look, Offer},
    project::machine_of,
};

/// The hosts that come into question, and how many of them are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidates {
    pub(crate) hosts: Vec<String>,
    /// `None`: all of them.
    pub(crate) count: Option<usize>,
}

/// What is wanted of a host.
#[derive(Debug, Clone)]
pub(crate) struct Wish<'a> {
    /// What is posted.
    pub(crate) document: Value,
    pub(crate) hash: ManifestHash,
    pub(crate) duration_secs: u64,
    pub(crate) ceiling: &'a Ceiling,
    pub(crate) wallet: &'a Wallet,
    /// Who will own it.
    pub(crate) signer: &'a Signer,
    /// How long a host may take from the payment to the running program.
    pub(crate) timeout: Duration,
    /// It runs there already, and shall run longer: no host needs room for it.
    pub(crate) extends: bool,
    /// Where what it does not use goes when it ends.
    pub(crate) refund_to: Option<&'a str>,
}

impl Wish<'_> {
    pub(crate) async fn quote(&self, look: Look) -> Result<Offer, LeftOut> {
        let host = look.origin().to_owned();
        look.quote(self)
            .await
            .map_err(|failure| LeftOut { host, failure })
    }
}

/// Where it goes, and where it could go instead.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) chosen: Vec<Offer>,
    pub(crate) spare: VecDeque<Look>,
    pub(crate) left_out: Vec<LeftOut>,
}

/// Looks at the candidates and takes the best. Fails if there are not enough.
pub(crate) async fn choose(candidates: &Candidates, wish: &Wish<'_>) -> Result<Choice, Failure> {
    let machine = machine_of(&wish.document);
    let (mut looks, left_out) = Look::at_all(&candidates.hosts, machine, wish.duration_secs).await;
    if candidates.count.is_some() {
        Look::rank(&mut looks);
    }
    let count = candidates.count.unwrap_or(candidates.hosts.len());
    let mut choice = Choice {
        chosen: Vec::new(),
        spare: looks.into(),
        left_out,
    };
    fill(&mut choice, count, wish).await;
    if choice.chosen.len() < count {
        return Err(too_few(count, candidates.hosts.len(), choice));
    }
    Ok(choice)
}

/// Quotes spare hosts until so many are chosen or none is left.
pub(crate) async fn fill(choice: &mut Choice, count: usize, wish: &Wish<'_>) {
    while choice.chosen.len() < count && !choice.spare.is_empty() {
        let missing = (count - choice.chosen.len()).min(ASKED_AT_ONCE);
        let next: Vec<_> = choice
            .spare
            .drain(..missing.min(choice.spare.len()))
            .collect();
        for answer in join_all(next.into_iter().map(|look| wish.quote(look))).await {
            match answer {
                Ok(offer) => choice.chosen.push(offer),
                Err(left_out) => choice.left_out.push(left_out),
            }
        }
    }
}

/// Nothing was paid, and these are the reasons.
pub(crate) fn too_few(count: usize, of: usize, choice: Choice) -> Failure {
    let Choice {
        chosen,
        mut left_out,
        ..
    } = choice;
    // With one host there is one reason.
    if of == 1
        && let Some(only) = left_out.pop()
    {
        return only.failure.first("Nothing was paid.");
    }
    let code = left_out.first().map_or(REFUSED, |one| one.failure.code());
    let failure = Failure::new(
        code,
        format!("{} of {count} hosts can be paid", chosen.len()),
    );
    left_out
        .iter()
        .fold(failure, |failure, one| {
            failure.note(format!("{}: {}", one.host, one.failure.message()))
        })
        .note("Nothing was paid. Next: leave these hosts out, take fewer with -c, or raise the limit.")
}
