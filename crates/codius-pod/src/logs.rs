//! What the containers of one pod wrote, the newest part of it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use codius_guest_protocol::LogStream;
use tokio::sync::Notify;

/// The most output kept of one pod; the oldest is dropped first.
pub const MAX_LOG_BYTES: usize = 1024 * 1024;

/// A bounded record of output that many may read and follow.
#[derive(Debug, Default)]
pub struct PodLogs {
    inner: Mutex<Inner>,
    grown: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    records: VecDeque<Arc<LogRecord>>,
    bytes: usize,
    /// Sequence number of the first record still here.
    first: u64,
    /// The place of the next byte of output.
    written: u64,
    closed: bool,
}

/// A piece of output, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    pub container: usize,
    pub stream: LogStream,
    pub data: Vec<u8>,
    /// When it came, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The place of its first byte in all output of the pod, however often the host is restarted.
    /// Given by [`PodLogs::append`].
    pub offset: u64,
}

/// Places of bytes begin at the time in milliseconds, times this: a record that a later process of the
/// host makes of the same pod has later places, unless the pod writes more than a GiB a second.
const PLACES_PER_MILLISECOND: u64 = 1 << 20;

impl PodLogs {
    /// An empty record that begins at this time, in milliseconds since 1970.
    pub fn beginning(unix_ms: u64) -> Self {
        let logs = Self::default();
        logs.lock().written = unix_ms.saturating_mul(PLACES_PER_MILLISECOND);
        logs
    }

    /// Adds a piece of output.
    pub fn append(&self, mut record: LogRecord) {
        let mut inner = self.lock();
        record.offset = inner.written;
        inner.written = inner.written.saturating_add(record.data.len() as u64);
        inner.bytes += record.data.len();
        inner.records.push_back(Arc::new(record));
        while inner.bytes > MAX_LOG_BYTES {
            let Some(oldest) = inner.records.pop_front() else {
                break;
            };
            inner.bytes -= oldest.data.len();
            inner.first += 1;
        }
        drop(inner);
        self.grown.notify_waiters();
    }

    /// Adds a line of the host's own, for whoever reads the output: on standard error of the first
    /// container, in brackets.
    pub fn note(&self, text: &str, at_unix_ms: u64) {
        self.append(LogRecord {
            container: 0,
            stream: LogStream::Stderr,
            data: format!("[codius] {text}\n").into_bytes(),
            at_unix_ms,
            offset: 0,
        });
    }

    /// No more will come: followers end.
    pub fn close(&self) {
        self.lock().closed = true;
        self.grown.notify_waiters();
    }

    /// Records from `from` on that are here now, and where to go on.
    pub fn read(&self, from: u64) -> (Vec<Arc<LogRecord>>, u64) {
        let inner = self.lock();
        let skip = usize::try_from(from.saturating_sub(inner.first)).unwrap_or(usize::MAX);
        let records: Vec<_> = inner.records.iter().skip(skip).cloned().collect();
        let next = inner.first + inner.records.len() as u64;
        (records, next)
    }

    /// As [`Self::read`], but waits while there is nothing; `None` at the end.
    pub async fn follow(&self, from: u64) -> Option<(Vec<Arc<LogRecord>>, u64)> {
        loop {
            // Registered before looking, so that no growth in between is missed.
            let grown = self.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            let (records, next) = self.read(from);
            if !records.is_empty() {
                return Some((records, next));
            }
            if self.lock().closed {
                return None;
            }
            grown.await;
        }
    }

    /// The last lines of one container, for an error message: at most `max` bytes.
    pub fn tail(&self, container: usize, max: usize) -> String {
        let inner = self.lock();
        let mut text = Vec::new();
        for record in inner
            .records
            .iter()
            .filter(|record| record.container == container)
        {
            text.extend_from_slice(&record.data);
            let over = text.len().saturating_sub(max);
            text.drain(..over);
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(data: &[u8]) -> LogRecord {
        LogRecord {
            container: 0,
            stream: LogStream::Stdout,
            data: data.to_vec(),
            at_unix_ms: 0,
            offset: 0,
        }
    }

    #[tokio::test]
    async fn a_follower_sees_what_was_and_what_comes_and_then_the_end() {
        let logs = Arc::new(PodLogs::default());
        logs.append(record(b"one"));
        let (first, next) = logs.follow(0).await.unwrap();
        assert_eq!(first[0].data, b"one");
        let follower = tokio::spawn({
            let logs = Arc::clone(&logs);
            async move { logs.follow(next).await }
        });
        tokio::task::yield_now().await;
        logs.append(record(b"two"));
        let (second, next) = follower.await.unwrap().unwrap();
        assert_eq!(second[0].data, b"two");
        logs.close();
        assert!(logs.follow(next).await.is_none());
    }

    #[test]
    fn only_the_newest_output_is_kept() {
        let logs = PodLogs::default();
        for number in 0..300_u32 {
            logs.append(LogRecord {
                data: vec![u8::try_from(number % 251).unwrap(); 10_000],
                ..record(b"")
            });
        }
        let (records, next) = logs.read(0);
        assert!(
            records
                .iter()
                .map(|record| record.data.len())
                .sum::<usize>()
                <= MAX_LOG_BYTES
        );
        assert_eq!(next, 300);
        assert_eq!(records.last().unwrap().offset, 299 * 10_000);
        assert_eq!(logs.read(299).0.len(), 1);
        assert_eq!(logs.tail(0, 5).len(), 5);
    }
}
