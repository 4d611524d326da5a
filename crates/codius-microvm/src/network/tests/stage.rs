//! A host with one pod, whose tap device a test holds.

use std::{
    net::Ipv4Addr,
    os::fd::OwnedFd,
    process::{Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use codius_guest_protocol::hardware_address;
use codius_manifest::ManifestHash;
use codius_pod::{EgressPolicy, Protocol, Refusal, Traffic, Verdict};

use super::{
    super::{Common, EgressRules, PodNetwork, counters, open_namespace},
    frame::{Frame, parse_mac},
};
use crate::{
    Instance,
    programs::{Programs, enter_network_namespace, run},
};

const PATIENCE: Duration = Duration::from_secs(30);
pub(super) const POOL: &str = "10.88.0.0/24";
/// The host's own public address, and the internet beside it. Both stay in these namespaces.
pub(super) const HOST_PUBLIC: Ipv4Addr = Ipv4Addr::new(45, 0, 0, 1);
const INTERNET: Ipv4Addr = Ipv4Addr::new(45, 0, 0, 2);
pub(super) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 8);

static NUMBER: AtomicU16 = AtomicU16::new(0);

/// A host with one pod that is played by the test.
pub(super) struct Stage {
    pub(super) programs: Programs,
    pub(super) rules: EgressRules,
    pub(super) common: Common,
    pub(super) pod: ManifestHash,
    pub(super) slot: u16,
    name: String,
    pub(super) namespace: OwnedFd,
    tap: OwnedFd,
    gateway_mac: [u8; 6],
    pub(super) guest: Ipv4Addr,
    names: Vec<String>,
}

impl Stage {
    /// Moves the calling thread into the namespace that plays the host.
    pub(super) fn new(policy: EgressPolicy) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "tests with network namespaces need root"
        );
        let programs = Programs::find().unwrap();
        let process = u16::try_from(std::process::id() % 0x1000).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed) % 8;
        let instance: Instance = format!("{:04x}", process * 8 + number).parse().unwrap();
        let [host, internet] = ["h", "i"].map(|what| format!("ct{instance}-{what}"));
        let slot = 3;
        let name = instance.pod_name(slot);
        let names = vec![host.clone(), internet.clone(), name.clone()];
        // Of a test that was killed and had the same number; nobody else has a namespace of this name.
        if open_namespace(&host).is_ok() {
            for left in &names {
                let _ = Command::new(&programs.ip)
                    .args(["netns", "del", left])
                    .stderr(Stdio::null())
                    .status();
            }
        }
        ip(
            &programs,
            &format!("netns add {host}\nnetns add {internet}\n"),
            None,
        );
        enter_network_namespace(&open_namespace(&host).unwrap()).unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        ip(
            &programs,
            &format!(
                "link set lo up\n\
                 link add wan type veth peer name wan netns {internet}\n\
                 addr add {HOST_PUBLIC}/24 dev wan\n\
                 link set wan up\n\
                 route add default via {INTERNET}\n"
            ),
            None,
        );
        let internet_namespace = open_namespace(&internet).unwrap();
        ip(
            &programs,
            &format!("link set lo up\naddr add {INTERNET}/24 dev wan\nlink set wan up\n"),
            Some(&internet_namespace),
        );
        // It takes every packet for itself, counts those of the pod, and says nothing.
        let count = "table inet world { counter arrived { }
            chain everything { type filter hook prerouting priority -300; policy accept;
            iifname \"wan\" meta nfproto ipv4 counter name arrived drop\n }\n }\n";
        run(
            &programs.nft,
            &["-f", "-"],
            count,
            Some(&internet_namespace),
        )
        .unwrap();

        let common = Common {
            policy,
            pool: POOL.parse().unwrap(),
            nameservers: vec![Ipv4Addr::new(192, 168, 7, 7)],
        };
        let rules = EgressRules::new(&programs, &instance, common.clone());
        rules.set_up_host().unwrap();
        let pod = ManifestHash::from_bytes([7; 32]);
        let network = PodNetwork::create(&programs, &name).unwrap();
        rules
            .connect(&network.namespace, &name, &pod, slot)
            .unwrap();
        let gateway_mac = mac_of(&programs, &name);
        Self {
            guest: common.pool.block(slot).guest(),
            programs,
            rules,
            common,
            pod,
            slot,
            name,
            namespace: network.namespace,
            tap: network.tap,
            gateway_mac,
            names,
        }
    }

    pub(super) fn frame(&self, protocol: Protocol, address: Ipv4Addr, port: u16) -> Frame {
        Frame {
            source_mac: hardware_address(self.guest),
            gateway_mac: self.gateway_mac,
            source: self.guest,
            source_port: 40_000,
            address,
            port,
            protocol,
            padding: 0,
        }
    }

    pub(super) fn send(&self, frame: &[u8]) {
        // What tells of offloads: none.
        let mut bytes = vec![0; 10];
        bytes.extend_from_slice(frame);
        let written = rustix::io::write(&self.tap, &bytes).unwrap();
        assert_eq!(written, bytes.len());
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.rules.traffic(&[self.pod]).remove(&self.pod).unwrap()
    }

    /// What has come to the internet.
    pub(super) fn arrived(&self) -> u64 {
        let internet = self.name.replacen("cd", "ct", 1);
        let internet = format!("{}-i", internet.split('-').next().unwrap());
        let namespace = open_namespace(&internet).unwrap();
        let counters = counters::in_namespace(&namespace).unwrap();
        counters["arrived"].packets
    }

    /// What the pod's own rules do with one packet.
    pub(super) fn verdict(&self, frame: &[u8]) -> Verdict {
        let before = self.traffic();
        self.send(frame);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let after = self.traffic();
            if after.sent.packets > before.sent.packets {
                return Verdict::Passes;
            }
            let refused = Refusal::ALL
                .into_iter()
                .find(|it| after.refused[it].packets > before.refused[it].packets);
            if let Some(refusal) = refused {
                return Verdict::Refused(refusal);
            }
            assert!(Instant::now() < deadline, "no counter has moved");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[track_caller]
    pub(super) fn assert_refused(&self, what: &str, frame: &[u8], refusal: Refusal) {
        assert_eq!(self.verdict(frame), Verdict::Refused(refusal), "{what}");
    }

    #[track_caller]
    pub(super) fn wait_arrived(&self, expected: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.arrived() < expected && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.arrived(), expected);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new(&self.programs.ip)
                .args(["netns", "del", name])
                .stderr(Stdio::null())
                .status();
        }
    }
}

pub(super) fn ip(programs: &Programs, script: &str, namespace: Option<&OwnedFd>) {
    run(&programs.ip, &["-batch", "-"], script, namespace).unwrap();
}

pub(super) fn mac_of(programs: &Programs, name: &str) -> [u8; 6] {
    let output = Command::new(&programs.ip)
        .args(["-n", name, "-o", "link", "show", "tap0"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mac = text.split("link/ether ").nth(1).unwrap();
    parse_mac(mac.split(' ').next().unwrap())
}
