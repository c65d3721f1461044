//! Large, sparse data over many connections at once: the memory of a virtual machine, a disk.
//!
//! A transfer goes in rounds. The first brings all there is, each later one what has changed since the one before; a receiver
//! that has a round whole has the data as it was at one moment. A round is cut into chunks, and whichever connection has room
//! takes the next one, so that a slow one does not hold up the others.
//!
//! Promises:
//! - [`Receiver::round`] returns when all of a round has come, over every connection, and each chunk had the checksum it was
//!   sent with; what it has written by then is what was sent, whatever the connections' speeds;
//! - a peer can make a receiver neither panic nor write outside the data, and no more memory is taken than two chunks for each
//!   connection;
//! - nothing is compressed that does not become smaller.
//!
//! ```text
//!  produce ──> chunks ≤ 256 KiB ──> bounded queue ──┬─> compress ─> connection 0 ─> check, expand ─┬─> Target::write
//!  (offset, data | zeroes)                          ├─> compress ─> connection 1 ─> check, expand ─┤    Target::zero
//!                                                   └─> …                                          ┘
//!  end of the round: each connection is told how many chunks it has carried
//! ```
//! Connections are anything that reads or writes bytes in order; what authenticates and encrypts them is theirs.
//!
//! ```
//! use std::io::Cursor;
//! use queztl_parallel_transfer::{Piece, Receiver, Sender, Target};
//!
//! // A connection that is written first and read then.
//! let mut sender = Sender::new(vec![Vec::new()]);
//! sender.round(1, |sink| sink.put(8192, Piece::Data(b"sparse")))?;
//! let wire = sender.into_endpoints().remove(0);
//!
//! let mut receiver = Receiver::new(vec![Cursor::new(wire)], 1 << 20);
//! let copy = std::sync::Mutex::new(vec![0; 1 << 20]);
//! let received = receiver.round(1, &copy)?;
//! assert_eq!((received.data_bytes, &copy.lock().unwrap()[8192..8198]), (6, &b"sparse"[..]));
//! # Ok::<(), queztl_parallel_transfer::Error>(())
//! ```

mod chunk;
mod parcel;
mod receiver;
mod sender;

use std::io;
use std::sync::{Mutex, PoisonError};

pub use chunk::MAX_CHUNK_BYTES;
pub use parcel::{ParcelReader, ParcelWriter};
pub use receiver::{Received, Receiver};
pub use sender::{Piece, Sender, Sent, Sink};

/// Why a round was not brought over. The transfer cannot go on then: connections may be in the middle of a chunk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connection {connection} of the transfer fails: {source}")]
    Connection { connection: usize, source: io::Error },
    #[error("connection {connection} of the transfer brought what is no part of it: {reason}")]
    Malformed { connection: usize, reason: &'static str },
    #[error("what was transferred cannot be written: {0}")]
    Target(io::Error),
    #[error("what is to be transferred cannot be read: {0}")]
    Source(io::Error),
    #[error("another connection of the transfer has failed")]
    Abandoned,
}

/// Where the receiver puts what it gets; called from several threads at once, never for overlapping places in a round that
/// was sent without overlaps.
pub trait Target: Sync {
    /// Data at an offset, in bytes.
    ///
    /// # Errors
    /// They end the round.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Zeroes.
    ///
    /// # Errors
    /// They end the round.
    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()>;
}

/// For tests and examples: real data is larger.
impl Target for Mutex<Vec<u8>> {
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut all = self.lock().unwrap_or_else(PoisonError::into_inner);
        let place = offset as usize..offset as usize + data.len();
        all.get_mut(place).ok_or(io::ErrorKind::StorageFull)?.copy_from_slice(data);
        Ok(())
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let mut all = self.lock().unwrap_or_else(PoisonError::into_inner);
        let place = offset as usize..(offset + bytes) as usize;
        all.get_mut(place).ok_or(io::ErrorKind::StorageFull)?.fill(0);
        Ok(())
    }
}
