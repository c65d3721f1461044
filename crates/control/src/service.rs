//! What the API asks of the manager.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use queztl_api::{
    Admission, AdmissionRequest, AgreedChange, AgreedChanged, AgreedQuery, AgreedValue, Alert, BackupPromise,
    BenchmarkRequest, BenchmarkRun, CloneRequest, Code, ConvertImage, CreateImage, CreateToken, CreateVm, Event, Image,
    ImportImage, InitNode, JoinNode, LogRecord, MigrateRequest, Name, NewToken, Node, NodeHello, NodeStatus, NodeToken,
    NodeTokenRequest, Operation, Problem, PromiseRequest, ProtectRequest, Protection, ReceiveRequest, ResizeImage,
    Sample, Snapshot, SnapshotRequest, StopRequest, Timestamp, Token, UpdateVm, Vm, VmMetrics,
};
use queztl_telemetry::DeliveryFigures;
use tokio::sync::watch;

use crate::Signs;

fn no_cluster() -> Problem {
    Problem::new(Code::State, "this service knows no clusters")
}

/// Events from a place in their sequence on, in order; ends when the manager does.
#[async_trait]
pub trait EventStream: Send {
    /// The next event; [`queztl_api::EventKind::Lost`] where the reader was too slow.
    async fn next(&mut self) -> Option<Event>;
}

/// How a running machine is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// Its console's viewers.
    pub console: PathBuf,
    /// Its virtio sockets; the agent listens behind it.
    pub vsock: PathBuf,
    /// What its console has printed; the older part is beside it as `console.log.1`.
    pub log: PathBuf,
    /// What its process had to say.
    pub process_log: PathBuf,
}

/// Where nodes of a cluster are greeted.
#[derive(Clone)]
pub struct NodePort {
    pub listener: Arc<std::net::TcpListener>,
    /// Asks for certificates of the cluster's nodes, and lets strangers in as far as the gate.
    pub config: Arc<rustls::ServerConfig>,
}

impl std::fmt::Debug for NodePort {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("NodePort").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// What the daemon knows of itself and its host.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DaemonFigures {
    /// Those that fire.
    pub alerts: Vec<Alert>,
    /// Requests that were refused for who made them, since the daemon started.
    pub refused: u64,
    /// What became of alerts and logs for others.
    pub deliveries: Vec<DeliveryFigures>,
    pub host: HostFigures,
}

/// What the host has, and what of it is left.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostFigures {
    pub memory_bytes: u64,
    pub memory_available_bytes: u64,
    /// Of the file system where the daemon's home is.
    pub disk_bytes: u64,
    pub disk_free_bytes: u64,
    pub cpus: u64,
    /// Time that all processors together have worked.
    pub cpu_busy_seconds: f64,
}

/// The answer to a request that came with an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// blake3 of method, path and body.
    pub request: [u8; 32],
    pub status: u16,
    pub body: Vec<u8>,
}

/// The manager, as the API sees it. A machine is named by its identifier or its name.
///
/// What takes time gives an [`Operation`] at once and goes on by itself. Cancelling a future loses nothing: work that has
/// begun is finished or undone by the manager.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    async fn vms(&self) -> Result<Vec<Vm>, Problem>;
    async fn vm(&self, vm: &str) -> Result<Vm, Problem>;
    async fn create(&self, request: CreateVm) -> Result<Operation, Problem>;
    async fn update(&self, vm: &str, request: UpdateVm) -> Result<Vm, Problem>;
    /// Also ends it if it runs and `force` is set.
    async fn delete(&self, vm: &str, force: bool) -> Result<Operation, Problem>;
    async fn start(&self, vm: &str) -> Result<Operation, Problem>;
    async fn stop(&self, vm: &str, request: StopRequest) -> Result<Operation, Problem>;
    async fn kill(&self, vm: &str) -> Result<Operation, Problem>;
    async fn pause(&self, vm: &str) -> Result<Operation, Problem>;
    async fn resume(&self, vm: &str) -> Result<Operation, Problem>;
    async fn reboot(&self, vm: &str, request: StopRequest) -> Result<Operation, Problem>;

    async fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>, Problem>;
    async fn snapshot(&self, vm: &str, request: SnapshotRequest) -> Result<Operation, Problem>;
    async fn delete_snapshot(&self, vm: &str, snapshot: &Name) -> Result<Operation, Problem>;
    /// Puts the machine back to where it was; it runs afterwards.
    async fn restore(&self, vm: &str, snapshot: &Name) -> Result<Operation, Problem>;
    async fn clone_vm(&self, vm: &str, request: CloneRequest) -> Result<Operation, Problem>;

    /// Brings the running machine to another daemon.
    async fn migrate(&self, vm: &str, request: MigrateRequest) -> Result<Operation, Problem>;
    /// Makes ready for a machine that another daemon brings.
    async fn receive(&self, request: ReceiveRequest) -> Result<Operation, Problem>;
    /// The socket at which it is awaited, and who wants to know of its owner's life.
    async fn incoming(&self, vm: &str) -> Result<(PathBuf, Option<Arc<Signs>>), Problem>;
    /// It does not come.
    async fn forget_incoming(&self, vm: &str) -> Result<(), Problem>;
    /// A copy that is kept here serves no owner of a lower term from now on.
    async fn promise(&self, vm: &str, request: PromiseRequest) -> Result<BackupPromise, Problem>;

    /// Begins to copy the running machine to other daemons.
    async fn protect(&self, vm: &str, request: ProtectRequest) -> Result<Operation, Problem>;
    async fn protection(&self, vm: &str) -> Result<Protection, Problem>;
    async fn unprotect(&self, vm: &str) -> Result<Operation, Problem>;

    /// Where nodes are to be greeted, now and later; none for a service that is never in a cluster.
    fn node_port(&self) -> Option<watch::Receiver<Option<NodePort>>> {
        None
    }
    /// The node whose certificate has this blake3, if it is a member of the cluster now.
    async fn node_with(&self, _certificate: [u8; 32]) -> Option<Name> {
        None
    }
    /// The nodes by name; none if this daemon is in no cluster.
    async fn nodes(&self) -> Result<Vec<Node>, Problem> {
        Ok(Vec::new())
    }
    async fn node_status(&self) -> Result<NodeStatus, Problem> {
        Ok(NodeStatus::default())
    }
    async fn init_node(&self, _request: InitNode) -> Result<(), Problem> {
        Err(no_cluster())
    }
    async fn join_node(&self, _request: JoinNode) -> Result<(), Problem> {
        Err(no_cluster())
    }
    async fn node_token(&self, _request: NodeTokenRequest) -> Result<NodeToken, Problem> {
        Err(no_cluster())
    }
    /// Without `force` only once nothing depends on this node.
    async fn leave_cluster(&self, _force: bool) -> Result<(), Problem> {
        Err(no_cluster())
    }
    async fn remove_node(&self, _node: &str) -> Result<(), Problem> {
        Err(no_cluster())
    }
    /// Moves the node's machines away.
    async fn drain_node(&self, _node: &str) -> Result<Operation, Problem> {
        Err(no_cluster())
    }
    /// It takes machines again.
    async fn ready_node(&self, _node: &str) -> Result<(), Problem> {
        Err(no_cluster())
    }
    /// A daemon with a token asks for its certificate.
    async fn admission(&self, _request: AdmissionRequest) -> Result<Admission, Problem> {
        Err(no_cluster())
    }
    /// The node with this certificate says where it is.
    async fn hello(&self, _certificate: [u8; 32], _hello: NodeHello) -> Result<(), Problem> {
        Err(no_cluster())
    }
    /// What the nodes have agreed on, if it is kept here.
    async fn agreed(&self, _query: AgreedQuery) -> Result<Vec<AgreedValue>, Problem> {
        Err(no_cluster())
    }
    async fn agree(&self, _change: AgreedChange) -> Result<AgreedChanged, Problem> {
        Err(no_cluster())
    }

    async fn images(&self) -> Result<Vec<Image>, Problem>;
    async fn image(&self, name: &Name) -> Result<Image, Problem>;
    async fn import_image(&self, request: ImportImage) -> Result<Operation, Problem>;
    async fn create_image(&self, request: CreateImage) -> Result<Operation, Problem>;
    /// Gives a [`queztl_api::CheckReport`] as its result.
    async fn check_image(&self, name: &Name) -> Result<Operation, Problem>;
    async fn convert_image(&self, name: &Name, request: ConvertImage) -> Result<Operation, Problem>;
    async fn resize_image(&self, name: &Name, request: ResizeImage) -> Result<Operation, Problem>;
    async fn delete_image(&self, name: &Name) -> Result<(), Problem>;

    /// Those that run and those that ended in the last day, newest first.
    async fn operations(&self) -> Result<Vec<Operation>, Problem>;
    async fn operation(&self, id: &str) -> Result<Operation, Problem>;
    /// The operation once it is over, or as it is after `limit`.
    async fn wait_operation(&self, id: &str, limit: Duration) -> Result<Operation, Problem>;
    async fn cancel_operation(&self, id: &str) -> Result<Operation, Problem>;

    /// The last `limit` events before now, oldest first.
    async fn past_events(&self, limit: usize) -> Result<Vec<Event>, Problem>;
    /// Events after number `after`, or from now on.
    async fn events(&self, after: Option<u64>) -> Result<Box<dyn EventStream>, Problem>;

    /// Runs of benchmarks, newest first.
    async fn benchmarks(&self) -> Result<Vec<BenchmarkRun>, Problem>;
    async fn benchmark(&self, id: &str) -> Result<BenchmarkRun, Problem>;
    /// One run at a time; its identifier is the operation's target.
    async fn run_benchmarks(&self, request: BenchmarkRequest) -> Result<Operation, Problem>;
    async fn delete_benchmark(&self, id: &str) -> Result<(), Problem>;

    /// Those that fire, and the last that were resolved.
    async fn alerts(&self) -> Result<Vec<Alert>, Problem>;
    async fn daemon_figures(&self) -> Result<DaemonFigures, Problem>;
    /// Takes note of a request that was refused for who made it.
    fn refused(&self);

    /// The last messages of the daemon's log, and the last lines of its audit.
    async fn log(&self) -> Result<Vec<LogRecord>, Problem>;
    async fn audit(&self) -> Result<Vec<LogRecord>, Problem>;

    async fn endpoints(&self, vm: &str) -> Result<Endpoints, Problem>;
    async fn metrics(&self) -> Result<Vec<VmMetrics>, Problem>;
    async fn vm_metrics(&self, vm: &str) -> Result<VmMetrics, Problem>;
    /// At most 2,000 points between the two times; the interval grows with the span.
    async fn history(&self, vm: &str, from: Timestamp, to: Timestamp) -> Result<Vec<Sample>, Problem>;

    async fn tokens(&self) -> Result<Vec<Token>, Problem>;
    async fn create_token(&self, request: CreateToken) -> Result<NewToken, Problem>;
    async fn delete_token(&self, name: &Name) -> Result<(), Problem>;
    /// The token with this secret, or [`queztl_api::Code::Unauthenticated`].
    async fn authenticate(&self, secret: &str) -> Result<Token, Problem>;

    /// What was answered to this idempotency key in the last day.
    async fn recall(&self, key: &str) -> Result<Option<Recorded>, Problem>;
    async fn record(&self, key: &str, recorded: Recorded) -> Result<(), Problem>;
}
