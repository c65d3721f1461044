//! What is said when memory comes after the machine: the messages, and their checks.
//!
//! ```text
//! SWITCH   {"token":…, "patience_ms":…, "runs":n}  line feed  n × (offset u64, bytes u64)  the state   -> {"made_ns":…}
//! RESUME   {"version":…, "token":…, "stripes":…}                -> {"runs":n}  line feed  n × (offset u64, bytes u64)
//! FAULTS   records of 32 bytes, target to source: kind u64, then three u64
//!          1 the page at this offset is waited for
//!          2 no more pages are needed: page faults served, their median and 99th percentile in nanoseconds
//! PAGES    parcels of `queztl_parallel_transfer`, series 1
//! ```
//! Numbers are little-endian, runs of whole pages, lowest first, none of them touching another's bytes.

use serde::{Deserialize, Serialize};

use super::Error;
use super::wire::{VERSION, decode};

/// Runs that are told of at most; more are joined, so that pages go that need not.
pub(super) const MAX_RUNS: usize = 1 << 16;
/// Of the parcels.
pub(super) const SERIES: u64 = 1;
pub(super) const PAGE: u64 = queztl_guest_memory::PAGE_SIZE;
const RUN_BYTES: usize = 16;
pub(super) const RECORD_BYTES: usize = 32;
/// Digits of a session's token.
const TOKEN_DIGITS: usize = 32;
/// How long a target may wait for a source at the longest.
const MAX_PATIENCE_MS: u64 = 24 * 3600 * 1000;

/// Parts of RAM as (offset, bytes).
pub(crate) type Runs = Vec<(u64, u64)>;

/// By which both ends know each other again after a broken connection.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    pub fn random() -> Result<Token, Error> {
        let mut bytes = [0; TOKEN_DIGITS / 2];
        let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        match filled {
            Ok(count) if count == bytes.len() => Ok(Token(hex::encode(bytes))),
            Ok(_) => Err(Error::Memory(std::io::ErrorKind::UnexpectedEof.into())),
            Err(errno) => Err(Error::Memory(errno.into())),
        }
    }

    /// Takes as long whatever the difference is.
    pub fn is(&self, other: &Token) -> bool {
        let pairs = self.0.bytes().zip(other.0.bytes());
        self.0.len() == other.0.len() && pairs.fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Switch {
    pub token: Token,
    /// How long the target waits for a source that does not come back before it gives the machine up.
    pub patience_ms: u64,
    pub runs: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Resume {
    pub version: u32,
    pub token: Token,
    pub stripes: u32,
}

impl Resume {
    pub fn new(token: &Token, stripes: u32) -> Resume {
        Resume { version: VERSION, token: token.clone(), stripes }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Missing {
    runs: u32,
}

/// What the target says over FAULTS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    Fault(u64),
    Whole(Faults),
}

/// Page faults that were served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub count: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
}

impl Record {
    pub fn encode(self) -> [u8; RECORD_BYTES] {
        let numbers = match self {
            Record::Fault(offset) => [1, offset, 0, 0],
            Record::Whole(Faults { count, p50_ns, p99_ns }) => [2, count, p50_ns, p99_ns],
        };
        let mut bytes = [0; RECORD_BYTES];
        bytes.chunks_exact_mut(8).zip(numbers).for_each(|(place, number)| place.copy_from_slice(&number.to_le_bytes()));
        bytes
    }

    /// Pages lie in RAM of `ram_bytes`.
    pub fn decode(bytes: &[u8; RECORD_BYTES], ram_bytes: u64) -> Result<Record, Error> {
        let [kind, a, b, c] = [0, 1, 2, 3].map(|place| long(&bytes[place * 8..]));
        match kind {
            1 if a.is_multiple_of(PAGE) && a < ram_bytes => Ok(Record::Fault(a)),
            2 => Ok(Record::Whole(Faults { count: a, p50_ns: b, p99_ns: c })),
            _ => Err(Error::Protocol("it asks for a page that is none")),
        }
    }
}

pub(super) fn encode_switch(switch: &Switch, runs: &[(u64, u64)], state: &[u8]) -> Result<Vec<u8>, Error> {
    let head = serde_json::to_vec(switch).map_err(|_| Error::Protocol("a switch cannot be written"))?;
    Ok(with_runs(head, runs).into_iter().chain(state.iter().copied()).collect())
}

/// The head, what is missing of RAM of `ram_bytes`, and the machine's state.
pub(super) fn decode_switch(message: &[u8], ram_bytes: u64) -> Result<(Switch, Runs, &[u8]), Error> {
    let (head, rest) = head(message)?;
    let switch: Switch = decode(head)?;
    if switch.token.0.len() != TOKEN_DIGITS || switch.patience_ms > MAX_PATIENCE_MS {
        return Err(Error::Protocol("a switch is out of bounds"));
    }
    let (runs, state) = runs(rest, switch.runs, ram_bytes)?;
    Ok((switch, runs, state))
}

pub(super) fn encode_missing(runs: &[(u64, u64)]) -> Result<Vec<u8>, Error> {
    let head = serde_json::to_vec(&Missing { runs: runs.len() as u32 });
    Ok(with_runs(head.map_err(|_| Error::Protocol("an answer cannot be written"))?, runs))
}

pub(super) fn decode_missing(message: &[u8], ram_bytes: u64) -> Result<Runs, Error> {
    let (head, rest) = head(message)?;
    let missing: Missing = decode(head)?;
    match runs(rest, missing.runs, ram_bytes)? {
        (runs, []) => Ok(runs),
        _ => Err(Error::Protocol("something follows what is missing")),
    }
}

/// As many runs as may be told of: the smallest gaps between them are filled.
pub(crate) fn joined(mut runs: Runs) -> Runs {
    let mut gap = PAGE;
    while runs.len() > MAX_RUNS {
        let mut fewer: Runs = Vec::with_capacity(runs.len() / 2);
        for (start, bytes) in runs {
            match fewer.last_mut() {
                Some((first, length)) if start - (*first + *length) <= gap => *length = start + bytes - *first,
                _ => fewer.push((start, bytes)),
            }
        }
        runs = fewer;
        gap *= 2;
    }
    runs
}

fn head(message: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let end = message.iter().position(|byte| *byte == b'\n').ok_or(Error::Protocol("a message has no head"))?;
    Ok((&message[..end], &message[end + 1..]))
}

fn with_runs(mut message: Vec<u8>, runs: &[(u64, u64)]) -> Vec<u8> {
    message.push(b'\n');
    for (offset, bytes) in runs {
        message.extend(offset.to_le_bytes());
        message.extend(bytes.to_le_bytes());
    }
    message
}

/// The first `count` runs of `bytes`, checked, and what follows them.
fn runs(bytes: &[u8], count: u32, ram_bytes: u64) -> Result<(Runs, &[u8]), Error> {
    let count = usize::try_from(count).ok().filter(|count| *count <= MAX_RUNS);
    let count = count.ok_or(Error::Protocol("more runs of memory than there may be"))?;
    let split = bytes.split_at_checked(count * RUN_BYTES);
    let (table, rest) = split.ok_or(Error::Protocol("runs of memory are cut off"))?;
    let (mut runs, mut end) = (Vec::with_capacity(count), 0);
    for entry in table.chunks_exact(RUN_BYTES) {
        let (offset, bytes) = (long(entry), long(&entry[8..]));
        let whole = offset.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE) && bytes > 0;
        match offset.checked_add(bytes) {
            Some(next) if whole && offset >= end && next <= ram_bytes => end = next,
            _ => return Err(Error::Protocol("a run of memory is not where one can be")),
        }
        runs.push((offset, bytes));
    }
    Ok((runs, rest))
}

fn long(bytes: &[u8]) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(number)
}

/// What a fuzzer calls: any bytes as each of the messages that a peer sends.
pub fn examine(bytes: &[u8]) {
    const RAM_BYTES: u64 = 1 << 30;
    if let Ok((_, runs, _)) = decode_switch(bytes, RAM_BYTES) {
        assert!(runs.iter().all(|(offset, bytes)| offset + bytes <= RAM_BYTES));
    }
    if let Ok(runs) = decode_missing(bytes, RAM_BYTES) {
        let back = encode_missing(&joined(runs.clone())).and_then(|bytes| decode_missing(&bytes, RAM_BYTES));
        assert!(back.is_ok_and(|back| back == runs));
    }
    if let Some(Ok(record)) = bytes.first_chunk().map(|record| Record::decode(record, RAM_BYTES)) {
        assert!(Record::decode(&record.encode(), RAM_BYTES).is_ok_and(|back| back == record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 64 * PAGE;

    fn switch(runs: u32) -> Switch {
        Switch { token: Token::random().unwrap(), patience_ms: 1000, runs }
    }

    #[test]
    fn a_switch_comes_back_as_it_was() {
        let runs = vec![(0, PAGE), (4 * PAGE, 60 * PAGE)];
        let sent = switch(2);
        let message = encode_switch(&sent, &runs, b"state\nof it").unwrap();

        let (read, missing, state) = decode_switch(&message, RAM).unwrap();

        assert!(read.token.is(&sent.token) && !read.token.is(&switch(0).token));
        assert_eq!((missing, state), (runs, &b"state\nof it"[..]));
    }

    #[test]
    fn runs_that_cannot_be_are_refused() {
        let bad: [&[(u64, u64)]; 6] = [
            &[(1, PAGE)],
            &[(0, 0)],
            &[(0, 65 * PAGE)],
            &[(u64::MAX - PAGE + 1, PAGE)],
            &[(PAGE, PAGE), (0, PAGE)],
            &[(0, 2 * PAGE), (PAGE, PAGE)],
        ];
        for runs in bad {
            assert!(decode_missing(&encode_missing(runs).unwrap(), RAM).is_err(), "{runs:?}");
        }
        assert!(decode_missing(b"{\"runs\":2}\n0123456789abcdef", RAM).is_err());
        assert!(decode_missing(b"{\"runs\":4000000000}\n", RAM).is_err());
    }

    #[test]
    fn records_ask_for_pages_of_ram_only() {
        for record in [Record::Fault(3 * PAGE), Record::Whole(Faults { count: 1, p50_ns: 2, p99_ns: 3 })] {
            assert_eq!(Record::decode(&record.encode(), RAM).unwrap(), record);
        }
        for record in [Record::Fault(7), Record::Fault(RAM)] {
            assert!(Record::decode(&record.encode(), RAM).is_err());
        }
    }

    #[test]
    fn too_many_runs_become_fewer_that_hold_them_all() {
        let many: Runs = (0..3 * MAX_RUNS as u64).map(|number| (number * 2 * PAGE, PAGE)).collect();
        let fewer = joined(many.clone());
        assert!(fewer.len() <= MAX_RUNS);
        assert_eq!(
            (fewer[0].0, fewer.last().map(|(start, bytes)| start + bytes)),
            (0, many.last().map(|run| run.0 + PAGE))
        );
    }
}
