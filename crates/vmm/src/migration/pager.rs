//! The target's end while memory comes after the machine.
//!
//! ```text
//!              ┌── a connection breaks ──> waits for the source, which resumes with the token and is told what is missing
//!   served  <──┘ ──────────────────────────────┐ patience is over, or it breaks before the machine runs
//!      │ all has come                          v
//!      └──> whole: the source is told, ends    lost: the machine cannot go on, and the process ends
//! ```
//! Promises:
//! - whoever touches a page that is missing waits for it, across any number of broken connections ([`Arriving`]);
//! - what a source sends is checked to be missing pages of this machine's RAM, and a stranger without the token brings none.

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use queztl_guest_memory::Arriving;
use queztl_parallel_transfer::{ParcelReader, Piece};
use queztl_qhp::{Connection, Incoming, Options, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Error;
use super::late::{self, Faults, PAGE, Record, Resume, SERIES, Switch, Token};
use super::target::{REFUSED, stream_for, wire};
use super::wire::{FAULTS, MAX_STRIPES, PAGES, PATIENCE, RESUME, Stripe, VERSION, decode};
use crate::confine;

/// How often it is looked whether something has happened that nobody tells.
const TURN: Duration = Duration::from_millis(200);
/// How often the source is asked for a sign of life, and how long it may take.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_LIMIT: Duration = Duration::from_secs(10);
/// How long a source may take to hear that no more pages are needed.
const GOODBYE: Duration = Duration::from_secs(5);
/// Times of page faults that are kept.
const KEPT_TIMES: usize = 1 << 16;

/// The machine is being made here, and the source goes on if it is not.
const PREPARING: u8 = 0;
/// The machine is this process's: the source does not go on.
const RUNNING: u8 = 1;
/// The source was lost before: the machine must not run here.
const GIVEN_UP: u8 = 2;

/// Memory on its way to a machine that is here already.
pub struct Pager {
    shared: Arc<Shared>,
}

struct Shared {
    arriving: Arc<Arriving>,
    ram_bytes: u64,
    token: Token,
    patience: Duration,
    fate: AtomicU8,
    /// The machine has ended: what is missing is not needed.
    unneeded: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Pages that somebody waits for, and since when.
    pending: HashMap<u64, Instant>,
    /// Where pages are asked for.
    faults: Option<Stream>,
    /// In nanoseconds; the oldest are replaced.
    times: Vec<u64>,
    count: u64,
    /// Nothing more is to be done.
    over: bool,
}

/// What is done when the machine cannot go on, given why and whether it ran here; it ends the process.
pub type OnLost = Box<dyn FnOnce(&str, bool) + Send>;

/// The connections of the moment.
struct Session {
    calls: Connection,
    stripes: Vec<Connection>,
    receivers: Vec<JoinHandle<()>>,
    pinged: Instant,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.calls.close();
        self.stripes.iter().for_each(Connection::close);
        self.receivers.drain(..).for_each(|receiver| drop(receiver.join()));
    }
}

/// A pager that has its connections, and serves nobody yet.
pub struct Waiting {
    shared: Arc<Shared>,
    listener: UnixListener,
    socket: PathBuf,
    session: Session,
    failures: (Sender<()>, Receiver<()>),
}

impl Waiting {
    pub(super) fn new(
        arriving: Arc<Arriving>,
        ram_bytes: u64,
        switch: Switch,
        place: (UnixListener, PathBuf),
        connections: (Connection, Vec<Connection>),
    ) -> Result<Waiting, Error> {
        let shared = Arc::new(Shared {
            arriving,
            ram_bytes,
            token: switch.token,
            patience: Duration::from_millis(switch.patience_ms),
            fate: AtomicU8::new(PREPARING),
            unneeded: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let failures = channel();
        let session = shared.session(connections.0, connections.1, &failures.0)?;
        let (listener, socket) = place;
        Ok(Waiting { shared, listener, socket, session, failures })
    }

    pub(super) fn owner(&self) -> Owner {
        Owner(self.shared.clone())
    }

    /// Serves page faults from now on. `lost` is called, on a thread of the pager, when missing pages cannot be had any more.
    ///
    /// # Errors
    /// No threads can be had.
    pub fn serve(self, lost: OnLost) -> Result<Pager, Error> {
        let Waiting { shared, listener, socket, session, failures } = self;
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let body = move || {
                confine::enter(confine::Kind::Snapshot);
                body();
            };
            std::thread::Builder::new().name(name.into()).spawn(body).map_err(Error::Memory)
        };
        let faults = shared.clone();
        spawn("page-faults", Box::new(move || faults.take_faults()))?;
        let keeper = shared.clone();
        let keep = move || {
            let kept = keeper.keep(&listener, session, &failures);
            let _ = std::fs::remove_file(socket);
            if let Err(error) = kept {
                lost(&error.to_string(), keeper.is_running());
            }
        };
        spawn("pager", Box::new(keep))?;
        Ok(Pager { shared })
    }
}

/// Says whose the machine is, once.
#[derive(Clone)]
pub(super) struct Owner(Arc<Shared>);

impl Owner {
    /// The machine is here for good: a source that is lost is waited for. False if it was lost before.
    pub fn take(&self) -> bool {
        self.0.decide(RUNNING)
    }
}

impl Pager {
    /// The machine has ended: the source is told that nothing more is needed, if it can be reached.
    pub fn end(&self) {
        self.shared.unneeded.store(true, Ordering::Release);
        let state = self.shared.lock();
        let limit = GOODBYE.min(self.shared.patience);
        drop(self.shared.changed.wait_timeout_while(state, limit, |state| !state.over));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides the machine's fate, unless it is decided otherwise already.
    fn decide(&self, fate: u8) -> bool {
        let decided = self.fate.compare_exchange(PREPARING, fate, Ordering::AcqRel, Ordering::Acquire);
        decided.map_or_else(|now| now == fate, |_| true)
    }

    /// Takes the streams of new connections, and has them read.
    fn session(
        self: &Arc<Self>,
        calls: Connection,
        stripes: Vec<Connection>,
        failed: &Sender<()>,
    ) -> Result<Session, Error> {
        let faults = stream_for(&calls, FAULTS)?;
        let mut streams = vec![stream_for(&calls, PAGES)?];
        for stripe in &stripes {
            streams.push(stream_for(stripe, PAGES)?);
        }
        let mut session = Session { calls, stripes, receivers: Vec::new(), pinged: Instant::now() };
        for stream in streams {
            let (shared, failed) = (self.clone(), failed.clone());
            let receive = move || {
                confine::enter(confine::Kind::Snapshot);
                let error = shared.receive(stream);
                tracing::debug!(%error, "a connection for memory has ended");
                let _ = failed.send(());
            };
            let thread = std::thread::Builder::new().name("pages".into()).spawn(receive).map_err(Error::Memory)?;
            session.receivers.push(thread);
        }
        let mut state = self.lock();
        state.faults = Some(faults);
        // What was asked for before may be lost.
        let pages: Vec<u64> = state.pending.keys().copied().collect();
        pages.into_iter().for_each(|page| state.ask(page));
        Ok(session)
    }

    /// Puts pages where they belong until the connection ends.
    fn receive(&self, stream: Stream) -> Error {
        let mut reader = ParcelReader::new(Stripe::new(stream), SERIES, self.ram_bytes);
        loop {
            let (offset, piece) = match reader.take() {
                Ok(taken) => taken,
                Err(error) => return error.into(),
            };
            let (bytes, put) = match piece {
                Piece::Data(data) => (data.len() as u64, self.arriving.put(offset, data)),
                Piece::Zero(bytes) => (bytes, self.arriving.put_zeroes(offset, bytes)),
            };
            if let Err(error) = put {
                return Error::Memory(error);
            }
            self.lock().served(offset, bytes);
        }
    }

    /// Asks for the pages that somebody waits for, until all is over.
    fn take_faults(&self) {
        let turn = Timespec { tv_sec: 0, tv_nsec: i64::from(TURN.subsec_nanos()) };
        while !self.lock().over {
            let _ = poll(&mut [PollFd::from_borrowed_fd(self.arriving.descriptor(), PollFlags::IN)], Some(&turn));
            let mut faults = Vec::new();
            if let Err(error) = self.arriving.take_faults(|offset| faults.push(offset)) {
                tracing::error!(%error, "page faults cannot be read");
                std::thread::sleep(TURN);
            }
            let mut state = self.lock();
            let now = Instant::now();
            for offset in faults {
                if state.pending.insert(offset, now).is_none() {
                    state.ask(offset);
                }
                // It may have come just before it was noted.
                if !self.arriving.is_missing(offset) {
                    state.served(offset, PAGE);
                }
            }
        }
    }

    /// Keeps connections to the source until nothing more is needed.
    fn keep(
        self: &Arc<Self>,
        listener: &UnixListener,
        session: Session,
        failures: &(Sender<()>, Receiver<()>),
    ) -> Result<(), Error> {
        let mut session = Some(session);
        let mut deadline = None;
        let ended = loop {
            if self.is_running() && self.is_done() && self.say_whole(session.take()) {
                break Ok(());
            }
            session = match session.take() {
                Some(present) => self.watch(present, &failures.1),
                None => {
                    if self.decide(GIVEN_UP) {
                        // Whoever makes the machine may see it, too, and says more.
                        std::thread::sleep(TURN);
                        break Err(Error::Protocol("the source has gone before the machine ran here"));
                    }
                    let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.patience);
                    if Instant::now() >= deadline {
                        break if self.is_done() { Ok(()) } else { Err(Error::Lost(self.arriving.missing_bytes())) };
                    }
                    self.accept(listener, &failures.0)
                }
            };
            if session.is_some() {
                deadline = None;
            }
        };
        self.lock().over = true;
        self.changed.notify_all();
        ended
    }

    fn is_running(&self) -> bool {
        self.fate.load(Ordering::Acquire) == RUNNING
    }

    fn is_done(&self) -> bool {
        self.unneeded.load(Ordering::Acquire) || self.arriving.missing_bytes() == 0
    }

    /// Waits for a moment; gives the session if it goes on.
    fn watch(&self, mut session: Session, failures: &Receiver<()>) -> Option<Session> {
        let failed = match failures.recv_timeout(TURN) {
            Ok(()) => true,
            Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) if session.pinged.elapsed() >= PING_EVERY => {
                session.pinged = Instant::now();
                session.calls.ping(Some(PING_LIMIT)).is_err()
            }
            Err(RecvTimeoutError::Timeout) => false,
        };
        if !failed || self.is_running() && self.is_done() {
            return Some(session);
        }
        tracing::warn!(missing_bytes = self.arriving.missing_bytes(), "the connection to the source is lost");
        self.lock().faults = None;
        drop(session);
        while failures.try_recv().is_ok() {}
        None
    }

    /// A source that comes back, if one does within a turn.
    fn accept(self: &Arc<Self>, listener: &UnixListener, failed: &Sender<()>) -> Option<Session> {
        let connect = |limit| Ok::<_, Error>(Connection::server(wire(listener, limit)?, Options::default())?);
        let resumed = connect(TURN).and_then(|calls| {
            let Incoming { service, mut stream, .. } = calls.accept(Some(PATIENCE))?;
            let refuse = |stream: Stream, why: &'static str| {
                stream.reset(REFUSED, why);
                Err(Error::Protocol(why))
            };
            if service != RESUME {
                return refuse(stream, "a machine has arrived here already");
            }
            let resume: Resume = decode(&stream.message(Some(PATIENCE))?)?;
            if resume.version != VERSION || !(1..=MAX_STRIPES).contains(&resume.stripes) {
                return refuse(stream, "it does not speak as the source does");
            }
            if !resume.token.is(&self.token) {
                return refuse(stream, "another source is waited for");
            }
            let missing = if self.is_done() { Vec::new() } else { late::joined(self.arriving.missing_runs()) };
            stream.finish(&late::encode_missing(&missing)?)?;
            let stripes = (0..resume.stripes).map(|_| connect(PATIENCE)).collect::<Result<Vec<_>, _>>()?;
            self.session(calls, stripes, failed)
        });
        match resumed {
            Ok(session) => {
                tracing::info!(missing_bytes = self.arriving.missing_bytes(), "the source is there again");
                Some(session)
            }
            Err(Error::Nobody(_)) => None,
            Err(error) => {
                tracing::warn!(%error, "somebody connects who brings no memory");
                None
            }
        }
    }

    /// Gives page faults back to the kernel, and tells the source that it is not needed any more; whether it has heard it.
    fn say_whole(&self, session: Option<Session>) -> bool {
        if let Err(error) = self.arriving.finish() {
            tracing::error!(%error, "page faults cannot be given back to the kernel: they are served on");
        }
        let (stream, figures) = {
            let mut state = self.lock();
            (state.faults.take(), state.figures())
        };
        let (Some(_session), Some(mut stream)) = (session, stream) else { return false };
        let told = stream.finish(&Record::Whole(figures).encode());
        told.is_ok() && stream.message(Some(GOODBYE)).is_ok()
    }
}

impl State {
    /// Asks the source for a page; whoever comes back is asked again.
    fn ask(&mut self, offset: u64) {
        if let Some(stream) = &mut self.faults
            && stream.send(&Record::Fault(offset).encode()).is_err()
        {
            self.faults = None;
        }
    }

    /// Pages are there.
    fn served(&mut self, offset: u64, bytes: u64) {
        let now = Instant::now();
        let pages: Vec<u64> = self.pending.keys().copied().filter(|page| page.wrapping_sub(offset) < bytes).collect();
        for page in pages {
            let Some(since) = self.pending.remove(&page) else { continue };
            let time = u64::try_from((now - since).as_nanos()).unwrap_or(u64::MAX);
            match self.times.get_mut(self.count as usize % KEPT_TIMES) {
                Some(place) => *place = time,
                None => self.times.push(time),
            }
            self.count += 1;
        }
    }

    fn figures(&self) -> Faults {
        let mut times = self.times.clone();
        times.sort_unstable();
        let at = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1))).copied();
        Faults { count: self.count, p50_ns: at(50).unwrap_or(0), p99_ns: at(99).unwrap_or(0) }
    }
}
