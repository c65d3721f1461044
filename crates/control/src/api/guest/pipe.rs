//! Between threads that wait and tasks that do not.

use std::io::{self, Read, Write};

use axum::body::Bytes;
use tokio::sync::mpsc;

/// Bytes of one of several streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub stream: u8,
    pub bytes: Bytes,
}

/// Writes into a channel, and waits where it is full.
#[derive(Debug)]
pub struct ToTask {
    pub stream: u8,
    pub channel: mpsc::Sender<Chunk>,
}

impl Write for ToTask {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = Chunk { stream: self.stream, bytes: Bytes::copy_from_slice(bytes) };
        self.channel.blocking_send(chunk).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads out of a channel, and waits where it is empty.
#[derive(Debug)]
pub struct FromTask {
    channel: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl FromTask {
    pub fn new(channel: mpsc::Receiver<io::Result<Bytes>>) -> FromTask {
        FromTask { channel, rest: Bytes::new() }
    }
}

impl Read for FromTask {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.channel.blocking_recv() {
                Some(bytes) => self.rest = bytes?,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(room.len());
        let bytes = self.rest.split_to(count);
        room.get_mut(..count).unwrap_or_default().copy_from_slice(&bytes);
        Ok(count)
    }
}

/// Keeps the beginning and forgets the rest.
#[derive(Debug)]
pub struct Beginning {
    pub bytes: Vec<u8>,
    most: usize,
    pub truncated: bool,
}

impl Beginning {
    pub fn new(most: usize) -> Beginning {
        Beginning { bytes: Vec::new(), most, truncated: false }
    }
}

impl Write for Beginning {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.most.saturating_sub(self.bytes.len());
        self.bytes.extend(bytes.iter().take(room));
        self.truncated |= bytes.len() > room;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_is_kept_and_the_cut_is_told() {
        let mut exact = Beginning::new(4);
        exact.write_all(b"ab").unwrap();
        exact.write_all(b"cd").unwrap();
        assert_eq!((exact.bytes.as_slice(), exact.truncated), (&b"abcd"[..], false));

        exact.write_all(b"e").unwrap();

        assert_eq!((exact.bytes.as_slice(), exact.truncated), (&b"abcd"[..], true));
    }

    #[test]
    fn what_goes_into_a_channel_comes_out_in_pieces_of_any_size() {
        let (send, receive) = mpsc::channel(4);
        for part in [&b"abc"[..], b"", b"defgh"] {
            send.blocking_send(Ok(Bytes::from_static(part))).unwrap();
        }
        drop(send);
        let mut text: Vec<u8> = Vec::new();

        let mut reader = FromTask::new(receive);
        let mut two = [0; 2];
        loop {
            let count = reader.read(&mut two).unwrap();
            if count == 0 {
                break;
            }
            text.extend_from_slice(&two[..count]);
        }

        assert_eq!(text, *b"abcdefgh");
    }
}
