//! Makes a tree from messages.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use queztl_agent_protocol::{Entry, EntryKind, RelativePath, Summary, Time};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, futimens, mkdirat, openat, renameat,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::Error;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What becomes of symbolic links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// All are made as they are.
    All,
    /// Only those are made that lead to somewhere in the copied tree; others are counted as skipped.
    Inside,
}

/// What a receiver takes.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Permission bits that are kept.
    pub mode_mask: u16,
    pub links: Links,
    pub max_bytes: u64,
    pub max_entries: u64,
}

impl Policy {
    /// For a sender that is trusted, such as the host for its guest.
    pub const TRUSTING: Policy =
        Policy { mode_mask: 0o7777, links: Links::All, max_bytes: u64::MAX, max_entries: u64::MAX };
    /// For a sender that may be hostile: no set-user-ID, no links that lead out, and at most 64 GiB in a million entries.
    pub const WARY: Policy =
        Policy { mode_mask: 0o777, links: Links::Inside, max_bytes: 64 << 30, max_entries: 1_000_000 };
}

/// Makes a tree at its destination, entry by entry.
#[derive(Debug)]
pub struct Receiver {
    policy: Policy,
    destination: PathBuf,
    /// What the tree is called if `destination` is a directory.
    name: OsString,
    place: Place,
    file: Option<Open>,
    /// Directories that were made here; their modes and times are set last, since entries are still to come.
    made: Vec<(RelativePath, u16, Time)>,
    /// The directory that was opened last.
    last: Option<(RelativePath, OwnedFd)>,
    announced_bytes: u64,
    summary: Summary,
}

/// Where the tree goes.
#[derive(Debug)]
enum Place {
    /// Not known before the first entry.
    Unknown,
    /// The root is no directory and complete with its own data.
    Single,
    /// The root is this directory.
    Tree(OwnedFd),
}

/// A file being written.
#[derive(Debug)]
struct Open {
    file: OwnedFd,
    temporary: Temporary,
    target: OsString,
    shown: String,
    left: u64,
    mode: u16,
    modified: Time,
}

/// A name that is removed again unless it was renamed.
#[derive(Debug)]
struct Temporary {
    directory: OwnedFd,
    name: OsString,
    kept: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing more can be done about a file that cannot be removed.
            let _ = unlinkat(&self.directory, &self.name, AtFlags::empty());
        }
    }
}

impl Receiver {
    /// A tree that becomes `destination`, or `name` in it if it is a directory.
    ///
    /// Both come from whoever asked for the copy, never from its sender. A `name` that is none (`/`, `..`) stands for the
    /// directory itself.
    pub fn new(destination: &Path, name: &OsStr, policy: Policy) -> Receiver {
        let name = Path::new(name).file_name().unwrap_or_default().to_owned();
        Receiver {
            policy,
            destination: destination.to_owned(),
            name,
            place: Place::Unknown,
            file: None,
            made: Vec::new(),
            last: None,
            announced_bytes: 0,
            summary: Summary::default(),
        }
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// [`Error`]; the receiver is of no more use then.
    pub fn entry(&mut self, entry: &Entry) -> Result<(), Error> {
        if self.file.is_some() {
            return Err(Error::Peer("an entry before the end of a file"));
        }
        self.count(entry)?;
        match (&self.place, entry.path.is_root()) {
            (Place::Unknown, true) => self.root(entry),
            (Place::Unknown, false) => Err(Error::Peer("an entry before its root")),
            (Place::Tree(_), false) => self.below(entry),
            _ => Err(Error::Peer("more than one root")),
        }
    }

    fn count(&mut self, entry: &Entry) -> Result<(), Error> {
        if self.summary.entries + self.summary.skipped >= self.policy.max_entries {
            return Err(Error::Entries(self.policy.max_entries));
        }
        if let EntryKind::File { size } = entry.kind {
            let sum = self.announced_bytes.checked_add(size).filter(|sum| *sum <= self.policy.max_bytes);
            self.announced_bytes = sum.ok_or(Error::Bytes(self.policy.max_bytes))?;
        }
        self.summary.entries += 1;
        Ok(())
    }

    fn root(&mut self, entry: &Entry) -> Result<(), Error> {
        // Nothing that a root could lead to is in its tree.
        if matches!(entry.kind, EntryKind::Link { .. }) {
            return Err(Error::Peer("a link in the place of the root"));
        }
        let mut target = self.destination.clone();
        if target.is_dir() && !self.name.is_empty() {
            target.push(&self.name);
        }
        let shown = target.display().to_string();
        let name = target.file_name().map(OsStr::to_owned);
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if entry.kind == EntryKind::Directory {
            let made = make_directory(CWD, target.as_os_str(), &shown)?;
            if made {
                self.made.push((RelativePath::default(), entry.mode, entry.modified));
            }
            let directory = openat(CWD, &target, DIRECTORY, Mode::empty()).map_err(Error::io("open", &shown))?;
            self.place = Place::Tree(directory);
            return Ok(());
        }
        let name = name.ok_or(Error::Kind(target.clone()))?;
        let directory = openat(CWD, parent, DIRECTORY, Mode::empty()).map_err(Error::io("open", parent.display()))?;
        self.place = Place::Single;
        self.make(directory, &name, shown, 0, entry)
    }

    fn below(&mut self, entry: &Entry) -> Result<(), Error> {
        let (parent, name) = entry.path.split().ok_or(Error::Peer("an entry without a name"))?;
        let shown = self.destination.join(OsStr::from_bytes(entry.path.as_bytes())).display().to_string();
        let directory = self.open(&parent)?;
        let directory = directory.try_clone_to_owned().map_err(|_| Errno::MFILE).map_err(Error::io("open", &shown))?;
        if entry.kind == EntryKind::Directory {
            if make_directory(directory.as_fd(), name, &shown)? {
                self.made.push((entry.path.clone(), entry.mode, entry.modified));
            }
            return Ok(());
        }
        self.make(directory, name, shown, parent.parts().count(), entry)
    }

    /// Opens a directory of the tree component by component, following no link.
    fn open(&mut self, path: &RelativePath) -> Result<BorrowedFd<'_>, Error> {
        let Place::Tree(root) = &self.place else { return Err(Error::Peer("an entry before its root")) };
        if path.is_root() {
            return Ok(root.as_fd());
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let mut directory: Option<OwnedFd> = None;
            for part in path.parts() {
                let from = directory.as_ref().map_or(root.as_fd(), AsFd::as_fd);
                let next = openat(from, part, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
                directory = Some(next.map_err(Error::io("open", path.display()))?);
            }
            self.last = directory.map(|directory| (path.clone(), directory));
        }
        let last = self.last.as_ref().ok_or(Error::Peer("an entry without a directory"))?;
        Ok(last.1.as_fd())
    }

    /// Makes a link, or begins a file, at `name` in `directory`, which is `depth` directories below the root.
    fn make(
        &mut self,
        directory: OwnedFd,
        name: &OsStr,
        shown: String,
        depth: usize,
        entry: &Entry,
    ) -> Result<(), Error> {
        match &entry.kind {
            EntryKind::Directory => Err(Error::Peer("a directory in the place of a file")),
            EntryKind::File { size } => {
                let (file, temporary) = create(directory, &shown)?;
                let (mode, modified) = (entry.mode & self.policy.mode_mask, entry.modified);
                let target = name.to_owned();
                self.file = Some(Open { file, temporary, target, shown, left: *size, mode, modified });
                if *size == 0 { self.complete() } else { Ok(()) }
            }
            EntryKind::Link { target } => {
                if self.policy.links == Links::Inside && !stays_inside(target, depth) {
                    self.summary.entries -= 1;
                    self.summary.skipped += 1;
                    return Ok(());
                }
                make_link(directory, OsStr::from_bytes(target), name, entry.modified, &shown)
            }
        }
    }

    /// Takes bytes of the file whose entry came last.
    ///
    /// # Errors
    /// As [`Receiver::entry`].
    pub fn data(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        let open = self.file.as_mut().ok_or(Error::Peer("data that belong to no file"))?;
        let count = bytes.len() as u64;
        open.left = open.left.checked_sub(count).ok_or(Error::Peer("more data than it announced"))?;
        while !bytes.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&open.file, bytes));
            let written = written.map_err(Error::io("write", &open.shown))?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        self.summary.bytes += count;
        if open.left == 0 { self.complete() } else { Ok(()) }
    }

    /// Gives the finished file its mode, time and name.
    fn complete(&mut self) -> Result<(), Error> {
        let Some(mut open) = self.file.take() else { return Ok(()) };
        fchmod(&open.file, Mode::from_raw_mode(open.mode.into())).map_err(Error::io("set the mode of", &open.shown))?;
        futimens(&open.file, &times(open.modified)).map_err(Error::io("set the time of", &open.shown))?;
        open.temporary.rename(&open.target, &open.shown)
    }

    /// Ends the tree: directories get their modes and times.
    ///
    /// # Errors
    /// As [`Receiver::entry`]; [`Error::Peer`] when something is missing.
    pub fn finish(mut self) -> Result<Summary, Error> {
        if self.file.is_some() {
            return Err(Error::Peer("less data than it announced"));
        }
        if matches!(self.place, Place::Unknown) {
            return Err(Error::Peer("nothing"));
        }
        // From the leaves to the root: a mode may close the way.
        while let Some((path, mode, modified)) = self.made.pop() {
            let mode = Mode::from_raw_mode((mode & self.policy.mode_mask).into());
            let directory = self.open(&path)?;
            futimens(directory, &times(modified)).map_err(Error::io("set the time of", path.display()))?;
            fchmod(directory, mode).map_err(Error::io("set the mode of", path.display()))?;
        }
        Ok(self.summary)
    }
}

impl Temporary {
    fn rename(&mut self, target: &OsStr, shown: &str) -> Result<(), Error> {
        renameat(&self.directory, &self.name, &self.directory, target).map_err(Error::io("create", shown))?;
        self.kept = true;
        Ok(())
    }
}

/// A name that nobody else uses; one that exists all the same is found by whoever creates it.
fn temporary_name() -> OsString {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    OsString::from(format!(".queztl-{}-{number}.part", rustix::process::getpid().as_raw_nonzero()))
}

fn create(directory: OwnedFd, shown: &str) -> Result<(OwnedFd, Temporary), Error> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        let name = temporary_name();
        match openat(&directory, &name, flags, Mode::from_raw_mode(0o600)) {
            // Left behind by a process with our number that was killed.
            Err(Errno::EXIST) => continue,
            result => {
                let file = result.map_err(Error::io("create", shown))?;
                return Ok((file, Temporary { directory, name, kept: false }));
            }
        }
    }
}

fn make_link(directory: OwnedFd, target: &OsStr, name: &OsStr, modified: Time, shown: &str) -> Result<(), Error> {
    let temporary = loop {
        let temporary = temporary_name();
        match symlinkat(target, &directory, &temporary) {
            Err(Errno::EXIST) => continue,
            result => break result.map(|()| temporary).map_err(Error::io("create", shown))?,
        }
    };
    let mut temporary = Temporary { directory, name: temporary, kept: false };
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    utimensat(&temporary.directory, &temporary.name, &times(modified), flags)
        .map_err(Error::io("set the time of", shown))?;
    temporary.rename(name, shown)
}

/// Makes a directory that its owner can fill; whether it was not there before.
fn make_directory(directory: BorrowedFd<'_>, name: &OsStr, shown: &str) -> Result<bool, Error> {
    match mkdirat(directory, name, Mode::from_raw_mode(0o700)) {
        Ok(()) => Ok(true),
        // If it is something else, opening it as a directory says so.
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(Error::io("create", shown)(error)),
    }
}

fn times(modified: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: modified.seconds, tv_nsec: modified.nanoseconds.into() },
    }
}

/// Whether a link in a directory `depth` levels below the root leads to somewhere in the tree.
///
/// Steps up may only come first: there they go through real directories. After a name, which may be another link, they
/// could leave from wherever that one leads.
fn stays_inside(target: &[u8], depth: usize) -> bool {
    let mut up = 0;
    let mut descending = false;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b".." if descending => return false,
            b".." => up += 1,
            b"" | b"." => {}
            _ => descending = true,
        }
    }
    !target.starts_with(b"/") && up <= depth
}
