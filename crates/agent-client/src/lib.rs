//! The host's side of the agent: runs commands in a guest and copies files to and from it.
//!
//! Promises: the agent is not trusted. Whatever it sends, or does not send, a call ends with a result or an error: every
//! wait has a limit ([`Limits`]), every length is bounded, and what it names is never used as a path of the host beyond
//! the destination of a copy. Dropping an [`Agent`] ends its session, and with it the command that runs in the guest.
//!
//! ```no_run
//! use queztl_agent_client::{Agent, Exec, Io, Limits};
//!
//! let mut agent = Agent::connect("/run/vm.vsock".as_ref(), &Limits::default())?;
//! let exec = Exec { argv: vec![b"uname".to_vec(), b"-r".to_vec()], ..Exec::default() };
//! let mut release = Vec::new();
//! let exit = agent.exec(&exec, Io::output(&mut release))?;
//! # Ok::<(), queztl_agent_client::Error>(())
//! ```

mod agent;
mod connect;
mod error;
mod exec;
mod files;
mod link;
mod stream;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use agent::Agent;
pub use error::Error;
pub use exec::{Controller, Io};
pub use files::guest_file_name;
pub use queztl_agent_files::Policy;
pub use queztl_agent_protocol::{Exec, Exit, Fault, FaultCode, Identity, PORT, Shutdown, Size, Summary, Time};
pub use stream::FileInfo;

/// How long to wait for an agent.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For a connection, from the first attempt to the agent's greeting. A guest that still boots is tried again.
    pub connect: Duration,
    /// For any sign of life after that. A command may be silent as long as it likes: the agent is asked in between.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connect: Duration::from_secs(5), answer: Duration::from_secs(30) }
    }
}
