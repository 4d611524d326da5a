//! The containers of a pod, in the words of the API.

use codius_api::{
    UnixMillis,
    v2::{ContainerExit, ContainerReply, ContainerState, ExitReason},
};
use codius_guest_protocol::ContainerExit as Exit;
use codius_pod::{ContainerActivity, ContainerView};

pub(crate) fn told(view: &ContainerView) -> ContainerReply {
    let (state, next_try) = match view.activity {
        ContainerActivity::Starting => (ContainerState::Starting, None),
        ContainerActivity::Running => (ContainerState::Running, None),
        ContainerActivity::Waiting { next_unix_ms } => {
            (ContainerState::Waiting, Some(UnixMillis::new(next_unix_ms)))
        }
        ContainerActivity::Exited => (ContainerState::Exited, None),
    };
    ContainerReply {
        container: view.id.clone(),
        state,
        since: view.since_unix_ms.map(UnixMillis::new),
        restarts: view.restarts,
        crash_loop: state == ContainerState::Waiting,
        next_try,
        last_exit: view.last_exit.map(exit),
    }
}

pub(crate) fn exit(exit: Exit) -> ContainerExit {
    let (reason, code, signal) = match exit {
        Exit::Code(code) => (ExitReason::ExitCode, Some(code), None),
        Exit::Signal(signal) => (ExitReason::Signal, None, Some(signal)),
        Exit::OutOfMemory => (ExitReason::OutOfMemory, None, None),
    };
    ContainerExit {
        reason,
        code,
        signal,
    }
}
