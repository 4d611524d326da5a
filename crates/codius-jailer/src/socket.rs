//! One message at a time over a UNIX socket of packets: a value, and descriptors beside it.
//!
//! Traps:
//! * A packet that is longer than the buffer is cut by the kernel, and says so: then it is no message.
//! * Descriptors that do not fit are closed by the kernel, and it says so: then it is no message either, because the
//!   others would be taken for what they are not.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// The longest message.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// The most descriptors of a message: three of the machine, three of its origin, and what its disks need.
pub const MAX_DESCRIPTORS: usize = 64;

/// One end of the border.
#[derive(Debug)]
pub struct Border(OwnedFd);

/// What came over it.
#[derive(Debug)]
pub struct Message<T> {
    pub value: T,
    pub descriptors: Vec<OwnedFd>,
}

#[derive(Debug, Error)]
pub enum BorderError {
    /// The other end is closed. For the part with root: its machines go on.
    #[error("the other end is closed")]
    Closed,
    /// The other end does not keep to the protocol; it is not listened to any more.
    #[error("not a message: {0}")]
    Malformed(String),
    /// The other end is another user than the one that is served.
    #[error("user {0} is not served")]
    Stranger(u32),
    #[error("the socket does not work")]
    Socket(#[source] Errno),
}

impl Border {
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Who has made the other end: the kernel says so, not he.
    pub fn check_peer(&self, user: u32) -> Result<(), BorderError> {
        let peer = sockopt::socket_peercred(&self.0).map_err(BorderError::Socket)?;
        let found = peer.uid.as_raw();
        if found == user {
            Ok(())
        } else {
            Err(BorderError::Stranger(found))
        }
    }

    pub fn send<T: Serialize>(
        &self,
        value: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), BorderError> {
        let malformed = |what: &str| BorderError::Malformed(what.to_owned());
        let bytes = serde_json::to_vec(value).map_err(|error| malformed(&error.to_string()))?;
        if bytes.len() > MAX_MESSAGE_BYTES || descriptors.len() > MAX_DESCRIPTORS {
            return Err(malformed("it is too long"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(malformed("it has too many descriptors"));
        }
        let message = [IoSlice::new(&bytes)];
        loop {
            match sendmsg(&self.0, &message, &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(BorderError::Closed),
                Err(error) => return Err(BorderError::Socket(error)),
            }
        }
    }

    /// Waits for a message.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Message<T>, BorderError> {
        let malformed = |what: &str| Err(BorderError::Malformed(what.to_owned()));
        let mut bytes = vec![0; MAX_MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut message = [IoSliceMut::new(&mut bytes)];
            match recvmsg(
                self.0.as_fd(),
                &mut message,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(BorderError::Closed),
                received => break received.map_err(BorderError::Socket)?,
            }
        };
        let mut descriptors = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                descriptors.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return malformed("it is too long");
        }
        // The buffer is rounded up, and one more may fit.
        let too_many = descriptors.len() > MAX_DESCRIPTORS;
        if too_many || received.flags.contains(ReturnFlags::CTRUNC) {
            return malformed("it has too many descriptors");
        }
        // A packet of no bytes looks the same, and is no message either.
        if received.bytes == 0 {
            return Err(BorderError::Closed);
        }
        match serde_json::from_slice(&bytes[..received.bytes]) {
            Ok(value) => Ok(Message { value, descriptors }),
            Err(error) => malformed(&error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::{Request, Response};

    fn pair() -> (Border, Border) {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Border::new(one), Border::new(other))
    }

    fn raw(border: &Border, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let message = [IoSlice::new(bytes)];
        sendmsg(&border.0, &message, &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    fn refused(border: &Border) -> String {
        border.receive::<Request>().unwrap_err().to_string()
    }

    #[test]
    fn a_message_comes_with_its_descriptors() {
        let (host, jailer) = pair();
        let file = tempfile::tempfile().unwrap();
        let request = Request::Remove { slot: 3 };
        host.send(&request, &[file.as_fd(), file.as_fd()]).unwrap();
        host.send(&Request::List {}, &[]).unwrap();
        let message: Message<Request> = jailer.receive().unwrap();
        assert_eq!((message.value, message.descriptors.len()), (request, 2));
        let message: Message<Request> = jailer.receive().unwrap();
        assert_eq!(message.value, Request::List {});
        jailer.send(&Response::Done {}, &[]).unwrap();
        let answer: Message<Response> = host.receive().unwrap();
        assert_eq!(answer.value, Response::Done {});
        let own = rustix::process::geteuid().as_raw();
        jailer.check_peer(own).unwrap();
        assert!(matches!(
            jailer.check_peer(own + 1),
            Err(BorderError::Stranger(user)) if user == own
        ));
        drop(host);
        assert!(matches!(
            jailer.receive::<Request>(),
            Err(BorderError::Closed)
        ));
    }

    #[test]
    fn what_is_no_message_is_refused_and_leaves_no_descriptor() {
        let (host, jailer) = pair();
        let file = tempfile::tempfile().unwrap();
        for nonsense in [
            "",
            "x",
            "{\"remove\":{\"slot\":-1}}",
            "{\"remove\":{\"slot\":70000}}",
            "{\"remove\":{\"slot\":1,\"path\":\"/etc\"}}",
            "{\"execute\":{\"program\":\"/bin/sh\"}}",
            "{\"list\":{}} {\"list\":{}}",
        ] {
            raw(&host, nonsense.as_bytes(), &[file.as_fd()]);
            assert!(jailer.receive::<Request>().is_err(), "{nonsense}");
        }
        let padded = format!("{{\"list\":{{}}}}{}", " ".repeat(MAX_MESSAGE_BYTES));
        raw(&host, padded.as_bytes(), &[]);
        assert_eq!(refused(&jailer), "not a message: it is too long");
        for more in [1, 2, 100] {
            let many = vec![file.as_fd(); MAX_DESCRIPTORS + more];
            raw(&host, b"{\"list\":{}}", &many);
            assert_eq!(
                refused(&jailer),
                "not a message: it has too many descriptors"
            );
        }
        // It is in step yet, and holds nothing of all that.
        host.send(&Request::List {}, &[]).unwrap();
        assert!(jailer.receive::<Request>().is_ok());
        let same = rustix::fs::fstat(&file).unwrap();
        let own = std::fs::read_dir("/proc/self/fd").unwrap();
        let held = own.flatten().filter(|entry| {
            rustix::fs::stat(entry.path())
                .is_ok_and(|stat| stat.st_ino == same.st_ino && stat.st_dev == same.st_dev)
        });
        assert_eq!(held.count(), 1);
    }
}
