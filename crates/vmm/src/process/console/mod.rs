//! The console hub: one guest console for many viewers.
//!
//! Promises:
//! - what the guest's console says goes to `console.log` (of 1 MiB, and the 1 MiB before it in `console.log.1`) and to every
//!   viewer, in the same order;
//! - a new viewer first gets what was said last, up to 64 KiB, from the beginning of a line on, and then everything that
//!   follows: nothing is missing in between and nothing comes twice;
//! - a viewer that does not read is let go when 256 KiB wait for it; neither it nor a slow disk ever makes the guest wait;
//! - several viewers may type; one that came only to look cannot.
//!
//! ```text
//!  guest ──> Output's thread ── push ──> Hub: history, a queue for each viewer, a queue for the file
//!                                         │ eventfd
//!                            console thread: sockets, console.log ──> guest's input
//! ```
//!
//! # Protocol
//! A stream socket, `console.sock`. Both sides send frames: one byte of kind, the length of the rest as 32 bits
//! (little-endian, at most [`MAX_PAYLOAD_BYTES`]), the rest. [`Request`] and [`Message`] are the frames; a viewer's first one
//! is [`Request::Hello`], which is answered by [`Message::Welcome`]. What is no frame ends the connection with
//! [`Message::End`]. [`Decoder`] and the `encode` functions do no I/O, for whoever has another way to wait than
//! [`Client`]'s.
//!
//! | kind | from | rest |
//! |---|---|---|
//! | 1 | viewer | hello: version (1), mode (0 looks, 1 types), scrollback wanted (0 or 1) |
//! | 2 | viewer | input: bytes |
//! | 3 | viewer | size of the terminal: columns, rows, each 16 bits; the last one given by anybody holds |
//! | 129 | hub | welcome: version |
//! | 130 | hub | scrollback: bytes that were said before |
//! | 131 | hub | output: bytes |
//! | 132 | hub | end: why, as text; nothing follows |

mod client;
mod frame;
mod history;
mod hub;
mod record;
mod server;
#[cfg(test)]
mod tests;

pub use client::{Client, ClientError, Keys};
pub use frame::{Decoder, FrameError, MAX_PAYLOAD_BYTES, Message, Mode, Request};
pub use hub::Hub;
pub use server::{Guest, Server, ServerError};

/// The version of the protocol.
pub const VERSION: u8 = 1;
/// Viewers at a time; more are told to come back.
pub const MAX_VIEWERS: usize = 16;
/// What may wait for a viewer that does not read, before it is let go.
pub const MAX_WAITING_BYTES: usize = 256 << 10;
/// What a new viewer gets to see of the past.
pub const HISTORY_BYTES: usize = 64 << 10;
/// The size at which `console.log` becomes `console.log.1`.
pub const RECORD_BYTES: u64 = 1 << 20;
