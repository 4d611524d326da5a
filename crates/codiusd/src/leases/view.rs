//! A lease as it is told: to who asks for it, and to who has paid for it, in the words of the API that
//! was asked.

use codius_api::{
    EndReason as ApiEndReason, PodReply, Units, UnixMillis,
    v2::{Ended, LeaseReply, LeaseState, MachineSize, RefundState},
};
use codius_ledger::{
    Account, EndReason, Lease, LeaseState as LedgerState, RefundId, StoredResponse,
};
use codius_manifest::{Manifest, ManifestHash, ManifestVersion, Size, Upload};
use codius_signature::KeyId;
use codius_store::{LeaseOrigin, StoreError};
use serde::Serialize;

use super::{Leases, containers};

/// In which version's words a paid request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyForm {
    V1,
    V2,
}

impl Leases {
    /// The lease of a hash: the one that has not ended, else the last one that has.
    pub(crate) async fn view(&self, hash: &ManifestHash) -> Result<Option<LeaseReply>, StoreError> {
        // What runs is shown as it is at this moment, without asking the database.
        if let Some(shown) = self.shown(hash) {
            let (mut lease, mut balance) = (shown.lease, shown.balance);
            balance -= lease.charge(self.clock.steady(), balance).amount;
            let reply = self.reply(
                &lease,
                if lease.is_frozen() {
                    LeaseState::Frozen
                } else {
                    LeaseState::Running
                },
                balance,
                Some(shown.upload.manifest()),
                shown.owner,
                shown.size,
            );
            let views = shown.pod.containers();
            return Ok(Some(LeaseReply {
                containers: views.iter().map(containers::told).collect(),
                ..reply
            }));
        }
        let Some(stored) = self.store.lease(*hash).await? else {
            return Ok(None);
        };
        let balance = self.balance(&Account::Lease(*hash)).await?;
        let upload = stored.upload.and_then(|upload| {
            Upload::parse_as(ManifestVersion::V2, upload.upload_json.as_bytes()).ok()
        });
        let mut lease = stored.lease;
        let state = match lease.state() {
            LedgerState::Starting => LeaseState::Starting,
            // It is not shown, so its pod is being started again.
            LedgerState::Running(_) | LedgerState::Paused | LedgerState::Frozen(_) => {
                lease.recover(self.boot, self.clock.steady(), false);
                LeaseState::Paused
            }
            LedgerState::Ended { .. } => LeaseState::Ended,
        };
        let mut reply = self.reply(
            &lease,
            state,
            balance,
            upload.as_ref().map(Upload::manifest),
            stored.origin.owner.map(KeyId::from_bytes),
            stored.origin.size,
        );
        if state == LeaseState::Ended {
            reply.owed = Some(Units(self.balance(&Account::Owed(*hash)).await?));
            reply.refund = self.refund_state(stored.origin.refund, false).await?;
        }
        Ok(Some(reply))
    }

    /// The same for its owner, if this is his key, who alone may know where his money goes.
    pub(crate) async fn view_for(
        &self,
        hash: &ManifestHash,
        key: &KeyId,
    ) -> Result<Option<LeaseReply>, StoreError> {
        let Some(mut reply) = self.view(hash).await? else {
            return Ok(None);
        };
        if let Some(stored) = self.store.lease(*hash).await?
            && stored.origin.owner == Some(*key.as_bytes())
        {
            reply.refund = self.refund_state(stored.origin.refund, true).await?;
        }
        Ok(Some(reply))
    }

    async fn refund_state(
        &self,
        refund: Option<RefundId>,
        for_owner: bool,
    ) -> Result<Option<RefundState>, StoreError> {
        let Some(id) = refund else {
            return Ok(None);
        };
        let Some(refund) = self.store.refund(id).await? else {
            return Ok(None);
        };
        Ok(Some(RefundState {
            to: refund.record.destination.filter(|_| for_owner),
            due: Units(refund.due),
            sent: Units(refund.sent),
            next_try: refund.next_try_unix_ms.map(UnixMillis::new),
            trouble: refund.trouble.filter(|_| for_owner),
        }))
    }

    fn reply(
        &self,
        lease: &Lease,
        state: LeaseState,
        balance: u64,
        manifest: Option<&Manifest>,
        owner: Option<KeyId>,
        size: Size,
    ) -> LeaseReply {
        let hash = lease.hash();
        let has_port = manifest.is_some_and(|manifest| manifest.port().is_some());
        let ended = match lease.state() {
            LedgerState::Ended { reason } => Some(Ended {
                reason: told(reason),
            }),
            LedgerState::Starting
            | LedgerState::Running(_)
            | LedgerState::Paused
            | LedgerState::Frozen(_) => None,
        };
        let frozen_until = lease.is_frozen().then(|| {
            let grace_ms = lease.grace_left_ms(self.clock.steady(), self.grace_ms());
            UnixMillis::new(self.clock.wall().saturating_add(grace_ms))
        });
        LeaseReply {
            manifest_hash: hash,
            state,
            url: (state == LeaseState::Running && has_port).then(|| self.url(&hash)),
            manifest: manifest.map(|manifest| manifest.as_value().clone()),
            machine: Some(sold(size)),
            created_at: UnixMillis::new(lease.parts().created_at_unix_ms),
            expires_at: ended.is_none().then(|| self.expiry(lease, balance)),
            frozen_until,
            balance: Units(balance),
            price_per_second: lease.rate().to_string(),
            asset: self.asset.clone(),
            owner: owner.map(|owner| owner.to_string()),
            ended,
            owed: None,
            refund: None,
            containers: Vec::new(),
        }
    }

    /// The answer to who has paid for a lease that runs.
    pub(super) fn answer(
        &self,
        form: ReplyForm,
        lease: &Lease,
        balance: u64,
        upload: &Upload,
        origin: LeaseOrigin,
    ) -> StoredResponse {
        let hash = lease.hash();
        match form {
            ReplyForm::V1 => stored(&PodReply {
                url: self.url(&hash),
                manifest_hash: hash,
                expiry: self.expiry(lease, balance),
            }),
            ReplyForm::V2 => {
                let (mut lease, mut balance) = (*lease, balance);
                balance -= lease.charge(self.clock.steady(), balance).amount;
                let state = if lease.is_frozen() {
                    LeaseState::Frozen
                } else {
                    LeaseState::Running
                };
                stored(&self.reply(
                    &lease,
                    state,
                    balance,
                    Some(upload.manifest()),
                    origin.owner.map(KeyId::from_bytes),
                    origin.size,
                ))
            }
        }
    }
}

/// A size as it is told.
pub(crate) fn sold(Size { name, machine }: Size) -> MachineSize {
    MachineSize {
        name: name.to_string(),
        vcpus: machine.vcpus.into(),
        memory_mib: machine.memory_mib.into(),
        disk_mib: machine.scratch_mib.into(),
    }
}

fn stored<T: Serialize>(reply: &T) -> StoredResponse {
    StoredResponse {
        status: 200,
        body: serde_json::to_string(reply).expect("text, numbers and JSON are JSON"),
    }
}

fn told(reason: EndReason) -> ApiEndReason {
    match reason {
        EndReason::Expired => ApiEndReason::Expired,
        EndReason::Stopped => ApiEndReason::Stopped,
        EndReason::StartFailed => ApiEndReason::Other(reason.as_str().to_owned()),
        EndReason::Exited => ApiEndReason::Exited,
        EndReason::Lost => ApiEndReason::Lost,
        EndReason::HostStopped => ApiEndReason::HostStopped,
    }
}
