//! `console.log`: what the console said, in two files of bounded size.
//!
//! The thread that writes it opens nothing: both files are open from the start, and change names when one is full.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// The two files.
#[derive(Debug)]
pub(super) struct Record {
    paths: [PathBuf; 2],
    present: File,
    past: File,
    present_bytes: u64,
    limit_bytes: u64,
    failed: bool,
}

impl Record {
    /// Goes on at the end of the file at `path`; `old_path` is where it goes once it has `limit_bytes`.
    pub fn open(path: &Path, old_path: &Path, limit_bytes: u64) -> io::Result<Record> {
        let open = |path: &Path| File::options().append(true).create(true).open(path);
        let (present, past) = (open(path)?, open(old_path)?);
        let present_bytes = present.metadata()?.len();
        let paths = [path.to_path_buf(), old_path.to_path_buf()];
        Ok(Record { paths, present, past, present_bytes, limit_bytes, failed: false })
    }

    /// Appends bytes. What cannot be written is lost, which is told once.
    pub fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.limit_bytes.saturating_sub(self.present_bytes);
            let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            let result = self.present.write_all(now).and_then(|()| {
                self.present_bytes += now.len() as u64;
                if later.is_empty() { Ok(()) } else { self.turn() }
            });
            if let Err(error) = result {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!("a part of the console's output is missing in {:?}: {error}", self.paths[0]);
                }
                return;
            }
            bytes = later;
        }
        self.failed = false;
    }

    /// The full file becomes the old one, and what was the old one starts anew.
    fn turn(&mut self) -> io::Result<()> {
        let [path, old_path] = &self.paths;
        match renameat_with(CWD, path, CWD, old_path, RenameFlags::EXCHANGE) {
            Ok(()) => std::mem::swap(&mut self.present, &mut self.past),
            // A file system that cannot do that, or a file that somebody took away: one file has to do.
            Err(error) => tracing::debug!(%error, "the console's files cannot change names"),
        }
        self.present.set_len(0)?;
        self.present_bytes = 0;
        Ok(())
    }
}
