//! `/api/v2`: the bodies of version 2, in snake_case throughout.
//!
//! Members of a request that this version does not know are refused, so that a misspelt one is not
//! silently without effect. Members of a reply that a client does not know are ignored by it.

mod container;
mod exec;
mod host;
mod lease;
mod log;
mod quote;
mod refund;
mod stop;
mod usage;

pub use container::{ContainerExit, ContainerReply, ContainerState, ExitReason};
pub use exec::{ExecReply, ExecRequest, ExecStart, INPUT, STDERR, STDOUT, TerminalSize};
pub use host::{
    Capacity, DurationRange, HostReply, IsolationInfo, MachineInfo, MachineSize, Price, Processors,
};
pub use lease::{CreateLeaseRequest, Ended, ExtendLeaseRequest, LeaseReply, LeaseState};
pub use log::{LogLine, LogStreamName};
pub use quote::{QuoteReply, QuoteRequest};
pub use refund::{RefundReply, RefundRequest, RefundState};
pub use stop::{RefundTo, StopReply, StopRequest};
pub use usage::{DiskUsage, Exchanged, MemoryUsage, NetworkUsage, Packets, UsageReply};
