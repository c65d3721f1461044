//! One method for each route.

use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use queztl_api::{
    Admission, AdmissionRequest, AgreedChange, AgreedChanged, AgreedQuery, AgreedValue, Alert, BackupPromise,
    BenchmarkRequest, BenchmarkRun, CloneRequest, ConvertImage, CreateImage, CreateToken, CreateVm, DashboardLogin,
    DashboardRequest, Event, ExecRequest, ExecResult, Image, ImportImage, Info, InitNode, JoinNode, MigrateRequest,
    Name, NewToken, Node, NodeHello, NodeStatus, NodeToken, NodeTokenRequest, Operation, Page, PromiseRequest,
    ProtectRequest, Protection, ReceiveRequest, ResizeImage, Sample, Snapshot, SnapshotRequest, StopRequest, Timestamp,
    Token, UpdateVm, Vm, VmMetrics,
};
use serde::de::DeserializeOwned;

use crate::body::{self, Body};
use crate::path::Path;
use crate::{Client, Error};

/// The most items of a list that is read as a whole.
const MAX_ITEMS: usize = 1_000_000;

/// Errors of all methods: those of the connection, and the daemon's refusal.
impl Client {
    pub async fn info(&self) -> Result<Info, Error> {
        self.get(&Path::new(&["info"])).await
    }

    /// The nodes of the daemon's cluster, by name; none if it is in none.
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        self.list(&Path::new(&["nodes"])).await
    }

    /// Makes a cluster of which the daemon is the founder.
    pub async fn init_node(&self, request: &InitNode) -> Result<(), Error> {
        self.tell(&Path::new(&["node", "init"]), request).await
    }

    /// Makes the daemon a node of another one's cluster.
    pub async fn join_node(&self, request: &JoinNode) -> Result<(), Error> {
        self.tell(&Path::new(&["node", "join"]), request).await
    }

    /// A token for one new node.
    pub async fn node_token(&self, request: &NodeTokenRequest) -> Result<NodeToken, Error> {
        self.post_secret(&Path::new(&["node", "token"]), request).await
    }

    /// Without `force` only once nothing depends on the node.
    pub async fn leave_cluster(&self, force: bool) -> Result<(), Error> {
        let path = Path::new(&["node"]);
        self.remove(&if force { path.with("force", true) } else { path }).await
    }

    /// What the daemon says of itself as a node.
    pub async fn node_status(&self) -> Result<NodeStatus, Error> {
        self.get(&Path::new(&["node"])).await
    }

    /// Removes a node that is gone for good.
    pub async fn remove_node(&self, node: &str) -> Result<(), Error> {
        self.remove(&Path::new(&["nodes", node])).await
    }

    /// Empties a node. Its result is a [`queztl_api::DrainReport`].
    pub async fn drain_node(&self, node: &str) -> Result<Operation, Error> {
        self.ask(&Path::new(&["nodes", node, "drain"])).await
    }

    /// The node takes machines again.
    pub async fn ready_node(&self, node: &str) -> Result<(), Error> {
        self.remove(&Path::new(&["nodes", node, "drain"])).await
    }

    /// Asks a founder for a certificate, with a token's secret.
    pub async fn admission(&self, request: &AdmissionRequest) -> Result<Admission, Error> {
        self.post_secret(&Path::new(&["cluster", "admission"]), request).await
    }

    /// Tells the founder where this node is.
    pub async fn hello(&self, hello: &NodeHello) -> Result<(), Error> {
        self.tell(&Path::new(&["cluster", "hello"]), hello).await
    }

    /// What the nodes have agreed on, at the founder.
    pub async fn agreed(&self, query: &AgreedQuery) -> Result<Vec<AgreedValue>, Error> {
        self.post_secret(&Path::new(&["cluster", "agreed"]), query).await
    }

    /// Changes it.
    pub async fn agree(&self, change: &AgreedChange) -> Result<AgreedChanged, Error> {
        self.post_secret(&Path::new(&["cluster", "agree"]), change).await
    }

    /// Opens the dashboard and gives a login for one browser.
    pub async fn dashboard(&self, request: &DashboardRequest) -> Result<DashboardLogin, Error> {
        self.post_secret(&Path::new(&["dashboard"]), request).await
    }

    pub async fn vms(&self) -> Result<Vec<Vm>, Error> {
        self.list(&Path::new(&["vms"])).await
    }

    pub async fn vm(&self, vm: &str) -> Result<Vm, Error> {
        self.get(&Path::new(&["vms", vm])).await
    }

    pub async fn create(&self, request: &CreateVm) -> Result<Operation, Error> {
        self.post(&Path::new(&["vms"]), request).await
    }

    pub async fn update(&self, vm: &str, request: &UpdateVm) -> Result<Vm, Error> {
        self.patch(&Path::new(&["vms", vm]), request).await
    }

    /// Also ends it if it runs and `force` is set.
    pub async fn delete_vm(&self, vm: &str, force: bool) -> Result<Operation, Error> {
        let path = Path::new(&["vms", vm]);
        self.delete(&if force { path.with("force", true) } else { path }).await
    }

    pub async fn start(&self, vm: &str) -> Result<Operation, Error> {
        self.ask(&Path::new(&["vms", vm, "start"])).await
    }

    pub async fn stop(&self, vm: &str, request: &StopRequest) -> Result<Operation, Error> {
        self.post(&Path::new(&["vms", vm, "stop"]), request).await
    }

    pub async fn kill(&self, vm: &str) -> Result<Operation, Error> {
        self.ask(&Path::new(&["vms", vm, "kill"])).await
    }

    pub async fn pause(&self, vm: &str) -> Result<Operation, Error> {
        self.ask(&Path::new(&["vms", vm, "pause"])).await
    }

    pub async fn resume(&self, vm: &str) -> Result<Operation, Error> {
        self.ask(&Path::new(&["vms", vm, "resume"])).await
    }

    pub async fn reboot(&self, vm: &str, request: &StopRequest) -> Result<Operation, Error> {
        self.post(&Path::new(&["vms", vm, "reboot"]), request).await
    }

    pub async fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>, Error> {
        self.list(&Path::new(&["vms", vm, "snapshots"])).await
    }

    pub async fn snapshot(&self, vm: &str, request: &SnapshotRequest) -> Result<Operation, Error> {
        self.post(&Path::new(&["vms", vm, "snapshots"]), request).await
    }

    pub async fn delete_snapshot(&self, vm: &str, snapshot: &Name) -> Result<Operation, Error> {
        self.delete(&Path::new(&["vms", vm, "snapshots", snapshot.as_str()])).await
    }

    /// Puts the machine back to where it was; it runs afterwards.
    pub async fn restore(&self, vm: &str, snapshot: &Name) -> Result<Operation, Error> {
        self.ask(&Path::new(&["vms", vm, "snapshots", snapshot.as_str(), "restore"])).await
    }

    pub async fn clone_vm(&self, vm: &str, request: &CloneRequest) -> Result<Operation, Error> {
        self.post(&Path::new(&["vms", vm, "clones"]), request).await
    }

    /// Its result is a [`queztl_api::MigrationReport`].
    pub async fn migrate(&self, vm: &str, request: &MigrateRequest) -> Result<Operation, Error> {
        self.post(&Path::new(&["vms", vm, "migrate"]), request).await
    }

    /// The operation ends when the machine runs there, or will not.
    pub async fn receive(&self, request: &ReceiveRequest) -> Result<Operation, Error> {
        self.post(&Path::new(&["incoming"]), request).await
    }

    pub async fn forget_incoming(&self, id: &str) -> Result<(), Error> {
        self.remove(&Path::new(&["incoming", id])).await
    }

    /// Has a copy that is kept there serve no owner of a lower term. Twice is as good as once, and while a machine waits for
    /// it nobody is to write an answer to a disk: it has no idempotency key.
    pub async fn promise(&self, id: &str, request: &PromiseRequest) -> Result<BackupPromise, Error> {
        self.post_secret(&Path::new(&["incoming", id, "promise"]), request).await
    }

    /// The operation ends when the first copies are whole.
    pub async fn protect(&self, vm: &str, request: &ProtectRequest) -> Result<Operation, Error> {
        self.post(&Path::new(&["vms", vm, "protection"]), request).await
    }

    pub async fn protection(&self, vm: &str) -> Result<Protection, Error> {
        self.get(&Path::new(&["vms", vm, "protection"])).await
    }

    pub async fn unprotect(&self, vm: &str) -> Result<Operation, Error> {
        self.delete(&Path::new(&["vms", vm, "protection"])).await
    }

    pub async fn images(&self) -> Result<Vec<Image>, Error> {
        self.list(&Path::new(&["images"])).await
    }

    pub async fn image(&self, name: &Name) -> Result<Image, Error> {
        self.get(&Path::new(&["images", name.as_str()])).await
    }

    pub async fn import_image(&self, request: &ImportImage) -> Result<Operation, Error> {
        self.post(&Path::new(&["images", "import"]), request).await
    }

    pub async fn create_image(&self, request: &CreateImage) -> Result<Operation, Error> {
        self.post(&Path::new(&["images"]), request).await
    }

    /// Gives a [`queztl_api::CheckReport`] as its result.
    pub async fn check_image(&self, name: &Name) -> Result<Operation, Error> {
        self.ask(&Path::new(&["images", name.as_str(), "check"])).await
    }

    pub async fn convert_image(&self, name: &Name, request: &ConvertImage) -> Result<Operation, Error> {
        self.post(&Path::new(&["images", name.as_str(), "convert"]), request).await
    }

    pub async fn resize_image(&self, name: &Name, request: &ResizeImage) -> Result<Operation, Error> {
        self.post(&Path::new(&["images", name.as_str(), "resize"]), request).await
    }

    pub async fn delete_image(&self, name: &Name) -> Result<(), Error> {
        self.remove(&Path::new(&["images", name.as_str()])).await
    }

    /// Those that run and those that ended in the last day, newest first.
    pub async fn operations(&self) -> Result<Vec<Operation>, Error> {
        self.list(&Path::new(&["operations"])).await
    }

    pub async fn operation(&self, id: &str) -> Result<Operation, Error> {
        self.get(&Path::new(&["operations", id])).await
    }

    /// The operation once it is over, or as it is after `limit`, in whole seconds.
    pub async fn wait_operation(&self, id: &str, limit: Duration) -> Result<Operation, Error> {
        let path = Path::new(&["operations", id, "wait"]).with("timeout_seconds", limit.as_secs());
        self.get_within(&path, limit).await
    }

    pub async fn cancel_operation(&self, id: &str) -> Result<Operation, Error> {
        self.delete(&Path::new(&["operations", id])).await
    }

    /// Runs of benchmarks, newest first.
    pub async fn benchmarks(&self) -> Result<Vec<BenchmarkRun>, Error> {
        self.list(&Path::new(&["benchmarks"])).await
    }

    pub async fn benchmark(&self, id: &str) -> Result<BenchmarkRun, Error> {
        self.get(&Path::new(&["benchmarks", id])).await
    }

    /// The operation's target is the run.
    pub async fn run_benchmarks(&self, request: &BenchmarkRequest) -> Result<Operation, Error> {
        self.post(&Path::new(&["benchmarks"]), request).await
    }

    pub async fn delete_benchmark(&self, id: &str) -> Result<(), Error> {
        self.remove(&Path::new(&["benchmarks", id])).await
    }

    /// Those that fire and the last that were resolved, newest first.
    pub async fn alerts(&self) -> Result<Vec<Alert>, Error> {
        self.list(&Path::new(&["alerts"])).await
    }

    /// The last events, oldest first.
    pub async fn past_events(&self, limit: usize) -> Result<Vec<Event>, Error> {
        let page: Page<Event> = self.get(&Path::new(&["events"]).with("limit", limit)).await?;
        Ok(page.items)
    }

    pub async fn metrics(&self) -> Result<Vec<VmMetrics>, Error> {
        self.list(&Path::new(&["metrics"])).await
    }

    pub async fn vm_metrics(&self, vm: &str) -> Result<VmMetrics, Error> {
        self.get(&Path::new(&["vms", vm, "metrics"])).await
    }

    pub async fn history(&self, vm: &str, from: Timestamp, to: Timestamp) -> Result<Vec<Sample>, Error> {
        self.list(&Path::new(&["vms", vm, "history"]).with("from", from).with("to", to)).await
    }

    /// Runs a command in the guest to its end.
    pub async fn run(&self, vm: &str, request: &ExecRequest) -> Result<ExecResult, Error> {
        let wait = Duration::from_secs(request.timeout_seconds.unwrap_or(60).into());
        self.post_within(&Path::new(&["vms", vm, "exec"]), request, wait).await
    }

    /// What the machine's console has printed, oldest first, or its last `tail` lines; with `follow`, also what it prints
    /// from now on.
    pub async fn log(&self, vm: &str, tail: Option<u64>, follow: bool) -> Result<Parts, Error> {
        let path = Path::new(&["vms", vm, "log"]).with_some("tail", tail);
        self.stream(&if follow { path.with("follow", true) } else { path }).await.map(Parts)
    }

    /// A file of the guest.
    pub async fn read_file(&self, vm: &str, path: &str) -> Result<Parts, Error> {
        self.stream(&Path::new(&["vms", vm, "files"]).with("path", path)).await.map(Parts)
    }

    /// Makes a file of the guest, with these permissions, out of parts as they come.
    pub async fn write_file(
        &self,
        vm: &str,
        path: &str,
        mode: u32,
        parts: tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>,
    ) -> Result<(), Error> {
        self.upload(
            &Path::new(&["vms", vm, "files"]).with("path", path).with("mode", format_args!("{mode:o}")),
            Body::Parts(parts),
        )
        .await
    }

    pub async fn tokens(&self) -> Result<Vec<Token>, Error> {
        self.list(&Path::new(&["tokens"])).await
    }

    pub async fn create_token(&self, request: &CreateToken) -> Result<NewToken, Error> {
        self.post_secret(&Path::new(&["tokens"]), request).await
    }

    pub async fn delete_token(&self, name: &Name) -> Result<(), Error> {
        self.remove(&Path::new(&["tokens", name.as_str()])).await
    }

    /// All parts of a list.
    async fn list<T: DeserializeOwned>(&self, path: &Path) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page: Page<T> = self.get(&path.clone().with_some("after", after.as_deref())).await?;
            all.extend(page.items);
            if page.next.is_none() {
                return Ok(all);
            }
            // A daemon that gives the same part again and again would never be done.
            if page.next == after || all.len() > MAX_ITEMS {
                return Err(Error::answer(path.as_str(), "the list has no end"));
            }
            after = page.next;
        }
    }
}

/// An answer that is read part by part.
#[derive(Debug)]
pub struct Parts(Incoming);

impl Parts {
    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        body::part(&mut self.0).await
    }
}
