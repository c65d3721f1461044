//! One client: lines in, lines out, both bounded.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{Answer, MAX_FILES, MAX_REQUEST_BYTES, Reason, Refusal, Response};

/// Answers kept for a client that does not read them; then its requests are not read either.
const MAX_WAITING_BYTES: usize = 64 << 10;

/// What became of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Stays,
    Gone,
}

pub(super) struct Connection {
    number: u64,
    stream: UnixStream,
    input: Vec<u8>,
    output: VecDeque<Output>,
    /// A request is being carried out elsewhere; those behind it wait, so that answers come in order.
    waiting: bool,
    /// Nothing more is read; the client goes when it has its answers.
    ending: bool,
}

/// Bytes on their way to the client, with descriptors beside the first.
struct Output {
    bytes: Vec<u8>,
    files: Vec<OwnedFd>,
}

impl Connection {
    /// A client by a number of its own.
    pub(super) fn new(stream: UnixStream, number: u64) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        let output = VecDeque::new();
        Ok(Connection { number, stream, input: Vec::new(), output, waiting: false, ending: false })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn wants_input(&self) -> bool {
        let waiting_bytes: usize = self.output.iter().map(|output| output.bytes.len()).sum();
        !self.ending && !self.waiting && waiting_bytes < MAX_WAITING_BYTES
    }

    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Says goodbye with a refusal.
    pub(super) fn refuse(&mut self, refusal: Refusal) -> Fate {
        self.answer(Response::Error(refusal).into());
        self.ending = true;
        self.write()
    }

    /// Reads what has come, once, and answers each line of it by `execute`, which gives `None` for an answer that comes
    /// later.
    pub(super) fn serve(&mut self, execute: impl FnMut(&[u8]) -> Option<Response>) -> Fate {
        let mut piece = [0; MAX_REQUEST_BYTES];
        match self.stream.read(&mut piece) {
            Ok(0) => self.ending = true,
            Ok(count) => self.input.extend(&piece[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return Fate::Gone,
        }
        self.execute(execute)
    }

    /// Gives the answer that came later, and goes on with the lines behind it.
    pub(super) fn finish(&mut self, late: Answer, execute: impl FnMut(&[u8]) -> Option<Response>) -> Fate {
        self.waiting = false;
        self.answer(late);
        self.execute(execute)
    }

    fn execute(&mut self, mut execute: impl FnMut(&[u8]) -> Option<Response>) -> Fate {
        while !self.waiting
            && let Some(end) = self.input.iter().position(|byte| *byte == b'\n')
        {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            if line.trim_ascii().is_empty() {
                continue;
            }
            match execute(line.trim_ascii()) {
                Some(response) => self.answer(response.into()),
                None => self.waiting = true,
            }
        }
        if !self.waiting && self.input.len() >= MAX_REQUEST_BYTES {
            let message = format!("a request has at most {MAX_REQUEST_BYTES} bytes, its line feed included");
            return self.refuse(Refusal::new(Reason::Malformed, message));
        }
        self.write()
    }

    /// Sends as much as the client takes.
    pub(super) fn write(&mut self) -> Fate {
        while let Some(output) = self.output.front_mut() {
            match send(&self.stream, output) {
                Ok(count) => {
                    output.files.clear();
                    output.bytes.drain(..count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Fate::Stays,
                Err(_) => return Fate::Gone,
            }
            if output.bytes.is_empty() {
                self.output.pop_front();
            }
        }
        if self.ending && !self.waiting { Fate::Gone } else { Fate::Stays }
    }

    fn answer(&mut self, answer: Answer) {
        // Values without maps of odd keys always become JSON.
        if let Ok(mut bytes) = serde_json::to_vec(&answer.response) {
            bytes.push(b'\n');
            self.output.push_back(Output { bytes, files: answer.files });
        }
    }
}

/// Sends the bytes, or the first of them, with the descriptors.
fn send(stream: &UnixStream, output: &Output) -> rustix::io::Result<usize> {
    let files: Vec<_> = output.files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(rustix::io::Errno::TOOBIG);
    }
    sendmsg(stream, &[IoSlice::new(&output.bytes)], &mut control, SendFlags::NOSIGNAL)
}
