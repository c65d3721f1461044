//! The protocol between a host and the agent in its guest.
//!
//! Promises: any bytes whatever are either a message within the bounds given here or an error; nothing is allocated on
//! the word of a peer beyond one frame; what one side encodes, the other decodes to the same. No sockets, no clocks:
//! bytes come and go through `std::io`.
//!
//! ```text
//!  frame:  length u32 | kind u8 | payload (length bytes)      little endian throughout
//!  bytes:  length u32 | that many bytes                       list: count u32 | items
//! ```
//!
//! A connection begins with [`Message::Hello`] and [`Message::Welcome`]; then the host makes requests, one at a time.
//! `docs/agent.md` tells the order of messages and each layout.

mod frame;
mod message;
mod path;
#[cfg(test)]
mod tests;
mod window;
mod wire;

pub use frame::{Decoder, HEADER_BYTES, MAX_PAYLOAD_BYTES, encode};
pub use message::{
    Entry, EntryKind, Exec, Exit, Fault, FaultCode, Identity, Message, Shutdown, Size, Summary, Time, features, stream,
};
pub use path::RelativePath;
pub use window::{Allowance, Overrun, WINDOW_BYTES, Window};

/// The guest's vsock port on which the agent listens.
pub const PORT: u32 = 20_826;
/// The version of the protocol described here.
pub const VERSION: u16 = 1;
/// Most bytes in one [`Message::Data`].
pub const MAX_DATA_BYTES: usize = 64 << 10;
/// Most bytes of a path, its separators included.
pub const MAX_PATH_BYTES: usize = 4096;
/// Most words and, separately, most environment variables of a command.
pub const MAX_WORDS: usize = 4096;
/// Most bytes of an error's text.
pub const MAX_TEXT_BYTES: usize = 1024;
/// Most bytes of a host name (`__NEW_UTS_LEN`).
pub const MAX_HOST_NAME_BYTES: usize = 64;
/// Most bytes of entropy in one message.
pub const MAX_ENTROPY_BYTES: usize = 512;

/// Why bytes are no message, or a message has no bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a frame of {0} bytes is larger than the protocol allows")]
    FrameTooLarge(usize),
    #[error("a frame of unknown kind {0:#04x}")]
    UnknownKind(u8),
    #[error("a frame ends inside of its field `{0}`")]
    Truncated(&'static str),
    #[error("a frame has {0} bytes after its last field")]
    Trailing(usize),
    #[error("the field `{0}` has a value that it cannot have")]
    Invalid(&'static str),
}
