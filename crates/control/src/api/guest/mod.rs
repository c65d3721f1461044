//! Commands and files in guests, through the agent there.
//!
//! The agent's client waits, so each task has a thread of its own, bounded in number ([`App::guest_task`]). The guest is
//! not trusted: the client bounds what it sends and how long it is silent. Whoever leaves takes its command along.

mod command;
mod file;
pub mod kept;
mod pipe;

use std::path::Path;

use queztl_agent_client::{Agent, Error, Exit, Limits};
use queztl_api::{Code, ExecNotice, Problem};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub use command::{Command, Running, run, start};
pub use file::{read, write};
pub use pipe::Chunk;

use super::answer::{Answer, Failure};
use super::app::App;

/// Runs work on a thread of its own; gives what it gives.
fn on_thread<T: Send + 'static>(
    place: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Answer<oneshot::Receiver<T>> {
    let (tell, told) = oneshot::channel();
    let body = move || {
        let result = work();
        drop(place);
        // Nobody may be there any more.
        let _ = tell.send(result);
    };
    let thread = std::thread::Builder::new().name("guest-task".into()).spawn(body);
    thread.map_err(|error| Failure::new(Code::Host, format!("cannot start a thread: {error}")))?;
    Ok(told)
}

fn connect(app: &App, vsock: &Path) -> Result<Agent, Error> {
    Agent::connect(vsock, &Limits { connect: app.limits().agent_time, ..Limits::default() })
}

/// The agent's errors as problems.
fn problem(error: &Error) -> Problem {
    let code = match error {
        Error::NoAgent { .. } | Error::Silent(_) => Code::Timeout,
        Error::Guest(_) | Error::Request(_) | Error::NoFile => Code::Invalid,
        Error::TooLarge { .. } => Code::TooLarge,
        Error::Input(_) => Code::Malformed,
        Error::Thread(_) => Code::Host,
        _ => Code::State,
    };
    // A path of the daemon's helps nobody over the API.
    let detail = match error {
        Error::Socket { source, .. } => format!("the machine cannot be reached: {source}; does it run?"),
        Error::NoAgent { limit, .. } => format!(
            "no agent answers within {limit:?}: the guest still boots, or its image has no queztl-agent; wait, or look \
             at its console"
        ),
        other => other.to_string(),
    };
    Problem::new(code, detail)
}

/// How a command ended: its status, or the signal that ended it.
pub fn parts(exit: Exit) -> (Option<u8>, Option<u8>) {
    match exit {
        Exit::Status(status) => (Some(status), None),
        Exit::Signal(signal) => (None, Some(signal)),
    }
}

/// The same for who follows it.
pub fn exited(exit: Exit) -> ExecNotice {
    let (status, signal) = parts(exit);
    ExecNotice::Exited { status, signal }
}
