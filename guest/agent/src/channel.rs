//! Messages over the session's socket, waiting or not.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use queztl_agent_protocol::{self as protocol, Decoder, Fault, FaultCode, Message};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Once as much waits to be sent, no more output of a command is read.
const OUT_LIMIT_BYTES: usize = 256 << 10;

/// Why a session ends.
#[derive(Debug)]
pub enum Broken {
    /// The host has closed the connection, or it failed.
    Gone,
    /// The host sent what is no message, or none that may come now.
    Protocol(String),
}

impl From<protocol::Error> for Broken {
    fn from(error: protocol::Error) -> Broken {
        Broken::Protocol(error.to_string())
    }
}

impl From<Errno> for Broken {
    fn from(_: Errno) -> Broken {
        Broken::Gone
    }
}

/// The session's socket.
pub struct Channel {
    socket: OwnedFd,
    decoder: Decoder,
    out: Vec<u8>,
    /// How much of `out` is sent.
    sent: usize,
}

struct Socket<'a>(BorrowedFd<'a>);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::read(self.0, &mut *buffer))?)
    }
}

impl Channel {
    pub fn new(socket: OwnedFd) -> Result<Channel, Broken> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Channel { socket, decoder: Decoder::default(), out: Vec::new(), sent: 0 })
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Queues a message without sending it.
    pub fn queue(&mut self, message: &Message) -> Result<(), Broken> {
        Ok(protocol::encode(message, &mut self.out)?)
    }

    /// Whether there is something to send.
    pub fn wants_to_send(&self) -> bool {
        self.sent < self.out.len()
    }

    /// Whether more output should be queued.
    pub fn has_room(&self) -> bool {
        self.out.len() - self.sent < OUT_LIMIT_BYTES
    }

    /// Sends what the socket takes now.
    pub fn flush_some(&mut self) -> Result<(), Broken> {
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match rustix::io::write(&self.socket, rest) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.out.drain(..self.sent);
                    self.sent = 0;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Sends a message, waiting for the host to take it.
    pub fn send(&mut self, message: &Message) -> Result<(), Broken> {
        self.queue(message)?;
        self.flush_some()?;
        while self.wants_to_send() {
            self.wait(PollFlags::OUT)?;
            self.flush_some()?;
        }
        Ok(())
    }

    fn wait(&self, events: PollFlags) -> Result<(), Broken> {
        match poll(&mut [PollFd::new(&self.socket, events)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The next message if it is there already.
    pub fn try_receive(&mut self) -> Result<Option<Message>, Broken> {
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(Some(message));
            }
            match self.decoder.read_from(&mut Socket(self.socket.as_fd())) {
                Ok(0) => return Err(Broken::Gone),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(Broken::Gone),
            }
        }
    }

    /// The next message; pings on the way are answered.
    pub fn receive(&mut self) -> Result<Message, Broken> {
        loop {
            match self.try_receive()? {
                Some(Message::Ping { cookie }) => self.send(&Message::Pong { cookie })?,
                Some(message) => return Ok(message),
                None => self.wait(PollFlags::IN)?,
            }
        }
    }

    /// Tells the host why a request failed.
    pub fn fail(&mut self, code: FaultCode, text: impl std::fmt::Display) -> Result<(), Broken> {
        self.send(&Message::Error(Fault::new(code, text)))
    }
}
