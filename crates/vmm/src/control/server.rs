//! The socket and its thread.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;

use super::connection::{Connection, Fate};
use super::errands::Errands;
use super::{Answer, MAX_CLIENTS, Reason, Refusal, Request, Response};
use crate::confine;

/// What requests are for.
pub trait Target: Send + Sync + 'static {
    /// Carries a request out. Called on the server's thread; other clients wait meanwhile.
    fn execute(&self, request: Request) -> Response;

    /// Carries a request out that takes long ([`Request::is_long`]), on a thread for these.
    fn carry_out(&self, request: Request) -> Answer {
        self.execute(request).into()
    }
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("the socket {0:?} is in use by another machine: choose another path")]
    InUse(PathBuf),
    #[error("{0:?} exists and is not a socket: choose another path for the socket")]
    NotASocket(PathBuf),
    #[error("the socket {path:?} cannot be made: {source}")]
    Bind { path: PathBuf, source: io::Error },
    #[error("the control socket's thread cannot be started: {0}")]
    Thread(io::Error),
}

/// A control socket; closed, and its file removed, when dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// Device and inode of the file that is ours to remove.
    file: (u64, u64),
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path`, in place of a socket that nobody answers at any more, and serves clients until it is dropped.
    pub fn start(path: &Path, target: Arc<dyn Target>) -> Result<Server, ServerError> {
        let bind = |source| ServerError::Bind { path: path.to_path_buf(), source };
        let listener = listen(path)?;
        let metadata = fs::symlink_metadata(path).map_err(bind)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| bind(e.into()))?);
        let mut server =
            Server { path: path.to_path_buf(), file: (metadata.dev(), metadata.ino()), stop, thread: None };
        let stop = server.stop.clone();
        let errands = Errands::start(target.clone()).map_err(ServerError::Thread)?;
        let body = move || serve(&listener, &stop, &*target, &errands);
        let thread = std::thread::Builder::new().name("control".into()).spawn(body);
        server.thread = Some(thread.map_err(ServerError::Thread)?);
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The counter of a fresh eventfd has room for one.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let ours = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the socket. It gets its place only once nobody but its owner can reach it.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, ServerError> {
    let bind = |source| ServerError::Bind { path: path.to_path_buf(), source };
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(ServerError::NotASocket(path.to_path_buf()));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(ServerError::InUse(path.to_path_buf()));
        }
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let made = UnixListener::bind(&temporary).and_then(|listener| {
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        fs::rename(&temporary, path)?;
        Ok(listener)
    });
    made.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        bind(error)
    })
}

fn serve(listener: &UnixListener, stop: &OwnedFd, target: &dyn Target, errands: &Errands) {
    confine::enter(confine::Kind::Control);
    let mut clients: Vec<Connection> = Vec::new();
    let mut next_number = 0;
    loop {
        let ready = match wait(listener, stop, errands.event(), &clients) {
            Ok(ready) => ready,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return tracing::warn!(%error, "the control socket cannot wait for requests any more"),
        };
        let [stopped, connecting, carried_out, events @ ..] = &ready[..] else { return };
        if !stopped.is_empty() {
            return;
        }
        let mut events = events.iter();
        clients.retain_mut(|client| {
            let ready = events.next().copied().unwrap_or(PollFlags::empty());
            attend(client, ready, target, errands) == Fate::Stays
        });
        if !carried_out.is_empty() {
            deliver(errands, &mut clients, target);
        }
        if !connecting.is_empty() {
            accept(listener, &mut clients, next_number);
            next_number += 1;
        }
    }
}

/// What happens next: on the stop event, on the listener, with long requests, and on each client.
fn wait(
    listener: &UnixListener,
    stop: &OwnedFd,
    carried_out: &OwnedFd,
    clients: &[Connection],
) -> rustix::io::Result<Vec<PollFlags>> {
    let mut waiting = vec![
        PollFd::new(stop, PollFlags::IN),
        PollFd::new(listener, PollFlags::IN),
        PollFd::new(carried_out, PollFlags::IN),
    ];
    for client in clients {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, client.wants_input());
        wanted.set(PollFlags::OUT, client.has_output());
        waiting.push(PollFd::from_borrowed_fd(client.stream().as_fd(), wanted));
    }
    poll(&mut waiting, None)?;
    Ok(waiting.iter().map(PollFd::revents).collect())
}

fn attend(client: &mut Connection, ready: PollFlags, target: &dyn Target, errands: &Errands) -> Fate {
    if ready.contains(PollFlags::ERR) || ready.contains(PollFlags::HUP) && !ready.contains(PollFlags::IN) {
        return Fate::Gone;
    }
    if ready.contains(PollFlags::OUT) && client.write() == Fate::Gone {
        return Fate::Gone;
    }
    if !ready.contains(PollFlags::IN) {
        return Fate::Stays;
    }
    let number = client.number();
    client.serve(|line| answer(line, number, target, errands))
}

/// The answer to a line; `None` if it will come later.
fn answer(line: &[u8], client: u64, target: &dyn Target, errands: &Errands) -> Option<Response> {
    match serde_json::from_slice::<Request>(line) {
        Ok(request) if request.is_long() => {
            if request == (Request::Settle {}) {
                target.execute(Request::CancelSnapshot {});
            }
            errands.give(client, request);
            None
        }
        Ok(request) => Some(target.execute(request)),
        Err(error) => Some(Response::Error(Refusal::new(Reason::Malformed, format!("this is no request: {error}")))),
    }
}

/// Gives clients the answers that took long. One that has gone gets none.
fn deliver(errands: &Errands, clients: &mut Vec<Connection>, target: &dyn Target) {
    for (number, late) in errands.take() {
        let Some(index) = clients.iter().position(|client| client.number() == number) else { continue };
        if clients[index].finish(late, |line| answer(line, number, target, errands)) == Fate::Gone {
            clients.remove(index);
        }
    }
}

fn accept(listener: &UnixListener, clients: &mut Vec<Connection>, number: u64) {
    let Ok((stream, _)) = listener.accept() else { return };
    let Ok(mut client) = Connection::new(stream, number) else { return };
    if clients.len() < MAX_CLIENTS {
        return clients.push(client);
    }
    let message = format!("{MAX_CLIENTS} clients are connected already: try again when one has gone");
    client.refuse(Refusal::new(Reason::Busy, message));
}
