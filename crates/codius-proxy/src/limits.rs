//! Every bound of the proxy, by name.

use std::time::Duration;

/// Bounds of one [`Proxy`](crate::Proxy). The defaults suit a host on the public internet.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Visitors connected at once. More wait in the listener's backlog.
    pub visitors: usize,
    /// Bytes of one request head, request line included. More: 431.
    pub head_bytes: usize,
    /// Header lines of one request or reply. More: 431, or 502 from a pod.
    pub header_count: usize,
    /// Time for one whole request head; also how long an idle visitor may stay connected.
    /// Noticed after one to two times this long.
    pub head_read: Duration,
    /// A visitor that neither sends the body it announced nor takes the reply for this long is
    /// cut off. Noticed after one to two times this long.
    pub visitor_stall: Duration,
    /// Time for a TCP connection to a pod. Longer: 504.
    pub pod_connect: Duration,
    /// Time from the whole request head to the whole reply head of a pod. Longer: 504.
    /// Counted anew while a request body is still moving.
    pub pod_head: Duration,
    /// Longest silence inside a reply body of a pod (an event stream should say something more
    /// often). Noticed after one to two times this long.
    pub pod_silence: Duration,
    /// How long a pod may take to say `100 Continue` before the body is sent unasked
    /// (RFC 9110, 10.1.1: a client does not wait for ever).
    pub continue_wait: Duration,
    /// Connections in use to one pod at once. More: 503.
    pub pod_connections: usize,
    /// Idle connections kept to one pod.
    pub pod_idle_connections: usize,
    /// How long an idle connection to a pod is kept. Shorter than the five seconds after which
    /// common servers (Node.js, uvicorn) close, so that we are not the last to notice.
    pub pod_idle: Duration,
    /// Upgraded connections are cut after this long without a byte in either direction.
    /// Noticed after one to two times this long.
    pub tunnel_silence: Duration,
    /// How long a request waits for a pod that is being taken up or started again. Longer: 503.
    pub pod_ready: Duration,
    /// How long requests that are under way at the shutdown get, and the last ones that are accepted
    /// meanwhile once more.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            visitors: 8192,
            head_bytes: 32 * 1024,
            header_count: 100,
            head_read: Duration::from_secs(30),
            visitor_stall: Duration::from_secs(60),
            pod_connect: Duration::from_secs(5),
            pod_head: Duration::from_secs(60),
            pod_silence: Duration::from_secs(600),
            continue_wait: Duration::from_secs(1),
            pod_connections: 1024,
            pod_idle_connections: 64,
            pod_idle: Duration::from_secs(4),
            tunnel_silence: Duration::from_secs(3600),
            pod_ready: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}
