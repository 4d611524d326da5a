//! The Bilateral Transfer Protocol 2.0 (Interledger RFC 23): frames and the session machine.
//!
//! BTP carries ILPv4 packets between two neighbours over one WebSocket, one BTP frame per binary
//! message. This crate turns bytes into [`Frame`]s and back, and it keeps the state of one session
//! (authentication, request ids, replies that are still owed). It has no socket, no clock and no
//! source of randomness: the caller passes bytes, the time and random request ids in.
//!
//! What is deliberately absent: moving money by BTP itself. A [`Frame::Transfer`] is decoded so
//! that it can be refused with an Error F00; all value moves in ILP packets.
//!
//! Traps
//! - Unreadable frames and unexpected replies are never answered: two ends that answer each
//!   other's errors would never stop.
//! - Some peers (interledger-rs since 2020) put Prepares into Responses and replies into Messages.
//!   [`Session`] goes by the type of the ILP packet when it reads and is strict when it writes.

#![forbid(unsafe_code)]

mod auth;
mod frame;
mod protocol;
mod refusal;
mod session;

pub use auth::{AUTH, AUTH_TOKEN, AUTH_USERNAME, Credentials, CredentialsError};
pub use frame::{DecodeError, EncodeError, Frame, MAX_FRAME_BYTES, RequestId};
pub use protocol::{ContentType, ILP, MAX_PROTOCOL_NAME_BYTES, MAX_PROTOCOLS, ProtocolData};
pub use refusal::{Refusal, RefusalCode};
pub use session::{Event, Ignored, Moment, OpenRequests, Phase, SendError, Session, SessionLimits};
