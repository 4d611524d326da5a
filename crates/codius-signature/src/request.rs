//! The part of a request that is signed.

/// A request as it is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// In capitals.
    pub method: &'a str,
    /// Host and port of the target, without the scheme's own port; compared in lower case.
    pub authority: &'a str,
    /// Percent-encoded, as it is sent.
    pub path: &'a str,
    /// Without the question mark; `None` and empty are the same.
    pub query: Option<&'a str>,
    /// Empty if there is none.
    pub body: &'a [u8],
}
