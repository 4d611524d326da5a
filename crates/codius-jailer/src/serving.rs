//! The loop of the part with root: one request after the other, each admitted before anything of it is done.
//!
//! It ends when the host does, and leaves what runs: machines outlive the host and this loop. A host that does not keep
//! to the protocol is not listened to any more; one that asks for too much is told so and may go on.

use std::os::fd::{AsFd, OwnedFd};

use crate::{Admitted, Allowance, Border, BorderError, Message, Request, Response};

/// What was done, and descriptors to hand over.
pub type Done = (Response, Vec<OwnedFd>);

/// Serves one host, which runs as `user`, to its end. `work` does what is admitted; its error is a sentence for the
/// operator, in which nothing is that the host may not know.
pub fn serve(
    border: &Border,
    user: u32,
    allowance: &Allowance,
    mut work: impl FnMut(Admitted) -> Result<Done, String>,
) -> Result<(), BorderError> {
    border.check_peer(user)?;
    loop {
        let Message { value, descriptors } = match border.receive::<Request>() {
            Err(BorderError::Closed) => return Ok(()),
            received => received?,
        };
        let (response, given) = match allowance.admit(value, descriptors) {
            Ok(admitted) => {
                work(admitted).unwrap_or_else(|reason| (Response::Failed { reason }, Vec::new()))
            }
            Err(refusal) => {
                let reason = refusal.to_string();
                (Response::Refused { reason }, Vec::new())
            }
        };
        let given: Vec<_> = given.iter().map(AsFd::as_fd).collect();
        match border.send(&response, &given) {
            Err(BorderError::Closed) => return Ok(()),
            sent => sent?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::Signal;

    const ALLOWANCE: Allowance = Allowance {
        slots: 4,
        vcpus: 1,
        memory_mib: 128,
        scratch_mib: 64,
        disks: 2,
    };

    /// What a host says to a part with root that notes what it does, and how that ends.
    fn with_host(user: u32, host: impl FnOnce(&Border)) -> (Vec<String>, Result<(), BorderError>) {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        thread::scope(|scope| {
            let serving = scope.spawn(move || {
                let mut done = Vec::new();
                let ended = serve(&Border::new(ours), user, &ALLOWANCE, |admitted| {
                    done.push(format!("{admitted:?}"));
                    match admitted {
                        Admitted::List => {
                            let file = tempfile::tempfile().unwrap().into();
                            Ok((Response::Slots { slots: vec![2] }, vec![file]))
                        }
                        Admitted::Remove { .. } => Err("its network could not be removed".into()),
                        _ => Ok((Response::Done {}, Vec::new())),
                    }
                });
                (done, ended)
            });
            let border = Border::new(theirs);
            host(&border);
            drop(border);
            serving.join().unwrap()
        })
    }

    fn ask(border: &Border, request: &Request) -> Message<Response> {
        border.send(request, &[]).unwrap();
        border.receive().unwrap()
    }

    #[test]
    fn what_is_refused_is_not_done_and_the_host_may_go_on() {
        let own = rustix::process::geteuid().as_raw();
        let (done, ended) = with_host(own, |border| {
            let answer = ask(border, &Request::List {});
            assert_eq!(answer.value, Response::Slots { slots: vec![2] });
            assert_eq!(answer.descriptors.len(), 1);
            let signal = Signal::Kill;
            let refused = ask(border, &Request::Signal { slot: 9, signal }).value;
            let reason = "slot 9 is not one of this host's".to_owned();
            assert_eq!(refused, Response::Refused { reason });
            let failed = ask(border, &Request::Remove { slot: 1 }).value;
            let reason = "its network could not be removed".to_owned();
            assert_eq!(failed, Response::Failed { reason });
        });
        assert_eq!(done, ["List", "Remove { slot: 1 }"]);
        ended.unwrap();
    }

    #[test]
    fn strangers_and_nonsense_end_it_without_any_work() {
        let own = rustix::process::geteuid().as_raw();
        let (done, ended) = with_host(own + 1, |_| {});
        assert!(matches!(ended, Err(BorderError::Stranger(_))), "{ended:?}");
        assert!(done.is_empty());
        let (done, ended) = with_host(own, |border| border.send(&"nonsense", &[]).unwrap());
        assert!(matches!(ended, Err(BorderError::Malformed(_))), "{ended:?}");
        assert!(done.is_empty());
    }
}
