//! Two STREAM connections (RFC 29) over a path that loses, repeats, reorders, damages, diminishes and
//! rejects: money is conserved, limits hold, data arrives once and in order, and the end comes.
#![no_main]

use bytes::Bytes;
use codius_fuzz::stream::{End, reject_of_path};
use codius_fuzz::{Choices, START};
use ilp_packet::{ErrorCode, Fulfill, Prepare, Reject, Reply, Timestamp};
use ilp_stream::{Rate, RatePolicy};
use libfuzzer_sys::fuzz_target;

/// Packets that may be on their way in one direction.
const MAX_QUEUE: usize = 64;
/// Rounds of fair weather before the end.
const FAIR_ROUNDS: usize = 12;

struct Path {
    ends: [End; 2],
    now: Timestamp,
    /// Packets on their way to each end.
    prepares: [Vec<(u64, Prepare)>; 2],
    /// Replies on their way to each end.
    replies: [Vec<(u64, Reply)>; 2],
}

impl Path {
    fn new(choices: &mut Choices<'_>) -> Self {
        let (there, back) = (rate(choices), rate(choices));
        Self {
            ends: [End::new(0, there, choices), End::new(1, back, choices)],
            now: START,
            prepares: [Vec::new(), Vec::new()],
            replies: [Vec::new(), Vec::new()],
        }
    }

    /// Sends and reports everything that there is.
    fn drive(&mut self) {
        for at in 0..2 {
            loop {
                self.ends[at].connection.handle_timeout(self.now);
                self.ends[at].events();
                let packets = self.ends[at].transmit(self.now);
                if packets.is_empty() {
                    break;
                }
                for (id, prepare) in packets {
                    if self.prepares[1 - at].len() < MAX_QUEUE {
                        self.prepares[1 - at].push((id, prepare));
                    } else {
                        self.expire(at, id);
                    }
                }
            }
            self.ends[at].check_rest(self.now);
        }
    }

    fn expire(&mut self, at: usize, id: u64) {
        let reject = Reject::new(ErrorCode::TransferTimedOut, None, "packet expired.");
        self.answer(at, id, Err(reject));
    }

    fn answer(&mut self, at: usize, id: u64, reply: Reply) {
        let now = self.now;
        let [client, server] = &mut self.ends;
        let (end, other) = if at == 0 {
            (client, server)
        } else {
            (server, client)
        };
        end.reply(now, id, reply, Some(&other.committed));
    }

    fn arrive(&mut self, at: usize, id: u64, prepare: &Prepare) {
        if let Some(reject) = self.ends[at].receive(self.now, id, prepare) {
            self.send_back(1 - at, id, Err(reject));
        }
    }

    fn send_back(&mut self, to: usize, id: u64, reply: Reply) {
        if self.replies[to].len() < MAX_QUEUE {
            self.replies[to].push((id, reply));
        }
    }

    fn commit(&mut self, at: usize, which: usize) {
        let (id, accepted) = self.ends[at].accepted.remove(which);
        let fulfill = self.ends[at].commit(accepted);
        self.send_back(1 - at, id, Ok(fulfill));
    }

    fn time(&mut self, millis: u64) {
        self.now = self.now.plus_millis(millis);
        for end in &mut self.ends {
            end.connection.handle_timeout(self.now);
        }
        self.drive();
    }

    /// Everything that is on its way arrives.
    fn fair_round(&mut self) {
        self.drive();
        for at in 0..2 {
            self.ends[at].read();
            for (id, prepare) in std::mem::take(&mut self.prepares[at]) {
                self.arrive(at, id, &prepare);
            }
            while !self.ends[at].accepted.is_empty() {
                self.commit(at, 0);
            }
            for (id, reply) in std::mem::take(&mut self.replies[1 - at]) {
                self.answer(1 - at, id, reply);
            }
        }
        self.drive();
    }

    fn operate(&mut self, choices: &mut Choices<'_>) {
        let operation = choices.byte();
        let at = usize::from(operation >> 7);
        let prepares = self.prepares[at].len();
        let replies = self.replies[at].len();
        match operation & 31 {
            0..=7 => self.ends[at].command(choices),
            8 => self.fair_round(),
            9 | 10 => self.drive(),
            11 => self.time(choices.integer() & 0x3fff),
            12 => {
                self.ends[at].events();
                self.ends[at].read();
            }
            13 if prepares > 0 => {
                let (id, prepare) = self.prepares[at].swap_remove(choices.below(prepares));
                let reject = reject_of_path(choices, prepare.amount);
                self.send_back(1 - at, id, Err(reject));
            }
            14 if prepares > 0 => {
                // Arrives, and will arrive again.
                let (id, prepare) = self.prepares[at][choices.below(prepares)].clone();
                self.arrive(at, id, &prepare);
            }
            15 if prepares > 0 => {
                let which = choices.below(prepares);
                damage(&mut self.prepares[at][which].1, choices);
            }
            16 if prepares > 0 => {
                let (id, _) = self.prepares[at].swap_remove(choices.below(prepares));
                self.expire(1 - at, id);
            }
            17 if replies > 0 => {
                let which = choices.below(replies);
                let other = choices.below(replies);
                let other = self.replies[at][other].1.clone();
                damage_reply(&mut self.replies[at][which].1, &other, choices);
            }
            18 if replies > 0 => {
                let (id, _) = self.replies[at].swap_remove(choices.below(replies));
                self.expire(at, id);
            }
            19 if !self.ends[at].accepted.is_empty() => {
                let which = choices.below(self.ends[at].accepted.len());
                let (id, accepted) = self.ends[at].accepted.remove(which);
                let code = match choices.below(3) {
                    0 => ErrorCode::FinalApplicationError,
                    _ => ErrorCode::InternalError,
                };
                let reject = self.ends[at].connection.refuse(accepted, code);
                self.send_back(1 - at, id, Err(reject));
            }
            20..=22 if !self.ends[at].accepted.is_empty() => {
                let which = choices.below(self.ends[at].accepted.len());
                self.commit(at, which);
            }
            23..=26 if replies > 0 => {
                let (id, reply) = self.replies[at].remove(choices.below(replies));
                self.answer(at, id, reply);
            }
            _ if prepares > 0 => {
                let (id, prepare) = self.prepares[at].remove(choices.below(prepares));
                self.arrive(at, id, &prepare);
            }
            _ => self.drive(),
        }
    }

    fn check(&self) {
        for at in 0..2 {
            self.ends[at].check();
            self.ends[at].check_data(&self.ends[1 - at]);
        }
    }

    fn finish(mut self) {
        for _ in 0..FAIR_ROUNDS {
            self.fair_round();
            self.time(1_000);
            self.check();
        }
        for at in 0..2 {
            self.ends[at]
                .connection
                .close(ilp_stream::StreamErrorCode::NoError, "");
        }
        self.fair_round();
        self.time(120_000);
        for at in 0..2 {
            self.prepares[at].clear();
            for id in self.ends[at].unanswered() {
                self.expire(at, id);
            }
        }
        self.drive();
        for end in &mut self.ends {
            end.read();
        }
        self.drive();
        self.check();
        for end in &self.ends {
            end.check_end();
        }
    }
}

fn rate(choices: &mut Choices<'_>) -> RatePolicy {
    let (numerator, denominator) = match choices.below(8) {
        0 => (1, 2),
        1 => (3, 1),
        2 => (choices.integer(), choices.integer()),
        3 | 4 => {
            return RatePolicy::Probed {
                slippage_ppm: 10_000,
                max_amount: choices.integer(),
            };
        }
        _ => (1, 1),
    };
    RatePolicy::Fixed(Rate {
        numerator,
        denominator,
    })
}

fn damage(prepare: &mut Prepare, choices: &mut Choices<'_>) {
    match choices.below(6) {
        0 | 1 => prepare.amount -= prepare.amount.min(choices.integer()),
        2 => prepare.amount = choices.integer(),
        3 => prepare.data = damaged(&prepare.data, choices),
        4 => prepare.condition.0[choices.below(32)] ^= choices.byte(),
        _ => {
            let millis = choices.integer() & 0xffff;
            prepare.expires_at = prepare.expires_at.minus_millis(millis);
        }
    }
}

fn damage_reply(reply: &mut Reply, other: &Reply, choices: &mut Choices<'_>) {
    let data_of = |reply: &Reply| match reply {
        Ok(fulfill) => fulfill.data.clone(),
        Err(reject) => reject.data.clone(),
    };
    match choices.below(5) {
        // Somebody on the way moves the answer to another packet, or makes a Reject of a Fulfill.
        0 => *reply = other.clone(),
        1 => {
            let mut reject = reject_of_path(choices, 1);
            reject.data = data_of(reply);
            *reply = Err(reject);
        }
        2 => {
            *reply = Ok(Fulfill {
                fulfillment: ilp_packet::Fulfillment([choices.byte(); 32]),
                data: data_of(reply),
            });
        }
        3 => match reply {
            Ok(fulfill) => fulfill.data = damaged(&fulfill.data, choices),
            Err(reject) => reject.data = damaged(&reject.data, choices),
        },
        _ => match reply {
            Ok(fulfill) => fulfill.data = data_of(other),
            Err(reject) => reject.data = data_of(other),
        },
    }
}

fn damaged(data: &Bytes, choices: &mut Choices<'_>) -> Bytes {
    let mut data = data.to_vec();
    if data.is_empty() {
        return Bytes::copy_from_slice(choices.chunk());
    }
    let at = choices.below(data.len());
    match choices.below(3) {
        0 => data.truncate(at),
        _ => data[at] ^= choices.byte(),
    }
    data.into()
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    let mut path = Path::new(&mut choices);
    while !choices.is_empty() {
        path.operate(&mut choices);
        path.check();
    }
    path.finish();
});
