//! What is said over the connections.

use std::io::{self, Read, Write};
use std::time::Duration;

use queztl_qhp::{Error as QhpError, Stream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Error;

/// Of what follows.
pub(super) const VERSION: u32 = 3;
/// Connections for memory at most.
pub const MAX_STRIPES: u32 = 16;

/// QHP services. A call of [`BEGIN`] makes a connection the one for calls.
pub(super) const BEGIN: u32 = 1;
/// A stream of chunks, one way.
pub(super) const STRIPE: u32 = 2;
/// A call for each round: [`Round`], a line feed, and in the last one the machine's state as in a snapshot.
pub(super) const ROUND: u32 = 3;
/// After the last round: the machine is the target's from now on.
pub(super) const RUN: u32 = 4;
/// A call: changes of disks ([`crate::mirror`]).
pub(super) const DISK: u32 = 5;
/// A call: what has come of disks is made durable.
pub(super) const SYNC: u32 = 6;

/// A call in place of the last round: what is missing comes later ([`super::late`]).
pub(super) const SWITCH: u32 = 7;
/// A stream of pages that come later, to the target.
pub(super) const PAGES: u32 = 8;
/// A stream that the source opens, over which the target asks for pages and says when it has all.
pub(super) const FAULTS: u32 = 9;
/// A call that begins a connection in the place of one that broke.
pub(super) const RESUME: u32 = 10;

/// How long a peer may take for an answer that needs no memory to be transferred.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What is to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begin {
    pub version: u32,
    /// RAM as (guest-physical address, bytes).
    pub ram: Vec<(u64, u64)>,
    pub stripes: u32,
    /// The sizes of the disks that come with it, in bytes.
    #[serde(default)]
    pub disks: Vec<u64>,
}

impl Begin {
    pub fn new(ram: Vec<(u64, u64)>, stripes: u32, disks: Vec<u64>) -> Begin {
        Begin { version: VERSION, ram, stripes: stripes.clamp(1, MAX_STRIPES), disks }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Round {
    pub round: u64,
    pub last: bool,
}

/// The answer to the last round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ready {
    /// From when all had come to when the machine could go on.
    pub made_ns: u64,
}

/// An answer that says yes.
pub(super) const YES: &[u8] = b"{}";

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|_| Error::Protocol("a message is not understood"))
}

/// What the peer says with a reset is a refusal; all else is a failure of the connection.
pub(crate) fn refusal(error: QhpError) -> Error {
    match error {
        QhpError::Reset { message, .. } => Error::Refused(message),
        other => Error::Connection(other),
    }
}

/// A stripe: a stream as bytes.
pub(crate) struct Stripe {
    stream: Stream,
    /// What has come and was not read, from `at` on.
    waiting: Vec<u8>,
    at: usize,
}

impl Stripe {
    pub fn new(stream: Stream) -> Stripe {
        Stripe { stream, waiting: Vec::new(), at: 0 }
    }
}

impl Write for Stripe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.send(bytes).map(|()| bytes.len()).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stripe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A frame may be empty.
        while self.at == self.waiting.len() {
            match self.stream.receive(None).map_err(io::Error::other)? {
                Some(bytes) => (self.waiting, self.at) = (bytes, 0),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.waiting.len() - self.at);
        buffer[..count].copy_from_slice(&self.waiting[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
