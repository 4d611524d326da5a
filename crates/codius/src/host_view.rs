//! A host as it describes itself, whichever generation it is of.

use std::cmp::Ordering;

use codius_api::{
    AssetInfo, Info,
    v2::{HostReply, MachineInfo},
};
use codius_client::HostClient;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::{
    failure::{Failure, REFUSED, UNREACHABLE, one_line},
    monthly_rate::MonthlyRate,
    offer::{ASKED_AT_ONCE, LeftOut, QUOTE_TIMEOUT},
    project::SMALL,
};

/// Hosts of the first generation do not say what they count in until they are paid; this is what they
/// did.
const FIRST_GENERATION_SCALE: u8 = 9;
/// Prices are compared in units of 10⁻¹⁸.
const COMPARED_SCALE: u8 = 18;
/// Sizes of one host that are looked at.
const MAX_SIZES: usize = 64;

/// What a host says of itself. Text of a stranger is in [`one_line`].
#[derive(Debug, Clone)]
pub(crate) struct HostView {
    pub(crate) client: HostClient,
    pub(crate) has_v2: bool,
    pub(crate) asset: AssetInfo,
    /// Of a small pod.
    pub(crate) rate: MonthlyRate,
    /// The most that can be bought at once, if it says so.
    pub(crate) max_secs: Option<u64>,
    pub(crate) accepts_uploads: bool,
    /// One minute's load for each of its processors.
    pub(crate) load: f64,
    /// Bytes that it can still give to pods.
    pub(crate) free_memory_bytes: u64,
    pub(crate) running_pods: Option<u64>,
    pub(crate) peers: u64,
    pub(crate) uptime_secs: u64,
    pub(crate) version: String,
    /// What holds pods back, and why it is this and not better; if it says so.
    pub(crate) isolation: Option<(String, String)>,
    /// What it calls itself.
    pub(crate) uri: String,
    /// What a pod can be there.
    pub(crate) sizes: Vec<SizeView>,
}

/// A size of pods.
#[derive(Debug, Clone)]
pub(crate) struct SizeView {
    pub(crate) name: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    /// If the host says so.
    pub(crate) disk_mib: Option<u64>,
    pub(crate) rate: MonthlyRate,
    /// For another one.
    pub(crate) has_room: bool,
}

impl SizeView {
    /// What every host has.
    fn small(rate: MonthlyRate, has_room: bool) -> Self {
        Self {
            name: SMALL.to_owned(),
            vcpus: 1,
            memory_mib: 512,
            disk_mib: None,
            rate,
            has_room,
        }
    }

    /// One without a price is of a host that has small pods only.
    fn of(machine: &MachineInfo, small: MonthlyRate, accepts: bool) -> Option<Self> {
        let rate = match &machine.price {
            Some(price) => price.per_month.parse().ok()?,
            None => small,
        };
        Some(Self {
            name: one_line(&machine.name),
            vcpus: machine.vcpus,
            memory_mib: machine.memory_mib,
            disk_mib: machine.disk_mib,
            rate,
            has_room: accepts && machine.has_room.unwrap_or(true),
        })
    }

    pub(crate) fn in_json(&self, asset: &AssetInfo) -> Value {
        json!({
            "machine": self.name,
            "vcpus": self.vcpus,
            "memory_mib": self.memory_mib,
            "disk_mib": self.disk_mib,
            "per_month_display": format!("{} {}", self.rate, asset.code),
            "has_room": self.has_room,
        })
    }
}

impl HostView {
    /// Asks one host.
    pub(crate) async fn of(origin: &str) -> Result<Self, Failure> {
        let client = HostClient::new(origin)?.answering_within(QUOTE_TIMEOUT);
        let view = match client.host_v2().await? {
            Some(about) => Self::of_v2(client, about),
            None => {
                let info = client.info().await?;
                let version = match &info.host {
                    Some(host) => host.version.clone(),
                    // Not worth more than to be left out.
                    None => client.version().await.map_or("-".into(), |it| it.version),
                };
                Self::of_v1(client, info, &version)
            }
        };
        view.ok_or_else(|| Failure::new(REFUSED, "its price is not a number"))
    }

    fn of_v2(client: HostClient, about: HostReply) -> Option<Self> {
        let rate: MonthlyRate = about.price.per_month.parse().ok()?;
        let accepts = about.capacity.accepting_uploads;
        let sizes = about.machines.iter().take(MAX_SIZES);
        let sizes = sizes.filter_map(|machine| SizeView::of(machine, rate, accepts));
        Some(Self {
            client,
            has_v2: true,
            asset: readable(about.asset),
            sizes: sizes.collect(),
            rate,
            max_secs: Some(about.duration.max_seconds),
            accepts_uploads: about.capacity.accepting_uploads,
            load: about.load_1m_per_core,
            free_memory_bytes: about.capacity.free_memory_bytes,
            running_pods: about.capacity.running_pods,
            peers: about.peers,
            uptime_secs: about.uptime_seconds,
            version: one_line(&about.version),
            isolation: Some((
                one_line(&about.isolation.kind),
                one_line(&about.isolation.reason),
            )),
            uri: one_line(&about.uri),
        })
    }

    fn of_v1(client: HostClient, info: Info, version: &str) -> Option<Self> {
        let rate = MonthlyRate::from_json(&Value::Number(info.cost_per_month))?;
        let accepts = info.accepting_uploads && !info.full_mem;
        let (asset, isolation) = match info.host {
            Some(host) => (
                host.asset,
                Some((one_line(&host.isolation), one_line(&host.isolation_reason))),
            ),
            None => (
                AssetInfo {
                    code: info.currency,
                    scale: FIRST_GENERATION_SCALE,
                },
                None,
            ),
        };
        Some(Self {
            client,
            has_v2: false,
            asset: readable(asset),
            rate,
            max_secs: None,
            accepts_uploads: accepts,
            load: info.avg_load,
            free_memory_bytes: info.server_free_memory,
            running_pods: info.running_contracts,
            peers: info.num_peers,
            uptime_secs: info.service_uptime,
            version: one_line(version),
            isolation,
            uri: one_line(&info.uri),
            sizes: vec![SizeView::small(rate, accepts)],
        })
    }

    /// Asks many, and keeps their order; those that did not answer, with the reason.
    pub(crate) async fn of_all(origins: &[String]) -> (Vec<Self>, Vec<LeftOut>) {
        let answers: Vec<_> = stream::iter(origins.iter())
            .map(|origin| async move { (origin, Self::of(origin).await) })
            .buffered(ASKED_AT_ONCE)
            .collect()
            .await;
        let (mut views, mut left_out) = (Vec::new(), Vec::new());
        for (origin, answer) in answers {
            match answer {
                Ok(view) => views.push(view),
                Err(failure) => left_out.push(LeftOut {
                    host: origin.clone(),
                    failure,
                }),
            }
        }
        (views, left_out)
    }

    pub(crate) fn origin(&self) -> &str {
        self.client.origin()
    }

    /// What a month costs, for people.
    pub(crate) fn per_month(&self) -> String {
        format!("{} {}", self.rate, self.asset.code)
    }

    /// A size of its pods by name.
    pub(crate) fn size(&self, name: &str) -> Option<&SizeView> {
        self.sizes.iter().find(|size| size.name == name)
    }

    pub(crate) fn isolation_kind(&self) -> &str {
        self.isolation.as_ref().map_or("-", |(kind, _)| kind)
    }
}

fn readable(asset: AssetInfo) -> AssetInfo {
    AssetInfo {
        code: one_line(&asset.code),
        scale: asset.scale,
    }
}

/// Hosts of one asset beside each other, the cheapest of them first, then the least loaded.
pub(crate) fn by_price(
    (one, one_price): (&HostView, u64),
    (other, other_price): (&HostView, u64),
) -> Ordering {
    let compared = |view: &HostView, price: u64| {
        let finer = COMPARED_SCALE.saturating_sub(view.asset.scale);
        u128::from(price).saturating_mul(10_u128.pow(finer.into()))
    };
    (one.asset.code.cmp(&other.asset.code))
        .then_with(|| compared(one, one_price).cmp(&compared(other, other_price)))
        .then_with(|| one.load.total_cmp(&other.load))
}

/// Hosts that did not answer, as JSON has them.
pub(crate) fn failed_in_json(left_out: &[LeftOut]) -> Value {
    let failed = left_out.iter().map(|one| {
        json!({
            "host": one.host,
            "message": one.failure.message(),
            "exit_code": one.failure.code(),
        })
    });
    failed.collect()
}

/// The same for people, on standard error: what is printed on standard output is about the others. JSON has
/// told it already. If there are no others that is a failure.
pub(crate) fn tell_failed(
    mut left_out: Vec<LeftOut>,
    nobody: bool,
    json: bool,
) -> Result<(), Failure> {
    // With one host there is one reason.
    if nobody
        && left_out.len() == 1
        && let Some(only) = left_out.pop()
    {
        return Err(only.failure);
    }
    for one in left_out.iter().filter(|_| !json) {
        eprintln!("{}: {}", one.host, one_line(one.failure.message()));
    }
    if !nobody {
        return Ok(());
    }
    let code = left_out
        .first()
        .map_or(UNREACHABLE, |one| one.failure.code());
    Err(Failure::new(
        code,
        format!("none of {} hosts can be used", left_out.len()),
    )
    .note("Next: check the addresses and the network, or name another host with --host."))
}
