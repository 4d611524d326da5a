//! The Interledger port of a pod: a listener in the pod's network whose connections are given away.
//!
//! An open socket keeps its network namespace alive, and the connector does not know when a pod ends. So
//! each connection that is given away is cut from here when the pod does.

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use codius_guest_protocol::INTERLEDGER_PORT;
use codius_pod::PodEvents;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    limits::MAX_INTERLEDGER_CONNECTIONS,
    network::{Block, bind_tcp},
};

/// Accepts until `ended`, and cuts all connections then.
#[derive(Debug)]
pub(crate) struct InterledgerPort {
    listener: TcpListener,
    places: Arc<Semaphore>,
    ended: CancellationToken,
}

impl InterledgerPort {
    /// Blocks for a moment; needs the runtime's context.
    pub(crate) fn bind(namespace: &OwnedFd, block: Block) -> io::Result<Self> {
        let address = SocketAddr::V4(SocketAddrV4::new(block.gateway(), INTERLEDGER_PORT));
        Ok(Self::over(TcpListener::from_std(bind_tcp(
            namespace, address,
        )?)?))
    }

    fn over(listener: TcpListener) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(MAX_INTERLEDGER_CONNECTIONS)),
            ended: CancellationToken::new(),
        }
    }

    /// Cuts everything when dropped.
    pub(crate) async fn serve(self, events: Arc<dyn PodEvents>) {
        let _cut = self.ended.clone().drop_guard();
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    // Packets are small and each is waited for.
                    let _ = stream.set_nodelay(true);
                    events.interledger(Box::new(PodConnection {
                        stream,
                        ended: Box::pin(self.ended.clone().cancelled_owned()),
                        _place: place,
                    }));
                }
                // A connection that has gone again, or no descriptor is left: the next may work.
                Err(error) => {
                    tracing::debug!(%error, "no Interledger connection could be accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// A connection that ends with its pod.
struct PodConnection {
    stream: TcpStream,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl PodConnection {
    /// Fails once the pod has ended; wakes the task when that happens.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.ended.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the pod has ended",
            )),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for PodConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for PodConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use codius_pod::{Duplex, PodEvent};
    use std::time::Duration;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::mpsc,
        time::timeout,
    };

    struct Connections(mpsc::UnboundedSender<Box<dyn Duplex>>);

    impl PodEvents for Connections {
        fn event(&self, _event: PodEvent) {}
        fn interledger(&self, connection: Box<dyn Duplex>) {
            self.0.send(connection).unwrap();
        }
    }

    #[tokio::test]
    async fn connections_are_counted_and_end_with_the_pod() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, mut connections) = mpsc::unbounded_channel();
        let serving =
            tokio::spawn(InterledgerPort::over(listener).serve(Arc::new(Connections(sender))));

        let mut clients = Vec::new();
        let mut accepted = Vec::new();
        for _ in 0..MAX_INTERLEDGER_CONNECTIONS {
            clients.push(TcpStream::connect(address).await.unwrap());
            accepted.push(connections.recv().await.unwrap());
        }
        clients.push(TcpStream::connect(address).await.unwrap());
        assert!(
            timeout(Duration::from_millis(50), connections.recv())
                .await
                .is_err(),
            "one too many"
        );
        accepted.pop();
        let mut last = timeout(Duration::from_secs(5), connections.recv())
            .await
            .unwrap()
            .unwrap();
        clients.last_mut().unwrap().write_all(b"hi").await.unwrap();
        let mut bytes = [0; 2];
        last.read_exact(&mut bytes).await.unwrap();

        let reader = tokio::spawn(async move { last.read(&mut [0]).await });
        tokio::task::yield_now().await;
        serving.abort();
        let ended = timeout(Duration::from_secs(5), reader)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(accepted[0].write_all(b"x").await.is_err());
    }
}
