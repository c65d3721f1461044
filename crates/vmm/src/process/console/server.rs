//! The console's socket and its thread.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::hub::Hub;
use super::record::Record;
use super::{Decoder, MAX_VIEWERS, Message, Mode, RECORD_BYTES, Request, VERSION};
use crate::confine;
use crate::control;
use crate::machine::MachineHandle;
use crate::process::{Folder, LogFile};

/// How long to wait for a guest that takes no input at the moment: at first, and at most.
const RETRY: Duration = Duration::from_millis(5);
const MAX_RETRY: Duration = Duration::from_millis(100);
/// How long viewers have for the last output.
const FAREWELL: Duration = Duration::from_secs(1);

/// The guest's side of a console.
pub trait Guest: Send + Sync + 'static {
    /// Gives input and returns how many bytes are taken now.
    fn input(&self, bytes: &[u8]) -> usize;

    /// Tells the terminal's size.
    fn resize(&self, columns: u16, rows: u16);
}

impl Guest for MachineHandle {
    fn input(&self, bytes: &[u8]) -> usize {
        MachineHandle::input(self, bytes)
    }

    fn resize(&self, columns: u16, rows: u16) {
        MachineHandle::resize(self, columns, rows);
    }
}

/// Why there is no console for viewers.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("the console's socket: {0}")]
    Socket(#[from] control::ServerError),
    #[error("{path:?} cannot be written: {source}")]
    Record { path: PathBuf, source: io::Error },
    #[error("the console's thread cannot be started: {0}")]
    Thread(io::Error),
}

/// The console's thread; it ends, and the socket's file goes, when this is dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// Device and inode of the file that is ours to remove.
    file: (u64, u64),
    hub: Arc<Hub>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves viewers of what `hub` gets, and records it, in `folder`. `log` is kept short by the way.
    pub fn start(
        folder: &Folder,
        hub: Arc<Hub>,
        guest: Arc<dyn Guest>,
        log: Option<Arc<LogFile>>,
    ) -> Result<Server, ServerError> {
        let record = Record::open(&folder.console_log(), &folder.old_console_log(), RECORD_BYTES);
        let record = record.map_err(|source| ServerError::Record { path: folder.console_log(), source })?;
        let path = folder.console();
        let listener = control::listen(&path)?;
        let metadata = fs::symlink_metadata(&path).map_err(ServerError::Thread)?;
        let mut server = Server { path, file: (metadata.dev(), metadata.ino()), hub: hub.clone(), thread: None };
        let mut desk = Desk { listener, hub, guest, record, log, viewers: Vec::new(), next_id: 0, retry: RETRY };
        let body = move || {
            confine::enter(confine::Kind::ConsoleHub);
            desk.serve();
        };
        let thread = std::thread::Builder::new().name("console-hub".into()).spawn(body);
        server.thread = Some(thread.map_err(ServerError::Thread)?);
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.hub.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let ours = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What the thread has.
struct Desk {
    listener: UnixListener,
    hub: Arc<Hub>,
    guest: Arc<dyn Guest>,
    record: Record,
    log: Option<Arc<LogFile>>,
    viewers: Vec<Viewer>,
    next_id: u64,
    /// How long to wait before input is offered to the guest again.
    retry: Duration,
}

impl Desk {
    fn serve(&mut self) {
        let mut end: Option<Instant> = None;
        loop {
            let ready = match self.wait(end) {
                Ok(ready) => ready,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return tracing::warn!(%error, "the console cannot wait for its viewers any more"),
            };
            // Asked first: whatever was said before the end is fetched after it.
            let ended = self.hub.has_ended();
            self.record.write(&self.hub.fetch());
            if let Some(log) = self.log.as_ref().filter(|log| log.is_long()) {
                // A log that cannot be cut stops growing at its limit.
                let _ = log.shorten();
            }
            self.attend(&ready);
            if ended && end.is_none() {
                end = Some(Instant::now() + FAREWELL);
                self.viewers.iter_mut().for_each(|viewer| viewer.end(&self.hub, "the machine has ended"));
                self.attend(&[]);
            }
            if end.is_some_and(|end| self.viewers.is_empty() || Instant::now() >= end) {
                return;
            }
            if end.is_none() && ready.get(1).is_some_and(|ready| !ready.is_empty()) {
                self.accept();
            }
        }
    }

    /// What happens next: at the hub, at the listener, at each viewer.
    fn wait(&self, end: Option<Instant>) -> rustix::io::Result<Vec<PollFlags>> {
        let mut waiting =
            vec![PollFd::new(self.hub.event(), PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        for viewer in &self.viewers {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, viewer.wants_input());
            wanted.set(PollFlags::OUT, viewer.is_sending());
            waiting.push(PollFd::from_borrowed_fd(viewer.stream.as_fd(), wanted));
        }
        let retry = self.viewers.iter().any(|viewer| !viewer.input.is_empty()).then_some(self.retry);
        let farewell = end.map(|end| end.saturating_duration_since(Instant::now()));
        let limit = [retry, farewell].into_iter().flatten().min();
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        poll(&mut waiting, limit.as_ref())?;
        Ok(waiting.iter().map(PollFd::revents).collect())
    }

    fn attend(&mut self, ready: &[PollFlags]) {
        let mut events = ready.iter().skip(2);
        let (mut offered, mut taken) = (false, false);
        let (hub, guest) = (&self.hub, &*self.guest);
        self.viewers.retain_mut(|viewer| {
            let ready = events.next().copied().unwrap_or(PollFlags::empty());
            let before = viewer.input.len();
            let stays = viewer.attend(ready, hub, guest).is_some();
            offered |= before > 0;
            taken |= viewer.input.len() < before;
            if !stays {
                hub.leave(viewer.id);
            }
            stays
        });
        self.retry = if offered && !taken { (self.retry * 2).min(MAX_RETRY) } else { RETRY };
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        self.next_id += 1;
        let mut viewer = Viewer::new(self.next_id, stream);
        if self.viewers.len() >= MAX_VIEWERS {
            // One who never said what it came for makes room.
            match self.viewers.iter().position(|viewer| viewer.mode.is_none()) {
                Some(silent) => drop(self.viewers.remove(silent)),
                None => {
                    viewer
                        .end(&self.hub, &format!("{MAX_VIEWERS} viewers are at the console already: try again later"));
                    let _ = viewer.write(&self.hub, true);
                    return;
                }
            }
        }
        self.viewers.push(viewer);
    }
}

/// A connection. Its methods give `None` when it is over.
struct Viewer {
    id: u64,
    stream: UnixStream,
    decoder: Decoder,
    /// What it came for, once it has said so.
    mode: Option<Mode>,
    /// Frames on their way, and how much of them has gone.
    sending: Vec<u8>,
    sent: usize,
    /// What the guest has not taken yet.
    input: Vec<u8>,
    ending: bool,
}

impl Viewer {
    fn new(id: u64, stream: UnixStream) -> Viewer {
        let (sending, input) = (Vec::new(), Vec::new());
        Viewer { id, stream, decoder: Decoder::default(), mode: None, sending, sent: 0, input, ending: false }
    }

    fn wants_input(&self) -> bool {
        self.input.is_empty() && !self.ending
    }

    fn is_sending(&self) -> bool {
        !self.sending.is_empty()
    }

    fn attend(&mut self, ready: PollFlags, hub: &Hub, guest: &dyn Guest) -> Option<()> {
        if ready.contains(PollFlags::ERR) || ready.contains(PollFlags::HUP) && !ready.contains(PollFlags::IN) {
            return None;
        }
        if ready.contains(PollFlags::IN) && self.wants_input() {
            self.read()?;
        }
        self.serve(hub, guest);
        self.write(hub, ready.contains(PollFlags::OUT))
    }

    fn read(&mut self) -> Option<()> {
        let mut piece = [0; 16 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => None,
            Ok(count) => {
                self.decoder.push(&piece[..count]);
                Some(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Some(()),
            Err(_) => None,
        }
    }

    /// Does what was asked for, as far as the guest takes input.
    fn serve(&mut self, hub: &Hub, guest: &dyn Guest) {
        loop {
            if !self.input.is_empty() {
                let taken = guest.input(&self.input).min(self.input.len());
                self.input.drain(..taken);
            }
            if !self.wants_input() {
                return;
            }
            match self.decoder.request() {
                Ok(Some(request)) => self.execute(request, hub, guest),
                Ok(None) => return,
                Err(error) => return self.end(hub, &error.to_string()),
            }
        }
    }

    fn execute(&mut self, request: Request, hub: &Hub, guest: &dyn Guest) {
        match (request, self.mode) {
            (Request::Hello { version: VERSION, mode, scrollback }, None) => {
                self.mode = Some(mode);
                hub.join(self.id, &Message::Welcome { version: VERSION }, scrollback);
            }
            (Request::Hello { version, .. }, None) => {
                self.end(hub, &format!("this console is of version {VERSION}, and the viewer of version {version}"));
            }
            (Request::Input(bytes), Some(Mode::Type)) => self.input = bytes,
            (Request::Resize { columns, rows }, Some(Mode::Type)) => guest.resize(columns, rows),
            (Request::Input(_) | Request::Resize { .. }, Some(Mode::Look)) => {
                self.end(hub, "this viewer came to look, and may not type");
            }
            (_, None) => self.end(hub, "a viewer says hello first"),
            (Request::Hello { .. }, Some(_)) => self.end(hub, "a viewer says hello once"),
        }
    }

    /// Sends what is left, then why nothing follows.
    fn end(&mut self, hub: &Hub, why: &str) {
        if std::mem::replace(&mut self.ending, true) {
            return;
        }
        if self.mode.is_some() {
            self.sending.extend(hub.frames(self.id).unwrap_or_default());
            hub.leave(self.id);
        }
        self.input.clear();
        Message::End(why.to_owned()).encode(&mut self.sending);
        let _ = self.write(hub, true);
    }

    /// Sends as much as the viewer takes; `ready`: it takes something.
    fn write(&mut self, hub: &Hub, ready: bool) -> Option<()> {
        let joined = self.mode.is_some() && !self.ending;
        if self.is_sending() && !ready {
            return (!joined || !hub.is_lost(self.id)).then_some(());
        }
        loop {
            if self.sent == self.sending.len() {
                self.sent = 0;
                self.sending = if joined { hub.frames(self.id)? } else { Vec::new() };
                if self.sending.is_empty() {
                    return (!self.ending).then_some(());
                }
            }
            match self.stream.write(&self.sending[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return (!joined || !hub.is_lost(self.id)).then_some(());
                }
                Err(_) => return None,
            }
        }
    }
}
