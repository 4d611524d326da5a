//! ILDCP: how a child asks its parent for its address and asset (RFC 31).
//!
//! The request is an ordinary Prepare of nothing to `peer.config` whose fulfillment everybody knows
//! (32 zero bytes); the answer travels in the data of the Fulfill. It is answered at the edge of an
//! account, before balances and limits, and never forwarded.

use std::sync::LazyLock;

use bytes::Bytes;

use crate::oer::{OerError, Reader, Writer};
use crate::{Address, AddressError, Condition, Fulfill, Fulfillment, Prepare, Timestamp};

/// The address that ILDCP requests go to.
pub const PEER_CONFIG: &str = "peer.config";

/// The fulfillment of every ILDCP request.
pub const FULFILLMENT: Fulfillment = Fulfillment([0; 32]);

/// SHA-256 of 32 zero bytes: the condition of every ILDCP request.
pub const CONDITION: Condition = Condition([
    0x66, 0x68, 0x7a, 0xad, 0xf8, 0x62, 0xbd, 0x77, 0x6c, 0x8f, 0xc1, 0x8b, 0x8e, 0x9f, 0x8e, 0x20,
    0x08, 0x97, 0x14, 0x85, 0x6e, 0xe2, 0x33, 0xb3, 0x90, 0x2a, 0x59, 0x1d, 0x0d, 0x5f, 0x29, 0x25,
]);

/// Longest asset code we accept, bytes. Real ones have three to five.
pub const MAX_ASSET_CODE: usize = 64;

/// [`PEER_CONFIG`] as an address.
pub fn peer_config() -> &'static Address {
    static ADDRESS: LazyLock<Address> = LazyLock::new(|| {
        #[expect(clippy::unwrap_used, reason = "a constant that the tests parse")]
        PEER_CONFIG.parse().unwrap()
    });
    &ADDRESS
}

/// A request that expires at `expires_at` (RFC 31 suggests a minute from now).
pub fn request(expires_at: Timestamp) -> Prepare {
    Prepare {
        amount: 0,
        expires_at,
        condition: CONDITION,
        destination: peer_config().clone(),
        data: Bytes::new(),
    }
}

/// Whether the Prepare is addressed to ILDCP. Its condition and amount still have to be checked.
pub fn is_request(prepare: &Prepare) -> bool {
    prepare.destination == *peer_config()
}

/// Why an ILDCP response could not be used. The parent has to fix it; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IldcpError {
    /// The data of the Fulfill is not an ILDCP response.
    #[error("ildcp response is malformed")]
    Malformed(#[from] OerError),
    /// The address that the parent gave is not an address.
    #[error("ildcp response has an invalid address")]
    Address(#[from] AddressError),
    /// The asset code is longer than [`MAX_ASSET_CODE`] or not UTF-8.
    #[error("ildcp response has an invalid asset code")]
    AssetCode,
}

/// What a parent tells a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IldcpResponse {
    /// The child's own address.
    pub client_address: Address,
    /// Amounts are in units of 10^-scale of the asset.
    pub asset_scale: u8,
    /// For example `XRP`.
    pub asset_code: String,
}

impl IldcpResponse {
    /// The data of the Fulfill.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(self.client_address.as_bytes().len() + 16);
        writer.var_octets(self.client_address.as_bytes());
        writer.u8(self.asset_scale);
        writer.var_octets(self.asset_code.as_bytes());
        writer.into_vec()
    }

    /// The Fulfill that answers a request.
    pub fn fulfill(&self) -> Fulfill {
        Fulfill {
            fulfillment: FULFILLMENT,
            data: self.encode().into(),
        }
    }

    /// From the data of the Fulfill.
    pub fn decode(data: &[u8]) -> Result<Self, IldcpError> {
        let mut reader = Reader::new(data);
        let client_address = Address::try_from(reader.var_octets()?)?;
        let asset_scale = reader.u8()?;
        let code = reader.var_octets()?;
        if code.len() > MAX_ASSET_CODE {
            return Err(IldcpError::AssetCode);
        }
        let asset_code = std::str::from_utf8(code)
            .map_err(|_| IldcpError::AssetCode)?
            .to_owned();
        Ok(Self {
            client_address,
            asset_scale,
            asset_code,
        })
    }
}
