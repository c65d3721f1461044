//! QHP: the binary protocol between nodes, machines and tools.
//!
//! Promises:
//! - many streams over one connection, in both directions, each with its own flow control and priority: bulk data never
//!   makes a heartbeat wait for more than one frame;
//! - a peer is what it proves to be before the first stream, and can make this side neither panic nor keep more memory than
//!   the windows it was granted;
//! - a call costs one write and one read of the transport in each direction and no change of threads: whoever waits
//!   reads.
//!
//! ```text
//!  Connection   calls, streams, who reads and who waits (threads, blocking)
//!      │
//!  Session      streams, windows, what a frame means (a state machine without I/O)
//!      │
//!  frame, hello what is on the wire: 16 bytes of header, then payload; docs/qhp.md is the specification
//!      │
//!  Wire         TCP, Unix sockets, anything that reads and writes bytes in both directions at once
//! ```

mod connection;
mod error;
pub mod frame;
pub mod hello;
mod priority;
mod session;
mod wire;

pub use connection::{Connection, Incoming, Options, Stream};
pub use error::{Error, ProtocolError};
pub use frame::Priority;
pub use hello::{Features, Key};
pub use session::{Event, Session, Side};
pub use wire::{IntoWire, Wire, pair};
