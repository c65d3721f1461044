//! Reads a tree into messages.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use queztl_agent_protocol::{
    Entry, EntryKind, MAX_DATA_BYTES, MAX_PATH_BYTES, Message, RelativePath, Summary, Time, stream,
};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::Error;

/// The most that is read of a file that tells no size, as those of procfs.
const MAX_UNSIZED_BYTES: usize = 1 << 20;
/// Opening waits for nothing: not for the writer of a pipe that took a file's place just now.
const OPEN: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Sends the file or directory at `root` through `sink`: entries and data, without a [`Message::End`].
///
/// `root` itself may be a link and is followed. The sink's error ends the walk and is given back.
///
/// # Errors
/// [`Error`], made the sink's error by `From`.
pub fn send<E: From<Error>>(root: &Path, sink: impl FnMut(Message) -> Result<(), E>) -> Result<Summary, E> {
    let file = openat(CWD, root, OPEN, Mode::empty()).map_err(Error::io("read", root.display()))?;
    let stat = fstat(&file).map_err(Error::io("read", root.display()))?;
    let mut sender = Sender { sink, summary: Summary::default(), buffer: Vec::new() };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => sender.file(&file, &stat, RelativePath::default())?,
        FileType::Directory => sender.directory(file, &stat, &RelativePath::default())?,
        _ => return Err(Error::Kind(root.to_owned()).into()),
    }
    Ok(sender.summary)
}

struct Sender<S> {
    sink: S,
    summary: Summary,
    buffer: Vec<u8>,
}

impl<E: From<Error>, S: FnMut(Message) -> Result<(), E>> Sender<S> {
    fn announce(&mut self, path: RelativePath, stat: &Stat, kind: EntryKind) -> Result<(), E> {
        self.summary.entries += 1;
        let mode = (stat.st_mode & 0o7777) as u16;
        // A file system may hold a time that is none; the beginning of time is better than no copy.
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).ok().filter(|n| *n < 1_000_000_000).unwrap_or(0);
        let modified = Time { seconds: stat.st_mtime, nanoseconds };
        (self.sink)(Message::Entry(Entry { path, mode, modified, kind }))
    }

    /// The recursion is as deep as a [`RelativePath`] may be.
    fn directory(&mut self, directory: OwnedFd, stat: &Stat, path: &RelativePath) -> Result<(), E> {
        self.announce(path.clone(), stat, EntryKind::Directory)?;
        for name in names(&directory).map_err(Error::io("list", path.display()))? {
            let child = path.child(name.as_bytes());
            let child = child.map_err(|_| Error::Path(format!("{}/{}", path.display(), name.display())))?;
            match self.child(&directory, &name, &child) {
                // Somebody removed or replaced it since it was listed: it is not there, or not what it was.
                Err(Step::Gone) => {}
                Err(Step::Failed(error)) => return Err(error),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn child(&mut self, directory: &OwnedFd, name: &OsStr, path: &RelativePath) -> Result<(), Step<E>> {
        let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(Step::Gone),
            result => result.map_err(Error::io("read", path.display()))?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = readlinkat(directory, name, Vec::new()).map(CString::into_bytes);
                let target = target.map_err(Error::io("read", path.display()))?;
                if target.is_empty() || target.len() > MAX_PATH_BYTES {
                    self.summary.skipped += 1;
                    return Ok(());
                }
                Ok(self.announce(path.clone(), &stat, EntryKind::Link { target }).map_err(Step::Failed)?)
            }
            FileType::RegularFile | FileType::Directory => {
                let file = openat(directory, name, OPEN | OFlags::NOFOLLOW, Mode::empty());
                let file = file.map_err(Error::io("read", path.display()))?;
                let stat = fstat(&file).map_err(Error::io("read", path.display()))?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile => self.file(&file, &stat, path.clone()).map_err(Step::Failed),
                    FileType::Directory => self.directory(file, &stat, path).map_err(Step::Failed),
                    _ => Err(Step::Gone),
                }
            }
            _ => {
                self.summary.skipped += 1;
                Ok(())
            }
        }
    }

    fn file(&mut self, file: &OwnedFd, stat: &Stat, path: RelativePath) -> Result<(), E> {
        let shown = path.display().to_string();
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size == 0 {
            return self.unsized_file(file, stat, path, &shown);
        }
        self.announce(path, stat, EntryKind::File { size })?;
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(MAX_DATA_BYTES);
            let count = self.read(file, want, &shown)?;
            if count == 0 {
                return Err(Error::Changed(shown).into());
            }
            let bytes = self.buffer.get(..count).unwrap_or_default().to_vec();
            self.data(bytes)?;
            left -= count as u64;
        }
        Ok(())
    }

    /// A file that is empty, or only says so.
    fn unsized_file(&mut self, file: &OwnedFd, stat: &Stat, path: RelativePath, shown: &str) -> Result<(), E> {
        let mut content = Vec::new();
        loop {
            let count = self.read(file, MAX_DATA_BYTES, shown)?;
            if count == 0 {
                break;
            }
            content.extend_from_slice(self.buffer.get(..count).unwrap_or_default());
            if content.len() > MAX_UNSIZED_BYTES {
                return Err(Error::NoSize(shown.to_owned()).into());
            }
        }
        self.announce(path, stat, EntryKind::File { size: content.len() as u64 })?;
        content.chunks(MAX_DATA_BYTES).try_for_each(|chunk| self.data(chunk.to_vec()))
    }

    fn data(&mut self, bytes: Vec<u8>) -> Result<(), E> {
        self.summary.bytes += bytes.len() as u64;
        (self.sink)(Message::Data { stream: stream::FILE, bytes })
    }

    fn read(&mut self, file: &OwnedFd, want: usize, path: &str) -> Result<usize, Error> {
        self.buffer.resize(MAX_DATA_BYTES, 0);
        let room = self.buffer.get_mut(..want).unwrap_or_default();
        rustix::io::retry_on_intr(|| rustix::io::read(file, &mut *room)).map_err(Error::io("read", path))
    }
}

/// How a child was not sent.
enum Step<E> {
    Gone,
    Failed(E),
}

impl<E: From<Error>> From<Error> for Step<E> {
    fn from(error: Error) -> Step<E> {
        match error {
            Error::Io { source: Errno::NOENT | Errno::LOOP, .. } => Step::Gone,
            error => Step::Failed(error.into()),
        }
    }
}

/// Names in the directory, sorted, so that the same tree gives the same messages.
fn names(directory: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory.as_fd())? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok(names)
}
