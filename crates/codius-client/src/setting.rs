//! Where the Interledger connection is, and who says so.

use std::{env, fmt};

use ilp_link::DEFAULT_PORT;

/// Who says where the Interledger connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `ILP_BTP_SERVER`, as newer ilp-plugin packages have it.
    BtpServer,
    /// The `server` in `ILP_CREDENTIALS`, which is JSON.
    Credentials,
    /// Nobody: where moneyd and a host in local mode listen.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::BtpServer => "ILP_BTP_SERVER",
            Self::Credentials => "ILP_CREDENTIALS",
            Self::Default => "default",
        })
    }
}

/// Where the Interledger connection is unless the caller says otherwise. The URL may hold a token.
pub fn setting() -> (String, Source) {
    if let Ok(server) = env::var("ILP_BTP_SERVER") {
        return (server, Source::BtpServer);
    }
    let credentials = env::var("ILP_CREDENTIALS").ok();
    let server = credentials
        .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
        .and_then(|value| value.get("server")?.as_str().map(str::to_owned));
    match server {
        Some(server) => (server, Source::Credentials),
        None => (
            format!("btp+ws://localhost:{DEFAULT_PORT}"),
            Source::Default,
        ),
    }
}

/// The URL of [`setting`].
pub fn default_url() -> String {
    setting().0
}
