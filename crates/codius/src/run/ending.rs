//! The end of a run: the program is stopped if it has not ended by itself, what was not used comes back, and
//! what it has cost is told.
//!
//! The host sends back over the connection that paid what came over it; the stop names a STREAM server of ours
//! for the rest, such as what the upload has paid.

use std::time::Duration;

use codius_api::{
    EndReason, Units,
    v2::{StopReply, StopRequest},
};
use codius_client::{ClientError, Receipt, Wallet};
use serde_json::json;

use super::{
    payer::Payer,
    session::{Over, Session, Signals},
};
use crate::{
    amount,
    failure::{Failure, INTERRUPTED, NOT_PAID, REFUSED, UNREACHABLE, one_line},
    pod_record,
    purchase::own_asset,
};

/// How long a host may take to end a pod and to send money back, for which it takes 15 s at most.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a host may take to settle what has ended by itself.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to end the connection by which we pay, when it sends nothing back.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// How long what was not used of somebody else's program may take to come back.
const REST_PATIENCE: Duration = Duration::from_secs(10);

impl Session {
    /// Ends it if it has not ended, gets the rest, and tells what it has cost.
    pub(super) async fn finish(
        self,
        over: Over,
        payer: &mut Payer,
        signals: &mut Signals,
        left_ms: u64,
    ) -> Result<(), Failure> {
        let by_hand = || {
            let (hash, host) = (self.hash, self.host.origin());
            format!(
                "Next: codius stop {hash} --host {host} ends it and gets the rest back; codius run {hash} --host {host} goes on."
            )
        };
        let patience = match over {
            Over::Interrupted => {
                let text = "Stopping; press Ctrl-C again to leave at once.";
                self.show.tell(text, "stopping", json!({}));
                STOP_TIMEOUT
            }
            Over::Ended(_) => SETTLE_TIMEOUT,
            Over::Silent => {
                return Err(Failure::new(
                    UNREACHABLE,
                    format!("{} does not answer any more", self.host.origin()),
                )
                .note("What is paid ahead is used up, and then the program is frozen and ended.")
                .note(by_hand()));
            }
        };
        if self.lease.owner.as_deref() != Some(self.signer.id().to_string().as_str()) {
            return self.leave(over, payer).await;
        }
        let stopping = self.stopped(payer.wallet(), patience);
        let (stopped, received) = tokio::select! {
            stopped = stopping => stopped,
            () = signals.next() => {
                return Err(Failure::new(INTERRUPTED, "left before the host had answered")
                    .note("Either it stops, or what is paid ahead is used up and then it is frozen and ended.")
                    .note(by_hand()));
            }
        };
        payer.end(END_PATIENCE).await;
        let stopped = match stopped {
            Ok(stopped) => Some(stopped),
            // It has ended all the same; what is not known is what is owed.
            Err(_) if matches!(over, Over::Ended(_)) => None,
            Err(error) => {
                let failure = Failure::from(error);
                let message = format!("the program was not stopped: {}", failure.message());
                return Err(Failure::new(INTERRUPTED, message)
                    .note(format!(
                        "It is paid for {} s more; then it is frozen, and ended after the host's grace.",
                        left_ms.div_ceil(1000)
                    ))
                    .note(by_hand()));
            }
        };
        // What still owes something, or may, is kept for `codius refund --all`.
        if stopped.as_ref().is_some_and(|stopped| stopped.owed.0 == 0) {
            pod_record::ended(&self.hash, self.host.origin());
        }
        let mut moved = self.moved(payer);
        moved.refunded = moved.refunded.saturating_add(received);
        self.tell_end(over, stopped.as_ref(), moved, payer)
    }

    /// The end of paying for a program of somebody else, which only he may stop.
    async fn leave(self, over: Over, payer: &mut Payer) -> Result<(), Failure> {
        let patience = match over {
            Over::Ended(_) => REST_PATIENCE,
            Over::Interrupted | Over::Silent => Duration::ZERO,
        };
        payer.end(patience).await;
        let moved = self.moved(payer);
        self.tell_end(over, None, moved, payer)
    }

    /// Asks the host to end it, or if it has ended what it has cost; and what has come by this.
    async fn stopped(
        &self,
        wallet: &Wallet,
        patience: Duration,
    ) -> (Result<StopReply, ClientError>, u64) {
        let listener = wallet.listen();
        let request = StopRequest {
            refund: Some(listener.refund_to()),
        };
        let host = self.host.clone().placing_within(patience);
        let stopping = host.stop(&self.hash, &request, &self.signer);
        let attending = async {
            listener.attend().await;
            // The host has closed the connection; its answer is about to come.
            std::future::pending::<()>().await;
        };
        let reply = tokio::select! {
            reply = stopping => reply,
            () = attending => unreachable!("it waits for ever"),
        };
        (reply, listener.received())
    }

    fn tell_end(
        &self,
        over: Over,
        stopped: Option<&StopReply>,
        moved: Receipt,
        payer: &Payer,
    ) -> Result<(), Failure> {
        let own = own_asset(payer.wallet());
        let (reason, failure) = match over {
            Over::Interrupted => (
                match stopped {
                    Some(_) => "stopped",
                    None => "left",
                }
                .to_owned(),
                Some(match stopped {
                    Some(_) => Failure::new(INTERRUPTED, "interrupted; the program is stopped"),
                    None => Failure::new(
                        INTERRUPTED,
                        "interrupted; the program is somebody else's, and runs as long as it is paid",
                    ),
                }),
            ),
            Over::Silent => unreachable!("it is told before"),
            Over::Ended(reason) => {
                let name = json!(reason).as_str().unwrap_or_default().to_owned();
                let failure = match reason {
                    EndReason::Exited | EndReason::Stopped => None,
                    EndReason::Expired => Some(
                        Failure::new(NOT_PAID, "the program ended because its money was used up")
                            .note("Next: raise --max or --ahead, or see that the connection that pays stays up."),
                    ),
                    EndReason::Lost => Some(Failure::new(REFUSED, "the host lost the program's machine")),
                    EndReason::HostStopped => Some(Failure::new(REFUSED, "the host ended the program")),
                    EndReason::Other(why) => Some(Failure::new(REFUSED, format!("the program ended: {}", one_line(&why)))),
                };
                (one_line(&name), failure)
            }
        };
        let cost = moved.paid.saturating_sub(moved.refunded);
        let mut text = format!("{reason}\n");
        if let Some(stopped) = stopped {
            text += &format!(
                "  used        {}\n",
                amount::format(stopped.used.0, &self.asset)
            );
        }
        text += &format!("  paid        {}\n", amount::format(moved.paid, &own));
        text += &format!("  came back   {}\n", amount::format(moved.refunded, &own));
        text += &format!("  cost        {}", amount::format(cost, &own));
        let owed = stopped.map(|stopped| stopped.owed);
        if let Some(Units(owed @ 1..)) = owed {
            text += &format!(
                "\n  owed        {}; codius refund gets what is yours of it, or your next upload of this manifest uses it",
                amount::format(owed, &self.asset)
            );
        }
        self.show.end(
            &text,
            json!({
                "manifestHash": self.hash,
                "host": self.host.origin(),
                "reason": reason,
                "exit_code": failure.as_ref().map_or(0, Failure::code),
                "used": stopped.map(|stopped| stopped.used),
                "owed": owed,
                "host_asset": self.asset,
                "paid": moved.paid.to_string(),
                "refunded": moved.refunded.to_string(),
                "cost": cost.to_string(),
                "asset": own,
            }),
        );
        match failure {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}
