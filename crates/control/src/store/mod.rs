//! What the manager must not forget: one transactional file.
//!
//! Promises:
//! - a change is there as a whole or not at all, whatever happens to the process; once [`Store::write`] has returned, it
//!   survives the loss of power;
//! - events are written with the change that they tell of, and numbered without gaps;
//! - a disk that fails for a while, such as a full one, fails the changes of that while: the next ones begin from the file
//!   as it is;
//! - one daemon uses a store at a time, and a store of a newer version is refused, each with a sentence.
//!
//! Values are JSON: a field that an older version did not write has its default, so that a store outlives a version.
//!
//! ```text
//! $QUEZTL_HOME/manager.redb    the tables of `tables`
//! $QUEZTL_HOME/daemon.lock     held while a daemon runs; its process number
//! ```

mod lock;
mod tables;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use queztl_api::{Code, Event, EventKind, Problem, Timestamp};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use lock::Lock;
pub(crate) use tables::{
    AGREED, ALERTS, Answered, BENCHMARKS, IDEMPOTENCY, IMAGES, INVITATIONS, LAYERS, OPERATIONS, SNAPSHOTS, TOKENS,
    Table, VM_NAMES, VMS,
};

/// The version of what is in the tables.
const SCHEMA: u64 = 1;
/// Events that are kept; older ones are dropped.
const MAX_EVENTS: u64 = 10_000;
/// Most events that are read at once.
pub(crate) const EVENT_BATCH: usize = 256;
/// Memory for pages of the file; what is asked for most is kept by the manager itself.
const CACHE_BYTES: usize = 8 << 20;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");
/// Samples by machine and time; see [`crate::metrics`].
const HISTORY: TableDefinition<(&str, i64), &[u8]> = TableDefinition::new("history");

/// Why there is no store, or why it has not done what it should.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path:?} cannot be used as the home of virtual machines: {source}")]
    Home { path: PathBuf, source: std::io::Error },
    #[error("a daemon, process {pid}, serves {home:?} already: use that one, stop it first, or set QUEZTL_HOME")]
    InUse { home: PathBuf, pid: String },
    #[error("{path:?} is a store of version {found}, and this program knows version {SCHEMA}: use the newer program")]
    Newer { path: PathBuf, found: u64 },
    #[error("the store {path:?} cannot be opened: {source}; if it is damaged, put back a copy of it")]
    Open { path: PathBuf, source: Box<redb::Error> },
    #[error("the store {path:?} is damaged: put back a copy of it, or move it away to begin without machines")]
    Damaged { path: PathBuf },
    #[error("the store failed: {0}; is the disk full?")]
    Failed(Box<redb::Error>),
    #[error("the store holds something that is not understood ({0}): was it written by another version?")]
    Content(serde_json::Error),
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        let code = if matches!(error, StoreError::Failed(_)) { Code::Host } else { Code::Internal };
        Problem::new(code, error.to_string())
    }
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> StoreError {
        StoreError::Failed(Box::new(error.into()))
    }
}

type Result<T> = std::result::Result<T, StoreError>;

/// Opens a file whose checksums are right; gives the number of the last event, too.
fn open_whole(path: &Path) -> Result<(Database, u64)> {
    let failed = |error: redb::Error| StoreError::Open { path: path.to_path_buf(), source: Box::new(error) };
    let mut database =
        Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| failed(error.into()))?;
    // What is wrong after a crash is put right by this; only what cannot be is an error.
    database.check_integrity().map_err(|error| failed(error.into()))?;
    let last = prepare(&database, path)?;
    Ok((database, last))
}

/// [`open_whole`] for files that somebody else may have written: the library takes what it finds in a file for what it has
/// written, and panics where it is not.
fn open_any(path: &Path) -> Result<(Database, u64)> {
    let opened = std::panic::catch_unwind(|| open_whole(path));
    opened.unwrap_or_else(|_| Err(StoreError::Damaged { path: path.to_path_buf() }))
}

/// The store. Its calls wait for the disk: for threads that may wait.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// `None` after an attempt to open it again that has failed.
    database: RwLock<Option<Database>>,
    /// One writer at a time, and events told of in their order.
    writing: Mutex<()>,
    last_event: watch::Sender<u64>,
    _lock: Lock,
}

impl Store {
    /// Opens the store in `home`, which is made if it is not there.
    pub fn open(home: &Path) -> Result<Store> {
        let failed = |source| StoreError::Home { path: home.to_path_buf(), source };
        std::fs::create_dir_all(home).map_err(failed)?;
        let lock = Lock::take(home)?;
        let path = home.join("manager.redb");
        let (database, last) = open_any(&path)?;
        let database = RwLock::new(Some(database));
        Ok(Store { path, database, writing: Mutex::new(()), last_event: watch::Sender::new(last), _lock: lock })
    }

    /// Opens the file anew: after an error of the disk the library wants nothing more to do with it.
    fn open_again(&self) -> Result<()> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.as_ref().is_some_and(|database| database.begin_write().is_ok()) {
            // Somebody else was faster.
            return Ok(());
        }
        // The file is locked as long as it is open.
        drop(database.take());
        let (opened, last) = open_any(&self.path)?;
        *database = Some(opened);
        // What was on its way when the disk failed may be there after all.
        self.last_event.send_if_modified(|known| std::mem::replace(known, last) != last);
        Ok(())
    }

    /// Reads; once more if the file had to be opened anew.
    fn read<T>(&self, read: impl Fn(&redb::ReadTransaction) -> Result<T>) -> Result<T> {
        let attempt = || {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            let database = database.as_ref().ok_or(redb::Error::PreviousIo)?;
            read(&database.begin_read()?)
        };
        match attempt() {
            Err(StoreError::Failed(error)) if matches!(*error, redb::Error::PreviousIo) => {
                self.open_again()?;
                attempt()
            }
            result => result,
        }
    }

    /// Begins changes, and hands them over; whoever calls has `writing`.
    fn begin<T, E: From<StoreError>>(
        &self,
        change: impl FnOnce(redb::WriteTransaction) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let attempt = || {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            let begun =
                database.as_ref().ok_or(redb::Error::PreviousIo).and_then(|database| Ok(database.begin_write()?));
            begun.map(|transaction| (database, transaction))
        };
        let begun = match attempt() {
            Err(redb::Error::PreviousIo) => {
                self.open_again()?;
                attempt()
            }
            begun => begun,
        };
        let (_database, transaction) = begun.map_err(StoreError::from)?;
        change(transaction)
    }

    /// Carries out changes as one. Nothing of it happens if `change` gives an error.
    pub fn write<T>(
        &self,
        change: impl FnOnce(&mut Change<'_>) -> std::result::Result<T, Problem>,
    ) -> std::result::Result<T, Problem> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.begin(|transaction| {
            let mut change_in = Change { transaction: &transaction, last_event: *self.last_event.borrow() };
            let result = change(&mut change_in)?;
            let last = change_in.last_event;
            transaction.commit().map_err(StoreError::from)?;
            self.last_event.send_if_modified(|known| std::mem::replace(known, last) != last);
            Ok(result)
        })
    }

    /// The same for changes that only the store can refuse.
    pub fn change<T>(&self, change: impl FnOnce(&mut Change<'_>) -> Result<T>) -> Result<T> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.begin(|transaction| {
            let mut change_in = Change { transaction: &transaction, last_event: *self.last_event.borrow() };
            let result = change(&mut change_in)?;
            let last = change_in.last_event;
            transaction.commit()?;
            self.last_event.send_if_modified(|known| std::mem::replace(known, last) != last);
            Ok(result)
        })
    }

    pub fn get<V: DeserializeOwned>(&self, table: Table<V>, key: &str) -> Result<Option<V>> {
        self.read(|transaction| {
            let table = transaction.open_table(table.definition())?;
            table.get(key)?.map(|value| decode(value.value())).transpose()
        })
    }

    /// All entries in the order of their keys.
    pub fn list<V: DeserializeOwned>(&self, table: Table<V>) -> Result<Vec<(String, V)>> {
        self.list_with(table, "")
    }

    /// The entries whose keys begin so, in the order of their keys.
    pub fn list_with<V: DeserializeOwned>(&self, table: Table<V>, prefix: &str) -> Result<Vec<(String, V)>> {
        self.read(|transaction| collect(&transaction.open_table(table.definition())?, prefix))
    }

    /// Tells the number of the last event.
    pub fn watch_events(&self) -> watch::Receiver<u64> {
        self.last_event.subscribe()
    }

    /// Up to [`EVENT_BATCH`] events from number `from` on.
    pub fn events_from(&self, from: u64) -> Result<Vec<Event>> {
        self.read(|transaction| {
            let table = transaction.open_table(EVENTS)?;
            table.range(from..)?.take(EVENT_BATCH).map(|entry| decode(entry?.1.value())).collect()
        })
    }

    /// The last events, at most so many, oldest first.
    pub fn last_events(&self, limit: usize) -> Result<Vec<Event>> {
        self.read(|transaction| {
            let table = transaction.open_table(EVENTS)?;
            let last = table.iter()?.rev().take(limit).map(|entry| decode(entry?.1.value()));
            let mut events = last.collect::<Result<Vec<Event>>>()?;
            events.reverse();
            Ok(events)
        })
    }

    /// Keeps points of machines' histories, and forgets those before `oldest_ms`. Lost points are no harm: this does not
    /// wait for the disk.
    pub fn add_history(&self, points: &[(String, i64, Vec<u8>)], oldest_ms: i64) -> Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.begin(|mut transaction| {
            transaction.set_durability(redb::Durability::None)?;
            {
                let mut table = transaction.open_table(HISTORY)?;
                for (vm, at_ms, point) in points {
                    table.insert((vm.as_str(), *at_ms), point.as_slice())?;
                    let old: Vec<i64> = table
                        .range((vm.as_str(), i64::MIN)..(vm.as_str(), oldest_ms))?
                        .map(|entry| Ok(entry?.0.value().1))
                        .collect::<Result<_>>()?;
                    for at_ms in old {
                        table.remove((vm.as_str(), at_ms))?;
                    }
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// A machine's points between two times in milliseconds, both included.
    pub fn history(&self, vm: &str, from_ms: i64, to_ms: i64) -> Result<Vec<(i64, Vec<u8>)>> {
        if from_ms > to_ms {
            return Ok(Vec::new());
        }
        self.read(|transaction| {
            let table = transaction.open_table(HISTORY)?;
            let points = table.range((vm, from_ms)..=(vm, to_ms))?;
            points
                .map(|entry| {
                    let (key, value) = entry?;
                    Ok((key.value().1, value.value().to_vec()))
                })
                .collect()
        })
    }
}

/// Changes in the making.
pub(crate) struct Change<'a> {
    transaction: &'a redb::WriteTransaction,
    last_event: u64,
}

impl Change<'_> {
    pub fn get<V: DeserializeOwned>(&self, table: Table<V>, key: &str) -> Result<Option<V>> {
        let table = self.transaction.open_table(table.definition())?;
        table.get(key)?.map(|value| decode(value.value())).transpose()
    }

    pub fn list_with<V: DeserializeOwned>(&self, table: Table<V>, prefix: &str) -> Result<Vec<(String, V)>> {
        let table = self.transaction.open_table(table.definition())?;
        collect(&table, prefix)
    }

    pub fn count<V>(&self, table: Table<V>) -> Result<usize> {
        let count = self.transaction.open_table(table.definition())?.len()?;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    pub fn put<V: Serialize>(&mut self, table: Table<V>, key: &str, value: &V) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(StoreError::Content)?;
        self.transaction.open_table(table.definition())?.insert(key, bytes.as_slice())?;
        Ok(())
    }

    pub fn remove<V>(&mut self, table: Table<V>, key: &str) -> Result<()> {
        self.transaction.open_table(table.definition())?.remove(key)?;
        Ok(())
    }

    /// Tells of the change, once it has happened.
    pub fn event(&mut self, kind: EventKind, message: impl Into<String>) -> Result<()> {
        let sequence = self.last_event + 1;
        let event = Event { sequence, at: Timestamp::now(), kind, message: message.into() };
        let bytes = serde_json::to_vec(&event).map_err(StoreError::Content)?;
        let mut table = self.transaction.open_table(EVENTS)?;
        table.insert(sequence, bytes.as_slice())?;
        if table.len()? > MAX_EVENTS {
            table.pop_first()?;
        }
        self.last_event = sequence;
        Ok(())
    }

    /// Forgets a machine's history.
    pub fn forget_history(&mut self, vm: &str) -> Result<()> {
        let mut table = self.transaction.open_table(HISTORY)?;
        table.retain_in((vm, i64::MIN)..=(vm, i64::MAX), |_, _| false)?;
        Ok(())
    }
}

/// Makes the tables, checks the version, and gives the number of the last event.
fn prepare(database: &Database, path: &Path) -> Result<u64> {
    let transaction = database.begin_write()?;
    let last = {
        let mut meta = transaction.open_table(META)?;
        let found = meta.get("schema")?.map(|value| value.value());
        match found {
            None => drop(meta.insert("schema", SCHEMA)?),
            Some(SCHEMA) => {}
            Some(found) => return Err(StoreError::Newer { path: path.to_path_buf(), found }),
        }
        tables::make(&transaction)?;
        transaction.open_table(HISTORY)?;
        let events = transaction.open_table(EVENTS)?;
        events.last()?.map_or(0, |(sequence, _)| sequence.value())
    };
    transaction.commit()?;
    Ok(last)
}

fn collect<V: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    prefix: &str,
) -> Result<Vec<(String, V)>> {
    let mut found = Vec::new();
    for entry in table.range(prefix..)? {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        found.push((key.value().to_owned(), decode(value.value())?));
    }
    Ok(found)
}

fn decode<V: DeserializeOwned>(bytes: &[u8]) -> Result<V> {
    serde_json::from_slice(bytes).map_err(StoreError::Content)
}
