//! Why something could not be done in a guest, each a sentence with what to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use queztl_agent_protocol::{self as protocol, Fault, FaultCode};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot connect to {path}: {source}; is the virtual machine running, and is this its --vsock path?")]
    Socket { path: PathBuf, source: io::Error },
    #[error(
        "no agent answers at {path} within {limit:?}: the guest still boots, or its image has no queztl-agent; \
         wait longer, or look at its console"
    )]
    NoAgent { path: PathBuf, limit: Duration },
    #[error("the guest's agent has been silent for {0:?}; is the virtual machine paused or overloaded?")]
    Silent(Duration),
    #[error("the guest's agent has closed the connection; look at the guest's console for the reason")]
    Closed,
    #[error("the connection to the guest's agent failed: {0}")]
    Connection(io::Error),
    #[error("the guest's agent does not keep to the protocol: {0}; do not trust this guest")]
    Protocol(String),
    #[error("the request is too large for the protocol: {0}")]
    Request(protocol::Error),
    /// The agent's own words, made printable.
    #[error("{}", printable(&.0.text))]
    Guest(Fault),
    #[error("this is no regular file in the guest: name a file")]
    NoFile,
    #[error("the file has {size} bytes, and {most} are the most here")]
    TooLarge { size: u64, most: u64 },
    #[error(transparent)]
    Files(#[from] queztl_agent_files::Error),
    #[error("cannot write the command's output: {0}")]
    Output(io::Error),
    #[error("cannot read the command's input: {0}")]
    Input(io::Error),
    #[error("the guest's agent cannot do this; make the guest's image anew")]
    Unsupported,
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

impl Error {
    /// Why the agent refused, if it was the agent.
    pub fn fault(&self) -> Option<FaultCode> {
        match self {
            Error::Guest(fault) => Some(fault.code),
            _ => None,
        }
    }

    pub(crate) fn unexpected(what: &str) -> Error {
        Error::Protocol(format!("it sent {what}"))
    }
}

/// Text of a guest may hold anything; a terminal gets no control characters of it.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
