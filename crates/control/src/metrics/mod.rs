//! Figures of machines: asked of their processes and the kernel, and kept for a day.
//!
//! ```text
//! every 10 s ─> sample ─> memory: the last hour
//!                    └──> every minute: the store, one day
//! ```
//! A sample holds rates, made of two readings of counters. Readings of one run are not compared with those of another.

mod history;
mod read;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use queztl_api::{Sample, VmMetrics};

use crate::manager::Core;
use crate::vms::Machine;

/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(10);
/// For so long the answer to one who asks for all machines is the answer to others, too.
const SHARED: Duration = Duration::from_millis(1000);
/// Samples that are kept in memory for each machine: an hour's.
const RECENT: usize = 360;
/// Every so many samples one goes to the store.
const COARSE: u64 = 6;

/// What is known of the machines that run.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    tracks: Mutex<HashMap<String, Track>>,
    /// What was asked last for all machines, and when.
    shared: Mutex<Option<(Instant, Vec<VmMetrics>)>>,
}

#[derive(Debug, Default)]
struct Track {
    /// The counters of the last sample.
    last: Option<Reading>,
    /// The counters of the last sample that went to the store.
    last_coarse: Option<Reading>,
    recent: VecDeque<Sample>,
    /// Mean times of requests between the last two samples, by disk.
    disk_latency_ms: Vec<(String, f64)>,
}

/// What is known of a machine's last hour.
#[derive(Debug, Clone, Default)]
pub(crate) struct Latest {
    pub recent: VecDeque<Sample>,
    pub disk_latency_ms: Vec<(String, f64)>,
}

/// Counters of a machine's process at one time.
#[derive(Debug, Clone)]
struct Reading {
    pid: u32,
    metrics: VmMetrics,
}

impl Figures {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Track>> {
        self.tracks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// The figures of all machines that run and answer, at most [`SHARED`] old: however many ask, machines are asked once.
    pub(crate) fn all_metrics(&self) -> Vec<VmMetrics> {
        // Whoever comes while they are being asked waits here, and has their answers.
        let mut shared = self.figures.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, metrics)) = shared.as_ref()
            && at.elapsed() < SHARED
        {
            return metrics.clone();
        }
        let metrics: Vec<VmMetrics> =
            self.machines.all().iter().filter_map(|machine| self.metrics_of(machine)).collect();
        *shared = Some((Instant::now(), metrics.clone()));
        metrics
    }

    /// Takes samples from now on.
    pub(crate) fn start_sampling(self: &Arc<Self>) {
        let core = self.clone();
        self.runtime.spawn(async move {
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for number in 0u64.. {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = core.closed() => return,
                }
                let work = core.clone();
                // A panic in one round is logged by its thread; the next round goes on.
                let _ = tokio::task::spawn_blocking(move || work.sample_all(number.is_multiple_of(COARSE))).await;
            }
        });
    }

    fn sample_all(&self, coarse: bool) {
        let mut points = Vec::new();
        for machine in self.machines.all() {
            let Some((pid, metrics)) = self.read(&machine) else { continue };
            let reading = Reading { pid, metrics };
            let mut tracks = self.figures.lock();
            let track = tracks.entry(machine.id.clone()).or_default();
            if let Some(sample) = history::between(track.last.as_ref(), &reading) {
                track.recent.push_back(sample);
                if track.recent.len() > RECENT {
                    track.recent.pop_front();
                }
            }
            track.disk_latency_ms = history::latencies(track.last.as_ref(), &reading);
            track.last = Some(reading.clone());
            if coarse {
                if let Some(sample) = history::between(track.last_coarse.as_ref(), &reading)
                    && let Ok(bytes) = serde_json::to_vec(&sample)
                {
                    points.push((machine.id.clone(), sample.at.as_millisecond(), bytes));
                }
                track.last_coarse = Some(reading);
            }
        }
        self.keep(&points);
    }

    /// A machine's last hour, if it has one.
    pub(crate) fn latest(&self, machine: &Machine) -> Option<Latest> {
        let tracks = self.figures.lock();
        let track = tracks.get(&machine.id)?;
        Some(Latest { recent: track.recent.clone(), disk_latency_ms: track.disk_latency_ms.clone() })
    }

    /// The counters of a run that is over are of no use; its samples are.
    pub(crate) fn forget_figures(&self, machine: &Machine) {
        if let Some(track) = self.figures.lock().get_mut(&machine.id) {
            track.last = None;
            track.last_coarse = None;
        }
    }

    /// Nothing is known of a machine that is gone.
    pub(crate) fn drop_figures(&self, machine: &Machine) {
        self.figures.lock().remove(&machine.id);
    }
}
