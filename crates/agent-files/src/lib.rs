//! Trees of files as messages: what the host and the agent in its guest both do when they copy.
//!
//! Promises:
//! - [`send`] reads regular files, directories and symbolic links and follows no link below its root; devices, sockets
//!   and pipes are counted, not opened.
//! - [`Receiver`] writes below its destination and nowhere else, whatever the sender says: each component of a path is
//!   opened without following links. With [`Links::Inside`] it also makes no link that leads out of the copied tree.
//! - A file appears under its name complete or not at all: it is written under another name and renamed. What is
//!   abandoned half-way is removed.
//! - Sizes are checked, in both directions; a [`Policy`] bounds bytes and entries.

mod error;
mod receive;
mod send;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use receive::{Links, Policy, Receiver};
pub use send::send;
