//! What a disk has done: counters that its threads raise and anybody may read.
//!
//! Promise: counting takes no lock, and no clock is read more than twice for each round of a disk's thread, so a busy disk
//! is counted at almost no cost. A request's time goes from the round that took it from the ring to the round that answered it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::request::Kind;

/// Buckets of the latency histogram: below 1 µs, below 2 µs, below 4 µs, … and the last for all that took longer.
pub const LATENCY_BUCKETS: usize = 26;

/// A disk's counters at one moment, since the device was made. Restarts of the driver do not clear them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFigures {
    /// Requests that reached the disk and were answered, by kind, failed ones included.
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    /// Discards and requests to write zeroes.
    pub discards: u64,
    /// Data that was moved, failed requests not included.
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Requests that are under way.
    pub in_flight: u64,
    /// How long reads took, writes, and all else.
    #[serde(default)]
    pub read_times: Times,
    #[serde(default)]
    pub write_times: Times,
    #[serde(default)]
    pub other_times: Times,
}

/// How long requests of one kind took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// The sum of their times.
    pub busy_ns: u64,
    /// How many took below 2^i µs, the last bucket all that took longer; each request is in one bucket.
    pub latency_us_log2: Vec<u64>,
}

/// The counters of one disk, shared by its threads.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    requests: [AtomicU64; 4],
    bytes: [AtomicU64; 2],
    errors: AtomicU64,
    in_flight: AtomicU64,
    /// Of reads, of writes, of all else.
    times: [Clock; 3],
}

/// Adds up times.
#[derive(Debug, Default)]
struct Clock {
    busy_ns: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
}

impl Clock {
    fn times(&self) -> Times {
        let latency_us_log2 = self.latency.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        Times { busy_ns: self.busy_ns.load(Ordering::Relaxed), latency_us_log2 }
    }
}

impl Metrics {
    /// A request was taken from the ring.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was refused at once.
    pub fn refused(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was answered after `time`; `bytes` of data were moved.
    pub fn end(&self, kind: Kind, bytes: u64, ok: bool, time: Duration) {
        let add = |counter: &AtomicU64, value| counter.fetch_add(value, Ordering::Relaxed);
        add(&self.requests[kind as usize], 1);
        if !ok {
            add(&self.errors, 1);
        } else if let Some(counter) = self.bytes.get(kind as usize) {
            add(counter, bytes);
        }
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let clock = &self.times[(kind as usize).min(self.times.len() - 1)];
        add(&clock.busy_ns, ns);
        add(&clock.latency[bucket(ns)], 1);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn figures(&self) -> DiskFigures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [reads, writes, flushes, discards] = self.requests.each_ref().map(get);
        let [read_bytes, written_bytes] = self.bytes.each_ref().map(get);
        let [read_times, write_times, other_times] = self.times.each_ref().map(Clock::times);
        DiskFigures {
            reads,
            writes,
            flushes,
            discards,
            read_bytes,
            written_bytes,
            errors: get(&self.errors),
            in_flight: get(&self.in_flight),
            read_times,
            write_times,
            other_times,
        }
    }
}

/// The bucket of a time: i for 2^(i-1) to 2^i µs.
fn bucket(ns: u64) -> usize {
    let us = ns / 1000;
    (u64::BITS - us.leading_zeros()).min(LATENCY_BUCKETS as u32 - 1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two_of_microseconds() {
        let buckets = [0, 999, 1000, 1999, 2000, 3999, 4000, 1_024_000, u64::MAX].map(bucket);
        assert_eq!(buckets, [0, 0, 1, 1, 2, 2, 3, 11, LATENCY_BUCKETS - 1]);
    }

    #[test]
    fn each_request_is_counted_once() {
        let metrics = Metrics::default();
        for _ in 0..4 {
            metrics.begin();
        }
        metrics.end(Kind::Read, 4096, true, Duration::from_micros(5));
        metrics.end(Kind::Write, 512, false, Duration::from_micros(700));
        metrics.end(Kind::Flush, 0, true, Duration::ZERO);
        let times = |busy_ns, bucket: usize| {
            let mut latency_us_log2 = vec![0; LATENCY_BUCKETS];
            latency_us_log2[bucket] = 1;
            Times { busy_ns, latency_us_log2 }
        };
        let expected = DiskFigures {
            reads: 1,
            writes: 1,
            flushes: 1,
            read_bytes: 4096,
            errors: 1,
            in_flight: 1,
            discards: 0,
            written_bytes: 0,
            read_times: times(5_000, 3),
            write_times: times(700_000, 10),
            other_times: times(0, 0),
        };
        assert_eq!(metrics.figures(), expected);
    }
}
