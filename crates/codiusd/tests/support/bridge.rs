//! A way to moneyd, which has a network of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use codius_testkit::{Background, Listen, NetworkNamespace};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, UnixStream},
    sync::broadcast,
};

const MONEYD_PORT: &str = "7768";
const BRIDGE_TIMEOUT: Duration = Duration::from_secs(30);

/// A port here that leads to moneyd in its own network, and that can be cut.
pub(crate) struct Bridge {
    pub(crate) address: SocketAddr,
    open: Arc<AtomicBool>,
    cut: broadcast::Sender<()>,
    _far: Background,
}

impl Bridge {
    pub(crate) async fn to(network: &NetworkNamespace, place: &Path) -> Result<Self> {
        let (script, socket) = (place.join("bridge.js"), place.join("bridge.sock"));
        std::fs::write(&script, include_str!("../node/bridge.js"))?;
        let mut command = network.command("node");
        command.arg(&script).arg(&socket).arg(MONEYD_PORT);
        let far = Background::start(&command, Listen::Output)?;
        far.line_with("bridge ready", BRIDGE_TIMEOUT)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let open = Arc::new(AtomicBool::new(true));
        let (cut, _) = broadcast::channel(1);
        tokio::spawn(pass(listener, socket, Arc::clone(&open), cut.clone()));
        Ok(Self {
            address,
            open,
            cut,
            _far: far,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("btp+ws://{}", self.address)
    }

    /// Breaks every connection, and refuses new ones.
    pub(crate) fn cut(&self) {
        self.open.store(false, Ordering::SeqCst);
        let _ = self.cut.send(());
    }

    pub(crate) fn mend(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

async fn pass(
    listener: TcpListener,
    socket: PathBuf,
    open: Arc<AtomicBool>,
    cut: broadcast::Sender<()>,
) {
    while let Ok((mut near, _)) = listener.accept().await {
        if !open.load(Ordering::SeqCst) {
            continue;
        }
        let (socket, mut cut) = (socket.clone(), cut.subscribe());
        tokio::spawn(async move {
            let Ok(mut far) = UnixStream::connect(&socket).await else {
                return;
            };
            tokio::select! {
                _ = copy_bidirectional(&mut near, &mut far) => {}
                _ = cut.recv() => {}
            }
        });
    }
}
