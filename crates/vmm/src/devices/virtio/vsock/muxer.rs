//! All connections of a guest: which packet belongs to which, and which of them has something to say next.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::HOST_CID;
use super::connection::{Connection, Key, Out};
use super::handshake::{Handshake, Progress};
use super::packet::{Header, TYPE_STREAM, op};
use crate::devices::virtio::worker::{Poller, Ready};

/// Most connections at once; each takes a descriptor of this process and up to 256 KiB.
const MAX_CONNECTIONS: usize = 1023;
/// Most connections of the host that have not said yet where they go.
const MAX_HANDSHAKES: usize = 64;
/// Most resets that wait for buffers of the guest; beyond it, the guest's packets wait instead.
const MAX_RESETS: usize = 256;
/// First port given to connections of the host; ports below are for listeners.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// First token of a connection's socket; smaller ones belong to the handler.
pub(super) const FIRST_TOKEN: u64 = 16;

const SOCKET_EVENTS: Ready = Ready::IN.union(Ready::OUT).union(Ready::RDHUP).union(Ready::ET);

pub(super) struct Muxer {
    guest_cid: u64,
    path: PathBuf,
    listener: Arc<UnixListener>,
    connections: HashMap<Key, Connection>,
    handshakes: HashMap<u64, Handshake>,
    /// Which connection the socket with a token belongs to.
    tokens: HashMap<u64, Key>,
    /// Connections that may have packets for the guest, each once, served in turn.
    ready: VecDeque<Key>,
    is_ready: HashSet<Key>,
    /// Answers to packets that belong to no connection.
    resets: VecDeque<Header>,
    next_token: u64,
    next_port: u32,
}

impl Muxer {
    pub(super) fn new(guest_cid: u64, path: PathBuf, listener: Arc<UnixListener>) -> Muxer {
        Muxer {
            guest_cid,
            path,
            listener,
            connections: HashMap::new(),
            handshakes: HashMap::new(),
            tokens: HashMap::new(),
            ready: VecDeque::new(),
            is_ready: HashSet::new(),
            resets: VecDeque::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_HOST_PORT,
        }
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Whether another packet of the guest can be handled now.
    pub(super) fn has_room(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether [`Muxer::next`] may have a packet.
    pub(super) fn wants_to_send(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Handles a packet of the guest; `data` gives its data.
    pub(super) fn receive(&mut self, header: &Header, poller: &Poller, data: impl FnOnce(usize) -> Vec<u8>) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return tracing::debug!(?header, "a vsock packet with foreign addresses is dropped");
        }
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        match self.connections.get_mut(&key) {
            _ if header.kind != TYPE_STREAM => self.refuse(header),
            Some(_) if header.op == op::RST => self.remove(key),
            // A second request for a connection that stands (or the first for a port that is taken).
            Some(_) if header.op == op::REQUEST => {
                self.remove(key);
                self.refuse(header);
            }
            Some(connection) => {
                connection.receive(header, key.host_port, data);
                self.touch(key);
            }
            None if header.op == op::REQUEST => self.connect(key, header, poller),
            None => self.refuse(header),
        }
    }

    fn refuse(&mut self, header: &Header) {
        // A reset is never answered with a reset (the two sides would go on for ever).
        if header.op != op::RST {
            self.resets.push_back(header.reset_reply());
        }
    }

    /// Notes that a connection may have something for the guest.
    fn touch(&mut self, key: Key) {
        let wants = self.connections.get(&key).is_some_and(Connection::wants_to_send);
        if wants && self.is_ready.insert(key) {
            self.ready.push_back(key);
        }
    }

    fn remove(&mut self, key: Key) {
        // Closing the socket takes it out of the poller; an event that is already under way finds no connection.
        if self.connections.remove(&key).is_some() {
            self.tokens.retain(|_, other| *other != key);
        }
    }

    /// Connects the guest to the program that listens on `PATH_<port>`.
    fn connect(&mut self, key: Key, header: &Header, poller: &Poller) {
        if self.connections.len() >= MAX_CONNECTIONS {
            // Not louder: a guest can make this happen as often as it likes.
            tracing::debug!(port = key.host_port, "the guest has too many vsock connections; another is refused");
            return self.refuse(header);
        }
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", key.host_port));
        match connect_to(&path) {
            Ok(stream) => {
                let token = self.take_token();
                self.insert(key, Connection::from_guest(stream, header), token, poller, true);
            }
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "a vsock connection of the guest is refused");
                self.refuse(header);
            }
        }
    }

    fn take_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn insert(&mut self, key: Key, connection: Connection, token: u64, poller: &Poller, new: bool) {
        if new && let Err(error) = poller.add(connection.stream(), token, SOCKET_EVENTS) {
            return tracing::warn!(%error, "a vsock connection cannot be watched and is dropped");
        }
        self.tokens.insert(token, key);
        self.connections.insert(key, connection);
        self.touch(key);
    }

    /// Accepts connections of the host's programs.
    pub(super) fn accept(&mut self, poller: &Poller) {
        while let Ok((stream, _)) = self.listener.accept() {
            let full = self.handshakes.len() >= MAX_HANDSHAKES || self.connections.len() >= MAX_CONNECTIONS;
            if full || stream.set_nonblocking(true).is_err() {
                tracing::warn!("too many vsock connections of the host; another is closed");
                continue;
            }
            let token = self.take_token();
            if let Err(error) = poller.add(&stream, token, SOCKET_EVENTS) {
                tracing::warn!(%error, "a vsock connection cannot be watched and is dropped");
                continue;
            }
            self.handshakes.insert(token, Handshake::new(stream));
        }
    }

    /// Handles an event at the socket with `token`.
    pub(super) fn socket_event(&mut self, token: u64, ready: Ready, poller: &Poller) {
        if let Some(handshake) = self.handshakes.remove(&token) {
            return self.advance(handshake, token, poller);
        }
        let Some(key) = self.tokens.get(&token).copied() else { return };
        if let Some(connection) = self.connections.get_mut(&key) {
            let readable = ready.intersects(Ready::IN | Ready::RDHUP);
            let hung_up = ready.intersects(Ready::HUP | Ready::ERR);
            connection.socket_ready(readable, ready.contains(Ready::OUT), hung_up);
            self.touch(key);
        }
    }

    fn advance(&mut self, handshake: Handshake, token: u64, poller: &Poller) {
        match handshake.advance() {
            Progress::Waiting(handshake) => drop(self.handshakes.insert(token, handshake)),
            Progress::Failed => tracing::debug!("a vsock connection of the host said no `CONNECT <port>`"),
            Progress::Connect(stream, guest_port) => {
                let key = Key { host_port: self.free_port(guest_port), guest_port };
                self.insert(key, Connection::from_host(stream), token, poller, false);
            }
        }
    }

    /// A host port that no connection to `guest_port` has; there are more ports than connections.
    fn free_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let host_port = self.next_port;
            self.next_port = host_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.connections.contains_key(&Key { host_port, guest_port }) {
                return host_port;
            }
        }
    }

    /// Makes the next packet for the guest, with at most `room` bytes of data in `data`.
    pub(super) fn next(&mut self, room: usize, data: &mut Vec<u8>) -> Option<Header> {
        data.clear();
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(key) = self.ready.pop_front() {
            self.is_ready.remove(&key);
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            let header = Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: key.host_port,
                dst_port: key.guest_port,
                kind: TYPE_STREAM,
                ..Header::default()
            };
            match connection.next(header, room, data) {
                Out::Nothing => {}
                Out::Packet(header) => {
                    self.touch(key);
                    return Some(header);
                }
                Out::Last(header) => {
                    self.remove(key);
                    return Some(header);
                }
            }
        }
        None
    }
}

/// Connects without waiting: a listener whose backlog is full refuses.
fn connect_to(path: &std::ffi::OsStr) -> std::io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}
