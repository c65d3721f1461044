//! One stream of a connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::inbox::{self, Inbox, Opened, State};
use super::{Shared, deadline};
use crate::frame::{END, HEADER_BYTES, ONE_WAY, OPEN};
use crate::session::SERVICE_BYTES;
use crate::{Error, Priority};

/// The code of a stream that was dropped before its end.
const DROPPED: u32 = 1;

/// A stream that the peer has opened.
#[derive(Debug)]
pub struct Incoming {
    /// The service it wants.
    pub service: u32,
    /// It is not to be answered.
    pub one_way: bool,
    pub stream: Stream,
}

impl Incoming {
    pub(super) fn new(shared: Arc<Shared>, opened: Opened) -> Incoming {
        let Opened { number, service, one_way, priority } = opened;
        let target = Target { number: Some(number), opening: None, one_way, priority, ended: one_way };
        Incoming { service, one_way, stream: Stream { shared, target } }
    }
}

/// Bytes in both directions. Dropped before both have ended, it is given up.
pub struct Stream {
    shared: Arc<Shared>,
    target: Target,
}

/// Where frames of a stream go.
pub(super) struct Target {
    /// `None` until the first frame.
    number: Option<u32>,
    /// The service, until the first frame has named it.
    opening: Option<[u8; SERVICE_BYTES]>,
    one_way: bool,
    pub priority: Priority,
    /// Nothing more is sent.
    ended: bool,
}

/// A frame that is to be written.
pub(super) struct Frame<'a> {
    pub header: [u8; HEADER_BYTES],
    pub parts: Vec<&'a [u8]>,
    pub service: Option<[u8; SERVICE_BYTES]>,
    /// How much of it is the application's.
    pub data_bytes: usize,
}

impl Target {
    /// The next frame: of `parts`, what there is room for. Opens the stream with the first one, under the write lock, so
    /// that numbers are in order on the wire.
    pub fn frame<'a>(&mut self, state: &mut State, parts: &[&'a [u8]], end: bool) -> Result<Option<Frame<'a>>, Error> {
        let number = match self.number {
            Some(number) => number,
            None => match state.session.may_open() {
                None => return Err(Error::Closed),
                // A number that is taken must be used before the next one is.
                Some(true) if state.session.room_of_new() as usize > SERVICE_BYTES => self.begin(state)?,
                Some(_) => return Ok(None),
            },
        };
        if let Some((code, message)) = state.inboxes.get(&number).and_then(|inbox| inbox.reset.clone()) {
            return Err(Error::Reset { code, message });
        }
        let Some(room) = state.session.room(number) else { return Err(Error::Closed) };
        let overhead = self.opening.map_or(0, |service| service.len());
        let all: usize = parts.iter().map(|part| part.len()).sum();
        let Some(room) = (room as usize).checked_sub(overhead).filter(|room| *room > 0 || all == 0) else {
            return Ok(None);
        };
        let taken = cut(parts, room);
        let data_bytes: usize = taken.iter().map(|part| part.len()).sum();
        let last = end && data_bytes == all;
        let mut flags = if last { END } else { 0 };
        if self.opening.is_some() {
            flags |= OPEN | if self.one_way { ONE_WAY } else { 0 };
        }
        let service = self.opening.take();
        let mut whole: Vec<&[u8]> = service.as_ref().map(|service| &service[..]).into_iter().collect();
        whole.extend(&taken);
        let Some(header) = state.session.data(number, &whole, flags, self.priority) else { return Ok(None) };
        self.ended |= last;
        Ok(Some(Frame { header: header.encode(), parts: taken, service, data_bytes }))
    }

    fn begin(&mut self, state: &mut State) -> Result<u32, Error> {
        let number = state.session.open().ok_or(Error::Closed)?;
        if !self.one_way {
            state.expect(number);
        }
        self.number = Some(number);
        Ok(number)
    }
}

/// The first `room` bytes of `parts`.
fn cut<'a>(parts: &[&'a [u8]], mut room: usize) -> Vec<&'a [u8]> {
    let mut taken = Vec::with_capacity(parts.len());
    for part in parts {
        let count = part.len().min(room);
        taken.push(&part[..count]);
        room -= count;
        if room == 0 {
            break;
        }
    }
    taken
}

/// What `parts` leave after their first `count` bytes.
fn rest<'a>(parts: &[&'a [u8]], mut count: usize) -> Vec<&'a [u8]> {
    let mut left = Vec::with_capacity(parts.len());
    for part in parts {
        let gone = part.len().min(count);
        count -= gone;
        if gone < part.len() {
            left.push(&part[gone..]);
        }
    }
    left
}

impl Stream {
    pub(super) fn open(shared: Arc<Shared>, service: u32, priority: Priority) -> Stream {
        let opening = Some(service.to_le_bytes());
        Stream { shared, target: Target { number: None, opening, one_way: false, priority, ended: false } }
    }

    pub(super) fn open_one_way(shared: Arc<Shared>, service: u32, priority: Priority) -> Stream {
        let mut stream = Stream::open(shared, service, priority);
        stream.target.one_way = true;
        stream
    }

    /// Sends bytes; waits while the peer has not granted room for them.
    ///
    /// # Errors
    /// [`Error::Reset`] when the peer gave the stream up; what ends the connection.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.send_parts(&[bytes], false, None)
    }

    /// Sends the last bytes.
    ///
    /// # Errors
    /// As [`Stream::send`].
    pub fn finish(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.send_parts(&[bytes], true, None)
    }

    pub(super) fn send_parts(&mut self, parts: &[&[u8]], end: bool, deadline: Option<Instant>) -> Result<(), Error> {
        if self.target.ended {
            return Err(Error::Closed);
        }
        let Some(mut sent) = self.send_some(parts, end, deadline)? else { return Ok(()) };
        let mut left = rest(parts, sent);
        while !left.is_empty() {
            sent = match self.send_some(&left, end, deadline)? {
                Some(sent) => sent,
                None => return Ok(()),
            };
            left = rest(&left, sent);
        }
        Ok(())
    }

    /// Sends a frame, once there is room; how much that was of the data. `None` if that was all.
    fn send_some(&mut self, parts: &[&[u8]], end: bool, deadline: Option<Instant>) -> Result<Option<usize>, Error> {
        loop {
            if let Some(sent) = self.shared.send_frame(&mut self.target, parts, end)? {
                let all: usize = parts.iter().map(|part| part.len()).sum();
                return Ok((sent < all).then_some(sent));
            }
            let number = self.target.number;
            let overhead = self.target.opening.map_or(0, |service| service.len()) as u32;
            let room = |state: &mut State| match number {
                None => match state.session.may_open() {
                    Some(true) => (state.session.room_of_new() > overhead).then_some(()),
                    Some(false) => None,
                    None => Some(()),
                },
                Some(number) => state.session.room(number).is_none_or(|room| room > overhead).then_some(()),
            };
            self.shared.wait_until(number.unwrap_or(inbox::ACCEPT), deadline, room)?;
        }
    }

    /// The next bytes, as they come; `None` after the last.
    ///
    /// # Errors
    /// [`Error::Reset`] when the peer gave the stream up, [`Error::Timeout`] after `limit`, what ends the connection.
    pub fn receive(&mut self, limit: Option<Duration>) -> Result<Option<Vec<u8>>, Error> {
        self.receive_until(deadline(limit))
    }

    fn receive_until(&mut self, deadline: Option<Instant>) -> Result<Option<Vec<u8>>, Error> {
        let Some(number) = self.target.number else { return Ok(None) };
        let next = |state: &mut State| {
            let inbox = state.inboxes.get_mut(&number)?;
            match next_chunk(inbox) {
                Some(Ok(chunk)) => {
                    state.taken(number, chunk.bytes.len());
                    Some(Ok(Some(chunk)))
                }
                Some(Err(error)) => Some(Err(error)),
                None if inbox.ended => Some(Ok(None)),
                None => None,
            }
        };
        let chunk = self.shared.wait_until(number, deadline, next)??;
        self.shared.flush_if_due();
        Ok(chunk.map(|mut chunk| {
            chunk.bytes.drain(..chunk.skip);
            chunk.bytes
        }))
    }

    /// All bytes to the end, as one message.
    ///
    /// # Errors
    /// As [`Stream::receive`]; [`Error::TooLong`] beyond [`super::Options::max_message`].
    pub fn message(&mut self, limit: Option<Duration>) -> Result<Vec<u8>, Error> {
        self.message_until(deadline(limit))
    }

    pub(super) fn message_until(&mut self, deadline: Option<Instant>) -> Result<Vec<u8>, Error> {
        let max = self.shared.options.max_message;
        let mut message = Vec::new();
        while let Some(bytes) = self.receive_until(deadline)? {
            let length = message.len() as u64 + bytes.len() as u64;
            if length > max {
                return Err(Error::TooLong(length, max));
            }
            if message.is_empty() {
                message = bytes;
            } else {
                message.extend(bytes);
            }
        }
        Ok(message)
    }

    /// Gives the stream up; the peer gets the code and the message (512 bytes of it).
    pub fn reset(self, code: u32, message: &str) {
        self.give_up(code, message);
    }

    fn give_up(&self, code: u32, message: &str) {
        let Some(number) = self.target.number else { return };
        {
            let mut state = self.shared.lock();
            // One whose both directions have ended is unknown to the session already.
            if let Some((header, payload)) = state.session.reset(number, code, message) {
                state.put(header, &payload);
            }
            state.forget(number);
        }
        self.shared.flush_if_due();
    }
}

fn next_chunk(inbox: &mut Inbox) -> Option<Result<inbox::Chunk, Error>> {
    match inbox.chunks.pop_front() {
        Some(chunk) => Some(Ok(chunk)),
        None => inbox.reset.clone().map(|(code, message)| Err(Error::Reset { code, message })),
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.give_up(DROPPED, "dropped");
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Stream").field("number", &self.target.number).finish_non_exhaustive()
    }
}
