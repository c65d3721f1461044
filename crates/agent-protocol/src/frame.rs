//! Frames: how messages are cut out of a stream of bytes.

use std::io::{self, Read};

use crate::{Error, Message};

/// Length and kind, in front of each payload.
pub const HEADER_BYTES: usize = 5;
/// The largest payload. A command's words and environment have to fit.
pub const MAX_PAYLOAD_BYTES: usize = 128 << 10;

/// Appends the message's frame to `out`.
///
/// # Errors
/// [`Error::FrameTooLarge`]; `out` is then as it was.
pub fn encode(message: &Message, out: &mut Vec<u8>) -> Result<(), Error> {
    let start = out.len();
    out.extend([0; HEADER_BYTES]);
    let kind = message.write(out);
    let length = out.len() - start - HEADER_BYTES;
    if length > MAX_PAYLOAD_BYTES {
        out.truncate(start);
        return Err(Error::FrameTooLarge(length));
    }
    let [a, b, c, d] = (length as u32).to_le_bytes();
    if let Some(header) = out.get_mut(start..start + HEADER_BYTES) {
        header.copy_from_slice(&[a, b, c, d, kind]);
    }
    Ok(())
}

/// Collects bytes until they are messages.
///
/// Keeps at most one frame of the largest size, so a peer cannot make it grow. After an error the stream has lost its
/// frames and the connection is of no use any more.
#[derive(Debug)]
pub struct Decoder {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { buffer: vec![0; HEADER_BYTES + MAX_PAYLOAD_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }
}

impl Decoder {
    /// Reads once from `source`; 0 at its end. Call [`Decoder::next_message`] until it gives `None` before each call: with
    /// a whole frame waiting there may be no room, which is an error of kind [`io::ErrorKind::OutOfMemory`].
    pub fn read_from(&mut self, source: &mut impl Read) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        if room.is_empty() {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "a frame waits to be taken"));
        }
        let count = source.read(room)?.min(room.len());
        self.end += count;
        Ok(count)
    }

    /// The next message, if all of it is there.
    ///
    /// # Errors
    /// [`Error`] when the bytes are none.
    pub fn next_message(&mut self) -> Result<Option<Message>, Error> {
        let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Some((&[a, b, c, d, kind], rest)) = waiting.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > MAX_PAYLOAD_BYTES {
            return Err(Error::FrameTooLarge(length));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let message = Message::read(kind, payload)?;
        self.start += HEADER_BYTES + length;
        Ok(Some(message))
    }

    /// Whether the bytes so far end with a whole frame: a connection that ends elsewhere was cut.
    pub fn is_between_frames(&self) -> bool {
        self.start == self.end
    }
}
