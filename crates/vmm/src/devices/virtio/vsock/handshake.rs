//! The line with which a program of the host says which port of the guest it wants: `CONNECT <port>\n`.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

/// Longest line, its end included.
const MAX_LINE_BYTES: usize = 32;

/// A connection of the host that has not said yet where it goes.
pub(super) struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
}

/// What has become of a handshake.
pub(super) enum Progress {
    /// The line is not complete.
    Waiting(Handshake),
    /// Where the connection goes; what follows the line is still in the stream.
    Connect(UnixStream, u32),
    /// No such line; the connection is closed.
    Failed,
}

impl Handshake {
    pub(super) fn new(stream: UnixStream) -> Handshake {
        Handshake { stream, line: Vec::new() }
    }

    /// Reads what has arrived, byte by byte, so that nothing after the line is taken from the stream.
    pub(super) fn advance(mut self) -> Progress {
        let mut byte = [0];
        while self.line.len() < MAX_LINE_BYTES {
            match self.stream.read(&mut byte) {
                Ok(0) => return Progress::Failed,
                Ok(_) => self.line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Waiting(self),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Progress::Failed,
            }
            if byte[0] == b'\n' {
                return match parse_connect(&self.line) {
                    Some(port) => Progress::Connect(self.stream, port),
                    None => Progress::Failed,
                };
            }
        }
        Progress::Failed
    }
}

/// The port that the line asks for.
pub fn parse_connect(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let port = words.next().filter(|word| word.eq_ignore_ascii_case("connect")).and_then(|_| words.next())?;
    if words.next().is_some() {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connect_line_with_a_port_is_understood() {
        assert_eq!(parse_connect(b"CONNECT 1024\n"), Some(1024));
        assert_eq!(parse_connect(b"connect 4294967295\r\n"), Some(u32::MAX));
        for line in
            [&b"CONNECT\n"[..], b"CONNECT -1\n", b"CONNECT 4294967296\n", b"GET / HTTP\n", b"CONNECT 1 2\n", b"\xff\n"]
        {
            assert_eq!(parse_connect(line), None);
        }
    }
}
