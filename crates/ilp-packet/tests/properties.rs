//! Properties of the packet codec. A failure prints the input; proptest keeps its seed.

#![expect(clippy::unwrap_used, reason = "a test may panic on its own mistakes")]

use bytes::Bytes;
use ilp_packet::ildcp::IldcpResponse;
use ilp_packet::{
    Address, AmountTooLarge, Condition, ErrorCode, Fulfill, Fulfillment, Packet, Prepare, Reject,
    Timestamp,
};
use proptest::prelude::*;

prop_compose! {
    fn an_address()(
        scheme in prop::sample::select(vec!["g", "private", "test2", "peer", "local", "example"]),
        segments in prop::collection::vec("[A-Za-z0-9_~-]{1,40}", 1..8),
    ) -> Address {
        format!("{scheme}.{}", segments.join(".")).parse().unwrap()
    }
}

fn data() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..600).prop_map(Bytes::from)
}

fn packet() -> impl Strategy<Value = Packet> {
    let prepare = (
        any::<u64>(),
        any::<u64>(),
        any::<[u8; 32]>(),
        an_address(),
        data(),
    )
        .prop_map(|(amount, expiry, condition, destination, data)| {
            Packet::Prepare(Prepare {
                amount,
                expires_at: Timestamp::from_millis(expiry),
                condition: Condition(condition),
                destination,
                data,
            })
        });
    let fulfill = (any::<[u8; 32]>(), data()).prop_map(|(preimage, data)| {
        Packet::Fulfill(Fulfill {
            fulfillment: Fulfillment(preimage),
            data,
        })
    });
    let reject = (
        any::<[u8; 3]>(),
        prop::option::of(an_address()),
        "\\PC{0,300}",
        data(),
    )
        .prop_map(|(code, triggered_by, message, data)| {
            let code = ErrorCode::from_bytes(code);
            Packet::Reject(Reject {
                code,
                triggered_by,
                message,
                data,
            })
        });
    prop_oneof![prepare, fulfill, reject]
}

proptest! {
    #[test]
    fn every_packet_round_trips(packet in packet()) {
        prop_assert_eq!(Packet::decode(packet.encode().into()), Ok(packet));
    }

    /// A packet with bytes overwritten is read or refused, and what is read can be
    /// written and read again to the same value.
    #[test]
    fn damaged_packets_do_no_harm(
        packet in packet(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut bytes = packet.encode();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(read) = Packet::decode(bytes.into()) {
            prop_assert_eq!(Packet::decode(read.encode().into()), Ok(read));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Packet::decode(bytes.clone().into());
        let _ = IldcpResponse::decode(&bytes);
        let _ = AmountTooLarge::decode(&bytes);
        let _ = Address::try_from(bytes.as_slice());
        let _ = Timestamp::decode(&bytes);
    }

    #[test]
    fn every_cut_packet_is_refused(packet in packet(), keep in any::<prop::sample::Index>()) {
        let bytes = packet.encode();
        let cut = keep.index(bytes.len());
        prop_assert!(Packet::decode(bytes[..cut].to_vec().into()).is_err());
    }
}
