//! Frames out of a stream of bytes.

use std::io;
use std::time::{Duration, Instant};

use super::inbox::Failure;
use crate::ProtocolError;
use crate::frame::{HEADER_BYTES, Header};
use crate::wire::Wire;

/// How much is read at once.
const BUFFER_BYTES: usize = 256 << 10;

pub(super) struct Reader {
    buffer: Vec<u8>,
    /// What of the buffer has been read and not been used.
    start: usize,
    end: usize,
    /// The frame whose payload is not complete.
    partial: Option<(Header, Vec<u8>)>,
    max_payload: u32,
    /// When bytes came last.
    moved: Instant,
}

impl Reader {
    pub fn new(max_payload: u32) -> Reader {
        let buffer = vec![0; BUFFER_BYTES];
        Reader { buffer, start: 0, end: 0, partial: None, max_payload, moved: Instant::now() }
    }

    /// Whether a frame has begun and not ended.
    pub fn is_amid(&self) -> bool {
        self.partial.is_some() || self.start < self.end
    }

    /// Whether the next frame cannot be had from what has been read.
    pub fn needs_more(&self) -> bool {
        match &self.partial {
            Some((header, payload)) => (header.length as usize - payload.len()) > self.end - self.start,
            None => self.end - self.start < HEADER_BYTES,
        }
    }

    /// Whether a frame has stood still for so long.
    pub fn stalled(&self, limit: Duration) -> bool {
        self.is_amid() && self.moved.elapsed() >= limit
    }

    /// Reads what is there, if the buffer has nothing for the next frame.
    pub fn fill(&mut self, wire: &dyn Wire) -> Result<(), Failure> {
        if !self.needs_more() {
            return Ok(());
        }
        if self.partial.is_none() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        } else {
            self.take_payload();
            (self.start, self.end) = (0, 0);
        }
        match wire.read(&mut self.buffer[self.end..]) {
            Ok(0) => return Err(Failure::Closed),
            Ok(count) => {
                self.end += count;
                self.moved = Instant::now();
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The next frame, if all of it is there.
    pub fn next(&mut self) -> Result<Option<(Header, Vec<u8>)>, ProtocolError> {
        if self.partial.is_none() {
            let Some(bytes) = self.buffer[self.start..self.end].first_chunk::<HEADER_BYTES>() else { return Ok(None) };
            let header = Header::decode(bytes, self.max_payload)?;
            self.start += HEADER_BYTES;
            self.partial = Some((header, Vec::with_capacity(header.length as usize)));
        }
        self.take_payload();
        match self.partial.take_if(|(header, payload)| payload.len() == header.length as usize) {
            Some((header, payload)) => {
                header.check(&payload)?;
                Ok(Some((header, payload)))
            }
            None => Ok(None),
        }
    }

    fn take_payload(&mut self) {
        if let Some((header, payload)) = &mut self.partial {
            let count = (header.length as usize - payload.len()).min(self.end - self.start);
            payload.extend_from_slice(&self.buffer[self.start..self.start + count]);
            self.start += count;
        }
    }
}
