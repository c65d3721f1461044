//! The types of the API: what the daemon takes and gives, for the server, the client and the command line alike.
//!
//! Promises:
//! - a value that has been parsed has the right shape; whether it can be granted is the manager's to say, in a
//!   [`Problem`] that names the field;
//! - unknown fields of requests are refused, unknown fields of answers are ignored, so that an older client understands a
//!   newer daemon;
//! - sizes are bytes, times are RFC 3339 in UTC, durations say their unit in their name.

mod alert;
mod benchmark;
mod dashboard;
mod event;
mod exec;
mod image;
mod info;
mod log;
mod metrics;
mod migration;
mod name;
mod node;
mod operation;
mod page;
mod problem;
mod protection;
mod snapshot;
mod token;
mod vm;

pub use alert::{Alert, AlertRule, AlertState, Severity};
pub use benchmark::{BenchmarkFigure, BenchmarkRequest, BenchmarkRun, BenchmarkSuite, MAX_BENCHMARK_ROUNDS};
pub use dashboard::{DashboardLogin, DashboardRequest};
pub use event::{Event, EventKind};
pub use exec::{
    ConsoleControl, Content, EXEC_STDERR, EXEC_STDOUT, Encoding, ExecControl, ExecNotice, ExecRequest, ExecResult,
    ExecStart, MAX_EXEC_OUTPUT, MAX_EXEC_SECONDS, TerminalSize,
};
pub use image::{CheckReport, ConvertImage, CreateImage, Image, ImageFormat, ImportImage, ResizeImage};
pub use info::{AcceleratorInfo, HostInfo, Info};
pub use jiff::Timestamp;
pub use log::{LogLevel, LogRecord};
pub use metrics::{
    DiskMetrics, ExitCount, HISTOGRAM_BUCKETS, Histogram, MemoryMetrics, NetMetrics, Sample, VcpuMetrics, VmMetrics,
};
pub use migration::{
    BlackoutParts, LateMemory, MigrateRequest, MigrationMode, MigrationReport, ReceiveRequest, SharedDisk,
};
pub use name::{MAX_NAME_BYTES, Name, NameError};
pub use node::{
    Admission, AdmissionRequest, AgreedChange, AgreedChanged, AgreedQuery, AgreedValue, DrainMove, DrainReport,
    DrainStay, InitNode, JoinNode, Node, NodeHello, NodeState, NodeStatus, NodeToken, NodeTokenRequest,
};
pub use operation::{Operation, OperationKind, OperationState, Progress};
pub use page::{MAX_PAGE, Page, PageQuery};
pub use problem::{Code, FieldProblem, Problem};
pub use protection::{
    BackupAddress, BackupOrder, BackupPeer, BackupPromise, BackupState, CopyVersion, PromiseRequest, ProtectRequest,
    Protection, ProtectionMode, ProtectionState,
};
pub use snapshot::{CloneRequest, Snapshot, SnapshotKind, SnapshotRequest};
pub use token::{CreateToken, NewToken, Scope, Token};
pub use vm::{
    Checkpoints, CpuLimits, CreateVm, Disk, Ending, EndingReason, Limits, Net, NetKind, OnCrash, Origin, Pin, Rate,
    RateLimit, RuntimeState, StopRequest, UpdateVm, Vm, VmSpec, VmState,
};

/// The prefix of every path of this version.
pub const PREFIX: &str = "/v1";
