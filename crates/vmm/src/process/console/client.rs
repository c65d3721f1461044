//! A viewer.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Decoder, FrameError, Message, Mode, Request, VERSION};

/// How long the welcome may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is nothing to see.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no machine has its console at {path:?}: {source}; is it running?")]
    Connect { path: PathBuf, source: io::Error },
    #[error("the connection to the console broke: {0}")]
    Io(#[from] io::Error),
    #[error("the console let this viewer go: it did not read fast enough, or the machine was killed")]
    Gone,
    #[error("the console does not speak as it should ({0}): is it of another version?")]
    Frame(#[from] FrameError),
    #[error("the console is of version {0}, and this program of version {VERSION}")]
    Version(u8),
    #[error("{0}")]
    Refused(String),
}

/// A connection to a machine's console.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
}

/// The part of a [`Client`] that types, for another thread.
#[derive(Debug)]
pub struct Keys(UnixStream);

impl Client {
    /// Connects to the console at `path`, and waits until it is there.
    pub fn connect(path: &Path, mode: Mode, scrollback: bool) -> Result<Client, ClientError> {
        let connect = |source| ClientError::Connect { path: path.to_path_buf(), source };
        let mut stream = UnixStream::connect(path).map_err(connect)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut hello = Vec::new();
        Request::hello(mode, scrollback).encode(&mut hello);
        // A hub that is full says so and hangs up before it has read: its word counts.
        let sent = stream.write_all(&hello);
        let mut client = Client { stream, decoder: Decoder::default() };
        match client.message() {
            Ok(Message::Welcome { version: VERSION }) => {}
            Ok(Message::Welcome { version }) => return Err(ClientError::Version(version)),
            Ok(Message::End(why)) => return Err(ClientError::Refused(why)),
            Ok(_) => return Err(ClientError::Version(0)),
            Err(error) => return Err(sent.err().map_or(error, ClientError::Io)),
        }
        client.stream.set_read_timeout(None)?;
        Ok(client)
    }

    /// Waits for the next message. After [`Message::End`] there is none.
    pub fn message(&mut self) -> Result<Message, ClientError> {
        let mut piece = [0; 16 << 10];
        loop {
            if let Some(message) = self.decoder.message()? {
                return Ok(message);
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(ClientError::Gone),
                Ok(count) => self.decoder.push(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(ClientError::Gone),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The part that types.
    pub fn keys(&self) -> io::Result<Keys> {
        self.stream.try_clone().map(Keys)
    }
}

impl AsFd for Client {
    /// Readable when the socket has bytes; there may be messages although it has none.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Keys {
    /// Types. Waits while the guest does not take input.
    pub fn input(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send(&Request::Input(bytes.to_vec()))
    }

    /// Tells the guest the terminal's size.
    pub fn resize(&mut self, columns: u16, rows: u16) -> io::Result<()> {
        self.send(&Request::Resize { columns, rows })
    }

    fn send(&mut self, request: &Request) -> io::Result<()> {
        let mut frame = Vec::new();
        request.encode(&mut frame);
        self.0.write_all(&frame)
    }
}
