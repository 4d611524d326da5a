//! When the model looks: at each write, at each moment that a schedule stops at, and when all is at rest.

use std::sync::Arc;

use codius_ledger::StoredResponse;
use codius_store::simulated::rusqlite::{self, Connection};

use super::{
    client::Purchase,
    host::Host,
    model::Surroundings,
    world::{Incarnation, World, lock},
};

/// How long a pod may go on for which nobody pays, beside what it takes to end it.
const UNPAID_MS: u64 = 1000;
/// The longest that a start takes: two looks at an image, the slowest boot, and the port.
const START_MS: u64 = 160_000;

impl World {
    /// Something was written.
    pub(super) fn look(&self, connection: &Connection) {
        let now = self.now_ms();
        let mut notes = Vec::new();
        let written = {
            let mut model = lock(&self.model);
            model.written(connection, now, &mut |line| notes.push(line))
        };
        for line in notes {
            self.note(|| line);
        }
        match written {
            Ok(wrong) => wrong.into_iter().for_each(|wrong| self.violation(wrong)),
            Err(error) => self.violation(format!("the books cannot be read: {error}")),
        }
    }

    fn surroundings(&self) -> Surroundings {
        let write_ms = self.plan.write_ms();
        Surroundings {
            now_ms: self.now_ms(),
            up_since_ms: self.up_since_ms(),
            refused_at_ms: lock(&self.mood).refused_at_ms,
            running: lock(&self.machines).running(),
            unpaid_bound_ms: UNPAID_MS + Host::STOP_MS + 2 * write_ms,
            grace_ms: self.plan.grace_ms,
            start_bound_ms: START_MS + 4 * write_ms,
        }
    }

    /// Looks at what runs and what is paid.
    pub(super) fn check(&self) {
        let around = self.surroundings();
        let wrong = lock(&self.model).moment(&around);
        wrong.into_iter().for_each(|wrong| self.violation(wrong));
        self.check_lines(false);
    }

    /// Looks at everything there is.
    pub(super) fn check_all(&self, at_rest: bool) {
        self.check();
        let around = self.surroundings();
        let wrong = self.disk.look(|connection| {
            let mut model = lock(&self.model);
            let mut wrong = model.add_up(connection)?;
            wrong.extend(model.orders(connection, &around, at_rest)?);
            Ok::<_, rusqlite::Error>(wrong)
        });
        match wrong {
            Ok(wrong) => wrong.into_iter().for_each(|wrong| self.violation(wrong)),
            Err(error) => self.violation(format!("the books cannot be read: {error}")),
        }
    }

    /// What each client's line has seen agrees with the books.
    fn check_lines(&self, at_rest: bool) {
        let now = self.now_ms();
        for client in &self.clients {
            let seen = client.seen(now);
            let account = client.ledger_account();
            let (paid, returned) = {
                let model = lock(&self.model);
                (model.went(&account), model.came(&account))
            };
            if paid < seen.paid || paid > seen.paid_at_most {
                self.violation(format!(
                    "client {} has paid {} to {}, and the books say {paid}",
                    client.number, seen.paid, seen.paid_at_most
                ));
            }
            if returned > seen.returned || returned < seen.returned_at_least {
                self.violation(format!(
                    "client {} got back {}, at least {} for sure, and the books say {returned}",
                    client.number, seen.returned, seen.returned_at_least
                ));
            }
            let exact = paid == seen.paid && returned == seen.returned;
            if at_rest && client.is_certain() && !exact {
                self.violation(format!(
                    "client {} has paid {} and got back {}, and the books say {paid} and {returned}",
                    client.number, seen.paid, seen.returned
                ));
            }
        }
    }

    /// Every lease has come to its end, and so has the money on it.
    pub(super) fn check_rest(&self, host: Option<&Arc<Host>>) {
        self.check_all(true);
        self.check_lines(true);
        for hash in lock(&self.model).live_hashes() {
            self.violation(format!("lease {hash} has not ended"));
        }
        for hash in lock(&self.machines).hashes() {
            self.violation(format!("pod {hash} is still there"));
        }
        let Some(host) = host else {
            self.violation("the host does not come up");
            return;
        };
        let free_mib = host.leases.admission.free_mib();
        if free_mib != Host::capacity(self).memory_mib {
            self.violation(format!(
                "only {free_mib} MiB are free on a host that runs nothing"
            ));
        }
        let running = host.leases.running();
        if running != 0 {
            self.violation(format!("{running} leases are shown as running"));
        }
    }

    /// An order's client has got its answer.
    pub(super) fn answered(&self, purchase: &Purchase, answer: &StoredResponse) {
        let id = purchase.request.id;
        let account = format!("order:{id}");
        let text = &id.to_string()[..6];
        let (came, went) = {
            let model = lock(&self.model);
            (model.came(&account), model.went(&account))
        };
        self.note(|| format!("order {text} answered: {}, {came} paid", answer.status));
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
        if answer.status == 200 {
            if came == 0 || went != came {
                self.violation(format!(
                    "order {text} is done, with {came} paid and {went} used"
                ));
            }
            return;
        }
        let amount = |name: &str| -> Option<u64> { body.get(name)?.as_str()?.parse().ok() };
        let (Some(refunded), Some(owed)) = (amount("refunded"), amount("owed")) else {
            return;
        };
        if refunded + owed != came {
            self.violation(format!(
                "order {text} took {came}; its client is told {refunded} refunded and {owed} owed"
            ));
        }
    }

    /// The database answers no write any more: the operator will start the host again.
    pub(super) fn broken(self: &Arc<Self>, incarnation: &Incarnation) {
        let (world, incarnation) = (Arc::clone(self), incarnation.clone());
        tokio::spawn(async move {
            super::world::sleep_ms(4000).await;
            if !incarnation.is_dead() {
                world.kill("started again, because its database failed");
            }
        });
    }
}
