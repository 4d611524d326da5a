//! Whose money.

use std::{fmt, str::FromStr, sync::Arc};

use codius_manifest::ManifestHash;
use serde::{Deserialize, Serialize};

use crate::{OrderId, RefundId};

/// A holder of money in the ledger.
///
/// Every balance is written from the holder's side: positive means that the host keeps money that is
/// the holder's, negative that the holder owes it to the host.
///
/// | text | whose | kind | below zero |
/// |---|---|---|---|
/// | `parent` | the Interledger parent | asset: what the parent owes us is negative | yes |
/// | `local:NAME` | a client of the private network of local mode, play money | asset | yes |
/// | `pod:HASH` | the programs of a pod; kept over restarts and re-uploads | liability | never |
/// | `order:ID` | a payer, while an order is being paid | liability | never |
/// | `lease:HASH` | what is left to run a pod with | liability | never |
/// | `owed:HASH` | those who paid for a pod, did not get it, and said nothing of themselves | liability | never |
/// | `refund:ID` | who paid one order, and what follows from it, and can get back what was not used | liability | never |
/// | `earned` | the operator | income | never |
///
/// All balances of all accounts together are zero.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Account {
    Parent,
    Local(AccountName),
    Pod(ManifestHash),
    Order(OrderId),
    Lease(ManifestHash),
    Owed(ManifestHash),
    Refund(RefundId),
    Earned,
}

impl Account {
    /// Whether its holder may owe money to the host. The store refuses to take any other account
    /// below zero.
    pub fn may_be_negative(&self) -> bool {
        match self {
            Self::Parent | Self::Local(_) => true,
            Self::Pod(_)
            | Self::Order(_)
            | Self::Lease(_)
            | Self::Owed(_)
            | Self::Refund(_)
            | Self::Earned => false,
        }
    }

    /// Whether it holds what somebody paid and has had nothing for. That is never earned: it is used
    /// for a lease, or goes back.
    pub(crate) fn is_of_payers(&self) -> bool {
        match self {
            Self::Order(_) | Self::Owed(_) | Self::Refund(_) => true,
            Self::Parent | Self::Local(_) | Self::Pod(_) | Self::Lease(_) | Self::Earned => false,
        }
    }
}

/// The text names no account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an account")]
pub struct InvalidAccount;

impl fmt::Display for Account {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parent => out.write_str("parent"),
            Self::Local(name) => write!(out, "local:{name}"),
            Self::Pod(hash) => write!(out, "pod:{hash}"),
            Self::Order(id) => write!(out, "order:{id}"),
            Self::Lease(hash) => write!(out, "lease:{hash}"),
            Self::Owed(hash) => write!(out, "owed:{hash}"),
            Self::Refund(id) => write!(out, "refund:{id}"),
            Self::Earned => out.write_str("earned"),
        }
    }
}

impl FromStr for Account {
    type Err = InvalidAccount;

    fn from_str(text: &str) -> Result<Self, InvalidAccount> {
        match text {
            "parent" => return Ok(Self::Parent),
            "earned" => return Ok(Self::Earned),
            _ => {}
        }
        let (kind, name) = text.split_once(':').ok_or(InvalidAccount)?;
        // A hash is read in any case, but an account has one text only.
        let hash = || {
            let hash: ManifestHash = name.parse().map_err(|_| InvalidAccount)?;
            if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                return Err(InvalidAccount);
            }
            Ok(hash)
        };
        match kind {
            "local" => Ok(Self::Local(name.parse()?)),
            "pod" => Ok(Self::Pod(hash()?)),
            "order" => Ok(Self::Order(name.parse().map_err(|_| InvalidAccount)?)),
            "lease" => Ok(Self::Lease(hash()?)),
            "owed" => Ok(Self::Owed(hash()?)),
            "refund" => Ok(Self::Refund(name.parse().map_err(|_| InvalidAccount)?)),
            _ => Err(InvalidAccount),
        }
    }
}

impl Serialize for Account {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <std::borrow::Cow<'de, str>>::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The name of a client: 1 to [`AccountName::MAX_LEN`] letters, digits, `_`, `-` and `~`, as in a
/// segment of an ILP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountName(Arc<str>);

impl AccountName {
    pub const MAX_LEN: usize = 256;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl FromStr for AccountName {
    type Err = InvalidAccount;

    fn from_str(text: &str) -> Result<Self, InvalidAccount> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-~".contains(&byte);
        if text.is_empty() || text.len() > Self::MAX_LEN || !text.bytes().all(allowed) {
            return Err(InvalidAccount);
        }
        Ok(Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_account_has_one_text() {
        let hash = ManifestHash::from_bytes([7; 32]);
        for account in [
            Account::Parent,
            Account::Local("alice-1".parse().unwrap()),
            Account::Pod(hash),
            Account::Order(OrderId::from_bytes([9; 32])),
            Account::Lease(hash),
            Account::Owed(hash),
            Account::Refund(RefundId::from_bytes([8; 32])),
            Account::Earned,
        ] {
            let text = account.to_string();
            assert_eq!(text.parse(), Ok(account), "{text}");
        }
        let upper = format!("pod:{}", hash.to_string().to_uppercase());
        for text in [
            "",
            "parent:",
            "Earned",
            "local:",
            "local:a.b",
            "local:é",
            "pod:x",
            "order:00",
            "refund:00",
            &upper,
        ] {
            assert_eq!(text.parse::<Account>(), Err(InvalidAccount), "{text:?}");
        }
    }
}
