//! From the first label of the Host header to a pod.
//!
//! One listener serves both the host's HTTP API and every pod. A request whose host begins with
//! a manifest hash (52 base32 letters, any case) goes to that pod; every other request goes to
//! the API service of the caller. HTTP/1.1 with keep-alive and streaming on both sides, and
//! whatever a pod upgrades to (WebSocket) as a tunnel.
//!
//! ```text
//! visitor ──▶ visitor (hyper server) ──▶ host: which pod? ──▶ forward ──▶ pool ──▶ pod
//!                    │                        │ no label          │ 101
//!                    │                        ▼                   ▼
//!                    │                   API service            tunnel
//!                    ▼
//!             one connection task drives both sides: no queue, no buffer between them
//! ```
//!
//! Traps:
//! - A connection to a pod is driven by the task of the visitor that uses it, not by a task of
//!   its own ([`pool`]): a body moves on only when the visitor takes it, and a request costs no
//!   wake-up of another thread.
//! - An address of a pod may be given to another pod later. [`Proxy::forget`] ends everything
//!   that is open to the address of a pod that went.
//! - Framing is decided anew on each side; `Content-Length` and `Transfer-Encoding` of a visitor
//!   are never passed on as a contradicting pair (RFC 9112, 6.3).
//!
//! Deliberately absent: TLS and HTTP/2 (a later layer), caching, compression, a `Via` header.

#![forbid(unsafe_code)]

mod body;
mod failure;
mod forward;
mod headers;
mod host;
mod limits;
mod patience;
mod pool;
mod rarely;
mod route;
mod stall;
mod tunnel;
mod visitor;

pub use body::ReplyBody;
pub use limits::Limits;
pub use route::{PodRoutes, Route};
pub use visitor::{Proxy, Scheme, Unfinished, Visitor};

/// What any body may fail with; the connection is cut, so that the other side notices.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
