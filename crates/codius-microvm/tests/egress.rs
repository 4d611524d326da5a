//! What the programs of a real pod reach, how much, and how that is changed while it runs.
//!
//! The host is a network namespace, and the world another beside it, so that every kind of address has
//! somebody who would answer:
//!
//! ```text
//!   pod ─┐
//!   pod ─┴─ host (45.0.0.1, 2a00:1::1) ─── world: internet, private networks, metadata service
//! ```

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    fs::File,
    future::Future,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use codius_manifest::ManifestHash;
use codius_microvm::MicrovmDriver;
use codius_pod::{Driver, Egress, EgressLimits, EgressPolicy, Permit, PodEvent, Refusal, Traffic};
use codius_testkit::NetworkNamespace;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use support::{PATIENCE, Recorder, TestHost, script, stop_all};

/// What a running pod has sent and received.
async fn counted(driver: &MicrovmDriver, pod: &ManifestHash) -> Traffic {
    let mut all = driver.traffic(&[*pod]).await.unwrap();
    all.remove(pod).unwrap()
}

/// Everywhere the same port, so that only the address decides.
const PORT: u16 = 4080;
/// Sends as much as it can to who comes.
const GUSHING_PORT: u16 = 4081;
/// Takes whatever comes.
const SINK_PORT: u16 = 4082;
/// Where a pod takes commands from its host.
const SHELL_PORT: u16 = 9000;
const HOST: Ipv4Addr = Ipv4Addr::new(45, 0, 0, 1);
const INTERNET: Ipv4Addr = Ipv4Addr::new(45, 0, 0, 2);
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 9, 53);
const INTERNET_V6: Ipv6Addr = Ipv6Addr::new(0x2a00, 1, 0, 0, 0, 0, 0, 2);
const PRIVATE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// What answers for the world, each an address that no pod may reach.
const WORLD: [(&str, Ipv4Addr); 10] = [
    ("private-10", Ipv4Addr::new(10, 9, 0, 2)),
    ("private-172", Ipv4Addr::new(172, 20, 0, 2)),
    ("private-192", Ipv4Addr::new(192, 168, 9, 2)),
    ("metadata", Ipv4Addr::new(169, 254, 169, 254)),
    ("carrier-nat", Ipv4Addr::new(100, 64, 9, 2)),
    ("protocol-assignments", Ipv4Addr::new(192, 0, 0, 9)),
    ("documentation", Ipv4Addr::new(203, 0, 113, 2)),
    ("benchmarking", Ipv4Addr::new(198, 18, 0, 2)),
    ("6to4-relay", Ipv4Addr::new(192, 88, 99, 1)),
    ("alibaba-metadata", Ipv4Addr::new(100, 100, 100, 200)),
];

/// The namespaces, and what listens there. The calling thread is the host from now on.
struct Stage {
    _host: NetworkNamespace,
    world: String,
}

impl Stage {
    fn new() -> Self {
        let host = NetworkNamespace::new().unwrap();
        host.enter().unwrap();
        let world = format!("cw{:04x}", std::process::id() & 0xffff);
        let _ = Command::new("ip")
            .args(["netns", "del", &world])
            .stderr(Stdio::null())
            .status();
        script(
            &["ip", "-batch", "-"],
            &format!(
                "netns add {world}\nlink add wan type veth peer name wan netns {world}\n\
                 addr add {HOST}/24 dev wan\naddr add 2a00:1::1/64 dev wan nodad\nlink set wan up\n"
            ),
        );
        let mut addresses = String::new();
        for address in WORLD
            .map(|(_, address)| address)
            .into_iter()
            .chain([NAME_SERVER])
        {
            addresses.push_str(&format!("addr add {address}/32 dev wan\n"));
        }
        script(
            &["ip", "-n", &world, "-batch", "-"],
            &format!(
                "link set lo up\naddr add {INTERNET}/24 dev wan\naddr add {INTERNET_V6}/64 dev wan nodad\n\
                 addr add {PRIVATE_V6}/128 dev wan nodad\n{addresses}link set wan up\n\
                 route add default via {HOST}\nroute add default via 2a00:1::1\n"
            ),
        );
        // The host would carry all of it anywhere.
        script(
            &["ip", "-batch", "-"],
            &format!("route add default via {INTERNET}\nroute add default via {INTERNET_V6}\n"),
        );
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        for port in [PORT, 22, 25, 53, 80, 443, 445, 587] {
            serve(inside(&world, move || listen(Ipv6Addr::UNSPECIFIED, port)));
        }
        let gushing = inside(&world, move || listen(Ipv4Addr::UNSPECIFIED, GUSHING_PORT));
        thread::spawn(move || {
            for connection in gushing.incoming().flatten() {
                thread::spawn(move || while (&connection).write_all(&[b'x'; 65536]).is_ok() {});
            }
        });
        let sink = inside(&world, || listen(Ipv4Addr::UNSPECIFIED, SINK_PORT));
        thread::spawn(move || {
            for mut connection in sink.incoming().flatten() {
                thread::spawn(move || std::io::copy(&mut connection, &mut std::io::sink()));
            }
        });
        // And the host itself answers at each of its addresses.
        serve(listen(Ipv6Addr::UNSPECIFIED, PORT));
        Self { _host: host, world }
    }

    /// Somebody would answer there.
    fn assert_answers(address: IpAddr) {
        let to = SocketAddr::from((address, PORT));
        let connection = TcpStream::connect_timeout(&to, PATIENCE);
        let mut word = String::new();
        connection.unwrap().read_to_string(&mut word).unwrap();
        assert_eq!(word, "here\n", "{address}");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.world])
            .status();
    }
}

/// Runs something in a network namespace, on a thread of its own.
fn inside<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    let thread = thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    });
    thread.join().unwrap()
}

fn listen(address: impl Into<IpAddr>, port: u16) -> TcpListener {
    TcpListener::bind((address.into(), port)).unwrap()
}

/// Says a word to everyone who comes.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let _ = (&connection).write_all(b"here\n");
        }
    });
}

/// Runs a test on a host of its own.
fn on_stage<F: Future<Output = ()>>(test: impl FnOnce(Stage) -> F) {
    // First, because threads of the runtime begin where the one that starts it is.
    let stage = Stage::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test(stage));
}

/// A pod that runs what its host sends it.
struct Shell {
    hash: ManifestHash,
    guest: Ipv4Addr,
}

impl Shell {
    async fn start(host: &TestHost, driver: &MicrovmDriver, number: u8) -> Self {
        let serve = format!("exec nc -ll -p {SHELL_PORT} -e /bin/sh");
        let pod = host.pod(number, Some(SHELL_PORT), &[&serve]);
        let (hash, recorder) = (pod.hash, Recorder::new());
        let running = driver.start(pod, recorder.clone()).await.unwrap();
        recorder.wait_event(PodEvent::Listening).await;
        let Some(IpAddr::V4(guest)) = running.address.map(|address| address.ip()) else {
            panic!("no address: {running:?}")
        };
        Self { hash, guest }
    }

    /// What a script prints. A pod runs several at the same time.
    async fn run(&self, script: &str) -> String {
        let (to, script) = (
            SocketAddr::from((self.guest, SHELL_PORT)),
            script.to_owned(),
        );
        let exchange = move || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(format!("{script}\nexit\n").as_bytes())?;
            let mut output = String::new();
            stream.read_to_string(&mut output)?;
            Ok::<_, std::io::Error>(output)
        };
        tokio::task::spawn_blocking(exchange)
            .await
            .unwrap()
            .unwrap()
    }

    /// Whether somebody says a word there, as the pod sees it.
    async fn reaches(&self, address: impl Into<IpAddr>, port: u16) -> bool {
        self.run(&probe(address.into(), port)).await.trim() == "open"
    }
}

/// Prints `open` or `closed`.
fn probe(address: IpAddr, port: u16) -> String {
    // A word is what counts: a refusal by an error, by silence and by a reset all look the same then.
    format!(
        "if [ \"$(nc -w 3 {address} {port} </dev/null 2>/dev/null | head -c 4)\" = here ]; \
         then echo open; else echo closed; fi"
    )
}

#[test]
fn a_pod_reaches_exactly_the_internet() {
    on_stage(|stage| async move {
        let mut host = TestHost::booting();
        host.config.nameservers = vec![NAME_SERVER];
        let driver = host.open().await;
        for address in WORLD.map(|(_, address)| IpAddr::from(address)) {
            Stage::assert_answers(address);
        }
        for address in [INTERNET_V6, PRIVATE_V6] {
            Stage::assert_answers(address.into());
        }
        let neighbour = Shell::start(&host, &driver, 2).await;
        let listening = format!("nc -ll -p {PORT} -e echo here >/dev/null 2>&1 &");
        neighbour.run(&listening).await;
        let pod = Shell::start(&host, &driver, 1).await;
        let near = |guest: Ipv4Addr, offset: u32| {
            IpAddr::from(Ipv4Addr::from(guest.to_bits() - 6 + offset))
        };
        Stage::assert_answers(neighbour.guest.into());
        Stage::assert_answers(HOST.into());
        Stage::assert_answers(near(pod.guest, 0));

        let mapped = |address: Ipv4Addr| IpAddr::from(address.to_ipv6_mapped());
        let metadata = WORLD[3].1;
        let [a, b, c, d] = metadata.octets().map(u16::from);
        let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
        let six_to_four = Ipv6Addr::new(0x2002, a << 8 | b, c << 8 | d, 0, 0, 0, 0, 1);
        let mut table: Vec<(&str, IpAddr, u16, bool)> = vec![
            ("internet", INTERNET.into(), PORT, true),
            ("internet, web", INTERNET.into(), 80, true),
            ("internet, web with TLS", INTERNET.into(), 443, true),
            ("internet, SSH", INTERNET.into(), 22, true),
            ("internet, DNS", INTERNET.into(), 53, true),
            ("internet, mail", INTERNET.into(), 25, false),
            ("internet, mail submission", INTERNET.into(), 587, false),
            ("internet, Windows shares", INTERNET.into(), 445, false),
            ("internet, as mapped IPv6", mapped(INTERNET), PORT, true),
            ("metadata, as mapped IPv6", mapped(metadata), PORT, false),
            ("metadata, by NAT64", nat64.into(), PORT, false),
            ("metadata, by 6to4", six_to_four.into(), PORT, false),
            ("internet, IPv6", INTERNET_V6.into(), PORT, false),
            ("private, IPv6", PRIVATE_V6.into(), PORT, false),
            ("host, IPv6", "2a00:1::1".parse().unwrap(), PORT, false),
            ("name server", NAME_SERVER.into(), 53, true),
            ("name server, other port", NAME_SERVER.into(), PORT, false),
            ("host, public address", HOST.into(), PORT, false),
            ("host, end of the link", near(pod.guest, 0), PORT, false),
            ("pod's end of the link", near(pod.guest, 1), PORT, false),
            ("gateway", near(pod.guest, 5), PORT, false),
            ("neighbour", neighbour.guest.into(), PORT, false),
            (
                "neighbour's host end",
                near(neighbour.guest, 0),
                PORT,
                false,
            ),
            (
                "loopback of the host",
                Ipv4Addr::LOCALHOST.into(),
                PORT,
                false,
            ),
        ];
        table.extend(WORLD.map(|(name, address)| (name, address.into(), PORT, false)));

        let probes: Vec<String> = table
            .iter()
            .map(|(_, address, port, _)| probe(*address, *port))
            .collect();
        let found = pod.run(&probes.join("\n")).await;
        let found: Vec<bool> = found.lines().map(|line| line == "open").collect();
        let mut report = String::new();
        for ((name, address, port, expected), found) in table.iter().zip(&found) {
            let says = |open: bool| if open { "open" } else { "closed" };
            let mark = if expected == found { "" } else { "   WRONG" };
            report.push_str(&format!(
                "{name:28} {address:28} {port:5}  {:6} {:6}{mark}\n",
                says(*expected),
                says(*found)
            ));
        }
        println!("{report}");
        assert_eq!(found.len(), table.len(), "{report}");
        assert!(!report.contains("WRONG"), "{report}");

        // What was refused is counted under its reason, and of nobody else.
        let traffic = counted(&driver, &pod.hash).await;
        assert!(
            traffic.sent.packets > 10 && traffic.received.bytes > 100,
            "{traffic:?}"
        );
        assert!(traffic.visitors_received.bytes > 1000, "{traffic:?}");
        for refusal in [Refusal::Range, Refusal::Port, Refusal::Gateway] {
            assert!(refused(&traffic, refusal) > 0, "{refusal:?} in {traffic:?}");
        }
        let other = counted(&driver, &neighbour.hash).await;
        assert_eq!(refused(&other, Refusal::Range), 0, "{other:?}");
        assert!(driver.refused_by_host().await.unwrap().packets > 0);

        // Nobody from outside comes in.
        let inward = SocketAddr::from((pod.guest, SHELL_PORT));
        let outside = inside(&stage.world, move || {
            TcpStream::connect_timeout(&inward, Duration::from_secs(2))
        });
        assert!(outside.is_err(), "a pod is open to the world");

        spoofing(&driver, &pod).await;
        stop_all(&driver).await;
        host.assert_no_traces();
    });
}

/// A program that may make raw packets sends as somebody else.
async fn spoofing(driver: &MicrovmDriver, pod: &Shell) {
    let status = pod.run("grep CapEff /proc/self/status").await;
    let capabilities = status.split_whitespace().nth(1).unwrap();
    let may_make_raw = u64::from_str_radix(capabilities, 16).unwrap() >> 13 & 1 == 1;
    let before = counted(driver, &pod.hash).await;
    // It broadcasts from 0.0.0.0, by a raw packet.
    pod.run("udhcpc -f -i eth0 -n -q -t 2 -T 1 -s /bin/true >/dev/null 2>&1")
        .await;
    let after = counted(driver, &pod.hash).await;
    let spoofed = refused(&after, Refusal::Spoofed) - refused(&before, Refusal::Spoofed);
    // If programs cannot, that is the first line; `network/tests.rs` tries the second one in any case.
    assert_eq!(spoofed > 0, may_make_raw, "{spoofed} of {after:?}");
    println!("spoofed packets dropped: {spoofed}, raw packets possible: {may_make_raw}");
}

fn refused(traffic: &Traffic, refusal: Refusal) -> u64 {
    traffic.refused[&refusal].packets
}

#[test]
fn a_permit_opens_a_port_and_a_range_of_a_pod_that_runs_and_lasts_over_a_restart() {
    on_stage(|_stage| async move {
        let host = TestHost::booting();
        let driver = host.open().await;
        let pod = Shell::start(&host, &driver, 1).await;
        let other = Shell::start(&host, &driver, 2).await;
        let lan = WORLD[0].1;
        assert!(!pod.reaches(INTERNET, 25).await && !pod.reaches(lan, PORT).await);

        let permit = Permit {
            ports: ["25/tcp".parse().unwrap()].into(),
            ranges: ["10.9.0.0/16".parse().unwrap()].into(),
        };
        driver.permit(pod.hash, permit.clone()).await.unwrap();
        assert!(pod.reaches(INTERNET, 25).await && pod.reaches(lan, PORT).await);
        assert!(!pod.reaches(INTERNET, 587).await && !pod.reaches(WORLD[1].1, PORT).await);
        assert!(!other.reaches(INTERNET, 25).await && !other.reaches(lan, PORT).await);

        // A host that was started again, with another policy, which holds for pods that run.
        drop(driver);
        let mut host = host;
        host.config.egress.deny_ports = ["22/tcp".parse().unwrap()].into();
        let driver = host.open().await;
        driver.permit(pod.hash, permit).await.unwrap();
        for shell in [&pod, &other] {
            driver.attach(&shell.hash, Recorder::new()).await.unwrap();
        }
        assert!(pod.reaches(INTERNET, 25).await && pod.reaches(lan, PORT).await);
        assert!(!pod.reaches(INTERNET, 22).await && pod.reaches(INTERNET, 80).await);
        assert!(!other.reaches(INTERNET, 25).await);

        driver.permit(pod.hash, Permit::default()).await.unwrap();
        assert!(!pod.reaches(INTERNET, 25).await && !pod.reaches(lan, PORT).await);
        stop_all(&driver).await;
        host.assert_no_traces();
    });
}

#[test]
fn a_flood_is_limited_and_counted_and_the_neighbour_does_not_notice() {
    on_stage(|_stage| async move {
        let mut host = TestHost::booting();
        host.config.egress = EgressPolicy {
            limits: EgressLimits {
                packets_per_sec: 10_000,
                bytes_per_sec: 512 * 1024,
                new_connections_per_sec: 20,
                open_connections: 64,
            },
            ..EgressPolicy::default()
        };
        let driver = host.open().await;
        let flooding = Shell::start(&host, &driver, 1).await;
        let quiet = Shell::start(&host, &driver, 2).await;

        // As much as a guest can send, and more than it may; all of it arrives in the end.
        let upload = format!(
            "dd if=/dev/zero bs=65536 count=48 2>/dev/null | nc {INTERNET} {SINK_PORT} >/dev/null; echo sent"
        );
        let flood = flooding.run(&upload);
        let visits = async {
            for round in 0..10 {
                assert!(quiet.reaches(INTERNET, PORT).await, "round {round}");
            }
        };
        let (flooded, ()) = tokio::join!(flood, visits);
        assert_eq!(flooded.trim(), "sent");
        let traffic = counted(&driver, &flooding.hash).await;
        assert!(refused(&traffic, Refusal::ByteRate) > 0, "{traffic:?}");
        assert!(traffic.sent.bytes > 48 * 65536, "{traffic:?}");
        let dropped_sending = refused(&traffic, Refusal::ByteRate);

        // Connections: as many as can be, one after the other.
        flooding
            .run(&format!(
                "i=0; while [ $i -lt 200 ]; do nc -w 1 {INTERNET} {PORT} </dev/null >/dev/null 2>&1 & \
                 i=$((i+1)); done; wait"
            ))
            .await;
        let traffic = counted(&driver, &flooding.hash).await;
        assert!(refused(&traffic, Refusal::Connections) > 0, "{traffic:?}");

        // What comes is limited, too, and still comes whole.
        let taken = flooding
            .run(&format!(
                "nc {INTERNET} {GUSHING_PORT} </dev/null | head -c 1500000 | wc -c"
            ))
            .await;
        assert_eq!(taken.trim(), "1500000");
        let traffic = counted(&driver, &flooding.hash).await;
        assert!(
            refused(&traffic, Refusal::ByteRate) > dropped_sending,
            "{traffic:?}"
        );
        assert!(traffic.received.bytes > 1_500_000, "{traffic:?}");

        let other = counted(&driver, &quiet.hash).await;
        for refusal in [Refusal::PacketRate, Refusal::ByteRate, Refusal::Connections] {
            assert_eq!(refused(&other, refusal), 0, "{other:?}");
        }
        println!("flooding: {traffic:?}\nquiet: {other:?}");
        stop_all(&driver).await;
        host.assert_no_traces();
    });
}
