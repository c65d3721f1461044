//! `vmm.log`: what the process has to say, bounded.
//!
//! Lines are appended by whichever thread has something to say, straight to the file, so that the last words of a process
//! are in it. Somebody with the right to do so shortens the file when it has grown ([`LogFile::shorten`]); until that has
//! happened a thread that goes on writing loses its lines, since a guest can make devices complain.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// From this size on the file is shortened.
const LONG_BYTES: u64 = 1 << 20;
/// What is left of it: its last lines.
const KEPT_BYTES: u64 = 256 << 10;
/// From this size on lines are dropped.
const MAX_BYTES: u64 = 2 << 20;

/// The last line of a log that says anything, for a message.
pub fn last_line(path: &Path) -> Option<String> {
    const TAIL_BYTES: u64 = 2048;
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// The log of a process.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    bytes: AtomicU64,
}

impl LogFile {
    /// Opens the log at `path`, to go on at its end.
    pub fn open(path: &Path) -> io::Result<LogFile> {
        let file = File::options().read(true).append(true).create(true).open(path)?;
        let log = LogFile { bytes: AtomicU64::new(file.metadata()?.len()), file };
        log.shorten()?;
        Ok(log)
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Appends lines; gives whether the file should be shortened now.
    pub fn append(&self, lines: &[u8]) -> io::Result<bool> {
        let length = lines.len() as u64;
        let before = self.bytes.fetch_add(length, Ordering::Relaxed);
        if before + length > MAX_BYTES {
            self.bytes.fetch_sub(length, Ordering::Relaxed);
            return Ok(true);
        }
        (&self.file).write_all(lines)?;
        Ok(before + length > LONG_BYTES)
    }

    /// Whether the file has become long.
    pub fn is_long(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > LONG_BYTES
    }

    /// Cuts a long file down to its last lines. Lines that are written meanwhile may be lost.
    pub fn shorten(&self) -> io::Result<()> {
        if !self.is_long() {
            return Ok(());
        }
        let length = self.file.metadata()?.len();
        let start = length.saturating_sub(KEPT_BYTES);
        let mut kept = vec![0; (length - start) as usize];
        self.file.read_exact_at(&mut kept, start)?;
        let first = kept.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.file.set_len(0)?;
        (&self.file).write_all(&kept[first..])?;
        self.bytes.store((kept.len() - first) as u64, Ordering::Relaxed);
        Ok(())
    }
}
