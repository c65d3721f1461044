//! Control of a running machine from outside: over a Unix socket, one JSON object a line in each direction.
//!
//! Promises:
//! - only the user who started the machine reaches the socket (mode 0600), and its file goes when the machine does;
//! - every request gets exactly one answer, in order; what is not understood gets an error that says why;
//! - a client can do no more harm than its requests say: lines, answers kept for it, clients and their idle time are
//!   bounded, and none of it happens on a thread that the guest needs.
//!
//! ```text
//!  client ── {"command":"pause"}\n ──> Server (one thread) ── Request ──> Target: the machine's handle
//!         <── {"result":"done"}\n ────                     <── Response ─
//! ```
//! [`Request`] and [`Response`] are the protocol; [`Client`] speaks it.

mod client;
mod connection;
mod server;
#[cfg(test)]
mod tests;
mod types;

pub use client::{Client, ClientError};
pub(crate) use server::listen;
pub use server::{Server, ServerError, Target};
pub use types::{
    Balloon, DeviceLimit, GuestMemoryStats, Hotplug, Memory, Reason, Refusal, Request, Response, RunState,
    SnapshotReport, Status, Vcpu,
};

/// The longest request, in bytes, its line feed included.
pub const MAX_REQUEST_BYTES: usize = 4096;
/// Clients at a time; more are told to come back.
pub const MAX_CLIENTS: usize = 32;
