//! Frames on a byte stream: a big-endian length of four bytes, then the frame without a virtio header.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;

use crate::{HEADER_BYTES, MAX_FRAME_BYTES, Received};

const LENGTH_BYTES: usize = 4;
/// Bytes read from the socket at once: several full frames.
const INBOX_BYTES: usize = 256 << 10;

/// A non-blocking stream of frames.
#[derive(Debug)]
pub struct FrameStream {
    socket: UnixStream,
    /// What was read; `start..end` has not been handed out.
    inbox: Box<[u8]>,
    start: usize,
    end: usize,
    /// The rest of a frame that the socket took only in part; goes out before anything else. One frame at most.
    outbox: Vec<u8>,
}

impl FrameStream {
    pub fn new(socket: UnixStream) -> FrameStream {
        let inbox = vec![0; INBOX_BYTES].into_boxed_slice();
        FrameStream { socket, inbox, start: 0, end: 0, outbox: Vec::new() }
    }

    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Takes the next frame, with an empty header in front. A length that no frame has is an error: the stream can
    /// not be followed any further.
    pub fn receive(&mut self, frame: &mut [u8]) -> io::Result<Received> {
        loop {
            if let Some(body) = self.next_frame()? {
                let count = HEADER_BYTES + body.len();
                frame[..HEADER_BYTES].fill(0);
                frame[HEADER_BYTES..count].copy_from_slice(&self.inbox[body.clone()]);
                self.start = body.end;
                return Ok(Received::Frame(count));
            }
            self.inbox.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            match self.socket.read(&mut self.inbox[self.end..]) {
                Ok(0) => return Ok(Received::Closed),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where the next complete frame lies in the inbox.
    fn next_frame(&self) -> io::Result<Option<std::ops::Range<usize>>> {
        let waiting = &self.inbox[self.start..self.end];
        let Some(length) = waiting.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME_BYTES - HEADER_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes was announced")));
        }
        let body = self.start + LENGTH_BYTES..self.start + LENGTH_BYTES + length;
        Ok((body.end <= self.end).then_some(body))
    }

    /// Sends one frame whose header is dropped. `WouldBlock`: nothing of it was taken.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.flush()?;
        let body = frame.get(HEADER_BYTES..).ok_or(io::ErrorKind::InvalidInput)?;
        let length = (body.len() as u32).to_be_bytes();
        let sent = loop {
            match self.socket.write_vectored(&[IoSlice::new(&length), IoSlice::new(body)]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.outbox.extend(length.iter().chain(body).skip(sent));
        Ok(())
    }

    /// Sends what is left of the frame before; `WouldBlock` while there is any.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.outbox.is_empty() {
            match self.socket.write(&self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
