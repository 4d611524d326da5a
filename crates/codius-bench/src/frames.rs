//! The packets of the load: made once by our own codecs, then patched in place.
//!
//! Packet number `n` carries `n` in its data, and the fulfillment is the run's secret with `n` in
//! front. So both ends know it without talking to each other, no two packets are the same (the
//! JavaScript connector answers repeated packets from a cache), and each fulfillment can be checked.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use ilp_btp::{Credentials, Frame, RequestId};
use ilp_packet::{
    Address, Condition, Fulfill, Fulfillment, Packet, Prepare, Timestamp, ildcp::IldcpResponse,
};

/// Data of each Prepare.
pub const DATA_LEN: usize = 80;
/// What each Prepare pays.
pub const AMOUNT: u64 = 1;
const ILP: &[u8] = b"ilp";

/// The fulfillments of one run.
#[derive(Debug, Clone, Copy)]
pub struct Secret([u8; 32]);

impl Secret {
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The fulfillment of packet `number`.
    #[must_use]
    pub fn fulfillment(&self, number: u64) -> Fulfillment {
        let mut bytes = self.0;
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Fulfillment(bytes)
    }
}

/// A frame with places that change.
#[derive(Debug, Clone)]
pub struct PrepareFrame {
    bytes: Vec<u8>,
    expires_at: usize,
    condition: usize,
}

impl PrepareFrame {
    /// A Prepare to `destination`.
    pub fn new(destination: Address) -> Result<Self> {
        let mark = Condition([0xa5; 32]);
        let prepare = Prepare {
            amount: AMOUNT,
            expires_at: Timestamp::from_millis(0),
            condition: mark,
            destination,
            data: Bytes::from_static(&[0x5a; DATA_LEN]),
        };
        let bytes = encoded(&Frame::ilp_request(RequestId(0), prepare.encode().into()))?;
        let condition = bytes
            .windows(32)
            .position(|window| window == mark.0)
            .context("the condition is not in the frame")?;
        Ok(Self {
            expires_at: condition - ilp_packet::TIMESTAMP_LEN,
            condition,
            bytes,
        })
    }

    /// The frame of packet `number`.
    pub fn patch(
        &mut self,
        request_id: u32,
        number: u64,
        expires_at: &[u8; ilp_packet::TIMESTAMP_LEN],
        condition: &Condition,
    ) -> &[u8] {
        self.bytes[1..5].copy_from_slice(&request_id.to_be_bytes());
        self.bytes[self.expires_at..self.condition].copy_from_slice(expires_at);
        self.bytes[self.condition..self.condition + 32].copy_from_slice(&condition.0);
        let data = self.bytes.len() - DATA_LEN;
        self.bytes[data..data + 8].copy_from_slice(&number.to_be_bytes());
        &self.bytes
    }
}

/// A Fulfill whose id and fulfillment change.
#[derive(Debug, Clone)]
pub struct FulfillFrame {
    bytes: Vec<u8>,
    fulfillment: usize,
}

impl FulfillFrame {
    pub fn new() -> Result<Self> {
        let mark = Fulfillment([0xa5; 32]);
        let fulfill = Fulfill {
            fulfillment: mark,
            data: Bytes::new(),
        };
        let bytes = encoded(&Frame::ilp_response(RequestId(0), fulfill.encode().into()))?;
        let fulfillment = bytes
            .windows(32)
            .position(|window| window == mark.0)
            .context("the fulfillment is not in the frame")?;
        Ok(Self { bytes, fulfillment })
    }

    pub fn patch(&mut self, request_id: u32, fulfillment: &Fulfillment) -> &[u8] {
        self.bytes[1..5].copy_from_slice(&request_id.to_be_bytes());
        self.bytes[self.fulfillment..self.fulfillment + 32].copy_from_slice(&fulfillment.0);
        &self.bytes
    }
}

/// What a frame of the connector says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Packet `number` wants to be fulfilled.
    Prepare { request_id: u32, number: u64 },
    Fulfill {
        request_id: u32,
        fulfillment: Fulfillment,
    },
}

/// Reads a frame during the load. A Reject, or anything else that is not expected, is an error.
pub fn read(frame: &[u8]) -> Result<Said> {
    let (kind, request_id, packet) = split(frame)?;
    match (kind, packet.first()) {
        (6, Some(12)) => {
            let data = packet.len().checked_sub(DATA_LEN);
            let number = data
                .and_then(|at| packet[at..].first_chunk::<8>())
                .context("a Prepare is too short")?;
            Ok(Said::Prepare {
                request_id,
                number: u64::from_be_bytes(*number),
            })
        }
        (1, Some(13)) => {
            let contents = var_octets(&packet[1..])?.0;
            let fulfillment = contents
                .first_chunk::<32>()
                .context("a Fulfill is too short")?;
            Ok(Said::Fulfill {
                request_id,
                fulfillment: Fulfillment(*fulfillment),
            })
        }
        _ => match Packet::decode(Bytes::copy_from_slice(packet)) {
            Ok(Packet::Reject(reject)) => {
                bail!("a packet was rejected: {} {}", reject.code, reject.message)
            }
            other => bail!("BTP type {kind} with {other:?} was not expected"),
        },
    }
}

/// Type, request id and ILP packet of a frame.
fn split(frame: &[u8]) -> Result<(u8, u32, &[u8])> {
    let (head, rest) = frame
        .split_first_chunk::<5>()
        .context("a BTP frame is too short")?;
    let [kind, id @ ..] = *head;
    let (contents, _) = var_octets(rest)?;
    ensure!(
        matches!(kind, 1 | 6) && contents.starts_with(&[1, 1]),
        "BTP frame without exactly one protocol: {}",
        String::from_utf8_lossy(frame)
    );
    let (name, rest) = var_octets(&contents[2..])?;
    ensure!(name == ILP && rest.first() == Some(&0), "not ILP in BTP");
    let (packet, _) = var_octets(&rest[1..])?;
    Ok((kind, u32::from_be_bytes(id), packet))
}

/// A length and so many bytes, and what comes after them.
fn var_octets(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let short = "a field is cut off";
    let (&first, rest) = bytes.split_first().context(short)?;
    let (len, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest
            .split_at_checked(usize::from(first & 0x7f))
            .context(short)?;
        ensure!(digits.len() <= 4, "a length is too long");
        let len = digits
            .iter()
            .fold(0, |sum, digit| sum << 8 | usize::from(*digit));
        (len, rest)
    };
    rest.split_at_checked(len).context(short)
}

/// The message that opens a connection.
pub fn hello(request_id: u32, token: &str) -> Result<Vec<u8>> {
    let credentials = Credentials {
        username: String::new(),
        token: token.to_owned(),
    };
    encoded(&credentials.message(RequestId(request_id)))
}

/// Whether a frame is the answer to [`hello`].
pub fn check_welcome(frame: &[u8], request_id: u32) -> Result<()> {
    match Frame::decode(&Bytes::copy_from_slice(frame))? {
        Frame::Response { request_id: id, .. } if id.0 == request_id => Ok(()),
        other => bail!("the connector did not let us in: {other:?}"),
    }
}

/// The question for our address (RFC 31).
pub fn address_request(request_id: u32, expires_at: Timestamp) -> Result<Vec<u8>> {
    let request = ilp_packet::ildcp::request(expires_at);
    encoded(&Frame::ilp_request(
        RequestId(request_id),
        request.encode().into(),
    ))
}

/// Our address, from the answer to [`address_request`].
pub fn address(frame: &[u8]) -> Result<Address> {
    let (_, _, packet) = split(frame)?;
    match Packet::decode(Bytes::copy_from_slice(packet))? {
        Packet::Fulfill(fulfill) => Ok(IldcpResponse::decode(&fulfill.data)?.client_address),
        other => bail!("the connector did not tell our address: {other:?}"),
    }
}

/// The same request id and one protocol-less answer: what a server says to [`hello`].
pub fn welcome(hello: &[u8]) -> Result<Vec<u8>> {
    let (head, _) = hello
        .split_first_chunk::<5>()
        .context("a BTP frame is too short")?;
    let [_, id @ ..] = *head;
    Ok([&[1], &id[..], &[2, 1, 0]].concat())
}

/// An answer to [`address_request`].
pub fn address_answer(request: &[u8], address: Address) -> Result<Vec<u8>> {
    let (_, id, _) = split(request)?;
    let answer = IldcpResponse {
        client_address: address,
        asset_code: "XRP".to_owned(),
        asset_scale: 9,
    };
    let packet = answer.fulfill().encode();
    encoded(&Frame::ilp_response(RequestId(id), packet.into()))
}

fn encoded(frame: &Frame) -> Result<Vec<u8>> {
    Ok(frame.encode()?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = Secret([9; 32]);

    #[test]
    fn a_patched_prepare_is_what_the_codecs_read() {
        let destination: Address = "private.host.bob".parse().unwrap();
        let mut frame = PrepareFrame::new(destination.clone()).unwrap();
        let condition = SECRET.fulfillment(5).condition();
        let at = Timestamp::from_millis(1_700_000_000_000);
        let bytes = frame.patch(77, 5, &at.encode(), &condition).to_vec();
        assert_eq!(
            read(&bytes).unwrap(),
            Said::Prepare {
                request_id: 77,
                number: 5
            }
        );
        let (_, _, packet) = split(&bytes).unwrap();
        let Packet::Prepare(prepare) = Packet::decode(packet.to_vec().into()).unwrap() else {
            panic!("not a Prepare");
        };
        assert_eq!(prepare.expires_at, at);
        assert_eq!(prepare.condition, condition);
        assert_eq!(prepare.destination, destination);
        assert_eq!(prepare.data.len(), DATA_LEN);
    }

    #[test]
    fn a_patched_fulfill_is_read_again() {
        let mut frame = FulfillFrame::new().unwrap();
        let fulfillment = SECRET.fulfillment(u64::MAX);
        let bytes = frame.patch(3, &fulfillment);
        assert_eq!(
            read(bytes).unwrap(),
            Said::Fulfill {
                request_id: 3,
                fulfillment
            }
        );
    }

    #[test]
    fn a_reject_ends_the_run() {
        let reject = ilp_packet::Reject::new(ilp_packet::ErrorCode::Unreachable, None, "nobody");
        let frame = Frame::ilp_response(RequestId(1), reject.encode().into());
        let error = read(&frame.encode().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "a packet was rejected: F02 nobody");
    }
}
