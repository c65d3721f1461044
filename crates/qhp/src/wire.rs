//! Transports: what reads and writes bytes in both directions at once.

use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown};

/// A connected transport that keeps the order of bytes. No call of it waits, but [`Wire::wait`].
pub trait Wire: Send + Sync + 'static {
    /// Reads what is there, 0 at the end.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if nothing is there, and what ends a connection.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes as much as there is room for.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none, and what ends a connection.
    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Waits until there is something to read, or room to write, as asked for; gives what there is. Neither after `limit`.
    fn wait(&self, read: bool, write: bool, limit: Option<Duration>) -> io::Result<(bool, bool)>;

    /// Ends both directions; whoever waits returns.
    fn close(&self);
}

/// A stream socket of the kernel: TCP, Unix, vsock.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    pub fn new(fd: OwnedFd) -> io::Result<Socket> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Socket(fd))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Wire for Socket {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.0, buffer, RecvFlags::DONTWAIT)?.0)
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(sendmsg(&self.0, parts, &mut SendAncillaryBuffer::default(), flags)?)
    }

    fn wait(&self, read: bool, write: bool, limit: Option<Duration>) -> io::Result<(bool, bool)> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, read);
        wanted.set(PollFlags::OUT, write);
        // A limit beyond what the kernel can count is none.
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut sockets = [PollFd::new(&self.0, wanted)];
        match poll(&mut sockets, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [socket] = &sockets;
        let ready = socket.revents();
        // Errors and ends show in the call that follows.
        let over = ready.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        Ok((read && (over || ready.contains(PollFlags::IN)), write && (over || ready.contains(PollFlags::OUT))))
    }

    fn close(&self) {
        // One that is gone already needs no end.
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

/// What becomes a transport.
pub trait IntoWire {
    /// # Errors
    /// The kernel refuses to change the socket's mode.
    fn into_wire(self) -> io::Result<Box<dyn Wire>>;
}

impl IntoWire for TcpStream {
    fn into_wire(self) -> io::Result<Box<dyn Wire>> {
        // A frame is complete when it is written; there is nothing to wait for.
        self.set_nodelay(true)?;
        Ok(Box::new(Socket::new(self.into())?))
    }
}

impl IntoWire for UnixStream {
    fn into_wire(self) -> io::Result<Box<dyn Wire>> {
        Ok(Box::new(Socket::new(self.into())?))
    }
}

impl IntoWire for OwnedFd {
    fn into_wire(self) -> io::Result<Box<dyn Wire>> {
        Ok(Box::new(Socket::new(self)?))
    }
}

impl IntoWire for Box<dyn Wire> {
    fn into_wire(self) -> io::Result<Box<dyn Wire>> {
        Ok(self)
    }
}

/// Two ends of one transport within this process.
///
/// # Errors
/// The process has no file descriptors left.
pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
    UnixStream::pair()
}
