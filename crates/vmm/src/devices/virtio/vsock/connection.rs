//! One stream connection: bytes between a Unix socket and packets, credit, and its end.
//!
//! ```text
//!   guest connects: REQUEST -> Established, RESPONSE to the guest
//!   host connects:  Requested, REQUEST to the guest -> RESPONSE -> Established
//!   end: SHUTDOWN for each direction as it closes; RST when both are closed, or something is wrong
//! ```
//! Credit (Virtio 1.2 §5.10.6.3): each side tells how much room it has in all (`buf_alloc`) and how much it has taken out
//! of it so far (`fwd_cnt`); the other side never has more under way than fits.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};

/// Room for data of one connection that its Unix socket has not taken yet, in bytes.
pub(super) const BUFFER_BYTES: u32 = 256 << 10;
/// The guest is told of room that has become free when it is as much as this.
const CREDIT_STEP_BYTES: u32 = BUFFER_BYTES / 4;
/// Most data in one packet to the guest.
const MAX_PACKET_BYTES: usize = 64 << 10;

/// Names a connection: the port of either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

/// What a connection has for the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Out {
    Nothing,
    /// A packet; its data was put into the buffer.
    Packet(Header),
    /// The last packet: the connection is over.
    Last(Header),
}

pub(super) struct Connection {
    stream: UnixStream,
    established: bool,
    /// Packets without data that the guest is to get.
    request: bool,
    response: bool,
    credit_request: bool,
    credit_update: bool,
    reset: bool,
    /// Data from the guest that the socket has not taken yet; at most [`BUFFER_BYTES`].
    outbox: VecDeque<u8>,
    /// Bytes from the guest that the socket has taken, and how many of these the guest knows of.
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
    /// Bytes sent to the guest, and what it has told of its room.
    sent: Wrapping<u32>,
    guest_room: u32,
    guest_forwarded: Wrapping<u32>,
    /// Whether the socket may have data.
    readable: bool,
    /// Directions that the guest has closed, as it sees them, and those that we have told the guest are closed.
    guest_closed: u32,
    host_closed: u32,
    told_closed: u32,
}

impl Connection {
    fn new(stream: UnixStream) -> Connection {
        Connection {
            stream,
            established: false,
            request: false,
            response: false,
            credit_request: false,
            credit_update: false,
            reset: false,
            outbox: VecDeque::new(),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            sent: Wrapping(0),
            guest_room: 0,
            guest_forwarded: Wrapping(0),
            readable: true,
            guest_closed: 0,
            host_closed: 0,
            told_closed: 0,
        }
    }

    /// A connection that the guest has asked for with `header`.
    pub(super) fn from_guest(stream: UnixStream, header: &Header) -> Connection {
        let mut connection = Connection::new(stream);
        connection.take_credit(header);
        connection.established = true;
        connection.response = true;
        connection
    }

    /// A connection that a program of the host has asked for.
    pub(super) fn from_host(stream: UnixStream) -> Connection {
        Connection { request: true, ..Connection::new(stream) }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_room = header.buf_alloc;
        self.guest_forwarded = Wrapping(header.fwd_cnt);
    }

    /// How many bytes the guest has room for.
    fn credit(&self) -> u32 {
        self.guest_room.saturating_sub((self.sent - self.guest_forwarded).0)
    }

    /// Handles a packet of the guest other than REQUEST and RST; `data` gives its data.
    pub(super) fn receive(&mut self, header: &Header, host_port: u32, data: impl FnOnce(usize) -> Vec<u8>) {
        self.take_credit(header);
        match header.op {
            op::RESPONSE if !self.established && !self.request => self.accept(host_port),
            op::RW if self.established => self.take_data(header, data),
            op::SHUTDOWN if self.established => self.guest_closed |= header.flags & SHUTDOWN_BOTH,
            op::CREDIT_REQUEST => self.credit_update = true,
            op::CREDIT_UPDATE => {}
            _ => self.reset = true,
        }
        self.flush();
    }

    /// The guest has accepted: tells the program of the host, by which port it is known.
    fn accept(&mut self, host_port: u32) {
        self.established = true;
        let line = format!("OK {host_port}\n");
        // A fresh socket has room for so little; one that does not take it is broken.
        match self.stream.write(line.as_bytes()) {
            Ok(count) if count == line.len() => {}
            _ => self.reset = true,
        }
    }

    fn take_data(&mut self, header: &Header, data: impl FnOnce(usize) -> Vec<u8>) {
        let room = BUFFER_BYTES as usize - self.outbox.len();
        let len = header.len as usize;
        // More than it had credit for, or after it said that it would send no more.
        if len > room || self.guest_closed & SHUTDOWN_SEND != 0 {
            self.reset = true;
            return;
        }
        self.outbox.extend(data(len));
    }

    /// Notes what is going on at the socket.
    pub(super) fn socket_ready(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        if hung_up && !self.established {
            self.reset = true;
        }
        if hung_up {
            self.host_closed |= SHUTDOWN_RECEIVE;
        }
        if writable || hung_up {
            self.flush();
        }
    }

    /// Moves the guest's data into the socket, and closes the socket's direction once the guest has closed its own.
    fn flush(&mut self) {
        while !self.outbox.is_empty() {
            let (piece, _) = self.outbox.as_slices();
            match self.stream.write(piece) {
                Ok(count) => {
                    self.outbox.drain(..count);
                    self.forwarded += Wrapping(count as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nobody reads any more; what the guest still sends is dropped, and it is told.
                Err(_) => {
                    self.forwarded += Wrapping(self.outbox.len() as u32);
                    self.outbox.clear();
                    self.host_closed |= SHUTDOWN_RECEIVE;
                }
            }
        }
        if self.outbox.is_empty() {
            self.outbox.shrink_to(CREDIT_STEP_BYTES as usize);
            if self.guest_closed & SHUTDOWN_SEND != 0 {
                let _ = self.stream.shutdown(Shutdown::Write);
            }
            self.reset |= self.guest_closed == SHUTDOWN_BOTH;
        }
        self.credit_update |= (self.forwarded - self.told).0 >= CREDIT_STEP_BYTES;
    }

    /// Whether [`Connection::next`] may have something.
    pub(super) fn wants_to_send(&self) -> bool {
        self.reset
            || self.request
            || self.response
            || self.credit_update
            || self.credit_request
            || self.news_of_closing() != 0
            || self.may_read() && self.credit() > 0
    }

    fn may_read(&self) -> bool {
        let open = self.guest_closed & SHUTDOWN_RECEIVE == 0 && self.host_closed & SHUTDOWN_SEND == 0;
        self.readable && self.established && open
    }

    /// Directions that are closed and that the guest does not know of. Data in the socket comes first.
    fn news_of_closing(&self) -> u32 {
        let ready = if self.may_read() { SHUTDOWN_SEND } else { SHUTDOWN_BOTH };
        if self.established { self.host_closed & ready & !self.told_closed } else { 0 }
    }

    /// Makes the next packet for the guest, with at most `room` bytes of data in `data`.
    pub(super) fn next(&mut self, packet: Header, room: usize, data: &mut Vec<u8>) -> Out {
        data.clear();
        let header = Header { buf_alloc: BUFFER_BYTES, fwd_cnt: self.forwarded.0, ..packet };
        if self.reset {
            // A program of the host that the guest has never heard of needs no farewell.
            return Out::Last(Header { op: op::RST, ..header });
        }
        let op = if std::mem::take(&mut self.request) {
            op::REQUEST
        } else if std::mem::take(&mut self.response) {
            op::RESPONSE
        } else if std::mem::take(&mut self.credit_update) {
            op::CREDIT_UPDATE
        } else if std::mem::take(&mut self.credit_request) {
            op::CREDIT_REQUEST
        } else if self.read(room, data) {
            op::RW
        } else if self.news_of_closing() != 0 {
            op::SHUTDOWN
        } else {
            return Out::Nothing;
        };
        let mut header = Header { op, len: data.len() as u32, ..header };
        if op == op::SHUTDOWN {
            header.flags = self.news_of_closing() | self.told_closed;
            self.told_closed = header.flags;
        }
        self.told = self.forwarded;
        Out::Packet(header)
    }

    /// Reads data that the guest has room for; false if there is none.
    fn read(&mut self, room: usize, data: &mut Vec<u8>) -> bool {
        while self.may_read() {
            let want = room.min(self.credit() as usize).min(MAX_PACKET_BYTES);
            if want == 0 {
                return false;
            }
            data.resize(want, 0);
            match self.stream.read(data) {
                Ok(0) => self.host_closed |= SHUTDOWN_SEND,
                Ok(count) => {
                    data.truncate(count);
                    self.sent += Wrapping(count as u32);
                    // Room that has run out is asked for; the guest tells of it by itself as well.
                    self.credit_request = self.credit() == 0;
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.host_closed = SHUTDOWN_BOTH,
            }
        }
        data.clear();
        false
    }
}
