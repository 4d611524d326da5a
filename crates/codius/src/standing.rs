//! How a program stands at a host: asked by version 2 of the API, and of hosts of the first generation by
//! version 1.

use codius_api::{
    AssetInfo, ErrorBody, UnixMillis,
    v2::{ContainerReply, ContainerState, LeaseState, MachineSize, RefundState},
};
use codius_client::{ClientError, HostClient, Signer};
use codius_manifest::ManifestHash;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::{
    amount,
    failure::{Failure, one_line},
    monthly_rate::MONTH_SECS,
    offer::{ASKED_AT_ONCE, QUOTE_TIMEOUT},
};

/// One program at one host.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) host: String,
    pub(crate) hash: ManifestHash,
    pub(crate) state: State,
    /// Where visitors reach it.
    pub(crate) url: Option<String>,
    pub(crate) expires_at: Option<UnixMillis>,
    /// While it is frozen: when it ends if nobody pays.
    pub(crate) frozen_until: Option<UnixMillis>,
    pub(crate) created_at: Option<UnixMillis>,
    /// The key that may stop it.
    pub(crate) owner: Option<String>,
    /// What is left of its money, and what it costs; a host of the first generation does not tell.
    pub(crate) money: Option<Money>,
    /// What belongs to whoever uploads the same manifest next, in smallest units; a host of the first
    /// generation does not tell.
    pub(crate) owed: Option<u64>,
    /// What is due to who has paid, and what has been sent to him.
    pub(crate) refund: Option<RefundState>,
    /// The public part.
    pub(crate) manifest: Option<Value>,
    /// How its containers are, if the host tells.
    pub(crate) containers: Vec<ContainerReply>,
    /// What its pod is; a host that knows one size only does not tell.
    pub(crate) machine: Option<MachineSize>,
}

/// What a program has and needs, in smallest units of the host's asset.
#[derive(Debug)]
pub(crate) struct Money {
    pub(crate) balance: u64,
    /// Decimal text, exact.
    pub(crate) price_per_second: String,
    pub(crate) asset: AssetInfo,
}

/// What it does there.
#[derive(Debug)]
pub(crate) enum State {
    Starting,
    Running,
    /// The host keeps it and cannot run it at the moment; that time costs nothing.
    Paused,
    Frozen,
    /// It has run there; why it ended.
    Ended(String),
    /// The host does not know it, or no longer.
    NotThere,
    /// The host does not tell, and why.
    Unknown(Failure),
}

impl State {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Frozen => "frozen",
            Self::Ended(_) => "ended",
            Self::NotThere => "not there",
            Self::Unknown(_) => "unknown",
        }
    }
}

impl Standing {
    /// Asks one host. That it does not answer is an answer, too.
    pub(crate) async fn at(host: &str, hash: ManifestHash) -> Self {
        match Self::asked(host, hash).await {
            Ok(standing) => standing,
            Err(failure) => Self::without_more(host, hash, State::Unknown(failure)),
        }
    }

    /// Asks for many, and keeps their order.
    pub(crate) async fn of_all(programs: Vec<(ManifestHash, String)>) -> Vec<Self> {
        stream::iter(programs)
            .map(|(hash, host)| async move { Self::at(&host, hash).await })
            .buffered(ASKED_AT_ONCE)
            .collect()
            .await
    }

    async fn asked(host: &str, hash: ManifestHash) -> Result<Self, Failure> {
        let client = HostClient::new(host)?.answering_within(QUOTE_TIMEOUT);
        let lease = match client.lease(&hash).await {
            Ok(lease) => lease,
            // The original has no version 2: it answers with a page about itself.
            Err(ClientError::NotAHost { .. }) => return Self::of_the_first(&client, hash).await,
            Err(ClientError::Refused { body, .. }) if is_missing(&body) => {
                return Ok(Self::without_more(client.origin(), hash, State::NotThere));
            }
            Err(error) => return Err(error.into()),
        };
        let state = match lease.state {
            LeaseState::Starting => State::Starting,
            LeaseState::Running => State::Running,
            LeaseState::Paused => State::Paused,
            LeaseState::Frozen => State::Frozen,
            LeaseState::Ended => {
                let reason = lease.ended.map(|ended| json!(ended.reason));
                let reason = reason.as_ref().and_then(Value::as_str).unwrap_or_default();
                State::Ended(one_line(reason))
            }
        };
        Ok(Self {
            host: client.origin().to_owned(),
            hash,
            state,
            url: lease.url.map(|url| one_line(&url)),
            expires_at: lease.expires_at,
            frozen_until: lease.frozen_until,
            created_at: Some(lease.created_at),
            owner: lease.owner.map(|owner| one_line(&owner)),
            money: Some(Money {
                balance: lease.balance.0,
                price_per_second: one_line(&lease.price_per_second),
                asset: AssetInfo {
                    code: one_line(&lease.asset.code),
                    scale: lease.asset.scale,
                },
            }),
            owed: Some(lease.owed.map_or(0, |owed| owed.0)),
            refund: lease.refund.map(readable),
            manifest: lease.manifest,
            containers: lease.containers,
            machine: lease.machine.map(|machine| MachineSize {
                name: one_line(&machine.name),
                ..machine
            }),
        })
    }

    /// Asks a host where the refund of the signer goes, and why it has not arrived; nothing changes if he is
    /// not the owner, or nothing is due.
    pub(crate) async fn ask_as_owner(&mut self, signer: &Signer) {
        let due = self.refund.as_ref().is_some_and(|refund| refund.due.0 > 0);
        if !due || self.owner.as_deref() != Some(signer.id().to_string().as_str()) {
            return;
        }
        let Ok(client) = HostClient::new(&self.host) else {
            return;
        };
        let client = client.answering_within(QUOTE_TIMEOUT);
        if let Ok(lease) = client.lease_of(&self.hash, signer).await {
            self.refund = lease.refund.map(readable);
        }
    }

    async fn of_the_first(client: &HostClient, hash: ManifestHash) -> Result<Self, Failure> {
        match client.pod(&hash).await {
            Ok(pod) => Ok(Self {
                host: client.origin().to_owned(),
                hash,
                state: State::Running,
                url: Some(one_line(&pod.url)),
                expires_at: Some(pod.expiry),
                frozen_until: None,
                created_at: None,
                owner: None,
                money: None,
                owed: None,
                refund: None,
                manifest: Some(pod.manifest),
                containers: Vec::new(),
                machine: None,
            }),
            Err(ClientError::Refused { body, .. }) if is_missing(&body) => {
                Ok(Self::without_more(client.origin(), hash, State::NotThere))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn without_more(host: &str, hash: ManifestHash, state: State) -> Self {
        Self {
            host: host.to_owned(),
            hash,
            state,
            url: None,
            expires_at: None,
            frozen_until: None,
            created_at: None,
            owner: None,
            money: None,
            owed: None,
            refund: None,
            manifest: None,
            containers: Vec::new(),
            machine: None,
        }
    }

    /// Its URL; where it has none, what the commands of this tool take for one.
    pub(crate) fn address(&self) -> String {
        self.url.clone().unwrap_or_else(|| {
            let (scheme, authority) = self.host.split_once("://").unwrap_or(("https", &self.host));
            format!("{scheme}://{}.{authority}/", self.hash)
        })
    }

    pub(crate) fn until(&self) -> Option<String> {
        self.expires_at.map(|moment| moment.to_string())
    }

    /// What is wrong, in a few words.
    pub(crate) fn remark(&self) -> Option<String> {
        match &self.state {
            State::Ended(reason) => Some(reason.clone()),
            State::Unknown(failure) => Some(one_line(failure.message())),
            State::Frozen => {
                let until = self.frozen_until?;
                Some(format!("ends at {until} unless it is paid"))
            }
            State::Starting | State::Running | State::Paused | State::NotThere => None,
        }
    }

    pub(crate) fn in_json(&self) -> Value {
        let money = self.money.as_ref();
        json!({
            "manifestHash": self.hash,
            "host": self.host,
            "state": self.state.name().replace(' ', "_"),
            "message": match &self.state {
                State::Frozen => None,
                _ => self.remark(),
            },
            "machine": self.machine,
            "url": self.url,
            "expiry": self.expires_at,
            "frozen_until": self.frozen_until,
            "created_at": self.created_at,
            "balance": money.map(|money| money.balance.to_string()),
            "price_per_second": money.map(|money| &money.price_per_second),
            "per_month_display": money.and_then(Money::per_month),
            "asset": money.map(|money| &money.asset),
            "owner": self.owner,
            "owed": self.owed.map(|owed| owed.to_string()),
            "refund": self.refund,
            "containers": self.containers,
            "ended": match &self.state {
                State::Ended(reason) => json!({ "reason": reason }),
                _ => Value::Null,
            },
        })
    }
}

/// How a container is, for a person.
pub(crate) fn in_words(container: &ContainerReply) -> String {
    let times = match container.restarts {
        0 => String::new(),
        1 => ", started again once".to_owned(),
        times => format!(", started again {times} times"),
    };
    let ended = container
        .last_exit
        .map_or(String::new(), |exit| format!(" after {exit}"));
    let state = match (container.state, container.next_try) {
        (ContainerState::Starting, _) => "starting".to_owned(),
        (ContainerState::Running, _) if container.restarts == 0 => "running".to_owned(),
        (ContainerState::Running, _) => format!("running{ended}{times}"),
        (ContainerState::Waiting, Some(next)) => {
            format!("waiting{ended}{times}; tried again at {next}")
        }
        (ContainerState::Waiting, None) => format!("waiting{ended}{times}"),
        (ContainerState::Exited, _) => format!("ended{}{times}", ended.replace("after", "with")),
    };
    format!("{}: {state}", one_line(&container.container))
}

impl Money {
    pub(crate) fn left(&self) -> String {
        amount::format(self.balance, &self.asset)
    }

    /// What a month costs, to the nearest smallest unit; `None` for a price that is no number.
    pub(crate) fn per_month(&self) -> Option<String> {
        let units = per_month(&self.price_per_second)?;
        Some(amount::format(units, &self.asset))
    }
}

/// Without what could move a terminal's cursor.
fn readable(refund: RefundState) -> RefundState {
    RefundState {
        to: refund.to.as_deref().map(one_line),
        trouble: refund.trouble.as_deref().map(one_line),
        ..refund
    }
}

fn per_month(price_per_second: &str) -> Option<u64> {
    let (whole, fraction) = price_per_second
        .split_once('.')
        .unwrap_or((price_per_second, ""));
    // So many digits after the point that nothing overflows, and more than a month can show.
    let fraction: String = fraction.chars().take(15).collect();
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(&fraction) {
        return None;
    }
    let one = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let month = digits.checked_mul(MONTH_SECS.into())?;
    u64::try_from((month + one / 2) / one).ok()
}

fn is_missing(body: &ErrorBody) -> bool {
    body.status_code == 404
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_of_a_price_per_second_is_what_the_operator_wrote() {
        for (per_second, month) in [
            ("3805.17503805175038051750", 10_000_000_000),
            ("3.80517503805175038052", 10_000_000),
            ("0", 0),
            ("1", MONTH_SECS),
        ] {
            assert_eq!(per_month(per_second), Some(month), "{per_second}");
        }
        for text in [
            "",
            ".",
            "-1",
            "1e3",
            "x",
            "99999999999999999999999999999999999999",
        ] {
            assert_eq!(per_month(text), None, "{text}");
        }
    }
}
