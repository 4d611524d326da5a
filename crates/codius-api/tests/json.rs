//! The exact JSON text of every body, and that it comes back.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use codius_api::{
    AssetInfo, DiscoverReply, DiscoverRequest, EndReason, ErrorBody, FailureCause, HostInfo, Info,
    LeaseEvent, LeaseEventKind, Memory, PeersReply, Phase, PodReply, PodStatusReply, QuoteReply,
    Trouble, Units, UnixMillis, Version,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

/// Given a body, then its JSON is exactly `text`, and `text` is the body.
#[track_caller]
fn agree<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(body: &T, text: &str) {
    assert_eq!(serde_json::to_string(body).unwrap(), text);
    assert_eq!(&serde_json::from_str::<T>(text).unwrap(), body);
    // Members in another order, as a flattened or tagged body may meet them.
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    let mut members: Vec<_> = value.as_object().unwrap().clone().into_iter().collect();
    members.reverse();
    let reversed = serde_json::Value::Object(members.into_iter().collect());
    assert_eq!(&serde_json::from_value::<T>(reversed).unwrap(), body);
}

const HASH: &str = "vqceouzbwpzzuu436i6i4yf72mydfqdu4azlcsodf6el23bb7x3q";

fn info() -> Info {
    Info {
        full_mem: false,
        accepting_uploads: true,
        server_free_memory: 1_610_612_736,
        server_uptime: 86_400,
        service_uptime: 60,
        avg_load: 0.25,
        num_peers: 0,
        currency: "XRP".into(),
        cost_per_month: "10".parse().unwrap(),
        uri: "https://host.example".into(),
        self_test_success: true,
        running_contracts: None,
        peers: None,
        host: None,
    }
}

#[test]
fn info_of_version_1() {
    agree(
        &info(),
        r#"{"fullMem":false,"acceptingUploads":true,"serverFreeMemory":1610612736,"serverUptime":86400,"serviceUptime":60,"avgLoad":0.25,"numPeers":0,"currency":"XRP","costPerMonth":10,"uri":"https://host.example","selfTestSuccess":true}"#,
    );
}

#[test]
fn info_of_this_host() {
    let body = Info {
        running_contracts: Some(3),
        peers: Some(vec!["https://other.example".into()]),
        cost_per_month: "0.5".parse().unwrap(),
        host: Some(HostInfo {
            isolation: "tcg".into(),
            isolation_reason: "no /dev/kvm".into(),
            asset: AssetInfo {
                code: "XRP".into(),
                scale: 9,
            },
            price_per_second: "190.25875190258751902588".into(),
            version: "0.1.0".into(),
        }),
        ..info()
    };
    agree(
        &body,
        r#"{"fullMem":false,"acceptingUploads":true,"serverFreeMemory":1610612736,"serverUptime":86400,"serviceUptime":60,"avgLoad":0.25,"numPeers":0,"currency":"XRP","costPerMonth":0.5,"uri":"https://host.example","selfTestSuccess":true,"runningContracts":3,"peers":["https://other.example"],"isolation":"tcg","isolation_reason":"no /dev/kvm","asset":{"code":"XRP","scale":9},"price_per_second":"190.25875190258751902588","version":"0.1.0"}"#,
    );
}

#[test]
fn numbers_of_a_javascript_host_are_taken_and_rounded_down() {
    let mut text = serde_json::to_value(info()).unwrap();
    text["serverFreeMemory"] = json!(1.5e10);
    text["serviceUptime"] = json!(12.987);
    let read: Info = serde_json::from_value(text.clone()).unwrap();
    assert_eq!(
        (read.server_free_memory, read.service_uptime),
        (15_000_000_000, 12)
    );
    text["serverUptime"] = json!(-1);
    serde_json::from_value::<Info>(text).unwrap_err();
}

#[test]
fn small_bodies() {
    agree(&Memory { free_mem: 7 }, r#"{"freeMem":7}"#);
    agree(
        &Version {
            name: "Codius Host (Rust)".into(),
            version: "0.1.0".into(),
        },
        r#"{"name":"Codius Host (Rust)","version":"0.1.0"}"#,
    );
    agree(&PeersReply::default(), r#"{"peers":[]}"#);
    agree(
        &DiscoverRequest {
            peers: vec!["https://a.example".into()],
            limit: None,
        },
        r#"{"peers":["https://a.example"]}"#,
    );
    serde_json::from_str::<DiscoverRequest>(r#"{"peers":[],"other":1}"#).unwrap_err();
    agree(
        &DiscoverReply {
            name: "n".into(),
            version: "1".into(),
            peers: vec![],
        },
        r#"{"name":"n","version":"1","peers":[]}"#,
    );
}

#[test]
fn pods() {
    let manifest_hash = HASH.parse().unwrap();
    let expiry: UnixMillis = "2026-11-23T16:10:00.000Z".parse().unwrap();
    let url = format!("https://{HASH}.host.example/");
    agree(
        &QuoteReply {
            manifest_hash,
            price: Units(2284),
        },
        &format!(r#"{{"manifestHash":"{HASH}","price":"2284"}}"#),
    );
    agree(
        &PodReply {
            url: url.clone(),
            manifest_hash,
            expiry,
        },
        &format!(
            r#"{{"url":"{url}","manifestHash":"{HASH}","expiry":"2026-11-23T16:10:00.000Z"}}"#
        ),
    );
    agree(
        &PodStatusReply {
            url: url.clone(),
            manifest_hash,
            expiry,
            manifest: json!({"name": "a"}),
        },
        &format!(
            r#"{{"url":"{url}","manifestHash":"{HASH}","expiry":"2026-11-23T16:10:00.000Z","manifest":{{"name":"a"}}}}"#
        ),
    );
}

#[test]
fn errors_have_the_members_of_version_1_and_of_rfc_9457() {
    agree(
        &ErrorBody::new(400, "must supply `Pay-Token` header."),
        r#"{"statusCode":400,"error":"Bad Request","message":"must supply `Pay-Token` header.","title":"Bad Request","status":400,"detail":"must supply `Pay-Token` header."}"#,
    );
    agree(
        &ErrorBody::new(500, "run pod failed")
            .with_detail("the program ended at once with status 1")
            .with_cause(Trouble::ProgramFailed.into())
            .with_money(Units(2000), Units(284))
            .with_next("look at the logs"),
        r#"{"statusCode":500,"error":"Internal Server Error","message":"run pod failed","title":"Internal Server Error","status":500,"detail":"the program ended at once with status 1","refunded":"2000","owed":"284","cause":"program_failed","next":"look at the logs"}"#,
    );
}

#[test]
fn an_error_of_the_original_is_read_without_the_added_members() {
    let read: ErrorBody = serde_json::from_str(
        r#"{"statusCode":404,"error":"Not Found","message":"no pod found with id. id=x"}"#,
    )
    .unwrap();
    assert_eq!((read.status_code, read.owed, read.cause), (404, None, None));
}

#[test]
fn a_cause_from_the_future_is_kept() {
    let read: ErrorBody = serde_json::from_str(
        r#"{"statusCode":500,"error":"e","message":"m","cause":"eaten_by_dog"}"#,
    )
    .unwrap();
    assert_eq!(read.cause, Some(FailureCause::Other("eaten_by_dog".into())));
}

#[test]
fn events() {
    let at = "2026-11-23T16:10:00.250Z".parse().unwrap();
    let tail = r#""at":"2026-11-23T16:10:00.250Z","elapsed_ms":250}"#;
    let url = "http://x.localhost:3000/".to_owned();
    let phases = [
        (Phase::Resolving, r#""phase":"resolving""#),
        (
            Phase::Pulling { bytes: 5, of: 10 },
            r#""phase":"pulling","bytes":5,"of":10"#,
        ),
        (Phase::Building, r#""phase":"building""#),
        (Phase::Booting, r#""phase":"booting""#),
        (Phase::Starting, r#""phase":"starting""#),
        (
            Phase::WaitingForPort { port: 8080 },
            r#""phase":"waiting_for_port","port":8080"#,
        ),
        (
            Phase::Running {
                expires_at: at,
                url,
            },
            r#""phase":"running","expires_at":"2026-11-23T16:10:00.250Z","url":"http://x.localhost:3000/""#,
        ),
    ];
    for (phase, members) in phases {
        let kind = LeaseEventKind::Phase(phase);
        assert!(!kind.is_last());
        agree(
            &LeaseEvent {
                kind,
                at,
                elapsed_ms: 250,
            },
            &format!(r#"{{"event":"phase",{members},{tail}"#),
        );
    }

    let kind = LeaseEventKind::Failed {
        cause: Trouble::PortNotOpened.into(),
        message: "nothing listens on port 8080".into(),
        refunded: Units(9),
        owed: Units::ZERO,
    };
    assert!(kind.is_last());
    agree(
        &LeaseEvent {
            kind,
            at,
            elapsed_ms: 250,
        },
        &format!(
            r#"{{"event":"failed","cause":"port_not_opened","message":"nothing listens on port 8080","refunded":"9","owed":"0",{tail}"#
        ),
    );

    for (kind, members) in [
        (
            LeaseEventKind::Expiring { expires_at: at },
            r#""event":"expiring","expires_at":"2026-11-23T16:10:00.250Z""#,
        ),
        (
            LeaseEventKind::Frozen { ends_at: at },
            r#""event":"frozen","ends_at":"2026-11-23T16:10:00.250Z""#,
        ),
    ] {
        assert!(!kind.is_last());
        agree(
            &LeaseEvent {
                kind,
                at,
                elapsed_ms: 250,
            },
            &format!("{{{members},{tail}"),
        );
    }
    for (reason, text) in [
        (EndReason::Expired, "expired"),
        (EndReason::Stopped, "stopped"),
        (EndReason::Exited, "exited"),
        (EndReason::Lost, "lost"),
        (EndReason::HostStopped, "host_stopped"),
        (EndReason::Other("moved".into()), "moved"),
    ] {
        let kind = LeaseEventKind::Ended { reason };
        assert!(kind.is_last());
        agree(
            &LeaseEvent {
                kind,
                at,
                elapsed_ms: 250,
            },
            &format!(r#"{{"event":"ended","reason":"{text}",{tail}"#),
        );
    }
}
