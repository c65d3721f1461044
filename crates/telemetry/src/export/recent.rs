//! The last messages of the log and the last lines of the audit, for those who look.
//!
//! Kept apart, so that a talkative log does not push the audit out; bounded, and gone with the daemon: what must last is in
//! its log file, or at a collector.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use queztl_api::{LogLevel, LogRecord, Timestamp};

use super::{Level, Record};

/// Records of each kind that are kept.
const KEPT: usize = 2000;

#[derive(Debug, Default)]
struct Recent {
    number: u64,
    log: VecDeque<(u64, Arc<Record>)>,
    audit: VecDeque<(u64, Arc<Record>)>,
}

static RECENT: Mutex<Recent> = Mutex::new(Recent { number: 0, log: VecDeque::new(), audit: VecDeque::new() });

fn lock() -> MutexGuard<'static, Recent> {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn keep(record: &Record) {
    let mut recent = lock();
    recent.number += 1;
    let number = recent.number;
    let queue = if record.is_audit() { &mut recent.audit } else { &mut recent.log };
    queue.push_back((number, Arc::new(record.clone())));
    if queue.len() > KEPT {
        queue.pop_front();
    }
}

/// The last messages of the log that the [`super::Layer`] has heard, oldest first.
pub fn log() -> Vec<LogRecord> {
    let kept = lock().log.clone();
    kept.iter().map(|(number, record)| told(*number, record)).collect()
}

/// The last lines of the audit, oldest first.
pub fn audit() -> Vec<LogRecord> {
    let kept = lock().audit.clone();
    kept.iter().map(|(number, record)| told(*number, record)).collect()
}

fn told(number: u64, record: &Record) -> LogRecord {
    LogRecord {
        number,
        at: Timestamp::from_nanosecond(record.at_ns.into()).unwrap_or(Timestamp::UNIX_EPOCH),
        level: match record.level {
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error => LogLevel::Error,
        },
        target: record.target.clone(),
        message: record.message.clone(),
        fields: record.fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn record(target: &str, message: &str) -> Record {
        let (message, target) = (message.to_owned(), target.to_owned());
        Record { at_ns: 1_000_000_000, level: Level::Warn, target, message, fields: BTreeMap::new() }
    }

    #[test]
    fn a_talkative_log_leaves_the_audit_alone_and_is_itself_bounded() {
        keep(&record(super::super::AUDIT, "who did what"));
        (0..KEPT + 10).for_each(|number| keep(&record("part", &format!("message {number}"))));

        let (log, audit) = (log(), audit());
        assert_eq!(log.len(), KEPT);
        assert!(log.is_sorted_by_key(|record| record.number));
        assert_eq!(log.last().unwrap().message, format!("message {}", KEPT + 9));
        assert!(audit.iter().any(|record| record.message == "who did what" && record.level == LogLevel::Warn));
    }
}
