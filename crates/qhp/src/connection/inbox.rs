//! What has arrived and for whom, and who waits.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar};

use crate::frame::{Header, Kind};
use crate::session::control;
use crate::{Error, Event, Priority, ProtocolError, Session};

/// The key of those who wait for something that is not on a stream.
pub(super) const ACCEPT: u32 = 0;

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum Failure {
    Closed,
    /// The peer stood still in the middle of something.
    Stalled,
    Io(io::ErrorKind, String),
    Protocol(ProtocolError),
}

impl Failure {
    pub fn error(&self) -> Error {
        match self {
            Failure::Closed => Error::Closed,
            Failure::Stalled => Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the peer stands still")),
            Failure::Io(kind, message) => Error::Io(io::Error::new(*kind, message.clone())),
            Failure::Protocol(error) => Error::Protocol(error.clone()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Failure::Closed
            }
            kind => Failure::Io(kind, error.to_string()),
        }
    }
}

impl From<ProtocolError> for Failure {
    fn from(error: ProtocolError) -> Failure {
        Failure::Protocol(error)
    }
}

/// A stream that the peer opened and nobody has accepted yet.
#[derive(Debug)]
pub(super) struct Opened {
    pub number: u32,
    pub service: u32,
    pub one_way: bool,
    pub priority: Priority,
}

/// Bytes as they arrived, less those that were not data.
#[derive(Debug)]
pub(super) struct Chunk {
    pub bytes: Vec<u8>,
    pub skip: usize,
}

/// What has arrived on a stream.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub chunks: VecDeque<Chunk>,
    pub ended: bool,
    pub reset: Option<(u32, String)>,
    changed: Arc<Condvar>,
}

pub(super) struct State {
    pub session: Session,
    pub inboxes: HashMap<u32, Inbox>,
    pub incoming: VecDeque<Opened>,
    pub failure: Option<Failure>,
    /// Control frames to be sent.
    pub outbox: Vec<u8>,
    pub pings: u64,
    pub pongs: u64,
    accepting: Arc<Condvar>,
    /// Those who sleep, each by its key.
    waiting: Vec<u32>,
}

impl State {
    pub fn new(session: Session) -> State {
        State {
            session,
            inboxes: HashMap::new(),
            incoming: VecDeque::new(),
            failure: None,
            outbox: Vec::new(),
            pings: 0,
            pongs: 0,
            accepting: Arc::default(),
            waiting: Vec::new(),
        }
    }

    /// Makes room for what arrives on a stream.
    pub fn expect(&mut self, number: u32) {
        self.inboxes.insert(number, Inbox::default());
    }

    pub fn put(&mut self, header: Header, payload: &[u8]) {
        self.outbox.extend(header.encode());
        self.outbox.extend(payload);
    }

    /// The application has taken bytes of a stream.
    pub fn taken(&mut self, stream: u32, bytes: usize) {
        for (header, payload) in self.session.taken(stream, bytes as u32) {
            self.put(header, &payload);
        }
    }

    /// Forgets a stream; what waits in its inbox is given back to the connection.
    pub fn forget(&mut self, stream: u32) {
        let Some(inbox) = self.inboxes.remove(&stream) else { return };
        let left: usize = inbox.chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        self.give_back(left as u32);
    }

    fn give_back(&mut self, bytes: u32) {
        if let Some((header, payload)) = self.session.taken_from_connection(bytes) {
            self.put(header, &payload);
        }
    }

    /// Takes a frame to whom it is for.
    pub fn dispatch(&mut self, header: &Header, bytes: Vec<u8>) -> Result<(), ProtocolError> {
        match self.session.receive(header, &bytes)? {
            Event::Opened { stream, service, one_way, priority, skip, end } => {
                self.expect(stream);
                self.incoming.push_back(Opened { number: stream, service, one_way, priority });
                self.deliver(stream, Chunk { bytes, skip }, end);
                self.accepting.notify_one();
            }
            Event::Data { stream, end } => self.deliver(stream, Chunk { bytes, skip: 0 }, end),
            Event::Reset { stream, code, message } => {
                if let Some(inbox) = self.inboxes.get_mut(&stream) {
                    inbox.reset = Some((code, message));
                    inbox.changed.notify_all();
                }
            }
            Event::Granted { stream: 0 } => self.inboxes.values().for_each(|inbox| inbox.changed.notify_all()),
            Event::Granted { stream } => self.notify(stream),
            Event::Ping(cookie) => self.put(control(Kind::Pong, 0, cookie.len()), &cookie),
            Event::Pong(cookie) => {
                // One that was never asked for counts no further than those that were.
                self.pongs = self.pongs.max(u64::from_le_bytes(cookie).min(self.pings));
                self.accepting.notify_all();
            }
            Event::GoAway => {}
            Event::Dropped { bytes } => self.give_back(bytes),
        }
        Ok(())
    }

    fn deliver(&mut self, stream: u32, chunk: Chunk, end: bool) {
        let Some(inbox) = self.inboxes.get_mut(&stream) else { return self.give_back(chunk.bytes.len() as u32) };
        inbox.ended |= end;
        if !chunk.bytes.is_empty() {
            inbox.chunks.push_back(chunk);
        }
        inbox.changed.notify_all();
    }

    fn notify(&self, stream: u32) {
        if let Some(inbox) = self.inboxes.get(&stream) {
            inbox.changed.notify_all();
        }
    }

    pub fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
        self.accepting.notify_all();
        self.inboxes.values().for_each(|inbox| inbox.changed.notify_all());
    }

    /// What to sleep on for this key.
    pub fn begin_waiting(&mut self, key: u32) -> Arc<Condvar> {
        self.waiting.push(key);
        self.inboxes.get(&key).map_or_else(|| self.accepting.clone(), |inbox| inbox.changed.clone())
    }

    pub fn end_waiting(&mut self, key: u32) {
        if let Some(place) = self.waiting.iter().position(|other| *other == key) {
            self.waiting.swap_remove(place);
        }
    }

    /// Nobody reads any more: somebody who waits must.
    pub fn wake_a_reader(&self) {
        let Some(key) = self.waiting.first() else { return };
        match self.inboxes.get(key) {
            Some(inbox) => inbox.changed.notify_one(),
            None => self.accepting.notify_one(),
        }
    }
}
