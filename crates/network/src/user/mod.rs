//! The user-mode network: `passt` turns the guest's packets into ordinary sockets of the host, so that a guest reaches
//! the network with no privileges and no set-up.
//!
//! One `passt` process per card, on one end of a socket pair; frames travel with their length in front, four bytes,
//! big-endian. When this side closes its end, passt ends. When passt ends, the guest's link goes down.

mod process;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::{Backend, Offloads, Received};
use process::Process;
pub use stream::FrameStream;

/// How the user-mode network is set up.
#[derive(Debug, Clone)]
pub struct UserNetworkConfig {
    /// The `passt` program; a bare name is searched in `PATH`.
    pub program: PathBuf,
    /// Further arguments, for example `-t 2222:22` to reach the guest's SSH server.
    pub arguments: Vec<String>,
    /// The largest packet in bytes that the guest is told of.
    pub mtu: u16,
    /// Called first by the thread that listens to what passt says; a program that confines its threads does so here.
    pub listener_starts: fn(),
}

impl Default for UserNetworkConfig {
    fn default() -> UserNetworkConfig {
        // Packets as large as IPv4 can have save the most work: they never meet a real Ethernet.
        UserNetworkConfig { program: PathBuf::from("passt"), arguments: Vec::new(), mtu: 65520, listener_starts: || () }
    }
}

/// Why there is no user-mode network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the user network needs `{0}`, which is not installed; run `apt install passt`, or choose another network")]
    Missing(String),
    #[error("`{program}` does not start: {source}")]
    Start { program: String, source: io::Error },
    #[error("the channel to the user network cannot be made: {0}")]
    Channel(io::Error),
}

/// A running user-mode network.
#[derive(Debug)]
pub struct UserNetwork {
    // Before the process, so that passt sees the end of the stream before it is waited for.
    stream: FrameStream,
    process: Process,
    mtu: u16,
    closed: bool,
}

impl UserNetwork {
    /// Starts `passt`. A host without a usable network is no error: passt says so in the log, and the link is down.
    pub fn start(config: &UserNetworkConfig) -> Result<UserNetwork, Error> {
        let (ours, theirs) = UnixStream::pair().map_err(Error::Channel)?;
        ours.set_nonblocking(true).map_err(Error::Channel)?;
        let process = Process::start(config, theirs)?;
        Ok(UserNetwork { stream: FrameStream::new(ours), process, mtu: config.mtu, closed: false })
    }

    /// Marks the network as gone and reports why, once.
    fn close(&mut self, reason: &str) -> Received {
        if !self.closed {
            self.closed = true;
            let said = self.process.last_words();
            tracing::warn!(reason, passt = %said, "the user network has ended; the guest's link is down");
        }
        Received::Closed
    }
}

impl Backend for UserNetwork {
    fn offloads(&self) -> Offloads {
        Offloads::NONE
    }

    fn set_guest_offloads(&mut self, _guest: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn mtu(&self) -> Option<u16> {
        Some(self.mtu)
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.stream.socket().as_fd()
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Received> {
        if self.closed {
            return Ok(Received::Closed);
        }
        match self.stream.receive(frame) {
            Ok(Received::Closed) => Ok(self.close("passt closed the connection")),
            Ok(received) => Ok(received),
            Err(error) => Ok(self.close(&error.to_string())),
        }
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.closed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.stream.send(frame)
    }
}
