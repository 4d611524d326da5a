//! What a pod reaches and who reaches a pod. Every refusal is beside something of the same kind that works,
//! so that it is the rule that refuses.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    fs::File,
    io::Write,
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsFd,
    process::Command,
    thread,
    time::Duration,
};

use codius_pod::{Driver, PodEvent};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use support::{PATIENCE, Recorder, TestHost, fetch, script, stop_all};

both_ways!(a_pod_reaches_the_internet_and_nothing_of_the_host);

/// Another machine beside the host, with a public and a private address.
struct World {
    name: String,
    public: Ipv4Addr,
    private: Ipv4Addr,
    /// The host's own address on that side.
    host: Ipv4Addr,
}

impl World {
    fn new(number: u16) -> Self {
        let name = format!("wd{number:04x}");
        let [high, low] = number.to_be_bytes();
        let world = Self {
            // Some address of the public internet, which this machine believes to be its neighbour meanwhile.
            public: Ipv4Addr::new(45, 0, 1, (low & 0x3f) << 2 | 2),
            host: Ipv4Addr::new(45, 0, 1, (low & 0x3f) << 2 | 1),
            private: Ipv4Addr::new(10, 192 | high & 0x3f, low, 2),
            name,
        };
        let name = &world.name;
        let private_host = Ipv4Addr::from(u32::from(world.private) - 1);
        let (public, private, host) = (world.public, world.private, world.host);
        script(
            &["ip", "-batch", "-"],
            &format!(
                "netns add {name}\nlink add {name} type veth peer name out netns {name}\n\
             addr add {host}/30 dev {name}\naddr add {private_host}/30 dev {name}\nlink set {name} up\n"
            ),
        );
        script(
            &["ip", "-n", name, "-batch", "-"],
            &format!(
                "addr add {public}/30 dev out\naddr add {private}/30 dev out\nlink set out up\n\
             route add default via {host}\n"
            ),
        );
        world
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["link", "del", &self.name])
            .status();
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
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

/// Says a word to everyone who comes.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let _ = (&connection).write_all(b"here\n");
        }
    });
}

fn serve_inside(namespace: &str, port: u16) {
    serve(inside(namespace, move || {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()
    }));
}

async fn a_pod_reaches_the_internet_and_nothing_of_the_host(mut host: TestHost) {
    let world = World::new(host.number);
    host.config.nameservers = vec![world.private];
    let driver = host.open().await;

    // Everywhere the same port, so that only the address decides.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    serve(listener);
    for port in [port, 25, 53] {
        serve_inside(&world.name, port);
    }

    let server = "exec httpd -f -p 8080 -h /www";
    let other = Recorder::new();
    let neighbour = driver
        .start(host.pod(2, Some(8080), &[server]), other.clone())
        .await
        .unwrap();
    let neighbour = neighbour.address.unwrap();
    let IpAddr::V4(neighbour_guest) = neighbour.ip() else {
        panic!("not IPv4")
    };
    let guest = Ipv4Addr::from(u32::from(neighbour_guest) + 8);
    let near = |offset: u32| Ipv4Addr::from(u32::from(guest) - 6 + offset);

    let probes: Vec<(&str, Ipv4Addr, u16, bool)> = vec![
        ("public", world.public, port, true),
        ("mail", world.public, 25, false),
        ("private", world.private, port, false),
        ("nameserver", world.private, 53, true),
        ("host-end-of-link", near(0), port, false),
        ("host-address", world.host, port, false),
        ("pod-end-of-link", near(1), port, false),
        ("gateway", near(5), port, false),
        ("neighbour", neighbour_guest, 8080, false),
        (
            "neighbours-host-end",
            Ipv4Addr::from(u32::from(neighbour_guest) - 6),
            port,
            false,
        ),
        ("own-server", Ipv4Addr::LOCALHOST, 8080, true),
    ];
    let mut commands = String::from("nc -l -p 9000 >/dev/null </dev/null\n");
    for (name, address, port, _) in &probes {
        // A server of pages only speaks when spoken to.
        let say = if *port == 8080 {
            "GET / HTTP/1.0\\r\\n\\r\\n"
        } else {
            ""
        };
        commands.push_str(&format!(
            "if [ \"$(printf '{say}' | nc -w 4 {address} {port} 2>/dev/null | head -c 1)\" ]; \
             then echo {name}=open; else echo {name}=closed; fi\n"
        ));
    }
    commands.push_str(
        "echo interledger=$(echo ping | nc -w 4 127.0.0.1 7768)\necho done=yes\nexec sleep 1000",
    );

    let recorder = Recorder::new();
    let pod = host.pod(1, Some(8080), &[server, &commands]);
    let running = driver.start(pod, recorder.clone()).await.unwrap();
    assert_eq!(
        running.address,
        Some((guest, 8080).into()),
        "slots are given out in turn"
    );
    let namespace = format!("cd{}-1", host.config.instance);
    serve_inside(&namespace, port);
    recorder.wait_event(PodEvent::Listening).await;
    other.wait_event(PodEvent::Listening).await;
    // Tells the pod to go.
    let go = async {
        while tokio::net::TcpStream::connect((guest, 9000)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, go)
        .await
        .expect("port 9000 opens");
    let output = recorder
        .wait_for("end", |recorder| {
            Some(recorder.output(1)).filter(|output| output.contains("done=yes"))
        })
        .await;

    let expected: Vec<String> = probes
        .iter()
        .map(|(name, _, _, open)| format!("{name}={}", if *open { "open" } else { "closed" }))
        .chain(["interledger=ping".to_owned(), "done=yes".to_owned()])
        .collect();
    assert_eq!(output.lines().collect::<Vec<_>>(), expected);

    // The host comes in; nobody else does.
    for address in [running.address.unwrap(), neighbour] {
        fetch(address).await.unwrap();
        let from_outside = inside(&world.name, move || {
            TcpStream::connect_timeout(&address, Duration::from_secs(2))
        });
        assert!(from_outside.is_err(), "{address} is open to the world");
    }
    stop_all(&driver).await;
    host.assert_no_traces();
}
