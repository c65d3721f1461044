//! The agent in a guest: runs commands and copies files for the host, and makes a clone somebody of its own.
//!
//! Promises: it serves the host only (a connection from any other address is closed unread); one connection is one
//! session, and its command dies with it; a reader that stops on the host's side stops the command's writes, nothing is
//! lost and nothing grows. It trusts the host, as everything in a guest has to; still, a message out of order ends the
//! session with a sentence.
//!
//! ```text
//!  main: accept ──> a thread for each session ──> Channel: messages in, messages out
//!                     │ Exec                         Put, Get          Identity, Shutdown
//!                     v                                │                  │
//!                   command: start ──> exec: one poll loop            machine: the calls that change the guest
//! ```
//! The library is what the program is made of; tests run sessions of it over a pair of sockets.

mod channel;
mod command;
mod exec;
mod files;
pub mod machine;
mod session;
mod users;
pub mod vsock;

pub use machine::Machine;
pub use session::{refuse, serve};
