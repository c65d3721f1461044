//! Measurements that the daemon makes of itself and its host.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::OperationState;

/// The most rounds of one run.
pub const MAX_BENCHMARK_ROUNDS: u32 = 20;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BenchmarkSuite {
    /// A new machine: until its console's first output, and until its agent answers.
    Boot,
    /// Ten clones of a running machine: until all of them know who they are.
    Clone,
    /// A snapshot of a running machine: how long the guest stands still, and how long all takes.
    Snapshot,
    /// A disk at its queue, without a guest: requests each second.
    Disk,
}

impl BenchmarkSuite {
    pub const ALL: [BenchmarkSuite; 4] =
        [BenchmarkSuite::Boot, BenchmarkSuite::Clone, BenchmarkSuite::Snapshot, BenchmarkSuite::Disk];
}

/// Measurements to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BenchmarkRequest {
    /// Which; all if none is given.
    pub suites: Vec<BenchmarkSuite>,
    /// How often each is made; the median counts.
    #[schema(minimum = 1, maximum = 20)]
    pub rounds: u32,
    /// Text for people: what is different this time.
    #[schema(max_length = 200)]
    pub note: String,
}

impl Default for BenchmarkRequest {
    fn default() -> BenchmarkRequest {
        BenchmarkRequest { suites: Vec::new(), rounds: 3, note: String::new() }
    }
}

/// Measurements that were made together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BenchmarkRun {
    /// Its identifier.
    pub id: String,
    /// The operation that makes it.
    pub operation: String,
    /// Whether it is over.
    pub state: OperationState,
    /// Why it failed.
    pub problem: Option<String>,
    /// Text for people.
    pub note: String,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// When it was over.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// The daemon's version.
    pub version: String,
    /// The host's name.
    pub host: String,
    /// The release of the host's kernel.
    pub kernel: String,
    /// How many processors the daemon may use.
    pub cpus: u32,
    /// How many machines of others ran when it began: they share the host.
    pub machines: u32,
    /// What was measured.
    pub figures: Vec<BenchmarkFigure>,
}

/// One figure of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BenchmarkFigure {
    /// Where it belongs.
    pub suite: BenchmarkSuite,
    /// What it is of.
    pub name: String,
    /// `ms`, `1/s`.
    pub unit: String,
    /// Whether more is better.
    pub more_is_better: bool,
    /// One of each round.
    pub values: Vec<f64>,
    /// The value in the middle.
    pub median: f64,
}
