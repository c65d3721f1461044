//! Socket device (Virtio 1.2 §5.10): stream connections between guest and host, without a network.
//!
//! On the host they are Unix sockets, by Firecracker's convention:
//! - a guest that connects to CID 2, port P, reaches the socket `PATH_P`, on which a program of the host listens;
//! - a program of the host that connects to `PATH` and writes `CONNECT P\n` reaches port P of the guest, once it has read
//!   `OK <host port>\n`. Where nobody listens in the guest, the connection is closed instead.
//!
//! Promises: data is bounded by credit in both directions, half-closed connections stay usable in the other direction,
//! and a guest that breaks the protocol loses the connection concerned, nothing else.
//!
//! ```text
//!  guest driver <- queues -> handler <- packets -> Muxer <- bytes -> Unix sockets
//!                                                   Connection (credit, shutdown), Handshake (CONNECT line)
//! ```

mod connection;
mod handler;
mod handshake;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::worker::Worker;
use super::{ActivateError, Activation, VirtQueue, VirtioDevice, device_type, lock, read_config_bytes};
use handler::VsockHandler;
#[doc(hidden)]
pub use handshake::parse_connect;
use muxer::Muxer;

const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;
const EVENT_QUEUE: u16 = 2;
const QUEUE_SIZE: u16 = 256;

/// The host's address (§5.10.4).
pub const HOST_CID: u64 = 2;
/// The smallest address that a guest can have.
pub const MIN_GUEST_CID: u32 = 3;

/// How a socket device is made.
#[derive(Debug, Clone)]
pub struct VsockConfig {
    /// The guest's address, at least [`MIN_GUEST_CID`].
    pub guest_cid: u32,
    /// The socket for connections into the guest, and the prefix of those that the guest connects to.
    pub path: PathBuf,
}

/// Why there is no such socket device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} cannot be a guest's CID; use a number from {MIN_GUEST_CID} to 4294967294")]
    Cid(u32),
    #[error("{0} is in use by a running program; give the machine another socket path")]
    InUse(PathBuf),
    #[error("{0} exists and is not a socket; give the machine another socket path")]
    NotASocket(PathBuf),
    #[error("the socket {path} cannot be made: {source}")]
    Bind { path: PathBuf, source: io::Error },
}

/// The socket device.
pub struct Vsock {
    guest_cid: u32,
    path: PathBuf,
    listener: Arc<UnixListener>,
    worker: Mutex<Option<Worker<VsockHandler>>>,
}

impl VsockConfig {
    /// Makes the device and its socket.
    pub fn build(self) -> Result<Arc<Vsock>, Error> {
        if self.guest_cid < MIN_GUEST_CID || self.guest_cid == u32::MAX {
            return Err(Error::Cid(self.guest_cid));
        }
        let listener = Arc::new(listen(&self.path)?);
        Ok(Arc::new(Vsock { guest_cid: self.guest_cid, path: self.path, listener, worker: Mutex::new(None) }))
    }
}

/// Makes the socket at `path`, in place of one that nobody listens on any more.
fn listen(path: &Path) -> Result<UnixListener, Error> {
    let error = |source| Error::Bind { path: path.to_path_buf(), source };
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(Error::NotASocket(path.to_path_buf()));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(Error::InUse(path.to_path_buf()));
        }
        std::fs::remove_file(path).map_err(error)?;
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    listener.set_nonblocking(true).map_err(error)?;
    Ok(listener)
}

/// Tells the driver that all its connections are gone, as after a snapshot was restored (§5.10.6.7). All buffers of the
/// queue are taken, so that the next one to come says that the driver has heard; false if it has offered none.
fn tell_reset(events: &mut VirtQueue) -> Result<bool, ActivateError> {
    const TRANSPORT_RESET: u32 = 0;
    // A driver that has offered no buffer finds out when its connections do not answer.
    let Some(chain) = events.pop()? else { return Ok(false) };
    while events.pop()?.is_some() {}
    let written = chain.writable.write_at(events.memory(), 0, &TRANSPORT_RESET.to_le_bytes());
    events.push(chain.head, written as u32);
    events.signal();
    Ok(true)
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        device_type::VSOCK
    }

    fn features(&self) -> u64 {
        // Streams need none.
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn activate(&self, mut activation: Activation) -> Result<(), ActivateError> {
        let receive = activation.take_queue(RECEIVE_QUEUE)?;
        let transmit = activation.take_queue(TRANSMIT_QUEUE)?;
        let mut events = activation.take_queue(EVENT_QUEUE)?;
        let deaf = activation.resumed && tell_reset(&mut events)?;
        let muxer = Muxer::new(u64::from(self.guest_cid), self.path.clone(), self.listener.clone());
        let handler = VsockHandler::new(receive, transmit, muxer, deaf.then_some(events));
        let worker = Worker::spawn("virtio-vsock", handler, activation.interrupt).map_err(ActivateError::Thread)?;
        *lock(&self.worker) = Some(worker);
        Ok(())
    }

    fn reset(&self) {
        // Connections end with the handler.
        let worker = lock(&self.worker).take();
        if let Some(worker) = worker {
            worker.stop();
        }
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.reset();
        let _ = std::fs::remove_file(&self.path);
    }
}
