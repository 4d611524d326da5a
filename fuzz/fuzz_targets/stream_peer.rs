//! One STREAM connection (RFC 29) against another end that has the keys and says what it likes: our
//! limits hold, in money and in data, and nothing is sent that the other end does not take.
#![no_main]

use std::collections::BTreeMap;

use bytes::Bytes;
use codius_fuzz::stream::{End, SECRET, address, pattern_bytes, reject_of_path};
use codius_fuzz::{Choices, START};
use ilp_packet::oer::Writer;
use ilp_packet::{Condition, ErrorCode, Fulfill, Fulfillment, Prepare, Reject, Timestamp};
use ilp_stream::{Frame, Keys, PacketType, Rate, StreamErrorCode, StreamId, StreamPacket};
use libfuzzer_sys::fuzz_target;

struct Peer {
    end: End,
    keys: Keys,
    now: Timestamp,
    next_sequence: u64,
    next_iv: u64,
    /// Packets of the connection that wait for us.
    asked: Vec<(u64, Prepare)>,
    /// What was said about each stream: how much we take.
    told: BTreeMap<StreamId, u64>,
    /// Frames are bytes of the input, and not what an end could say.
    raw: bool,
}

impl Peer {
    fn new(choices: &mut Choices<'_>) -> Self {
        let flags = choices.byte();
        let mut end = End::new(usize::from(flags & 1), Rate::ONE.into(), choices);
        let raw = flags & 2 == 2;
        end.checks_data = !raw;
        Self {
            end,
            keys: Keys::new(&SECRET.0),
            now: START,
            next_sequence: 1,
            next_iv: 0,
            asked: Vec::new(),
            told: BTreeMap::new(),
            raw,
        }
    }

    fn frame(&self, choices: &mut Choices<'_>) -> Frame {
        let stream = StreamId(choices.integer());
        let code = StreamErrorCode::from_byte(choices.below(12).to_le_bytes()[0]);
        let message = String::new();
        match choices.below(20) {
            0 if choices.coin() => Frame::ConnectionClose { code, message },
            1 => Frame::ConnectionNewAddress {
                address: address(1 - self.end.side),
            },
            2 => Frame::ConnectionMaxData {
                max_offset: choices.integer(),
            },
            3 => Frame::ConnectionDataBlocked {
                max_offset: choices.integer(),
            },
            4 => Frame::ConnectionMaxStreamId {
                max_stream_id: choices.integer(),
            },
            5 => Frame::ConnectionStreamIdBlocked {
                max_stream_id: choices.integer(),
            },
            6 => Frame::ConnectionAssetDetails {
                code: ["XRP", "USD"][choices.below(16) / 15].to_owned(),
                scale: 9,
            },
            7 => Frame::StreamClose {
                stream,
                code,
                message,
            },
            8..=10 => Frame::StreamMoney {
                stream,
                shares: choices.integer(),
            },
            11 | 12 => Frame::StreamMaxMoney {
                stream,
                receive_max: choices.integer(),
                total_received: choices.integer(),
            },
            13 => Frame::StreamMoneyBlocked {
                stream,
                send_max: choices.integer(),
                total_sent: choices.integer(),
            },
            14 => Frame::StreamMaxData {
                stream,
                max_offset: choices.integer(),
            },
            15 => Frame::StreamDataBlocked {
                stream,
                max_offset: choices.integer(),
            },
            16 => Frame::StreamReceipt {
                stream,
                receipt: Bytes::copy_from_slice(choices.bytes(58)),
            },
            _ => {
                let (offset, len) = (choices.integer(), choices.byte());
                Frame::StreamData {
                    stream,
                    offset,
                    data: pattern_bytes(1 - self.end.side, stream, offset, usize::from(len)),
                }
            }
        }
    }

    /// A sealed packet, remembered as far as it binds the other end.
    fn sealed(&mut self, kind: PacketType, sequence: u64, choices: &mut Choices<'_>) -> Bytes {
        let packet_type = if choices.byte() == 255 {
            PacketType::Reject
        } else {
            kind
        };
        let prepare_amount = choices.integer();
        let plaintext = if self.raw {
            let mut writer = Writer::new();
            writer.bytes(&[1, number(packet_type)]);
            writer.var_uint(sequence);
            writer.var_uint(prepare_amount);
            writer.bytes(choices.chunk());
            writer.into_vec()
        } else {
            let frames = (0..choices.below(6)).map(|_| self.frame(choices)).collect();
            StreamPacket {
                packet_type,
                sequence,
                prepare_amount,
                frames,
            }
            .encode()
        };
        if let Ok(packet) = StreamPacket::decode(plaintext.clone().into()) {
            for frame in packet.frames {
                if let Frame::StreamMaxMoney {
                    stream,
                    receive_max,
                    ..
                } = frame
                {
                    let told = self.told.entry(stream).or_default();
                    *told = receive_max.max(*told);
                }
            }
        }
        self.next_iv += 1;
        let mut iv = [0; 12];
        iv[..8].copy_from_slice(&self.next_iv.to_be_bytes());
        let sealed = self.keys.seal(iv, &plaintext);
        sealed.expect("a few frames fit a packet").into()
    }

    fn ask(&mut self, choices: &mut Choices<'_>) {
        let flags = choices.byte();
        let sequence = match flags & 7 {
            0 => choices.integer(),
            _ => self.next_sequence,
        };
        self.next_sequence = self.next_sequence.max(sequence.saturating_add(1));
        let amount = choices.integer();
        let data = self.sealed(PacketType::Prepare, sequence, choices);
        let condition = match flags & 24 {
            0 => Condition([flags; 32]),
            _ => self.keys.condition(&data),
        };
        let prepare = Prepare {
            amount,
            expires_at: match flags & 96 {
                0 => self.now,
                _ => self.now.plus_millis(30_000),
            },
            condition,
            destination: address(self.end.side),
            data,
        };
        let _ = self.end.receive(self.now, 0, &prepare);
        if flags & 128 == 128 {
            // Somebody repeats it.
            let _ = self.end.receive(self.now, 0, &prepare);
        }
    }

    fn answer(&mut self, choices: &mut Choices<'_>) {
        if self.asked.is_empty() {
            return;
        }
        let (id, prepare) = self.asked.swap_remove(choices.below(self.asked.len()));
        let sequence = match choices.byte() {
            0 => choices.integer(),
            _ => id,
        };
        let reply = match choices.below(8) {
            0 => Err(reject_of_path(choices, prepare.amount)),
            1 | 2 => {
                let data = self.sealed(PacketType::Reject, sequence, choices);
                let mut reject = Reject::new(ErrorCode::FinalApplicationError, None, "");
                reject.data = data;
                Err(reject)
            }
            3 => Ok(Fulfill {
                fulfillment: Fulfillment([choices.byte(); 32]),
                data: self.sealed(PacketType::Fulfill, sequence, choices),
            }),
            _ => Ok(Fulfill {
                fulfillment: self.keys.fulfillment(&prepare.data),
                data: self.sealed(PacketType::Fulfill, sequence, choices),
            }),
        };
        self.end.reply(self.now, id, reply, None);
    }

    fn operate(&mut self, choices: &mut Choices<'_>) {
        match choices.below(12) {
            0..=2 => self.end.command(choices),
            3..=5 => self.ask(choices),
            6 | 7 => self.answer(choices),
            8 if !self.end.accepted.is_empty() => {
                let which = choices.below(self.end.accepted.len());
                let (_, accepted) = self.end.accepted.swap_remove(which);
                let _ = self
                    .end
                    .connection
                    .refuse(accepted, ErrorCode::InternalError);
            }
            9 | 10 if !self.end.accepted.is_empty() => {
                let which = choices.below(self.end.accepted.len());
                let (_, accepted) = self.end.accepted.swap_remove(which);
                let _ = self.end.commit(accepted);
            }
            11 => {
                self.now = self.now.plus_millis(choices.integer() & 0x3fff);
                self.end.connection.handle_timeout(self.now);
                self.drive();
            }
            8 => self.end.read(),
            _ => self.drive(),
        }
    }

    fn drive(&mut self) {
        loop {
            self.end.connection.handle_timeout(self.now);
            self.end.events();
            let packets = self.end.transmit(self.now);
            if packets.is_empty() {
                break;
            }
            self.asked.extend(packets);
        }
        self.end.check_rest(self.now);
    }

    fn check(&self) {
        self.end.check();
        for stream in self.end.connection.open_streams() {
            let sent = self.end.connection.stream_sent(stream).unwrap_or(0);
            let held = self.end.connection.stream_held(stream).unwrap_or(0);
            let told = self.told.get(&stream).copied().unwrap_or(0);
            assert!(
                u128::from(sent) + u128::from(held) <= u128::from(told),
                "stream {stream}: {sent} and {held} of {told}"
            );
        }
    }

    fn finish(mut self) {
        while let Some((_, accepted)) = self.end.accepted.pop() {
            let _ = self.end.commit(accepted);
        }
        self.end.connection.close(StreamErrorCode::NoError, "");
        self.drive();
        for (id, _) in std::mem::take(&mut self.asked) {
            let reject = Reject::new(ErrorCode::TransferTimedOut, None, "");
            self.end.reply(self.now, id, Err(reject), None);
        }
        self.now = self.now.plus_millis(120_000);
        self.end.connection.handle_timeout(self.now);
        self.drive();
        self.end.read();
        self.drive();
        self.check();
        self.end.check_end();
    }
}

fn number(packet_type: PacketType) -> u8 {
    match packet_type {
        PacketType::Prepare => 12,
        PacketType::Fulfill => 13,
        PacketType::Reject => 14,
    }
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    let mut peer = Peer::new(&mut choices);
    while !choices.is_empty() {
        peer.operate(&mut choices);
        peer.check();
    }
    peer.finish();
});
