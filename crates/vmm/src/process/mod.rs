//! The process that runs one virtual machine for the daemon: `queztl-hv vmm DIR`.
//!
//! Promises:
//! - all that daemon and process have to say to each other lies in the machine's directory ([`Folder`]): what to run
//!   ([`MachineFile`]), who runs it (a lock that the kernel releases), how it ended ([`ExitReport`]), and the sockets;
//! - the process outlives whoever started it, and a daemon that starts anew finds it by its directory alone;
//! - it has rights to what its machine needs and to nothing else ([`sandbox`]);
//! - nobody who looks at the guest's console can hold the guest up ([`console`]).
//!
//! ```text
//!  machine.json ──> queztl-hv vmm DIR ──> exit.json
//!                    │ vmm.lock: held while it runs; vmm.log: what it has to say
//!                    ├── control.sock   requests, figures, events (vmm::control)
//!                    ├── console.sock   the console, for viewers ──┬─ console hub ──> console.log, console.log.1
//!                    └── vsock.sock     the guest's socket device  │
//!                                                        guest's console output
//! ```

pub mod console;
mod exit;
mod file;
mod folder;
mod log;
pub mod sandbox;
#[cfg(test)]
mod tests;
pub mod zygote;

pub use crate::snapshot::Identity;
pub use exit::{ExitReport, ProcessId};
pub use file::{FileError, MachineFile, Start, VERSION};
pub use folder::{Folder, Lock, LockError};
pub use log::{LogFile, last_line};
pub use sandbox::{Sandbox, SandboxError, SandboxMode};
