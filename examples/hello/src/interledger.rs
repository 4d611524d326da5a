//! The Interledger account of the pod: `localhost:7768` speaks BTP, and answers the question who we
//! are (ILDCP, Interledger RFC 31).

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use ilp_btp::{Credentials, Frame, RequestId};
use ilp_packet::{
    Packet, Timestamp,
    ildcp::{self, IldcpResponse},
};
use serde::Serialize;

use crate::websocket::{WebSocket, random};

/// Where a host puts the account of a pod.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7768);

/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(5);

/// How long the question is good for, in milliseconds (RFC 31 suggests a minute).
const EXPIRY_MILLIS: u64 = 60_000;

/// What is known about the account.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Answer {
    #[default]
    Asking,
    /// Nobody has answered yet.
    None { reason: String },
    Account {
        address: String,
        asset_code: String,
        asset_scale: u8,
    },
}

#[derive(Default)]
pub(crate) struct Account {
    answer: Mutex<Answer>,
}

impl Account {
    pub(crate) fn answer(&self) -> Answer {
        self.answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Asks again and again, until there is an answer.
    pub(crate) fn ask_until_answered(&self) {
        loop {
            let answer = match ask(ADDRESS) {
                Ok(response) => Answer::Account {
                    address: response.client_address.as_str().to_owned(),
                    asset_code: response.asset_code,
                    asset_scale: response.asset_scale,
                },
                Err(error) => Answer::None {
                    reason: error.to_string(),
                },
            };
            let answered = matches!(answer, Answer::Account { .. });
            *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
            if answered {
                return;
            }
            thread::sleep(PAUSE);
        }
    }
}

fn ask(address: SocketAddr) -> io::Result<IldcpResponse> {
    let mut socket = WebSocket::connect(address, PATIENCE)?;
    // In a pod, whoever reaches the port is the pod. The token only tells its programs apart.
    let token: String = random::<16>()?
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let credentials = Credentials {
        username: String::new(),
        token,
    };
    exchange(&mut socket, &credentials.message(request_id()?))?;

    let expires_at = Timestamp::from_millis(now_millis()).plus_millis(EXPIRY_MILLIS);
    let question = Bytes::from(ildcp::request(expires_at).encode());
    let reply = exchange(&mut socket, &Frame::ilp_request(request_id()?, question))?;
    let packet = reply
        .ilp()
        .ok_or_else(|| invalid("the answer has no ILP packet"))?;
    match Packet::decode(packet.clone()).map_err(|error| invalid(&error.to_string()))? {
        Packet::Fulfill(fulfill) => {
            IldcpResponse::decode(&fulfill.data).map_err(|error| invalid(&error.to_string()))
        }
        Packet::Prepare(_) | Packet::Reject(_) => Err(invalid("the question was refused")),
    }
}

/// Sends a request and waits for its Response.
fn exchange(socket: &mut WebSocket, request: &Frame) -> io::Result<Frame> {
    let bytes = request
        .encode()
        .map_err(|error| invalid(&error.to_string()))?;
    socket.send(&bytes)?;
    loop {
        let message = Bytes::from(socket.receive()?);
        let frame = Frame::decode(&message).map_err(|error| invalid(&error.to_string()))?;
        if frame.request_id() == request.request_id() {
            return match frame {
                Frame::Response { .. } => Ok(frame),
                Frame::Error { refusal, .. } => Err(invalid(&format!("refused: {refusal:?}"))),
                Frame::Message { .. } | Frame::Transfer { .. } => {
                    Err(invalid("a request for a reply"))
                }
            };
        }
    }
}

fn request_id() -> io::Result<RequestId> {
    Ok(RequestId(u32::from_be_bytes(random()?)))
}

fn now_millis() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
    };

    use super::*;

    /// Reads one short masked frame, as we send them.
    fn unmasked(stream: &mut impl Read) -> Bytes {
        let mut start = [0; 2];
        stream.read_exact(&mut start).unwrap();
        let length = usize::from(start[1] & 0x7f);
        assert!(
            start == [0x82, 0x80 | start[1]] && length < 126,
            "{start:?}"
        );
        let mut mask = [0; 4];
        stream.read_exact(&mut mask).unwrap();
        let mut message = vec![0; length];
        stream.read_exact(&mut message).unwrap();
        message
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect()
    }

    /// A host that answers one connection: the authentication always, the question with `packet`.
    fn host(packet: Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                stream.read_line(&mut line).unwrap();
            }
            stream
                .get_mut()
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
                .unwrap();
            let reply = |stream: &mut BufReader<_>, frame: Frame| {
                let bytes = frame.encode().unwrap();
                let mut message = vec![0x82, u8::try_from(bytes.len()).unwrap()];
                message.extend_from_slice(&bytes);
                std::net::TcpStream::write_all(stream.get_mut(), &message).unwrap();
            };
            let auth = Frame::decode(&unmasked(&mut stream)).unwrap();
            assert_eq!(Credentials::from_frame(&auth).unwrap().token.len(), 32);
            reply(&mut stream, Frame::empty_response(auth.request_id()));
            let question = Frame::decode(&unmasked(&mut stream)).unwrap();
            let Packet::Prepare(prepare) = Packet::decode(question.ilp().unwrap().clone()).unwrap()
            else {
                panic!("the question is no Prepare");
            };
            assert!(ildcp::is_request(&prepare));
            reply(
                &mut stream,
                Frame::ilp_response(question.request_id(), packet.into()),
            );
        });
        address
    }

    #[test]
    fn the_host_says_who_we_are() {
        let expected = IldcpResponse {
            client_address: "test.host.pod".parse().unwrap(),
            asset_code: "XRP".to_owned(),
            asset_scale: 9,
        };
        let answered = ask(host(expected.fulfill().encode())).unwrap();
        assert_eq!(answered, expected);
    }

    #[test]
    fn other_answers_and_silence_are_errors() {
        assert!(ask(host(vec![1, 2, 3])).is_err());
        let closed = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(ask(closed).is_err());
    }
}
