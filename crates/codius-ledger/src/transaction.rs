//! Double entry.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Account;

/// Money moves between accounts; the postings sum to zero. Its number is given by the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    at_unix_ms: u64,
    reason: Reason,
    reference: Option<[u8; 32]>,
    packets: u64,
    postings: Vec<Posting>,
}

/// One account's side of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posting {
    pub account: Account,
    /// Smallest units; positive is a gain of the account's holder. Never zero.
    pub amount: i64,
}

impl Posting {
    /// Takes money that is kept for whoever paid it and got nothing for it yet.
    fn is_of_payers(&self) -> bool {
        self.amount < 0 && self.account.is_of_payers()
    }
}

/// Why money moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Interledger packets were fulfilled. The reference is the condition if it was one packet.
    Packet,
    /// An order was accepted: from the order to the lease. The reference is the order.
    Payment,
    /// A pod has run: from the lease to what the operator has earned.
    Charge,
    /// Money that was not used is put aside for who paid it: from a lease or an order to what is
    /// owed.
    Return,
    /// Money went back to its payer, or is on its way by a packet that is recorded so.
    Refund,
    /// Somebody paid the host itself, for nothing in return, by a packet. The reference is its
    /// condition.
    Gift,
}

impl Reason {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Packet, "packet"),
        (Self::Payment, "payment"),
        (Self::Charge, "charge"),
        (Self::Return, "return"),
        (Self::Refund, "refund"),
        (Self::Gift, "gift"),
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Payment => "payment",
            Self::Charge => "charge",
            Self::Return => "return",
            Self::Refund => "refund",
            Self::Gift => "gift",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// The text names no reason that this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a reason of a transaction")]
pub struct InvalidReason;

impl FromStr for Reason {
    type Err = InvalidReason;

    fn from_str(text: &str) -> Result<Self, InvalidReason> {
        let known = Self::ALL.into_iter().find(|(_, name)| *name == text);
        known.map(|(reason, _)| reason).ok_or(InvalidReason)
    }
}

/// Postings that are no transaction. Nothing happened; the caller is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// Money would appear or vanish.
    #[error("the postings sum to {sum} and not to zero")]
    Unbalanced { sum: i128 },
    /// A posting moves nothing, or there is none at all.
    #[error("a posting of zero")]
    Zero,
    /// An account appears twice.
    #[error("two postings of {account}")]
    Repeated { account: Account },
    /// More accounts than [`Transaction::MAX_POSTINGS`].
    #[error("more than {} postings", Transaction::MAX_POSTINGS)]
    TooMany,
    /// Money of payers would become the operator's, for nothing.
    #[error("{from} is not the operator's: only what a lease has used and what is given is earned")]
    NotEarned { from: Account },
    /// An amount does not fit into 63 bits.
    #[error("an amount of {amount} is too large")]
    TooLarge { amount: i128 },
}

impl Transaction {
    pub const MAX_POSTINGS: usize = 16;

    /// `at_unix_ms` is for people only; the order of transactions is the store's.
    pub fn new(
        at_unix_ms: u64,
        reason: Reason,
        postings: impl IntoIterator<Item = (Account, i128)>,
    ) -> Result<Self, TransactionError> {
        let mut checked: Vec<Posting> = Vec::new();
        let mut sum = 0i128;
        for (account, amount) in postings {
            if amount == 0 {
                return Err(TransactionError::Zero);
            }
            if checked.len() == Self::MAX_POSTINGS {
                return Err(TransactionError::TooMany);
            }
            if checked.iter().any(|posting| posting.account == account) {
                return Err(TransactionError::Repeated { account });
            }
            // The most negative number is left out too, so that every amount has an opposite.
            let small = i64::try_from(amount)
                .ok()
                .filter(|amount| *amount != i64::MIN);
            let amount = small.ok_or(TransactionError::TooLarge { amount })?;
            sum += i128::from(amount);
            checked.push(Posting { account, amount });
        }
        if checked.is_empty() {
            return Err(TransactionError::Zero);
        }
        if sum != 0 {
            return Err(TransactionError::Unbalanced { sum });
        }
        let is_earned = checked
            .iter()
            .any(|posting| posting.account == Account::Earned && posting.amount > 0);
        if is_earned && let Some(posting) = checked.iter().find(|posting| posting.is_of_payers()) {
            return Err(TransactionError::NotEarned {
                from: posting.account.clone(),
            });
        }
        Ok(Self {
            at_unix_ms,
            reason,
            reference: None,
            packets: 1,
            postings: checked,
        })
    }

    /// Moves `amount` from one account to another.
    pub fn transfer(
        at_unix_ms: u64,
        reason: Reason,
        from: Account,
        to: Account,
        amount: u64,
    ) -> Result<Self, TransactionError> {
        let amount = i128::from(amount);
        Self::new(at_unix_ms, reason, [(from, -amount), (to, amount)])
    }

    /// Names what caused it: the condition of a packet, the id of an order.
    #[must_use]
    pub fn with_reference(mut self, reference: [u8; 32]) -> Self {
        self.reference = Some(reference);
        self
    }

    /// Stands for so many packets between the same two accounts that became durable together.
    #[must_use]
    pub fn with_packets(mut self, packets: u64) -> Self {
        self.packets = packets.max(1);
        self
    }

    /// How many packets it stands for; one if it is no packet.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    pub fn at_unix_ms(&self) -> u64 {
        self.at_unix_ms
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }

    pub fn reference(&self) -> Option<&[u8; 32]> {
        self.reference.as_ref()
    }

    pub fn postings(&self) -> &[Posting] {
        &self.postings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_sums_to_zero() {
        let moved =
            Transaction::transfer(1, Reason::Packet, Account::Parent, Account::Earned, 5).unwrap();
        assert_eq!(
            moved.postings(),
            [
                Posting {
                    account: Account::Parent,
                    amount: -5
                },
                Posting {
                    account: Account::Earned,
                    amount: 5
                },
            ]
        );
    }

    #[test]
    fn what_is_no_transaction_is_refused() {
        let new = |postings: &[(Account, i128)]| {
            Transaction::new(1, Reason::Packet, postings.iter().cloned())
        };
        let (parent, earned) = (Account::Parent, Account::Earned);
        let name = |number: usize| Account::Local(number.to_string().parse().unwrap());
        assert_eq!(new(&[]), Err(TransactionError::Zero));
        assert_eq!(new(&[(parent.clone(), 0)]), Err(TransactionError::Zero));
        assert_eq!(
            new(&[(parent.clone(), -5), (earned.clone(), 4)]),
            Err(TransactionError::Unbalanced { sum: -1 })
        );
        assert_eq!(
            new(&[(parent.clone(), -5), (parent.clone(), 5)]),
            Err(TransactionError::Repeated {
                account: parent.clone()
            })
        );
        for amount in [
            i128::MIN,
            i128::from(i64::MIN),
            i128::from(i64::MAX) + 1,
            i128::MAX,
        ] {
            assert_eq!(
                new(&[(parent.clone(), amount), (earned.clone(), 1)]),
                Err(TransactionError::TooLarge { amount })
            );
        }
        let most = i128::from(i64::MAX);
        new(&[(parent.clone(), -most), (earned, most)]).unwrap();
        let many: Vec<_> = (0..17).map(|number| (name(number), 1)).collect();
        assert_eq!(new(&many), Err(TransactionError::TooMany));
    }

    /// Whatever moves money, and for whatever reason.
    #[test]
    fn what_is_owed_is_never_earned() {
        let hash = codius_manifest::ManifestHash::from_bytes([1; 32]);
        let order = Account::Order(crate::OrderId::from_bytes([2; 32]));
        for from in [Account::Owed(hash), order] {
            for (reason, _) in Reason::ALL {
                let earned = Transaction::transfer(1, reason, from.clone(), Account::Earned, 5);
                assert_eq!(
                    earned,
                    Err(TransactionError::NotEarned { from: from.clone() })
                );
                let among = [
                    (from.clone(), -5),
                    (Account::Parent, -1),
                    (Account::Earned, 6),
                ];
                let earned = Transaction::new(1, reason, among);
                assert_eq!(
                    earned,
                    Err(TransactionError::NotEarned { from: from.clone() })
                );
            }
            // The other way, and to anyone else, it may go.
            Transaction::transfer(1, Reason::Refund, Account::Earned, from.clone(), 5).unwrap();
            Transaction::transfer(1, Reason::Payment, from, Account::Lease(hash), 5).unwrap();
        }
    }

    #[test]
    fn every_reason_has_its_text() {
        for (reason, text) in Reason::ALL {
            assert_eq!(reason.as_str(), text);
            assert_eq!(text.parse(), Ok(reason));
        }
        assert_eq!("theft".parse::<Reason>(), Err(InvalidReason));
    }
}
