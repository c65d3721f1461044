//! One client: lines in, lines out, both bounded.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use super::{MAX_REQUEST_BYTES, Reason, Refusal, Response};

/// Answers kept for a client that does not read them; then its requests are not read either.
const MAX_WAITING_BYTES: usize = 64 << 10;

/// What became of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Stays,
    Gone,
}

pub(super) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Nothing more is read; the client goes when it has its answers.
    ending: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        Ok(Connection { stream, input: Vec::new(), output: Vec::new(), ending: false })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn wants_input(&self) -> bool {
        !self.ending && self.output.len() < MAX_WAITING_BYTES
    }

    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Says goodbye with a refusal.
    pub(super) fn refuse(&mut self, refusal: Refusal) -> Fate {
        self.answer(&Response::Error(refusal));
        self.ending = true;
        self.write()
    }

    /// Reads what has come, once, and answers each line of it by `execute`.
    pub(super) fn serve(&mut self, mut execute: impl FnMut(&[u8]) -> Response) -> Fate {
        let mut piece = [0; MAX_REQUEST_BYTES];
        match self.stream.read(&mut piece) {
            Ok(0) => self.ending = true,
            Ok(count) => self.input.extend(&piece[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return Fate::Gone,
        }
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            if !line.trim_ascii().is_empty() {
                let response = execute(line.trim_ascii());
                self.answer(&response);
            }
        }
        if self.input.len() >= MAX_REQUEST_BYTES {
            let message = format!("a request has at most {MAX_REQUEST_BYTES} bytes, its line feed included");
            return self.refuse(Refusal::new(Reason::Malformed, message));
        }
        self.write()
    }

    /// Sends as much as the client takes.
    pub(super) fn write(&mut self) -> Fate {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Fate::Stays,
                Err(_) => return Fate::Gone,
            }
        }
        if self.ending { Fate::Gone } else { Fate::Stays }
    }

    fn answer(&mut self, response: &Response) {
        // Values without maps of odd keys always become JSON.
        if let Ok(mut line) = serde_json::to_vec(response) {
            line.push(b'\n');
            self.output.extend(line);
        }
    }
}
