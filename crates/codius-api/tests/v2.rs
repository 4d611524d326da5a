//! The exact JSON text of every body of version 2, and what is refused.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use codius_api::{
    AssetInfo, EndReason, LeaseEvent, LeaseEventKind, Units,
    v2::{
        Capacity, ContainerExit, ContainerReply, ContainerState, CreateLeaseRequest, DurationRange,
        Ended, ExitReason, ExtendLeaseRequest, HostReply, IsolationInfo, LeaseReply, LeaseState,
        LogLine, LogStreamName, MachineInfo, MachineSize, Price, Processors, QuoteReply,
        QuoteRequest, RefundReply, RefundRequest, RefundState, RefundTo, StopReply, StopRequest,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

fn medium() -> MachineSize {
    MachineSize {
        name: "medium".into(),
        vcpus: 2,
        memory_mib: 1024,
        disk_mib: 2048,
    }
}

/// Given a body, then its JSON is exactly `text`, and `text` is the body.
#[track_caller]
fn agree<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(body: &T, text: &str) {
    assert_eq!(serde_json::to_string(body).unwrap(), text);
    assert_eq!(&serde_json::from_str::<T>(text).unwrap(), body);
}

/// Given the text of a request, then one more member makes it another that is refused.
#[track_caller]
fn no_more_members<T: DeserializeOwned + std::fmt::Debug>(text: &str) {
    let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
    value["more"] = json!(1);
    let error = serde_json::from_value::<T>(value).unwrap_err().to_string();
    assert!(error.contains("unknown field `more`"), "{error}");
}

const HASH: &str = "vqceouzbwpzzuu436i6i4yf72mydfqdu4azlcsodf6el23bb7x3q";
const KEY: &str = "JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs";

fn asset() -> AssetInfo {
    AssetInfo {
        code: "XRP".into(),
        scale: 9,
    }
}

#[test]
fn host() {
    let body = HostReply {
        name: "codiusd".into(),
        version: "0.1.0".into(),
        uri: "https://host.example".into(),
        asset: asset(),
        price: Price {
            per_second: "3805.17503805".into(),
            per_month: "10".into(),
        },
        duration: DurationRange {
            min_seconds: 1,
            max_seconds: 2_678_400,
        },
        machines: vec![MachineInfo {
            name: "small".into(),
            vcpus: 1,
            memory_mib: 512,
            disk_mib: Some(1024),
            price: Some(Price {
                per_second: "3805.17503805".into(),
                per_month: "10".into(),
            }),
            has_room: Some(true),
        }],
        isolation: IsolationInfo {
            kind: "kvm".into(),
            reason: "a test boot ran".into(),
        },
        capacity: Capacity {
            accepting_uploads: true,
            free_memory_bytes: 1_610_612_736,
            running_pods: Some(2),
            free_disk_bytes: Some(1 << 30),
            processors: Some(Processors {
                cores: 2,
                sold: 3,
                sold_per_core: 1.5,
                most_sold_per_core: None,
            }),
        },
        load_1m_per_core: 0.25,
        uptime_seconds: 60,
        payment_pointer: "$host.example".into(),
        peers: 3,
    };
    agree(
        &body,
        r#"{"name":"codiusd","version":"0.1.0","uri":"https://host.example","asset":{"code":"XRP","scale":9},"price":{"per_second":"3805.17503805","per_month":"10"},"duration":{"min_seconds":1,"max_seconds":2678400},"machines":[{"name":"small","vcpus":1,"memory_mib":512,"disk_mib":1024,"price":{"per_second":"3805.17503805","per_month":"10"},"has_room":true}],"isolation":{"kind":"kvm","reason":"a test boot ran"},"capacity":{"accepting_uploads":true,"free_memory_bytes":1610612736,"running_pods":2,"free_disk_bytes":1073741824,"processors":{"cores":2,"sold":3,"sold_per_core":1.5,"most_sold_per_core":null}},"load_1m_per_core":0.25,"uptime_seconds":60,"payment_pointer":"$host.example","peers":3}"#,
    );
}

#[test]
fn quotes() {
    let text = r#"{"manifest":{"name":"a"},"private":{"x":1},"duration_seconds":600}"#;
    let body = QuoteRequest {
        manifest: json!({"name": "a"}),
        private: Some(json!({"x": 1})),
        duration_seconds: 600,
    };
    agree(&body, text);
    assert!(!format!("{body:?}").contains("private"), "{body:?}");
    no_more_members::<QuoteRequest>(text);
    agree(
        &QuoteReply {
            manifest_hash: HASH.parse().unwrap(),
            duration_seconds: 600,
            machine: Some(medium()),
            price: Units(2284),
            price_per_second: "3.80".into(),
            asset: asset(),
            runs: false,
        },
        &format!(
            r#"{{"manifest_hash":"{HASH}","duration_seconds":600,"machine":{{"name":"medium","vcpus":2,"memory_mib":1024,"disk_mib":2048}},"price":"2284","price_per_second":"3.80","asset":{{"code":"XRP","scale":9}},"runs":false}}"#
        ),
    );
}

#[test]
fn leases() {
    let text = r#"{"manifest":{"name":"a"},"duration_seconds":600}"#;
    agree(
        &CreateLeaseRequest {
            manifest: json!({"name": "a"}),
            private: None,
            duration_seconds: 600,
            refund_to: None,
        },
        text,
    );
    no_more_members::<CreateLeaseRequest>(text);
    agree(
        &CreateLeaseRequest {
            manifest: json!({}),
            private: None,
            duration_seconds: 1,
            refund_to: Some("$wallet.example/alice".into()),
        },
        r#"{"manifest":{},"duration_seconds":1,"refund_to":"$wallet.example/alice"}"#,
    );
    for text in [
        r#"{"manifest":{}}"#,
        r#"{"manifest":{},"duration_seconds":-1}"#,
        r#"{"manifest":{},"duration_seconds":1.5}"#,
        r#"{"manifest":{},"duration_seconds":"60"}"#,
        r#"{"manifest":{},"manifest":{},"duration_seconds":60}"#,
    ] {
        assert!(
            serde_json::from_str::<CreateLeaseRequest>(text).is_err(),
            "{text}"
        );
    }
    let text = r#"{"duration_seconds":600}"#;
    agree(
        &ExtendLeaseRequest {
            duration_seconds: 600,
        },
        text,
    );
    no_more_members::<ExtendLeaseRequest>(text);

    let running = LeaseReply {
        manifest_hash: HASH.parse().unwrap(),
        state: LeaseState::Running,
        url: Some(format!("https://{HASH}.host.example/")),
        manifest: Some(json!({"name": "a"})),
        machine: Some(medium()),
        created_at: "2026-11-23T16:00:00.000Z".parse().unwrap(),
        expires_at: Some("2026-11-23T16:10:00.000Z".parse().unwrap()),
        frozen_until: None,
        balance: Units(2000),
        price_per_second: "3.80".into(),
        asset: asset(),
        owner: Some(KEY.into()),
        ended: None,
        owed: None,
        refund: None,
        containers: Vec::new(),
    };
    agree(
        &running,
        &format!(
            r#"{{"manifest_hash":"{HASH}","state":"running","url":"https://{HASH}.host.example/","manifest":{{"name":"a"}},"machine":{{"name":"medium","vcpus":2,"memory_mib":1024,"disk_mib":2048}},"created_at":"2026-11-23T16:00:00.000Z","expires_at":"2026-11-23T16:10:00.000Z","balance":"2000","price_per_second":"3.80","asset":{{"code":"XRP","scale":9}},"owner":"{KEY}","ended":null}}"#
        ),
    );
    agree(
        &LeaseReply {
            state: LeaseState::Ended,
            url: None,
            manifest: None,
            machine: None,
            expires_at: None,
            frozen_until: None,
            balance: Units::ZERO,
            owner: None,
            ended: Some(Ended {
                reason: EndReason::Stopped,
            }),
            owed: Some(Units(3)),
            refund: Some(RefundState {
                to: None,
                due: Units(5),
                sent: Units::ZERO,
                next_try: Some("2026-11-23T16:11:00.000Z".parse().unwrap()),
                trouble: None,
            }),
            ..running
        },
        &format!(
            r#"{{"manifest_hash":"{HASH}","state":"ended","url":null,"manifest":null,"created_at":"2026-11-23T16:00:00.000Z","expires_at":null,"balance":"0","price_per_second":"3.80","asset":{{"code":"XRP","scale":9}},"owner":null,"ended":{{"reason":"stopped"}},"owed":"3","refund":{{"due":"5","sent":"0","next_try":"2026-11-23T16:11:00.000Z"}}}}"#
        ),
    );
    for (state, text) in [
        (LeaseState::Starting, r#""starting""#),
        (LeaseState::Paused, r#""paused""#),
        (LeaseState::Frozen, r#""frozen""#),
    ] {
        agree(&state, text);
    }
}

#[test]
fn containers() {
    let waiting = ContainerReply {
        container: "app".into(),
        state: ContainerState::Waiting,
        since: Some("2026-11-23T16:00:00.000Z".parse().unwrap()),
        restarts: 3,
        crash_loop: true,
        next_try: Some("2026-11-23T16:00:08.000Z".parse().unwrap()),
        last_exit: Some(ContainerExit {
            reason: ExitReason::ExitCode,
            code: Some(1),
            signal: None,
        }),
    };
    let text = r#"{"container":"app","state":"waiting","since":"2026-11-23T16:00:00.000Z","restarts":3,"crash_loop":true,"next_try":"2026-11-23T16:00:08.000Z","last_exit":{"reason":"exit_code","code":1}}"#;
    agree(&waiting, text);
    let text = format!(
        r#"{{"event":"container",{},"at":"2026-11-23T16:00:01.000Z","elapsed_ms":7}}"#,
        &text[1..text.len() - 1]
    );
    agree(
        &LeaseEvent {
            kind: LeaseEventKind::Container(waiting),
            at: "2026-11-23T16:00:01.000Z".parse().unwrap(),
            elapsed_ms: 7,
        },
        &text,
    );
    let out_of_memory = ContainerExit {
        reason: ExitReason::OutOfMemory,
        code: None,
        signal: None,
    };
    agree(&out_of_memory, r#"{"reason":"out_of_memory"}"#);
}

#[test]
fn stops() {
    agree(&StopRequest::default(), "{}");
    let text = r#"{"refund":{"destination_account":"test.local.a.b","shared_secret":"c2VjcmV0"}}"#;
    let body = StopRequest {
        refund: Some(RefundTo {
            destination_account: "test.local.a.b".into(),
            shared_secret: "c2VjcmV0".into(),
        }),
    };
    agree(&body, text);
    assert!(!format!("{body:?}").contains("c2VjcmV0"), "{body:?}");
    no_more_members::<StopRequest>(text);
    no_more_members::<RefundTo>(r#"{"destination_account":"a","shared_secret":"b"}"#);
    agree(
        &StopReply {
            manifest_hash: HASH.parse().unwrap(),
            used: Units(84),
            refunded: Units(2200),
            owed: Units::ZERO,
        },
        &format!(r#"{{"manifest_hash":"{HASH}","used":"84","refunded":"2200","owed":"0"}}"#),
    );
}

#[test]
fn refunds() {
    let text = r#"{"refund_to":"$wallet.example/alice"}"#;
    agree(
        &RefundRequest {
            refund: None,
            refund_to: Some("$wallet.example/alice".into()),
        },
        text,
    );
    no_more_members::<RefundRequest>(text);
    agree(
        &RefundReply {
            manifest_hash: HASH.parse().unwrap(),
            refunded: Units(2200),
            owed: Units(4),
        },
        &format!(r#"{{"manifest_hash":"{HASH}","refunded":"2200","owed":"4"}}"#),
    );
    agree(
        &RefundState {
            to: Some("https://wallet.example/alice".into()),
            due: Units(1),
            sent: Units(2),
            next_try: None,
            trouble: Some("it does not answer in time".into()),
        },
        r#"{"to":"https://wallet.example/alice","due":"1","sent":"2","trouble":"it does not answer in time"}"#,
    );
}

#[test]
fn log_lines() {
    agree(
        &LogLine {
            at: "2026-11-23T16:10:00.250Z".parse().unwrap(),
            container: "web".into(),
            stream: LogStreamName::Stderr,
            text: "ready".into(),
        },
        r#"{"at":"2026-11-23T16:10:00.250Z","container":"web","stream":"stderr","text":"ready"}"#,
    );
    agree(&LogStreamName::Stdout, r#""stdout""#);
}
