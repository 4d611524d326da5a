//! What the host and its clients say to each other over HTTP: the JSON bodies, and nothing else.
//!
//! Version 1 (`/pods`, `/info`, …) is frozen: names and texts are those of the original host
//! (codiusd 1.2.5). One rule keeps old and new apart in every body: **members of version 1 are in
//! camelCase as the original has them; everything that this host adds is in snake_case** and may be
//! missing when an older host answers. Version 2 (`/api/v2`) is in snake_case throughout.
//!
//! Amounts are integers in the smallest unit of the host's asset and travel as decimal text
//! ([`Units`]), because JavaScript cannot hold 64-bit integers. Moments are [`UnixMillis`]: RFC 3339
//! text with milliseconds and `Z` in version 1, and in version 2 too.

#![forbid(unsafe_code)]

mod error;
mod event;
mod host;
mod peers;
mod pods;
mod time;
mod units;
pub mod v2;

pub use error::{ErrorBody, FailureCause, Trouble, reason_phrase};
pub use event::{EndReason, LeaseEvent, LeaseEventKind, Phase};
pub use host::{AssetInfo, HostInfo, Info, Memory, Version};
pub use peers::{DiscoverReply, DiscoverRequest, PeersReply};
pub use pods::{PodReply, PodStatusReply, QuoteReply};
pub use time::{InvalidTime, UnixMillis};
pub use units::{InvalidUnits, Units};
