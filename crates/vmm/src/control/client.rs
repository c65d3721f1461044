//! The other end of the socket.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{Answer, MAX_FILES, Metrics, Migration, Protection, Refusal, Request, Response, SnapshotReport, Status};

/// How long an answer may take: longer than the machine waits for its own parts.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer; a machine of 255 vCPUs and all the devices it can have stays below.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

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
    stream: UnixStream,
    /// What has been read beyond the last answer.
    input: Vec<u8>,
}

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let connect = |source| ClientError::Connect { path: path.to_path_buf(), source };
        let stream = UnixStream::connect(path).map_err(connect)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(connect)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(connect)?;
        Ok(Client { stream, input: Vec::new() })
    }

    /// Sends a request and waits for its answer, which may be an error.
    pub fn request(&mut self, request: &Request) -> Result<Response, ClientError> {
        self.request_files(request).map(|answer| answer.response)
    }

    /// The same, with the descriptors that come beside the answer.
    pub fn request_files(&mut self, request: &Request) -> Result<Answer, ClientError> {
        // What takes long may take as long as the machine's process lives: its end closes the connection.
        self.stream.set_read_timeout((!request.is_long()).then_some(PATIENCE))?;
        let mut line = serde_json::to_vec(request).map_err(|error| ClientError::Io(error.into()))?;
        line.push(b'\n');
        // A server that is full answers and hangs up before it has read: the answer counts.
        let sent = self.stream.write_all(&line);
        let mut files = Vec::new();
        loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let answer: Vec<u8> = self.input.drain(..=end).collect();
                let response = serde_json::from_slice(&answer).map_err(ClientError::Answer)?;
                return Ok(Answer { response, files });
            }
            if self.input.len() >= MAX_RESPONSE_BYTES || !self.receive(&mut files)? {
                return Err(sent.err().map_or(ClientError::Gone, ClientError::Io));
            }
        }
    }

    /// Reads more; false at the end.
    fn receive(&mut self, files: &mut Vec<OwnedFd>) -> Result<bool, ClientError> {
        let mut piece = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.stream, &mut [IoSliceMut::new(&mut piece)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = match received {
            Err(rustix::io::Errno::INTR) => return Ok(true),
            other => other.map_err(|error| ClientError::Io(error.into()))?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                files.extend(descriptors);
            }
        }
        self.input.extend(&piece[..received.bytes]);
        Ok(received.bytes > 0)
    }

    /// Asks for something that is done or refused.
    pub fn command(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.request(request)? {
            Response::Done {} => Ok(()),
            Response::Error(refusal) => Err(refusal.into()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Asks what the machine's parts have done.
    pub fn metrics(&mut self) -> Result<Metrics, ClientError> {
        match self.request(&Request::Metrics {})? {
            Response::Metrics(metrics) => Ok(*metrics),
            Response::Error(refusal) => Err(refusal.into()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Asks how a migration goes.
    pub fn migration(&mut self) -> Result<Migration, ClientError> {
        match self.request(&Request::Migration {})? {
            Response::Migration(migration) => Ok(migration),
            Response::Error(refusal) => Err(refusal.into()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Asks how the protection goes.
    pub fn protection(&mut self) -> Result<Protection, ClientError> {
        match self.request(&Request::Protection {})? {
            Response::Protection(protection) => Ok(*protection),
            Response::Error(refusal) => Err(refusal.into()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Asks how the machine is.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.request(&Request::Status {})? {
            Response::Status(status) => Ok(*status),
            Response::Error(refusal) => Err(refusal.into()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Takes a snapshot, with [`Request::Snapshot`], and waits until it is on the disk.
    pub fn snapshot(&mut self, request: &Request) -> Result<SnapshotReport, ClientError> {
        match self.request(request)? {
            Response::Snapshot(report) => Ok(report),
            Response::Error(refusal) => Err(refusal.into()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Makes the machine's state ready for clones, with [`Request::Fork`]; gives the files of its memory.
    pub fn fork(&mut self, request: &Request) -> Result<(SnapshotReport, Vec<OwnedFd>), ClientError> {
        let Answer { response, files } = self.request_files(request)?;
        match response {
            Response::Fork(report) => Ok((report, files)),
            Response::Error(refusal) => Err(refusal.into()),
            _ => Err(ClientError::Unexpected),
        }
    }
}
