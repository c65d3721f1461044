//! What can go wrong between two peers.

use std::io;

/// Why a call, a stream or a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the peer broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    #[error("the peer has closed the connection")]
    Closed,
    /// The peer gave the stream up; the code is the application's, see `docs/qhp.md` for those below 16.
    #[error("the peer gave up (code {code}): {message}")]
    Reset { code: u32, message: String },
    #[error("the peer does not take more streams at the moment, {0} are open: end some first")]
    TooManyStreams(u32),
    #[error("a message of {0} bytes is longer than the {1} this side accepts")]
    TooLong(u64, u64),
    #[error("no answer within the time given")]
    Timeout,
}

/// How a peer broke the protocol. The connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("it does not speak QHP")]
    Magic,
    #[error("it speaks versions {min} to {max}, this side {OURS}: bring both to the same release", OURS = crate::hello::VERSION)]
    Version { min: u16, max: u16 },
    #[error("its greeting is malformed")]
    Hello,
    #[error("it did not prove that it has the key")]
    Authentication,
    #[error("it takes another way of authentication than this side: give both a key, or neither")]
    AuthenticationKind,
    #[error("frame type {0} does not exist")]
    FrameType(u8),
    #[error("a frame of {bytes} bytes is longer than agreed ({max})")]
    FrameLength { bytes: u32, max: u32 },
    #[error("a frame of type {0} with a payload it cannot have")]
    Payload(u8),
    #[error("reserved bits are set in a frame")]
    Reserved,
    #[error("the checksum of a frame on stream {0} is wrong: data was damaged on the way")]
    Checksum(u32),
    #[error("stream {0} cannot be opened like that")]
    StreamNumber(u32),
    #[error("too many streams were opened")]
    StreamCount,
    #[error("data on stream {0} after its end")]
    AfterEnd(u32),
    #[error("more data on stream {0} than was granted")]
    Window(u32),
    #[error("more data in all than was granted")]
    ConnectionWindow,
    #[error("a window that overflows")]
    WindowOverflow,
    #[error("a greeting after the greeting")]
    SecondHello,
}
