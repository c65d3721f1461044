//! The processes of machines: started, asked, found again, and missed when they are gone.
//!
//! Promises:
//! - a machine's process does not depend on the daemon: it has a session of its own, and its directory tells a later daemon
//!   all it needs to go on with it;
//! - a process that ends is noticed at once, whoever started it (pidfd), and what it left as its report is believed only if it
//!   is this process's;
//! - a number is never taken for a process: it is the lock of the directory that says who runs the machine.

mod adopt;
mod ends;
mod freeze;
mod spawn;

use std::os::fd::OwnedFd;

use queztl_api::{Code, Problem};
use queztl_vmm::control::{Client, ClientError, Metrics, Reason, Request, Status};
use queztl_vmm::process::Folder;
use rustix::process::{Signal, pidfd_send_signal};

pub(crate) use adopt::end_unknown;
pub(crate) use freeze::{fork, snapshot};
pub(crate) use spawn::Spawner;

/// How the machine is, if its process answers.
pub(crate) fn status(folder: &Folder) -> Option<Status> {
    Client::connect(&folder.control()).and_then(|mut client| client.status()).ok()
}

/// How the machine is, and what its parts have done.
pub(crate) fn figures(folder: &Folder) -> Option<(Status, Metrics)> {
    let mut client = Client::connect(&folder.control()).ok()?;
    // The guest is asked how much memory it uses for the first answer only.
    Some((client.status().ok()?, client.metrics().ok()?))
}

/// Asks a machine's process for something that is done or refused.
pub(crate) fn command(folder: &Folder, request: &Request) -> Result<(), Problem> {
    Client::connect(&folder.control()).and_then(|mut client| client.command(request)).map_err(|e| refusal(&e))
}

/// Waits until a process is done with what a daemon before has asked it for, and gives up what can be; false if it does not
/// answer.
pub(crate) fn settle(folder: &Folder) -> bool {
    match Client::connect(&folder.control()).and_then(|mut client| client.command(&Request::Settle {})) {
        Ok(()) => true,
        // A process of an earlier version does not know the request.
        Err(ClientError::Refused(_)) => true,
        Err(_) => false,
    }
}

/// Presses the guest's power button; false if there is none.
pub(crate) fn power_button(folder: &Folder) -> bool {
    command(folder, &Request::PowerButton {}).is_ok()
}

/// Ends a process at once. One that has ended already is fine.
pub(crate) fn kill(pidfd: &OwnedFd) -> Result<(), Problem> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(Problem::new(Code::Host, format!("the process of the machine cannot be ended: {error}"))),
    }
}

/// What a process's refusal means to whoever asked the manager.
pub(crate) fn refusal(error: &ClientError) -> Problem {
    let code = match error {
        ClientError::Refused(refusal) => match refusal.reason {
            Reason::Invalid | Reason::Missing => Code::Invalid,
            Reason::Timeout => Code::Timeout,
            Reason::Busy => Code::Busy,
            Reason::Cancelled => Code::Cancelled,
            _ => Code::Host,
        },
        ClientError::Connect { .. } | ClientError::Gone | ClientError::Io(_) => Code::State,
        ClientError::Answer(_) | ClientError::Unexpected => Code::Internal,
    };
    Problem::new(code, error.to_string())
}
