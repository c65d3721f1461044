//! Machines that survive their host: their processes copy them to other daemons, one of which goes on.
//!
//! ```text
//!  primary's process ── backup-N.sock ── daemon ══ WebSockets of the API ══ daemon ── incoming.sock ── backup's process
//!                                          │ renews, writes                   │ watches, claims
//!                                          └───────────> register <───────────┘
//! ```
//! The processes decide what may leave and what is whole ([`queztl_vmm::protection`]); the daemons decide whose machine it
//! is, by a register that is only changed by compare-and-swap ([`register`]).
//!
//! Promises:
//! - a backup goes on only after it has taken the next term in the register, and as many others have promised to serve no
//!   lower one as keep the owner before from getting anything new acknowledged: it may live, and lets nothing out;
//! - it tries to when it hears nothing of the owner any more ([`Signs`]) and so many others do not either, when the owner's
//!   daemon has seen its process dead, or when the register was not renewed for a lease;
//! - a machine that another daemon may have taken is not started here again;
//! - whoever goes on protects it again by itself ([`again`]), and backups that stay away are replaced ([`bring`]), unless the user has
//!   said otherwise;
//! - the daemon of an owner that has lost its term ends the machine's process, and forgets the machine.

mod again;
mod backup;
mod begin;
mod bring;
mod choose;
mod orders;
mod owner;
mod register;
mod signs;

use queztl_api::{BackupAddress, Code, Problem, ProtectRequest};
use queztl_client::{Address, Client, Options};
use serde::{Deserialize, Serialize};

pub use signs::Signs;

/// How a machine of this daemon is protected, as the store has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Guarded {
    pub request: ProtectRequest,
    /// This daemon's number in the group, and the others' in the order of the request.
    pub node: u32,
    pub backups: Vec<u32>,
    /// Others that were in the group, and could keep a copy.
    #[serde(default)]
    pub spares: Vec<BackupAddress>,
    /// It is to end.
    pub ending: bool,
}

impl Guarded {
    pub(super) fn places(&self) -> impl Iterator<Item = (u32, &BackupAddress)> {
        self.backups.iter().copied().zip(&self.request.backups)
    }
}

/// A client of another daemon.
pub(crate) fn client(home: &std::path::Path, address: &BackupAddress) -> Result<Client, Problem> {
    let to: Address = address.to.parse().map_err(|error| Problem::invalid("to", format!("{error}")))?;
    // The certificates are read when the client is made.
    let file = address.authority.as_ref().map(|text| {
        let mut file = tempfile::NamedTempFile::new_in(home)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        Ok::<_, std::io::Error>(file)
    });
    let file = file.transpose().map_err(|error| Problem::new(Code::Host, format!("a file cannot be made: {error}")))?;
    let authority = file.as_ref().map(|file| file.path().to_path_buf());
    let client = Client::new(to, Options { token: address.token.clone(), authority, ..Options::default() });
    client.map_err(|error| Problem::invalid("to", error.to_string()))
}

/// What another daemon says.
fn there(error: &queztl_client::Error) -> Problem {
    let text = match error.problem() {
        Some(problem) => problem.detail.clone(),
        None => error.to_string(),
    };
    Problem::new(Code::Host, format!("the other daemon keeps no copy of the machine: {text}"))
}
