//! The backup's process: it takes epochs until it is told to go on from the last one.
//!
//! ```text
//!  thread "backup"  incoming.sock ── connections of the primary ──> stage ──> copy    (a new primary's end the old one's)
//!  main thread      backup.sock ──── words of the own daemon ─────> promise, promote
//! ```

use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use queztl_distributed_ram::{Answer, Member, Term, Version};
use queztl_guest_memory::Shape;
use queztl_parallel_transfer as transfer;
use queztl_qhp::{Connection, Incoming, Options};

use super::Error;
use super::copy::{Copy, Stage};
use super::wire::{BEGIN, Begin, COMMIT, Commit, DISK, DiskPart, EPOCH, Epoch, Reply, STRIPE, VERSION};
use super::words::{self, Word, WordAnswer};
use crate::config::MachineConfig;
use crate::migration::MAX_STRIPES;
use crate::migration::wire::{PATIENCE, Stripe, decode};
use crate::mirror::{self, DiskFiles};
use crate::process::Folder;
use crate::snapshot::Snapshot;

/// How long a connection to the backup waits for the next one of the same primary.
const TURN: Duration = Duration::from_millis(200);
/// How long one that has connected may take to say what for: others wait meanwhile.
const GREETING: Duration = Duration::from_secs(10);
/// Most bytes that an epoch changes disks by, with what describes the changes.
const MAX_EPOCH_BYTES: u64 = 4 << 30;
/// The code of a refusal.
const REFUSED: u32 = 2;

/// A backup that goes on.
pub struct Promotion {
    pub snapshot: Snapshot,
    pub version: Version,
}

/// What the threads share.
struct Backup {
    ram_bytes: u64,
    /// Where the disks belong that the machine writes to.
    disks: Vec<PathBuf>,
    state: Mutex<State>,
}

struct State {
    member: Member,
    copy: Option<(Copy, Shape)>,
    /// Promoted: nothing is taken any more.
    closed: bool,
    /// The connections of the primary that is served.
    wires: Vec<UnixStream>,
}

/// Keeps a copy of a machine of this configuration until the daemon says that it is to go on here. `term` is what the group's
/// register said since any earlier copy was lost here: with that, what was promised was lost, too.
///
/// # Errors
/// The sockets cannot be made or fail. What a primary or a daemon does wrong is theirs to hear.
pub fn stand_by(folder: &Folder, config: &MachineConfig, term: Term) -> Result<Promotion, Error> {
    let listen = |path: std::path::PathBuf| {
        crate::control::listen(&path).map_err(|error| Error::Socket { path, source: std::io::Error::other(error) })
    };
    // Whoever finds the other socket expects this one.
    let words = listen(folder.backup())?;
    let primaries = listen(folder.incoming())?;
    let ram_bytes = config.ram_bytes + config.hotplug_bytes;
    let disks = config.disks.iter().filter(|disk| !disk.read_only).map(|disk| disk.path.clone()).collect();
    let backup = Arc::new(Backup { ram_bytes, disks, state: Mutex::new(State::new(term)) });
    let body = {
        let backup = backup.clone();
        move || backup.take_primaries(&primaries)
    };
    let thread = std::thread::Builder::new().name("backup".into()).spawn(body).map_err(Error::Copy)?;
    let promotion = backup.hear(&words, config).map_err(|source| Error::Socket { path: folder.backup(), source });
    // The paths are the process's own; files that are left over are replaced.
    let _ = (std::fs::remove_file(folder.incoming()), std::fs::remove_file(folder.backup()));
    backup.close();
    let _ = thread.join();
    promotion
}

impl Backup {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.hang_up();
    }

    /// Answers the daemon until it promotes.
    fn hear(&self, listener: &UnixListener, config: &MachineConfig) -> std::io::Result<Promotion> {
        listener.set_nonblocking(false)?;
        loop {
            let (mut stream, _) = listener.accept()?;
            let word = words::bound(&stream).and_then(|()| words::read_line::<Word>(&stream));
            let (answer, promotion) = match word {
                Ok(word) => self.answer(word, config),
                Err(error) => (WordAnswer::Refused { message: error.to_string() }, None),
            };
            // One that has gone has heard enough.
            let _ = words::write_line(&mut stream, &answer);
            if let Some(promotion) = promotion {
                return Ok(promotion);
            }
        }
    }

    fn answer(&self, word: Word, config: &MachineConfig) -> (WordAnswer, Option<Promotion>) {
        let mut state = self.lock();
        match word {
            Word::Copy {} => (WordAnswer::Copy { promised: state.member.promised(), copy: state.member.copy() }, None),
            Word::Promise { term } => {
                let promise = state.member.promise(term);
                (WordAnswer::Promise { promise: promise.map(Into::into) }, None)
            }
            Word::Promote { term } => match state.promote(term, config) {
                Ok(promotion) => (WordAnswer::Promoted { version: promotion.version }, Some(promotion)),
                Err(error) => (WordAnswer::Refused { message: error.to_string() }, None),
            },
        }
    }

    /// Serves one primary after the other, until the end. One that comes ends the one before, if its term permits.
    fn take_primaries(self: &Arc<Self>, listener: &UnixListener) {
        let mut serving: Option<std::thread::JoinHandle<()>> = None;
        while !self.lock().closed {
            let session = match self.next_session(listener) {
                Ok(Some(session)) => session,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, "a primary does not begin as it should");
                    continue;
                }
            };
            if let Some(before) = serving.take() {
                let _ = before.join();
            }
            let backup = self.clone();
            let body = move || {
                if let Err(error) = backup.serve(session) {
                    tracing::info!(%error, "the connection to the primary has ended");
                }
            };
            serving = std::thread::Builder::new().name("epochs".into()).spawn(body).ok();
        }
        if let Some(last) = serving {
            let _ = last.join();
        }
    }

    /// The connections of the next primary; `None` if none has come for a while.
    fn next_session(&self, listener: &UnixListener) -> Result<Option<Session>, Error> {
        let Some(wire) = accept(listener, TURN)? else { return Ok(None) };
        let handle = wire.try_clone().map_err(crate::migration::Error::Connect)?;
        let calls = Connection::server(wire, options())?;
        let Incoming { service, mut stream, .. } = calls.accept(Some(GREETING))?;
        if service != BEGIN {
            return Err(Error::Protocol("a connection is for something else"));
        }
        let (begin, shape) =
            match stream.message(Some(GREETING)).map_err(Error::from).and_then(|text| self.check(&text)) {
                Ok(checked) => checked,
                Err(error) => {
                    stream.reset(REFUSED, &error.to_string());
                    return Err(error);
                }
            };
        if begin.disks.len() != self.disks.len() {
            let error = Error::Protocol("it has another number of disks that are written to");
            stream.reset(REFUSED, &error.to_string());
            return Err(error);
        }
        self.admit(begin.term, handle)?;
        stream.finish(b"{}")?;
        let mut stripes = Vec::new();
        for _ in 0..begin.stripes {
            let wire = accept(listener, GREETING)?.ok_or(Error::Protocol("stripes are missing"))?;
            let handle = wire.try_clone().map_err(crate::migration::Error::Connect)?;
            self.lock().wires.push(handle);
            stripes.push(Connection::server(wire, options())?);
        }
        Ok(Some(Session { term: begin.term, calls, stripes, shape, disks: Disks::new(begin.disks) }))
    }

    fn check(&self, text: &[u8]) -> Result<(Begin, Shape), Error> {
        let begin: Begin = decode(text)?;
        if begin.version != VERSION {
            return Err(crate::migration::Error::Version { theirs: begin.version, ours: VERSION }.into());
        }
        if !(1..=MAX_STRIPES).contains(&begin.stripes) {
            return Err(Error::Protocol("it wants more stripes than there can be"));
        }
        let shape = Shape::from_runs(begin.ram.clone())?;
        if shape.bytes() != self.ram_bytes {
            let (theirs, ours) = (shape.bytes(), self.ram_bytes);
            return Err(crate::migration::Error::Ram { theirs, ours }.into());
        }
        let promised = self.lock().member.promised();
        if begin.term < promised {
            return Err(Error::Fenced { theirs: begin.term, promised });
        }
        Ok((begin, shape))
    }

    /// A primary of this term takes the place of the one before.
    fn admit(&self, term: Term, wire: UnixStream) -> Result<(), Error> {
        let mut state = self.lock();
        let promised = state.member.promised();
        if state.closed || term < promised {
            return Err(Error::Fenced { theirs: term, promised });
        }
        state.hang_up();
        state.wires.push(wire);
        Ok(())
    }

    /// Takes epochs until the connection ends.
    fn serve(&self, session: Session) -> Result<(), Error> {
        let Session { term, calls, stripes, shape, mut disks } = session;
        let mut receiver = None;
        loop {
            let Incoming { service, mut stream, .. } = calls.accept(None)?;
            let message = stream.message(Some(PATIENCE))?;
            let end = message.iter().position(|byte| *byte == b'\n').ok_or(Error::Protocol("a message has no head"))?;
            if service == DISK {
                disks.take(decode(&message[..end])?, &message[end + 1..], &self.disks)?;
                stream.finish(b"")?;
                continue;
            }
            if service != EPOCH {
                return Err(Error::Protocol("it asks for something that is no epoch"));
            }
            let Epoch { version, base, round, disk_bytes } = decode(&message[..end])?;
            if version.term != term {
                return Err(Error::Protocol("an epoch is of another term"));
            }
            let receiver = match &mut receiver {
                Some(receiver) => receiver,
                none => none.insert(transfer::Receiver::new(streams(&stripes)?, self.ram_bytes)),
            };
            let (files, writes) = disks.of_epoch(disk_bytes, base.is_none())?;
            let stage = Stage::new(version, message[end + 1..].to_vec(), base.is_none(), self.ram_bytes)?;
            let stage = stage.with_disks(files, writes);
            receiver.round(round, &stage)?;
            let Incoming { service, mut stream, .. } = calls.accept(Some(PATIENCE))?;
            if service != COMMIT {
                return Err(Error::Protocol("an epoch is not committed"));
            }
            let commit: Commit = decode(&stream.message(Some(PATIENCE))?)?;
            if commit.version != version || commit.digest != stage.digest() {
                return Err(Error::Torn(version));
            }
            let reply = self.lock().commit(stage, base, &shape)?;
            let text = serde_json::to_vec(&reply).map_err(|_| Error::Protocol("an answer cannot be written"))?;
            stream.finish(&text)?;
            self.fold()?;
        }
    }

    /// What is decided is written down, while the primary's next epoch runs.
    fn fold(&self) -> Result<(), Error> {
        match &mut self.lock().copy {
            Some((copy, _)) => copy.fold(),
            None => Ok(()),
        }
    }
}

/// A primary's connections.
struct Session {
    term: Term,
    calls: Connection,
    stripes: Vec<Connection>,
    shape: Shape,
    disks: Disks,
}

/// What has come of disks.
struct Disks {
    sizes: Vec<u64>,
    /// Disks as a whole, that are to become a part of the copy.
    whole: Option<DiskFiles>,
    /// For the next epoch.
    writes: Vec<Vec<u8>>,
    bytes: u64,
}

impl Disks {
    fn new(sizes: Vec<u64>) -> Disks {
        Disks { sizes, whole: None, writes: Vec::new(), bytes: 0 }
    }

    fn take(&mut self, part: DiskPart, bytes: &[u8], homes: &[PathBuf]) -> Result<(), Error> {
        mirror::check(&self.sizes, bytes)?;
        if part == DiskPart::Whole {
            let files = match &mut self.whole {
                Some(files) => files,
                none => none.insert(DiskFiles::new(homes, &self.sizes)?),
            };
            return Ok(files.apply(bytes)?);
        }
        self.bytes += bytes.len() as u64;
        if self.bytes > MAX_EPOCH_BYTES {
            return Err(Error::Protocol("an epoch writes too much to disks"));
        }
        self.writes.push(bytes.to_vec());
        Ok(())
    }

    /// What belongs to an epoch of which so much was sent; one that begins anew has the disks as a whole.
    fn of_epoch(&mut self, bytes: u64, is_all: bool) -> Result<(Option<DiskFiles>, Vec<Vec<u8>>), Error> {
        if bytes != std::mem::take(&mut self.bytes) {
            return Err(Error::Protocol("changes of disks are missing"));
        }
        let whole = if is_all { self.whole.take() } else { None };
        if is_all && !self.sizes.is_empty() && whole.is_none() {
            return Err(Error::Protocol("an epoch that begins anew has no disks"));
        }
        Ok((whole, std::mem::take(&mut self.writes)))
    }
}

impl State {
    fn new(term: Term) -> State {
        State { member: Member::fresh(term), copy: None, closed: false, wires: Vec::new() }
    }

    /// Lets the member decide about a stage that is whole; if it says yes, the copy has it when this returns.
    fn commit(&mut self, stage: Stage, base: Option<u64>, shape: &Shape) -> Result<Reply, Error> {
        if self.closed {
            return Ok(Reply::Fenced(self.member.promised()));
        }
        let version = stage.version;
        let before = self.member.copy();
        Ok(match self.member.staged(version, base) {
            Answer::Acknowledged(version) if before == Some(version) => Reply::Acknowledged(version),
            Answer::Acknowledged(version) => {
                let copy = Copy::commit(self.copy.take().map(|(copy, _)| copy), stage)?;
                self.copy = Some((copy, shape.clone()));
                Reply::Acknowledged(version)
            }
            Answer::Fenced(term) => Reply::Fenced(term),
            Answer::NeedsAll => Reply::NeedsAll,
        })
    }

    fn promote(&mut self, term: Term, config: &MachineConfig) -> Result<Promotion, Error> {
        let promised = self.member.promised();
        if promised != term {
            return Err(Error::NotPromised { term, promised });
        }
        let version = self.member.copy().ok_or(Error::NoCopy)?;
        let (copy, shape) = self.copy.as_mut().ok_or(Error::NoCopy)?;
        let snapshot = copy.snapshot(shape.clone())?;
        snapshot.check_shape(config)?;
        (self.closed, self.copy) = (true, None);
        self.hang_up();
        Ok(Promotion { snapshot, version })
    }

    fn hang_up(&mut self) {
        // One that has ended is as it should be.
        self.wires.drain(..).for_each(|wire| drop(wire.shutdown(Shutdown::Both)));
    }
}

/// Of connections here: one that stands still in its greeting keeps others waiting.
fn options() -> Options {
    Options { stall: GREETING, ..Options::default() }
}

fn streams(stripes: &[Connection]) -> Result<Vec<Stripe>, Error> {
    let stream = |stripe: &Connection| {
        let incoming = stripe.accept(Some(PATIENCE))?;
        match incoming.service == STRIPE {
            true => Ok(Stripe::new(incoming.stream)),
            false => Err(Error::Protocol("a stripe is for something else")),
        }
    };
    stripes.iter().map(stream).collect::<Result<_, Error>>()
}

/// The next connection within `limit`, if one comes.
fn accept(listener: &UnixListener, limit: Duration) -> Result<Option<UnixStream>, Error> {
    match crate::migration::target::wire(listener, limit) {
        Ok(wire) => Ok(Some(wire)),
        Err(crate::migration::Error::Nobody(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
