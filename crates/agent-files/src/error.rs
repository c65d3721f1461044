//! Why a copy failed, as sentences for whoever asked for it.

use std::fmt::Display;
use std::path::PathBuf;

use rustix::io::Errno;

/// A failure on this side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused something.
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: String, source: Errno },
    #[error("{0} is neither a file nor a directory; only these can be copied")]
    Kind(PathBuf),
    #[error("{0} changed its size while it was read; copy it again when nobody writes to it")]
    Changed(String),
    #[error("{0} tells no size and is larger than 1 MiB; copy it into a file of its own first")]
    NoSize(String),
    #[error("the path {0} is too long or too deep to be copied; the limits are 4095 bytes and 128 directories")]
    Path(String),
    #[error("there are more than {0} bytes; copy a part of it, or raise the limit")]
    Bytes(u64),
    #[error("there are more than {0} entries; copy a part of it, or raise the limit")]
    Entries(u64),
    /// The sender breaks the protocol.
    #[error("the other side sent {0}; the copy was given up")]
    Peer(&'static str),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Display) -> impl FnOnce(Errno) -> Error {
        let path = path.to_string();
        move |source| Error::Io { action, path, source }
    }
}
