//! A connector with everything around it faked: clock, ledger, neighbours, receivers.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part of this module"
)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ilp_connector::{
    AccountConfig, AccountId, Answer, Clock, Commit, Connector, ConnectorConfig, Ledger,
    LedgerAccount, LedgerError, Link, LinkError, Movement, Receiver, Recorded,
};
use ilp_packet::{
    Address, Condition, ErrorCode, Fulfill, Fulfillment, Prepare, Reject, Reply, Timestamp,
};
use tokio::sync::Notify;
use tokio::time::Instant;

pub const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);
pub const FULFILLMENT: Fulfillment = Fulfillment([7; 32]);

/// Follows the runtime's clock, which tests pause and advance.
pub struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        START.plus_millis(u64::try_from(self.0.elapsed().as_millis()).unwrap())
    }
}

/// Remembers movements. Can be told to fail, to refuse, or to wait.
#[derive(Default)]
pub struct FakeLedger {
    pub rows: Mutex<Vec<Movement>>,
    pub fails: AtomicBool,
    pub refuses: AtomicBool,
    pub waits: AtomicBool,
    pub go_on: Notify,
}

impl FakeLedger {
    pub fn balance(&self, account: &str) -> i128 {
        let rows = self.rows.lock().unwrap();
        rows.iter()
            .map(|row| {
                let amount = i128::from(row.amount);
                let credit = if row.credit.as_str() == account {
                    amount
                } else {
                    0
                };
                let debit = if row.debit.as_str() == account {
                    amount
                } else {
                    0
                };
                credit - debit
            })
            .sum()
    }

    fn write(&self, movement: Movement) -> Result<(), LedgerError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(LedgerError::Refused("told to".into()));
        }
        if self.fails.load(Ordering::SeqCst) {
            return Err(LedgerError::Failed("disk is full".into()));
        }
        assert_ne!(movement.amount, 0, "zero amounts need no row");
        assert_ne!(movement.debit, movement.credit);
        self.rows.lock().unwrap().push(movement);
        Ok(())
    }

    pub fn row_count(&self) -> usize {
        self.rows.lock().unwrap().len()
    }
}

/// As the connector has it: shared with whatever writes.
pub struct FakeBank(pub Arc<FakeLedger>);

impl Ledger for FakeBank {
    fn record(&self, movement: Movement, recorded: Recorded) {
        let ledger = self.0.clone();
        if ledger.waits.load(Ordering::SeqCst) {
            tokio::spawn(async move {
                ledger.go_on.notified().await;
                recorded.complete(ledger.write(movement));
            });
        } else {
            recorded.complete(ledger.write(movement));
        }
    }
}

/// What a neighbour does with a packet.
#[derive(Clone)]
pub enum Behaviour {
    Fulfill,
    WrongFulfill,
    Reject(ErrorCode),
    Silent,
    FulfillAfter(Duration),
    Fail(LinkError),
}

/// A neighbour that remembers what it was sent.
pub struct Neighbour {
    pub behaviour: Mutex<Behaviour>,
    pub seen: Mutex<Vec<Prepare>>,
}

impl Neighbour {
    pub fn new(behaviour: Behaviour) -> Arc<Self> {
        Arc::new(Self {
            behaviour: Mutex::new(behaviour),
            seen: Mutex::default(),
        })
    }

    pub fn seen(&self) -> Vec<Prepare> {
        self.seen.lock().unwrap().clone()
    }
}

impl Link for Neighbour {
    fn send(&self, prepare: Prepare, answer: Answer) {
        self.seen.lock().unwrap().push(prepare);
        let behaviour = self.behaviour.lock().unwrap().clone();
        let deadline = answer.deadline();
        let (wait, result) = match behaviour {
            Behaviour::Fulfill => (None, Ok(Ok(fulfill()))),
            Behaviour::WrongFulfill => {
                let wrong = Fulfill {
                    fulfillment: Fulfillment([8; 32]),
                    data: Bytes::new(),
                };
                (None, Ok(Ok(wrong)))
            }
            Behaviour::Reject(code) => {
                let by: Address = "test.far.away".parse().unwrap();
                (None, Ok(Err(Reject::new(code, Some(&by), "no"))))
            }
            Behaviour::Silent => (Some(deadline), Err(LinkError::TimedOut)),
            Behaviour::FulfillAfter(wait) => (Some(Instant::now() + wait), Ok(Ok(fulfill()))),
            Behaviour::Fail(error) => (None, Err(error)),
        };
        match wait {
            None => answer.complete(result),
            Some(at) => {
                tokio::spawn(async move {
                    if at > deadline {
                        tokio::time::sleep_until(deadline).await;
                        answer.complete(Err(LinkError::TimedOut));
                    } else {
                        tokio::time::sleep_until(at).await;
                        answer.complete(result);
                    }
                });
            }
        }
    }
}

/// What a receiver does with a packet.
#[derive(Clone, Copy)]
pub enum Taking {
    CreditThenFulfill,
    FulfillWithoutCredit,
    CreditThenReject,
    CreditThenWrongFulfill,
    Reject,
    Sleep,
}

pub struct FakeReceiver(pub Taking);

#[async_trait]
impl Receiver for FakeReceiver {
    async fn receive(&self, _: Option<&AccountId>, prepare: Prepare, commit: Commit) -> Reply {
        assert_eq!(commit.amount(), prepare.amount);
        let reject = Reject::new(ErrorCode::FinalApplicationError, None, "receiver says no");
        let account = LedgerAccount::new("lease");
        match self.0 {
            Taking::CreditThenFulfill => match commit.credit(account).await {
                Ok(()) => Ok(fulfill()),
                Err(_) => Err(reject),
            },
            Taking::FulfillWithoutCredit => Ok(fulfill()),
            Taking::CreditThenReject => {
                commit.credit(account).await.unwrap();
                Err(reject)
            }
            Taking::CreditThenWrongFulfill => {
                commit.credit(account).await.unwrap();
                Ok(Fulfill {
                    fulfillment: Fulfillment([8; 32]),
                    data: Bytes::new(),
                })
            }
            Taking::Reject => Err(reject),
            Taking::Sleep => std::future::pending().await,
        }
    }
}

pub struct World {
    pub connector: Connector,
    pub ledger: Arc<FakeLedger>,
    pub clock: Arc<RuntimeClock>,
}

impl World {
    /// A connector `test.host` with the children `a` (1000 units) and `b` (nothing), both prepaid
    /// and both connected to neighbours that fulfill, and a receiver `host`.
    pub fn new() -> (Self, Arc<Neighbour>, Arc<Neighbour>) {
        let world = Self::empty();
        let a = world.child("a", 1000, Behaviour::Fulfill);
        let b = world.child("b", 0, Behaviour::Fulfill);
        world.receiver("host", Taking::CreditThenFulfill);
        (world, a, b)
    }

    pub fn empty() -> Self {
        let ledger = Arc::new(FakeLedger::default());
        let clock = Arc::new(RuntimeClock(Instant::now()));
        let config = ConnectorConfig::new(address("test.host"), "XRP", 9);
        let connector = Connector::new(config, Arc::new(FakeBank(ledger.clone())), clock.clone());
        Self {
            connector,
            ledger,
            clock,
        }
    }

    pub fn child(&self, name: &str, balance: i128, behaviour: Behaviour) -> Arc<Neighbour> {
        self.connector
            .open_account(child(name).with_balance(balance))
            .unwrap();
        let neighbour = Neighbour::new(behaviour);
        self.connector
            .attach_link(&name.into(), neighbour.clone())
            .unwrap();
        neighbour
    }

    pub fn parent(&self, behaviour: Behaviour) -> Arc<Neighbour> {
        self.connector
            .open_account(AccountConfig::parent("parent", "ledger:parent"))
            .unwrap();
        let neighbour = Neighbour::new(behaviour);
        self.connector
            .attach_link(&"parent".into(), neighbour.clone())
            .unwrap();
        neighbour
    }

    pub fn receiver(&self, segment: &str, taking: Taking) {
        self.connector
            .register_receiver(segment, Arc::new(FakeReceiver(taking)))
            .unwrap();
    }

    pub fn packet(&self, destination: &str, amount: u64) -> Prepare {
        Prepare {
            amount,
            expires_at: self.clock.now().plus_millis(10_000),
            condition: FULFILLMENT.condition(),
            destination: address(destination),
            data: Bytes::from_static(b"data"),
        }
    }

    pub async fn send(&self, from: &str, destination: &str, amount: u64) -> Reply {
        self.connector
            .prepare(&from.into(), self.packet(destination, amount))
            .await
    }

    /// Sends and returns the code of the Reject.
    pub async fn code(&self, from: &str, destination: &str, amount: u64) -> ErrorCode {
        self.send(from, destination, amount).await.unwrap_err().code
    }

    pub fn balances(&self) -> (i128, i128) {
        (self.balance("a"), self.balance("b"))
    }

    pub fn balance(&self, account: &str) -> i128 {
        self.connector.balance(&account.into()).unwrap()
    }
}

pub fn child(name: &str) -> AccountConfig {
    AccountConfig::child(name, name, format!("ledger:{name}"))
}

pub fn address(text: &str) -> Address {
    text.parse().unwrap()
}

pub fn fulfill() -> Fulfill {
    Fulfill {
        fulfillment: FULFILLMENT,
        data: Bytes::from_static(b"thanks"),
    }
}

pub fn other_condition() -> Condition {
    Condition([1; 32])
}

/// Sums by name, for comparing two views of the same money.
pub fn sum(balances: &HashMap<String, i128>) -> i128 {
    balances.values().sum()
}
