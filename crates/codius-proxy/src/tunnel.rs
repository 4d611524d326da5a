//! Bytes both ways between a visitor and a pod after `101 Switching Protocols`.
//!
//! One side may finish while the other goes on (half-close). The tunnel ends when both have
//! finished, one breaks, the pod or the proxy goes, or nothing moves for too long.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::patience::Busy;
use crate::pool::Slot;

/// Bytes under way in each direction; a slow side slows the other.
const COPY_BYTES: usize = 16 * 1024;

pub(crate) struct Tunnel {
    pub(crate) visitor: OnUpgrade,
    pub(crate) pod: OnUpgrade,
    pub(crate) slot: Slot,
    /// Keeps the wait for the next request from ending the visitor's connection.
    pub(crate) _busy: Busy,
    pub(crate) pod_gone: CancellationToken,
    pub(crate) cut: CancellationToken,
    pub(crate) silence: Duration,
}

impl Tunnel {
    pub(crate) async fn run(self) {
        let moved = Arc::new(AtomicBool::new(false));
        let copy = async {
            let (visitor, pod) =
                tokio::try_join!(self.visitor, self.pod).map_err(io::Error::other)?;
            let mut visitor = Watched::new(TokioIo::new(visitor), &moved);
            let mut pod = Watched::new(TokioIo::new(pod), &moved);
            tokio::io::copy_bidirectional_with_sizes(&mut visitor, &mut pod, COPY_BYTES, COPY_BYTES)
                .await
        };
        let silence = async {
            loop {
                tokio::time::sleep(self.silence).await;
                if !moved.swap(false, Ordering::Relaxed) {
                    return;
                }
            }
        };
        // Dropping the copy closes both sockets, which is all that is wanted then.
        tokio::select! {
            copied = copy => match copied {
                Ok((up, down)) => tracing::debug!(up, down, "tunnel ended"),
                Err(error) => tracing::debug!(%error, "tunnel broke"),
            },
            () = silence => tracing::debug!("tunnel was silent for too long"),
            () = self.pod_gone.cancelled() => tracing::debug!("tunnel ended with its pod"),
            () = self.cut.cancelled() => tracing::debug!("tunnel ended by shutdown"),
        }
        drop(self.slot);
    }
}

/// Notes that something was read.
struct Watched<T> {
    inner: T,
    moved: Arc<AtomicBool>,
}

impl<T> Watched<T> {
    fn new(inner: T, moved: &Arc<AtomicBool>) -> Self {
        Self {
            inner,
            moved: Arc::clone(moved),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if read.is_ready() {
            self.moved.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
