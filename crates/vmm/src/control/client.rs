//! The other end of the socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Refusal, Request, Response, Status};

/// How long an answer may take: longer than the machine waits for its own parts.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer; a machine of 255 vCPUs and all the devices it can have stays below.
const MAX_RESPONSE_BYTES: u64 = 1 << 20;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no machine answers at {path:?}: {source}; is it running, with --control?")]
    Connect { path: PathBuf, source: io::Error },
    #[error("the machine does not answer: {0}")]
    Io(#[from] io::Error),
    #[error("the machine has gone")]
    Gone,
    #[error("the machine's answer is not understood ({0}): is it of another version?")]
    Answer(serde_json::Error),
    #[error("the machine gave another answer than this request has: is it of another version?")]
    Unexpected,
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A connection to a machine's control socket.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let connect = |source| ClientError::Connect { path: path.to_path_buf(), source };
        let stream = UnixStream::connect(path).map_err(connect)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(connect)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(connect)?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Sends a request and waits for its answer, which may be an error.
    pub fn request(&mut self, request: &Request) -> Result<Response, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(|error| ClientError::Io(error.into()))?;
        line.push(b'\n');
        // A server that is full answers and hangs up before it has read: the answer counts.
        let sent = self.stream.get_mut().write_all(&line);
        let mut answer = Vec::new();
        match self.stream.by_ref().take(MAX_RESPONSE_BYTES).read_until(b'\n', &mut answer) {
            Ok(_) if answer.ends_with(b"\n") => serde_json::from_slice(&answer).map_err(ClientError::Answer),
            Ok(_) => Err(sent.err().map_or(ClientError::Gone, ClientError::Io)),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks for something that is done or refused.
    pub fn command(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.request(request)? {
            Response::Done {} => Ok(()),
            Response::Error(refusal) => Err(refusal.into()),
            Response::Status(_) => Err(ClientError::Unexpected),
        }
    }

    /// Asks how the machine is.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.request(&Request::Status {})? {
            Response::Status(status) => Ok(*status),
            Response::Error(refusal) => Err(refusal.into()),
            Response::Done {} => Err(ClientError::Unexpected),
        }
    }
}
