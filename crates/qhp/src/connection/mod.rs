//! Connections for threads that block.
//!
//! There is no thread behind a connection: whoever waits for something (an answer, a new stream, room to send) reads for
//! all, and hands what is not its own to those whose it is. Of several that wait, one reads and the others sleep. So a call
//! on an idle connection costs no change of threads.
//!
//! ```text
//!  call, recv, accept ── waits ──> is anybody reading? no:  read a frame, dispatch it, look again
//!                                                     yes: sleep until woken with one's own, or to read on
//!  send ── write lock, by priority ──> one frame ──> transport full? read meanwhile, so that two sides that both
//!                                                    send a lot do not wait for each other for ever
//! ```
//! A connection on which nobody waits reads nothing, answers no ping and grants nothing: a side that only sends now and
//! then keeps a thread in [`Connection::accept`].

mod greeting;
mod inbox;
mod reader;
mod stream;

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::frame::Kind;
use crate::hello::Key;
use crate::priority::PriorityLock;
use crate::session::control;
use crate::wire::{IntoWire, Wire};
use crate::{Error, Priority, Session, Side};
use inbox::{Failure, State};
use reader::Reader;
pub use stream::{Incoming, Stream};

/// How long a writer that cannot read itself waits before it looks whether it can now.
const WRITE_TURN: Duration = Duration::from_millis(10);

/// What this side offers and demands.
#[derive(Debug, Clone)]
pub struct Options {
    /// A secret that both sides have; `None` where the transport proves who the peer is.
    pub key: Option<Key>,
    /// The longest payload of a frame that is accepted, in bytes, from 16 KiB to 16 MiB.
    pub max_payload: u32,
    /// How much may arrive on a stream, and on all of them, before it is taken: what a peer can make this side keep.
    pub stream_window: u32,
    pub connection_window: u32,
    /// How many streams the peer may have open.
    pub max_streams: u32,
    /// The longest message that is put together from frames, in bytes.
    pub max_message: u64,
    /// How long the peer may stand still in the middle of something, the greeting for instance.
    pub stall: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            key: None,
            max_payload: 256 << 10,
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            max_streams: 1024,
            max_message: 64 << 20,
            stall: Duration::from_secs(30),
        }
    }
}

/// A connection to a peer; its clones are the same connection, which ends with the last of them and of its streams.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    wire: Box<dyn Wire>,
    state: Mutex<State>,
    /// Whoever holds it reads.
    reader: Mutex<Reader>,
    /// Taken before `state`, never after it.
    write: PriorityLock<Backlog>,
    /// Whether the backlog waits for room.
    backlogged: AtomicBool,
    options: Options,
}

/// Control frames that are due, as bytes: what the transport had no room for yet.
type Backlog = Vec<u8>;

impl Connection {
    /// The side that connected.
    ///
    /// # Errors
    /// The transport fails, the peer does not greet in time, or is not who it should be.
    pub fn client(wire: impl IntoWire, options: Options) -> Result<Connection, Error> {
        Connection::new(wire.into_wire()?, Side::Client, options)
    }

    /// The side that was connected to.
    ///
    /// # Errors
    /// As [`Connection::client`].
    pub fn server(wire: impl IntoWire, options: Options) -> Result<Connection, Error> {
        Connection::new(wire.into_wire()?, Side::Server, options)
    }

    fn new(wire: Box<dyn Wire>, side: Side, options: Options) -> Result<Connection, Error> {
        let (own, peer) = greeting::greet(&*wire, side, &options)?;
        let shared = Shared {
            wire,
            state: Mutex::new(State::new(Session::new(side, own, peer))),
            reader: Mutex::new(Reader::new(options.max_payload)),
            write: PriorityLock::new(Vec::new()),
            backlogged: AtomicBool::new(false),
            options,
        };
        Ok(Connection { shared: Arc::new(shared) })
    }

    /// Asks a service and waits for its answer. `parts` are sent one after the other, as one message.
    ///
    /// # Errors
    /// [`Error::Reset`] when the service refuses; [`Error::Timeout`] after `limit`, the service is told to stop then.
    pub fn call(
        &self,
        service: u32,
        priority: Priority,
        parts: &[&[u8]],
        limit: Option<Duration>,
    ) -> Result<Vec<u8>, Error> {
        let deadline = deadline(limit);
        let mut stream = Stream::open(self.shared.clone(), service, priority);
        stream.send_parts(parts, true, deadline)?;
        stream.message_until(deadline)
    }

    /// Tells a service something that is not answered. Arrives, or the connection fails.
    ///
    /// # Errors
    /// As sending on a stream.
    pub fn tell(&self, service: u32, priority: Priority, parts: &[&[u8]]) -> Result<(), Error> {
        Stream::open_one_way(self.shared.clone(), service, priority).send_parts(parts, true, None)
    }

    /// Opens a stream to a service; the peer learns of it with the first bytes sent.
    pub fn open(&self, service: u32, priority: Priority) -> Stream {
        Stream::open(self.shared.clone(), service, priority)
    }

    /// The next stream that the peer opens.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `limit`, and what ends the connection.
    pub fn accept(&self, limit: Option<Duration>) -> Result<Incoming, Error> {
        let opened = self.shared.wait_until(inbox::ACCEPT, deadline(limit), |state| state.incoming.pop_front())?;
        Ok(Incoming::new(self.shared.clone(), opened))
    }

    /// Asks for a sign of life; how long it took.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `limit`, and what ends the connection.
    pub fn ping(&self, limit: Option<Duration>) -> Result<Duration, Error> {
        let start = Instant::now();
        let cookie = {
            let mut state = self.shared.lock();
            state.pings += 1;
            let cookie = state.pings;
            state.put(control(Kind::Ping, 0, 8), &cookie.to_le_bytes());
            cookie
        };
        self.shared.flush();
        let answered = |state: &mut State| (state.pongs >= cookie).then_some(());
        self.shared.wait_until(inbox::ACCEPT, deadline(limit), answered)?;
        Ok(start.elapsed())
    }

    /// Tells the peer to open no more streams.
    pub fn go_away(&self) {
        self.shared.lock().put(control(Kind::GoAway, 0, 0), &[]);
        self.shared.flush();
    }

    /// Ends the connection; whoever waits on it returns with [`Error::Closed`].
    pub fn close(&self) {
        self.shared.fail(Failure::Closed);
    }
}

fn deadline(limit: Option<Duration>) -> Option<Instant> {
    limit.and_then(|limit| Instant::now().checked_add(limit))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, failure: Failure) {
        self.lock().fail(failure);
        self.wire.close();
    }

    /// Waits until `ready` gives something, for the stream `key`.
    fn wait_until<T>(
        &self,
        key: u32,
        deadline: Option<Instant>,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, Error> {
        let mut role = None;
        let result = loop {
            let mut state = self.lock();
            if let Some(value) = ready(&mut state) {
                break Ok(value);
            }
            if let Some(failure) = &state.failure {
                break Err(failure.error());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break Err(Error::Timeout);
            }
            if role.is_none() {
                role = match self.reader.try_lock() {
                    Ok(reader) => Some(reader),
                    Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                    Err(TryLockError::WouldBlock) => None,
                };
            }
            match &mut role {
                Some(reader) => {
                    drop(state);
                    self.read_once(reader, left);
                }
                None => {
                    let condvar = state.begin_waiting(key);
                    sleep(state, &condvar, left).end_waiting(key);
                }
            }
        };
        if role.take().is_some() {
            self.lock().wake_a_reader();
        }
        result
    }

    /// Reads what is there, waiting for it as long as `limit`; failures are noted in the state.
    fn read_once(&self, reader: &mut Reader, limit: Option<Duration>) {
        let result = self.try_read_once(reader, limit);
        if let Err(failure) = result {
            self.fail(failure);
        }
        self.flush();
    }

    fn try_read_once(&self, reader: &mut Reader, limit: Option<Duration>) -> Result<(), Failure> {
        if reader.needs_more() {
            let limit = if reader.is_amid() {
                Some(limit.unwrap_or(self.options.stall).min(self.options.stall))
            } else {
                limit
            };
            let backlogged = self.backlogged.load(Ordering::Acquire);
            let (readable, _) = self.wire.wait(true, backlogged, limit)?;
            if !readable {
                return if reader.stalled(self.options.stall) { Err(Failure::Stalled) } else { Ok(()) };
            }
        }
        self.dispatch_available(reader)
    }

    /// Hands on all frames that can be had without waiting, one read's worth at the most.
    fn dispatch_available(&self, reader: &mut Reader) -> Result<(), Failure> {
        reader.fill(&*self.wire)?;
        while let Some((header, payload)) = reader.next()? {
            self.lock().dispatch(&header, payload)?;
        }
        Ok(())
    }

    /// Sends control frames that are due, as far as there is room and nobody else is sending.
    fn flush(&self) {
        while let Some(mut backlog) = self.write.try_lock() {
            backlog.append(&mut self.lock().outbox);
            if let Err(failure) = self.write_backlog(&mut backlog) {
                drop(backlog);
                return self.fail(failure);
            }
            self.backlogged.store(!backlog.is_empty(), Ordering::Release);
            let stuck = !backlog.is_empty();
            drop(backlog);
            // Who could not get the lock meanwhile has left its frames for us.
            if stuck || self.lock().outbox.is_empty() {
                return;
            }
        }
    }

    fn write_backlog(&self, backlog: &mut Backlog) -> Result<(), Failure> {
        while !backlog.is_empty() {
            match self.wire.write(&[IoSlice::new(backlog)]) {
                Ok(count) => drop(backlog.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends one frame of a stream, as much of `parts` as there is room for; how many bytes that was. `None` if there is no
    /// room now.
    fn send_frame(&self, target: &mut stream::Target, parts: &[&[u8]], end: bool) -> Result<Option<usize>, Error> {
        let mut backlog = self.write.lock(target.priority);
        let mut state = self.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.error());
        }
        let Some(frame) = target.frame(&mut state, parts, end)? else { return Ok(None) };
        backlog.append(&mut state.outbox);
        drop(state);
        let sent = self.write_frame(&mut backlog, &frame);
        drop(backlog);
        match sent {
            Ok(()) => {
                self.flush_if_due();
                Ok(Some(frame.data_bytes))
            }
            Err(failure) => {
                let error = failure.error();
                self.fail(failure);
                Err(error)
            }
        }
    }

    fn flush_if_due(&self) {
        if !self.lock().outbox.is_empty() {
            self.flush();
        }
    }

    /// Writes the backlog and a frame, whole.
    fn write_frame(&self, backlog: &mut Backlog, frame: &stream::Frame<'_>) -> Result<(), Failure> {
        let pending = std::mem::take(backlog);
        let mut parts: Vec<IoSlice<'_>> = Vec::with_capacity(frame.parts.len() + 3);
        parts.push(IoSlice::new(&pending));
        parts.push(IoSlice::new(&frame.header));
        parts.extend(frame.service.iter().map(|service| IoSlice::new(service)));
        parts.extend(frame.parts.iter().map(|part| IoSlice::new(part)));
        let mut rest = &mut parts[..];
        IoSlice::advance_slices(&mut rest, 0);
        let mut moved = Instant::now();
        while !rest.is_empty() {
            match self.wire.write(rest) {
                Ok(count) => {
                    IoSlice::advance_slices(&mut rest, count);
                    moved = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if moved.elapsed() > self.options.stall {
                        return Err(Failure::Stalled);
                    }
                    self.wait_for_room()?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.backlogged.store(false, Ordering::Release);
        Ok(())
    }

    /// Waits a moment until the transport takes more, and reads meanwhile if nobody else does: the peer may be waiting for
    /// just that.
    fn wait_for_room(&self) -> Result<(), Failure> {
        let Ok(mut reader) = self.reader.try_lock() else {
            self.wire.wait(false, true, Some(WRITE_TURN))?;
            return Ok(());
        };
        let (readable, _) = self.wire.wait(true, true, Some(WRITE_TURN))?;
        let read = if readable { self.dispatch_available(&mut reader) } else { Ok(()) };
        drop(reader);
        self.lock().wake_a_reader();
        read
    }
}

fn sleep<'a>(state: MutexGuard<'a, State>, condvar: &Condvar, limit: Option<Duration>) -> MutexGuard<'a, State> {
    match limit {
        None => condvar.wait(state).unwrap_or_else(PoisonError::into_inner),
        Some(limit) => condvar.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0,
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.wire.close();
    }
}

#[cfg(test)]
mod tests;
