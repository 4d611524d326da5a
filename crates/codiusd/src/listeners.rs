//! The listeners of a host: opened here, or held by whoever started this process.
//!
//! A listener that is held outlives this process: connections that are made while no `codiusd` runs wait in its
//! queue, and the next one accepts them. Holders speak the protocol of `sd_listen_fds(3)`: systemd, by its
//! `.socket` units, and `codiusd keep`. What is held has a name (`FileDescriptorName=` of systemd):
//!
//! | name | is |
//! |---|---|
//! | `http` | the listener of the API and the pods (`listen`) |
//! | `btp` | one for local Interledger clients (`interledger.listen`), in local mode |
//!
//! Traps:
//! - Descriptors are taken once, at the beginning, before there is a second thread and before any other file is
//!   opened; they are closed in programs that this process starts.
//! - What is held has to be what the configuration says. A listener that nobody accepts from would leave its
//!   visitors waiting for ever.
//! - The queue is as long as [`BACKLOG`], or `net.core.somaxconn` if that is less. When it is full, the kernel
//!   drops further attempts; a client's kernel tries again after a second.

use std::{
    env, fs, io,
    net::{SocketAddr, TcpListener as HeldTcp},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpSocket};

use crate::config::{Config, InterledgerMode};

/// Connections that wait to be accepted, on each listener.
pub(crate) const BACKLOG: u32 = 1024;
/// More listeners than any configuration of ours asks for.
const MAX_HELD: usize = 64;

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Http,
    Btp,
}

impl Purpose {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Btp => "btp",
        }
    }

    fn parse(name: &str) -> Result<Self> {
        match name {
            "http" => Ok(Self::Http),
            "btp" => Ok(Self::Btp),
            _ => bail!(
                "a listener is held by the name {name:?}; names are `http` and `btp` \
                 (FileDescriptorName= in a .socket unit)"
            ),
        }
    }
}

/// Listeners that the holder has passed on and that were not asked for yet.
#[derive(Debug, Default)]
pub(crate) struct Held(Vec<HeldListener>);

#[derive(Debug)]
struct HeldListener {
    purpose: Purpose,
    address: SocketAddr,
    listener: HeldTcp,
}

impl Held {
    /// Takes what the environment says. To be called once, before anything else is opened or started.
    pub(crate) fn from_environment() -> Result<Self> {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        // Looks whether it is for this process, and removes what it has read from the environment.
        let mut passed = ListenFd::from_env();
        ensure!(
            passed.len() <= MAX_HELD,
            "{} listeners are held; there are at most {MAX_HELD}",
            passed.len()
        );
        let mut listeners = Vec::new();
        for index in 0..passed.len() {
            let listener = passed
                .take_tcp_listener(index)
                .with_context(|| format!("what is held at place {index} cannot be used"))?;
            listeners.extend(listener);
        }
        if listeners.is_empty() {
            return Ok(Self::default());
        }
        Self::named(listeners, &names)
    }

    fn named(listeners: Vec<HeldTcp>, names: &str) -> Result<Self> {
        let names: Vec<&str> = names.split(':').collect();
        ensure!(
            names.len() == listeners.len(),
            "{} listeners are held, and LISTEN_FDNAMES names {}",
            listeners.len(),
            names.len()
        );
        let held = listeners.into_iter().zip(names).map(|(listener, name)| {
            let purpose = Purpose::parse(name)?;
            let listens = rustix::net::sockopt::socket_acceptconn(&listener)
                .map_err(io::Error::from)
                .with_context(|| format!("what is held as {name} cannot be used"))?;
            ensure!(
                listens,
                "what is held as {name} is a socket that does not listen"
            );
            // Who accepts waits for many things at once.
            listener.set_nonblocking(true)?;
            Ok(HeldListener {
                purpose,
                address: listener.local_addr()?,
                listener,
            })
        });
        Ok(Self(held.collect::<Result<_>>()?))
    }

    /// The one for this purpose at this address; port 0 takes any.
    fn take(&mut self, purpose: Purpose, wanted: SocketAddr) -> Option<HeldTcp> {
        let index = self.0.iter().position(|held| {
            held.purpose == purpose
                && held.address.ip() == wanted.ip()
                && (wanted.port() == 0 || held.address.port() == wanted.port())
        })?;
        Some(self.0.swap_remove(index).listener)
    }
}

/// The listeners of one host.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) http: TcpListener,
    /// None below a parent.
    pub(crate) interledger: Vec<TcpListener>,
}

impl Listeners {
    /// Takes what is held, and opens the rest.
    pub(crate) fn open(config: &Config, mut held: Held) -> Result<Self> {
        warn_of_a_short_queue();
        let http = listen(Purpose::Http, config.listen, &mut held)?;
        let interledger = match config.interledger.mode {
            InterledgerMode::Local => {
                listen_interledger(&config.interledger.local_addresses(), &mut held)?
            }
            InterledgerMode::Uplink => Vec::new(),
        };
        if let Some(HeldListener {
            purpose, address, ..
        }) = held.0.first()
        {
            bail!(
                "a listener is held as `{}` at {address}, where the configuration has none; make \
                 them equal (`listen`, `interledger.listen`), or stop whoever holds it",
                purpose.name()
            );
        }
        Ok(Self { http, interledger })
    }

    /// For a holder: all of them, by what they are for.
    pub(crate) fn into_held(self) -> io::Result<Vec<(Purpose, HeldTcp)>> {
        let http = (Purpose::Http, self.http);
        let interledger = self.interledger.into_iter().map(|it| (Purpose::Btp, it));
        std::iter::once(http)
            .chain(interledger)
            .map(|(purpose, listener)| Ok((purpose, listener.into_std()?)))
            .collect()
    }
}

fn listen(purpose: Purpose, address: SocketAddr, held: &mut Held) -> Result<TcpListener> {
    if let Some(listener) = held.take(purpose, address) {
        return Ok(TcpListener::from_std(listener)?);
    }
    let open = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // A restarted daemon gets its port back while old connections linger.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().with_context(|| {
        format!("cannot listen on {address}; is another program there? Choose another address")
    })
}

/// Listens for local clients. A machine without IPv6 does without it.
fn listen_interledger(addresses: &[SocketAddr], held: &mut Held) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for &address in addresses {
        match listen(Purpose::Btp, address, held) {
            Ok(listener) => listeners.push(listener),
            Err(error) if address.is_ipv6() && !listeners.is_empty() && no_such_address(&error) => {
                tracing::info!(%address, "there is no such address here; local clients use the others");
            }
            Err(error) => return Err(error),
        }
    }
    ensure!(
        !listeners.is_empty(),
        "interledger.listen is empty; uploaders in local mode need a port to pay at"
    );
    Ok(listeners)
}

fn no_such_address(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
        )
    })
}

fn warn_of_a_short_queue() {
    let longest = fs::read_to_string("/proc/sys/net/core/somaxconn")
        .map_err(|error| anyhow!(error))
        .and_then(|text| Ok(text.trim().parse::<u32>()?));
    match longest {
        Ok(longest) if longest < BACKLOG => tracing::warn!(
            "net.core.somaxconn is {longest}: so many connections can wait during a restart, and not \
             {BACKLOG}; `sysctl net.core.somaxconn={BACKLOG}` allows more"
        ),
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "net.core.somaxconn is not known"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn held(names: &str) -> Result<(Held, Vec<SocketAddr>)> {
        let listeners: Vec<_> = names
            .split(':')
            .map(|_| HeldTcp::bind("127.0.0.1:0"))
            .collect::<io::Result<_>>()?;
        let addresses = listeners
            .iter()
            .map(HeldTcp::local_addr)
            .collect::<io::Result<_>>()?;
        Ok((Held::named(listeners, names)?, addresses))
    }

    fn config(http: SocketAddr, btp: &[SocketAddr]) -> Config {
        let mut config = Config {
            listen: http,
            ..Config::default()
        };
        config.interledger.listen = Some(btp.to_vec());
        config
    }

    #[tokio::test]
    async fn what_is_held_is_taken_with_those_that_wait_in_its_queue() -> Result<()> {
        let (held, addresses) = held("btp:http")?;
        let waiting = TcpStream::connect(addresses[1])?;
        let listeners = Listeners::open(&config(addresses[1], &addresses[..1]), held)?;
        assert_eq!(listeners.http.local_addr()?, addresses[1]);
        assert_eq!(listeners.interledger[0].local_addr()?, addresses[0]);
        let (_, visitor) = listeners.http.accept().await?;
        assert_eq!(visitor, waiting.local_addr()?);
        Ok(())
    }

    #[tokio::test]
    async fn port_0_takes_whatever_port_is_held_and_the_rest_is_opened() -> Result<()> {
        let (held, addresses) = held("http")?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listeners = Listeners::open(&config(any, &[any]), held)?;
        assert_eq!(listeners.http.local_addr()?, addresses[0]);
        assert_eq!(listeners.interledger.len(), 1);
        Ok(())
    }

    #[tokio::test]
    async fn what_the_configuration_does_not_have_is_refused_by_name() -> Result<()> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        // Another address, and a purpose that nobody has below a parent.
        let elsewhere = SocketAddr::from(([127, 0, 0, 2], 0));
        let (other, addresses) = held("http")?;
        let error = Listeners::open(&config(elsewhere, &[any]), other);
        let error = error.expect_err("another address is held").to_string();
        assert!(error.contains("`http`") && error.contains(&addresses[0].to_string()));
        let (both, addresses) = held("http:btp")?;
        let mut below = config(any, &[]);
        below.interledger.mode = InterledgerMode::Uplink;
        let error = Listeners::open(&below, both).expect_err("nobody listens for clients");
        assert!(error.to_string().contains(&addresses[1].to_string()));
        Ok(())
    }

    #[test]
    fn names_are_known_and_there_is_one_for_each() -> Result<()> {
        let error = held("https").expect_err("no such name");
        assert!(error.to_string().contains("\"https\""), "{error}");
        let error = Held::named(vec![HeldTcp::bind("127.0.0.1:0")?], "http:btp");
        assert!(error.is_err());
        // Without any, as systemd passes them on when it is told no name, it is the unit's.
        assert!(held("codiusd.socket").is_err());
        Ok(())
    }

    #[test]
    fn a_socket_that_does_not_listen_is_refused() -> Result<()> {
        let listener = HeldTcp::bind("127.0.0.1:0")?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        let stream = HeldTcp::from(std::os::fd::OwnedFd::from(stream));
        let error = Held::named(vec![stream], "http").expect_err("it is connected");
        assert!(error.to_string().contains("does not listen"), "{error}");
        Ok(())
    }
}
