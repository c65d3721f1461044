//! Control of a running machine from outside: over a Unix socket, one JSON object a line in each direction.
//!
//! Promises:
//! - only the user who started the machine reaches the socket (mode 0600), and its file goes when the machine does;
//! - every request gets exactly one answer, in order; what is not understood gets an error that says why;
//! - what takes long is carried out on a thread of its own, one after the other, and nobody else waits for it;
//! - a client can do no more harm than its requests say: lines, answers kept for it, clients and their idle time are
//!   bounded, and none of it happens on a thread that the guest needs.
//!
//! ```text
//!  client ── {"command":"pause"}\n ──> Server (one thread) ── Request ──> Target: the machine's handle
//!         <── {"result":"done"}\n ────                     <── Response ─
//!                                         │    ^ Answer, perhaps with descriptors
//!                                         v    │
//!                              Errands (one thread) ── Target::carry_out
//! ```
//! [`Request`] and [`Response`] are the protocol; [`Client`] speaks it.

mod client;
mod connection;
mod errands;
mod metrics;
mod migration;
mod protection;
mod server;
#[cfg(test)]
mod tests;
mod types;

pub use client::{Client, ClientError};
pub use metrics::{DiskFigures, ExitFigures, Metrics, NetFigures, ProcessMemory, Times, VcpuFigures};
pub use migration::{Blackout, Late, Migration, MigrationMode, MigrationPhase};
pub use protection::{
    BackupFigures, BackupPlace, ProtectOrder, Protection, ProtectionMode, ProtectionState, RegisterWish, ThrottleOrder,
};
pub(crate) use server::listen;
pub use server::{Server, ServerError, Target};
pub use types::{
    Answer, Balloon, DeviceLimit, DiskCut, GuestMemoryStats, Hotplug, Memory, Reason, Refusal, Request, Response,
    RunState, SnapshotProgress, SnapshotReport, Status, Vcpu,
};

/// The longest request, in bytes, its line feed included.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Clients at a time; more are told to come back.
pub const MAX_CLIENTS: usize = 32;
/// Descriptors beside an answer: what the kernel passes on at once (Linux `include/net/scm.h`, SCM_MAX_FD).
pub const MAX_FILES: usize = 253;
