//! Streams and windows: what a frame means, without any I/O.
//!
//! ```text
//!            open, or OPEN received
//!                    │
//!                    v        own END            peer's END
//!                  open ──────────────> half ──────────────> gone
//!                    └── RESET, either way ────────────────────^
//! ```
//! A stream counts against the limit of the side that opened it until it is gone. What still arrives for a stream that is
//! gone is dropped, its bytes given back to the connection's window.

use std::collections::HashMap;

use crate::ProtocolError;
use crate::frame::{CHECKSUM, END, Header, Kind, ONE_WAY, OPEN, Priority};
use crate::hello::{Features, Hello};

/// Bytes of the service number that the payload of an OPEN frame begins with.
pub(crate) const SERVICE_BYTES: usize = 4;
/// The longest text of a RESET frame.
const MAX_MESSAGE_BYTES: usize = 512;
/// Payloads from this length on carry a checksum.
const CHECKSUM_FROM: usize = 4096;

/// Which side of a connection this is; the client is the one that connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Opens streams with odd numbers.
    Client,
    /// Opens streams with even numbers.
    Server,
}

/// What a frame told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a stream; `skip` bytes of the payload are not its data.
    Opened {
        stream: u32,
        service: u32,
        one_way: bool,
        priority: Priority,
        skip: usize,
        end: bool,
    },
    Data {
        stream: u32,
        end: bool,
    },
    Reset {
        stream: u32,
        code: u32,
        message: String,
    },
    /// There is more room to send: on this stream, or on all of them (0).
    Granted {
        stream: u32,
    },
    Ping([u8; 8]),
    Pong([u8; 8]),
    GoAway,
    /// The frame was for a stream that is gone.
    Dropped {
        bytes: u32,
    },
}

#[derive(Debug)]
struct Stream {
    /// What may still be sent.
    send: u32,
    /// What the peer may still send.
    receive: u32,
    /// Taken by the reader, and not yet granted again.
    taken: u32,
    sent_end: bool,
    received_end: bool,
}

/// One side of a connection after the greeting.
#[derive(Debug)]
pub struct Session {
    side: Side,
    own: Hello,
    peer: Hello,
    streams: HashMap<u32, Stream>,
    /// The next stream this side opens, and the least that the peer may open next.
    next_own: u32,
    next_peer: u32,
    open_own: u32,
    open_peer: u32,
    send: u32,
    receive: u32,
    taken: u32,
    /// The peer takes no new streams.
    going: bool,
}

impl Session {
    pub fn new(side: Side, own: Hello, peer: Hello) -> Session {
        let (next_own, next_peer) = if side == Side::Client { (1, 2) } else { (2, 1) };
        Session {
            side,
            send: peer.connection_window,
            receive: own.connection_window,
            own,
            peer,
            streams: HashMap::new(),
            next_own,
            next_peer,
            open_own: 0,
            open_peer: 0,
            taken: 0,
            going: false,
        }
    }

    pub fn side(&self) -> Side {
        self.side
    }

    /// The longest payload the peer may send.
    pub fn max_payload(&self) -> u32 {
        self.own.max_payload
    }

    /// Whether new streams can be opened now; `None` if never again.
    pub fn may_open(&self) -> Option<bool> {
        let numbers_left = self.next_own < u32::MAX - 2;
        (!self.going && numbers_left).then_some(self.open_own < self.peer.max_streams)
    }

    /// How many streams the peer lets this side have.
    pub fn max_streams(&self) -> u32 {
        self.peer.max_streams
    }

    /// A new stream. Its first frame must carry OPEN.
    pub fn open(&mut self) -> Option<u32> {
        if self.may_open() != Some(true) {
            return None;
        }
        let number = self.next_own;
        self.next_own += 2;
        self.open_own += 1;
        self.streams.insert(number, self.fresh());
        Some(number)
    }

    fn fresh(&self) -> Stream {
        let (send, receive) = (self.peer.stream_window, self.own.stream_window);
        Stream { send, receive, taken: 0, sent_end: false, received_end: false }
    }

    /// How many bytes the next frame on a stream may carry; `None` if the stream takes no more at all.
    pub fn room(&self, stream: u32) -> Option<u32> {
        let stream = self.streams.get(&stream).filter(|stream| !stream.sent_end)?;
        Some(stream.send.min(self.send).min(self.peer.max_payload))
    }

    /// As [`Session::room`], for a stream that is not open yet.
    pub fn room_of_new(&self) -> u32 {
        self.peer.stream_window.min(self.send).min(self.peer.max_payload)
    }

    /// The header of a data frame, within [`Session::room`]; takes the room.
    pub fn data(&mut self, stream: u32, payload: &[&[u8]], flags: u8, priority: Priority) -> Option<Header> {
        let length: usize = payload.iter().map(|part| part.len()).sum();
        if length > self.room(stream)? as usize {
            return None;
        }
        let bytes = length as u32;
        let state = self.streams.get_mut(&stream)?;
        state.send -= bytes;
        state.sent_end |= flags & END != 0;
        state.received_end |= flags & ONE_WAY != 0;
        self.send -= bytes;
        self.forget_if_over(stream);
        let checked = length >= CHECKSUM_FROM && self.own.features.common(self.peer.features).has(Features::CHECKSUMS);
        let flags = if checked { flags | CHECKSUM } else { flags };
        let checksum = if checked { checksum(payload) } else { 0 };
        Some(Header { length: bytes, kind: Kind::Data, flags, priority, stream, checksum })
    }

    /// Gives a stream up; the frame that tells the peer.
    pub fn reset(&mut self, stream: u32, code: u32, message: &str) -> Option<(Header, Vec<u8>)> {
        let state = self.streams.get_mut(&stream)?;
        (state.sent_end, state.received_end) = (true, true);
        self.forget_if_over(stream);
        let mut end = message.len().min(MAX_MESSAGE_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let mut payload = code.to_le_bytes().to_vec();
        payload.extend(&message.as_bytes()[..end]);
        Some((control(Kind::Reset, stream, payload.len()), payload))
    }

    /// The application has taken bytes that arrived: what to grant the peer, if it is worth a frame.
    pub fn taken(&mut self, stream: u32, bytes: u32) -> Vec<(Header, [u8; 4])> {
        let mut grants = Vec::new();
        if let Some(state) = self.streams.get_mut(&stream) {
            state.taken += bytes;
            if state.taken >= self.own.stream_window / 2 && !state.received_end {
                state.receive += state.taken;
                grants.push((control(Kind::Window, stream, 4), state.taken.to_le_bytes()));
                state.taken = 0;
            }
        }
        grants.extend(self.taken_from_connection(bytes));
        grants
    }

    /// As [`Session::taken`], for bytes that no stream wants any more.
    pub fn taken_from_connection(&mut self, bytes: u32) -> Option<(Header, [u8; 4])> {
        self.taken += bytes;
        if self.taken < self.own.connection_window / 2 {
            return None;
        }
        self.receive += self.taken;
        Some((control(Kind::Window, 0, 4), std::mem::take(&mut self.taken).to_le_bytes()))
    }

    /// What a frame means. Its checksum has been looked at already ([`Header::check`]).
    ///
    /// # Errors
    /// Whatever breaks the protocol; the connection cannot go on.
    pub fn receive(&mut self, header: &Header, payload: &[u8]) -> Result<Event, ProtocolError> {
        let malformed = ProtocolError::Payload(header.kind as u8);
        match header.kind {
            Kind::Data => self.receive_data(header, payload),
            Kind::Window => {
                let grant: [u8; 4] = payload.try_into().map_err(|_| malformed)?;
                self.receive_grant(header.stream, u32::from_le_bytes(grant))
            }
            Kind::Reset => {
                let (code, message) = payload.split_first_chunk().ok_or(malformed.clone())?;
                if message.len() > MAX_MESSAGE_BYTES {
                    return Err(malformed);
                }
                Ok(self.receive_reset(header.stream, u32::from_le_bytes(*code), message))
            }
            Kind::Ping => payload.try_into().map(Event::Ping).map_err(|_| malformed),
            Kind::Pong => payload.try_into().map(Event::Pong).map_err(|_| malformed),
            Kind::GoAway if payload.is_empty() => {
                self.going = true;
                Ok(Event::GoAway)
            }
            Kind::GoAway => Err(malformed),
        }
    }

    fn receive_data(&mut self, header: &Header, payload: &[u8]) -> Result<Event, ProtocolError> {
        let bytes = header.length;
        self.receive = self.receive.checked_sub(bytes).ok_or(ProtocolError::ConnectionWindow)?;
        let opened = if header.has(OPEN) { Some(self.receive_open(header, payload)?) } else { None };
        let number = header.stream;
        let Some(stream) = self.streams.get_mut(&number) else {
            return if self.was_open(number) {
                Ok(Event::Dropped { bytes })
            } else {
                Err(ProtocolError::StreamNumber(number))
            };
        };
        if stream.received_end {
            return Err(ProtocolError::AfterEnd(number));
        }
        stream.receive = stream.receive.checked_sub(bytes).ok_or(ProtocolError::Window(number))?;
        let end = header.has(END);
        stream.received_end = end;
        if header.has(ONE_WAY) {
            stream.sent_end = true;
        }
        self.forget_if_over(number);
        Ok(match opened {
            Some(service) => Event::Opened {
                stream: number,
                service,
                one_way: header.has(ONE_WAY),
                priority: header.priority,
                skip: SERVICE_BYTES,
                end,
            },
            None => Event::Data { stream: number, end },
        })
    }

    /// Makes the stream that the peer opens; the service it wants.
    fn receive_open(&mut self, header: &Header, payload: &[u8]) -> Result<u32, ProtocolError> {
        let number = header.stream;
        if number < self.next_peer || number % 2 != self.next_peer % 2 {
            return Err(ProtocolError::StreamNumber(number));
        }
        let service = payload.first_chunk().ok_or(ProtocolError::Payload(header.kind as u8))?;
        if self.open_peer >= self.own.max_streams {
            return Err(ProtocolError::StreamCount);
        }
        // Past the last number none can follow.
        self.next_peer = number.checked_add(2).ok_or(ProtocolError::StreamNumber(number))?;
        self.open_peer += 1;
        self.streams.insert(number, self.fresh());
        Ok(u32::from_le_bytes(*service))
    }

    fn receive_grant(&mut self, number: u32, bytes: u32) -> Result<Event, ProtocolError> {
        let add = |window: &mut u32| {
            let sum = window.checked_add(bytes).filter(|sum| *sum <= i32::MAX as u32);
            sum.map(|sum| *window = sum).ok_or(ProtocolError::WindowOverflow)
        };
        if number == 0 {
            add(&mut self.send)?;
        } else if let Some(stream) = self.streams.get_mut(&number) {
            add(&mut stream.send)?;
        } else if !self.was_open(number) {
            return Err(ProtocolError::StreamNumber(number));
        }
        Ok(Event::Granted { stream: number })
    }

    fn receive_reset(&mut self, stream: u32, code: u32, message: &[u8]) -> Event {
        let Some(state) = self.streams.get_mut(&stream) else { return Event::Dropped { bytes: 0 } };
        (state.sent_end, state.received_end) = (true, true);
        self.forget_if_over(stream);
        Event::Reset { stream, code, message: String::from_utf8_lossy(message).into_owned() }
    }

    fn is_own(&self, stream: u32) -> bool {
        stream % 2 == self.next_own % 2
    }

    fn was_open(&self, stream: u32) -> bool {
        stream != 0 && stream < if self.is_own(stream) { self.next_own } else { self.next_peer }
    }

    fn forget_if_over(&mut self, number: u32) {
        let over = |stream: &Stream| stream.sent_end && stream.received_end;
        if self.streams.get(&number).is_some_and(over) {
            self.streams.remove(&number);
            let count = if self.is_own(number) { &mut self.open_own } else { &mut self.open_peer };
            *count -= 1;
        }
    }
}

/// A frame that is not data; such frames go first.
pub(crate) fn control(kind: Kind, stream: u32, length: usize) -> Header {
    Header { length: length as u32, kind, flags: 0, priority: Priority::Urgent, stream, checksum: 0 }
}

fn checksum(payload: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    payload.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

#[cfg(test)]
mod tests;
