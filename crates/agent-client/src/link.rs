//! Messages over the connection, every wait with a limit.

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use queztl_agent_protocol::{Decoder, Message, encode};

use crate::Error;

/// The sending half; shared by the threads of a command.
#[derive(Debug, Clone)]
pub struct Sender {
    stream: Arc<Mutex<UnixStream>>,
    limit: Duration,
}

/// Both halves.
#[derive(Debug)]
pub struct Link {
    pub sender: Sender,
    stream: UnixStream,
    decoder: Decoder,
    limit: Duration,
}

impl Sender {
    /// Sends a message, waiting at most the limit for the agent to take it. After a failure the connection is closed,
    /// since part of the message may have gone.
    pub fn send(&self, message: &Message) -> Result<(), Error> {
        let mut frame = Vec::new();
        encode(message, &mut frame).map_err(Error::Request)?;
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + self.limit;
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            let result = match stream.write(rest) {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    Ok(())
                }
                Err(error) => Err(error),
            };
            let error = match result {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Error::Silent(self.limit),
                Err(error) if error.kind() == ErrorKind::BrokenPipe => Error::Closed,
                Err(error) if error.kind() != ErrorKind::Interrupted => Error::Connection(error),
                // A trickle is no sign of life.
                _ if !rest.is_empty() && Instant::now() >= deadline => Error::Silent(self.limit),
                _ => continue,
            };
            // The other threads of this connection learn by its end; one that is closed already has ended.
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return Err(error);
        }
        Ok(())
    }

    /// Ends the connection for everybody who uses it.
    pub fn close(&self) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is closed already has ended.
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Link {
    pub fn new(stream: UnixStream, limit: Duration) -> Result<Link, Error> {
        let limit = limit.max(Duration::from_millis(1));
        stream.set_nonblocking(false).map_err(Error::Connection)?;
        stream.set_write_timeout(Some(limit)).map_err(Error::Connection)?;
        let writer = stream.try_clone().map_err(Error::Connection)?;
        let sender = Sender { stream: Arc::new(Mutex::new(writer)), limit };
        Ok(Link { sender, stream, decoder: Decoder::default(), limit })
    }

    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The next message, or [`Error::Silent`] after the limit. Bytes that do not become a message are no answer.
    pub fn receive(&mut self) -> Result<Message, Error> {
        self.receive_until(Instant::now() + self.limit)?.ok_or(Error::Silent(self.limit))
    }

    /// The next message if it comes until `deadline`.
    pub fn receive_until(&mut self, deadline: Instant) -> Result<Option<Message>, Error> {
        loop {
            if let Some(message) = self.decoder.next_message().map_err(|error| Error::Protocol(error.to_string()))? {
                return Ok(Some(message));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left)).map_err(Error::Connection)?;
            match self.decoder.read_from(&mut self.stream) {
                Ok(0) => return Err(Error::Closed),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(Error::Closed),
                Err(error) => return Err(Error::Connection(error)),
            }
        }
    }

    /// A message that is there already.
    pub fn try_receive(&mut self) -> Result<Option<Message>, Error> {
        if let Some(message) = self.decoder.next_message().map_err(|error| Error::Protocol(error.to_string()))? {
            return Ok(Some(message));
        }
        let mut polled = [rustix::event::PollFd::new(&self.stream, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec::default();
        match rustix::event::poll(&mut polled, Some(&now)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(None),
            Ok(_) => self.receive_until(Instant::now() + Duration::from_millis(1)),
            Err(error) => Err(Error::Connection(error.into())),
        }
    }
}
