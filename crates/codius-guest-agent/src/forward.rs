//! `localhost:7768` in the pod is the host's Interledger port: every connection to it is copied to the
//! gateway.
//!
//! This is a process of its own with a thread per direction, so that whatever happens to these
//! connections, the agent goes on; the agent starts it again if it ends. It works for the containers, so it
//! has no more rights than they, and memory of its own to use up.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use codius_guest_protocol::INTERLEDGER_PORT;

use crate::{cgroup, privileges};

/// Connections at the same time; further ones are closed at once.
pub(crate) const MAX_CONNECTIONS: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Nobody's number in any image, so that the kernel's count of a user's processes is its own.
const USER: u32 = 0x7fff_fffe;
const STACK_BYTES: usize = 128 * 1024;

/// Serves both loopback addresses until the process is killed.
pub(crate) fn run(gateway: Ipv4Addr) -> io::Result<()> {
    cgroup::enter_forward()?;
    // The agent's own is never to be killed; this is.
    fs::write("/proc/self/oom_score_adj", "0")?;
    privileges::renounce(USER)?;
    let upstream = SocketAddr::from((gateway, INTERLEDGER_PORT));
    let count = Arc::new(AtomicUsize::new(0));
    let v4 = listen(Ipv4Addr::LOCALHOST.into())?;
    let v6 = listen(Ipv6Addr::LOCALHOST.into())?;
    let shared = Arc::clone(&count);
    thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || accept(&v6, upstream, &shared))?;
    accept(&v4, upstream, &count);
    Ok(())
}

fn listen(address: IpAddr) -> io::Result<TcpListener> {
    TcpListener::bind((address, INTERLEDGER_PORT))
}

fn accept(listener: &TcpListener, upstream: SocketAddr, count: &Arc<AtomicUsize>) {
    loop {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(ACCEPT_RETRY);
            continue;
        };
        let slot = Slot::take(count);
        // A connection without a slot or a thread is closed by being dropped.
        if let Some(slot) = slot {
            let _ = thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    connect(&client, upstream);
                    drop(slot);
                });
        }
    }
}

/// One of the connections that may exist.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(count: &Arc<AtomicUsize>) -> Option<Self> {
        let slot = Self(Arc::clone(count));
        (count.fetch_add(1, Ordering::Relaxed) < MAX_CONNECTIONS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Copies both ways until both are closed. Errors show as closed connections.
fn connect(client: &TcpStream, upstream: SocketAddr) {
    let Ok(server) = TcpStream::connect_timeout(&upstream, CONNECT_TIMEOUT) else {
        return;
    };
    // Packets are small and someone waits for each.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    thread::scope(|scope| {
        let up = || copy(client, &server);
        if thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, up)
            .is_ok()
        {
            copy(&server, client);
        }
    });
}

/// Copies one direction to its end and passes the end on.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    if io::copy(&mut from, &mut to).is_ok() {
        let _ = to.shutdown(Shutdown::Write);
    } else {
        // One side is broken: the other direction has to end as well.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// A listener, and an address that leads to it through `connect`.
    fn forwarded() -> (TcpListener, SocketAddr) {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = server.local_addr().unwrap();
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = door.local_addr().unwrap();
        thread::spawn(move || accept(&door, upstream, &Arc::new(AtomicUsize::new(0))));
        (server, address)
    }

    #[test]
    fn a_half_closed_connection_still_gets_its_answer() {
        let (server, address) = forwarded();
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (mut inside, _) = server.accept().unwrap();
        let mut question = String::new();
        inside.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question");
        inside.write_all(b"answer").unwrap();
        drop(inside);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }

    #[test]
    fn one_connection_too_many_is_closed_and_a_free_slot_is_used_again() {
        let (server, address) = forwarded();
        let mut pairs: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|_| {
                (
                    TcpStream::connect(address).unwrap(),
                    server.accept().unwrap().0,
                )
            })
            .collect();
        let mut refused = TcpStream::connect(address).unwrap();
        assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)));
        let (mut client, inside) = pairs.pop().unwrap();
        drop(inside);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        // The slot comes back a moment after the client sees the end.
        let mut accepted = false;
        for _ in 0..500 {
            let mut client = TcpStream::connect(address).unwrap();
            client
                .set_read_timeout(Some(Duration::from_millis(20)))
                .unwrap();
            if client
                .read(&mut [0])
                .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            {
                accepted = true;
                break;
            }
        }
        assert!(accepted);
    }
}
