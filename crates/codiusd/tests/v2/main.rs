//! API version 2 of a real host: its document, its errors, and a lease from its creation to its refund.

mod account;
mod caller;
mod document;
mod errors;
mod lease;
mod pointer;
mod refunds;
mod schemathesis;
mod sizes;
#[path = "../support/mod.rs"]
mod support;
