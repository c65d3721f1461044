//! `exit.json`: how a machine ended.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::folder::replace;
use crate::config::Outcome;

/// The longest report, or lock file, that is read.
const MAX_BYTES: u64 = 64 << 10;
/// The longest message of a report.
const MAX_MESSAGE_BYTES: usize = 4 << 10;

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// When it started, in clock ticks since the host did (proc(5), field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

impl ProcessId {
    /// This process.
    pub fn own() -> io::Result<ProcessId> {
        ProcessId::of(std::process::id())
    }

    /// The process that has this number now.
    pub fn of(pid: u32) -> io::Result<ProcessId> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in brackets may hold anything; what follows it starts with field 3.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let start_ticks = fields.split_ascii_whitespace().nth(22 - 3).and_then(|ticks| ticks.parse().ok());
        let start_ticks = start_ticks.ok_or_else(|| io::Error::other("the kernel does not tell a process's start"))?;
        Ok(ProcessId { pid, start_ticks })
    }

    /// Whether it still runs (or has ended, and its parent has not asked how).
    pub fn exists(&self) -> bool {
        ProcessId::of(self.pid).is_ok_and(|found| found == *self)
    }
}

/// How a machine ended. It is removed when the machine starts again, under the lock: whoever sees nobody hold the lock
/// ([`super::Folder::runner`]) and then finds no report knows that the process was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// What ended the run; `None` if it failed.
    pub outcome: Option<Outcome>,
    /// The exit status of the process.
    pub status: u8,
    /// Why it failed, a sentence for people.
    #[serde(default)]
    pub message: Option<String>,
    #[serde(flatten)]
    pub process: ProcessId,
    /// When, in milliseconds since 1970.
    pub ended_unix_ms: u64,
}

impl ExitReport {
    /// An end, now. An overlong message is cut.
    pub fn now(outcome: Option<Outcome>, status: u8, message: Option<String>, process: ProcessId) -> ExitReport {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let message = message.map(|mut text| {
            text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES));
            text
        });
        let ended_unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        ExitReport { outcome, status, message, process, ended_unix_ms }
    }

    /// Writes the report in one step: it is there as a whole or not at all.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace(path, &serde_json::to_vec(self)?)
    }

    /// Reads a report; `None` if there is none.
    pub fn read(path: &Path) -> io::Result<Option<ExitReport>> {
        match read_bounded(path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut text)?;
    Ok(text)
}
