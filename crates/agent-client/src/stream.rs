//! One file as a stream of bytes, to or from a guest: for callers that have no file of the host for it.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::time::SystemTime;

use queztl_agent_protocol::{Entry, EntryKind, MAX_DATA_BYTES, Message, RelativePath, Time, features, stream};

use crate::{Agent, Error};

/// A file of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileInfo {
    pub size_bytes: u64,
    /// Permission bits, at most 0o777: others mean nothing outside of the guest.
    pub mode: u16,
}

impl Agent {
    /// Reads the regular file at `source` in the guest, of at most `max_bytes`. `begin` is told what comes and says where
    /// it goes; exactly so many bytes are written there.
    ///
    /// # Errors
    /// [`Error::NoFile`] for what is no regular file, [`Error::TooLarge`]; [`Error::Output`] when `begin` or the writer
    /// fails. The session has ended after an error that was not the guest's.
    pub fn read_file<W: Write>(
        &mut self,
        source: &OsStr,
        max_bytes: u64,
        begin: impl FnOnce(FileInfo) -> io::Result<W>,
    ) -> Result<FileInfo, Error> {
        self.need(features::FILES)?;
        self.link.sender.send(&Message::Get { path: source.as_bytes().to_vec() })?;
        let result = self.take_file(max_bytes, begin);
        if result.as_ref().is_err_and(|error| !matches!(error, Error::Guest(_))) {
            // The guest goes on sending; there is no other way to tell it.
            self.link.sender.close();
        }
        result
    }

    fn take_file<W: Write>(
        &mut self,
        max_bytes: u64,
        begin: impl FnOnce(FileInfo) -> io::Result<W>,
    ) -> Result<FileInfo, Error> {
        let info = match self.link.receive()? {
            Message::Entry(Entry { kind: EntryKind::File { size }, mode, .. }) => {
                FileInfo { size_bytes: size, mode: mode & 0o777 }
            }
            Message::Entry(_) => return Err(Error::NoFile),
            Message::Error(fault) => return Err(Error::Guest(fault)),
            _ => return Err(Error::unexpected("no answer to a request for a file")),
        };
        if info.size_bytes > max_bytes {
            return Err(Error::TooLarge { size: info.size_bytes, most: max_bytes });
        }
        let mut writer = begin(info).map_err(Error::Output)?;
        let mut left = info.size_bytes;
        loop {
            match self.link.receive()? {
                Message::Data { stream: stream::FILE, bytes } => {
                    let count = bytes.len() as u64;
                    left = left.checked_sub(count).ok_or_else(|| Error::unexpected("more bytes than the file has"))?;
                    writer.write_all(&bytes).map_err(Error::Output)?;
                }
                Message::End { stream: stream::FILE } if left == 0 => break,
                Message::Error(fault) => return Err(Error::Guest(fault)),
                _ => return Err(Error::unexpected("what is no part of a file")),
            }
        }
        self.done()?;
        writer.flush().map_err(Error::Output)?;
        Ok(info)
    }

    /// Writes `info.size_bytes` bytes of the reader to the file at `destination` in the guest, which appears complete or
    /// not at all.
    ///
    /// # Errors
    /// [`Error::Guest`] when the guest refuses; [`Error::Input`] when the reader fails or has less.
    pub fn write_file(&mut self, destination: &OsStr, info: FileInfo, mut reader: impl Read) -> Result<(), Error> {
        self.need(features::FILES)?;
        let root = RelativePath::new(b"").map_err(Error::Request)?;
        let entry = Entry {
            path: root,
            mode: info.mode & 0o7777,
            modified: now(),
            kind: EntryKind::File { size: info.size_bytes },
        };
        self.link.sender.send(&Message::Put { path: destination.as_bytes().to_vec(), name: Vec::new() })?;
        self.link.sender.send(&Message::Entry(entry))?;
        let mut left = info.size_bytes;
        let mut buffer = vec![0; MAX_DATA_BYTES];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let room = buffer.get_mut(..most).unwrap_or_default();
            let count = match reader.read(room) {
                Ok(0) => return Err(self.give_up(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.give_up(error)),
            };
            match self.link.try_receive()? {
                None => {}
                Some(Message::Error(fault)) => {
                    self.link.sender.send(&Message::End { stream: stream::FILE })?;
                    return Err(Error::Guest(fault));
                }
                Some(_) => return Err(Error::unexpected("an answer before the end of a file")),
            }
            let bytes = buffer.get(..count).unwrap_or_default().to_vec();
            self.link.sender.send(&Message::Data { stream: stream::FILE, bytes })?;
            left = left.saturating_sub(count as u64);
        }
        self.link.sender.send(&Message::End { stream: stream::FILE })?;
        self.done().map(drop)
    }

    /// Ends the session in the middle of a file, which the guest then removes.
    fn give_up(&self, error: io::Error) -> Error {
        self.link.sender.close();
        Error::Input(error)
    }
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Time { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanoseconds: since.subsec_nanos() }
}
