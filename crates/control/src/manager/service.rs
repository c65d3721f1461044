//! The manager as the API sees it.

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

use super::Manager;
use crate::events::Reader;
use crate::service::{DaemonFigures, Endpoints, EventStream, Recorded, Service};
use crate::store::{Answered, IDEMPOTENCY};
use crate::vms::Machine;

/// The most events that are given at once.
const MAX_PAST_EVENTS: usize = 10_000;
/// Most answers that are kept for their idempotency keys.
const MAX_ANSWERS: usize = 10_000;

type Result<T> = std::result::Result<T, Problem>;

#[async_trait]
impl Service for Manager {
    async fn vms(&self) -> Result<Vec<Vm>> {
        Ok(self.core.machines.all().iter().map(|machine| machine.describe()).collect())
    }

    async fn vm(&self, vm: &str) -> Result<Vm> {
        self.core.machines.find(vm).map(|machine| machine.describe())
    }

    async fn create(&self, request: CreateVm) -> Result<Operation> {
        self.call(|core| core.create(request)).await
    }

    async fn update(&self, vm: &str, request: UpdateVm) -> Result<Vm> {
        let vm = vm.to_owned();
        self.call(move |core| core.update(&vm, request)).await
    }

    async fn delete(&self, vm: &str, force: bool) -> Result<Operation> {
        let vm = vm.to_owned();
        self.call(move |core| core.delete(&vm, force)).await
    }

    async fn start(&self, vm: &str) -> Result<Operation> {
        let vm = vm.to_owned();
        self.call(move |core| core.start(&vm)).await
    }

    async fn stop(&self, vm: &str, request: StopRequest) -> Result<Operation> {
        let vm = vm.to_owned();
        self.call(move |core| core.stop(&vm, request)).await
    }

    async fn kill(&self, vm: &str) -> Result<Operation> {
        let vm = vm.to_owned();
        self.call(move |core| core.kill(&vm)).await
    }

    async fn pause(&self, vm: &str) -> Result<Operation> {
        let vm = vm.to_owned();
        self.call(move |core| core.pause(&vm)).await
    }

    async fn resume(&self, vm: &str) -> Result<Operation> {
        let vm = vm.to_owned();
        self.call(move |core| core.resume(&vm)).await
    }

    async fn reboot(&self, vm: &str, request: StopRequest) -> Result<Operation> {
        let vm = vm.to_owned();
        self.call(move |core| core.reboot(&vm, request)).await
    }

    async fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>> {
        let vm = vm.to_owned();
        self.call(move |core| core.snapshots(&vm)).await
    }

    async fn snapshot(&self, vm: &str, request: SnapshotRequest) -> Result<Operation> {
        let vm = vm.to_owned();
        self.call(move |core| core.snapshot(&vm, request)).await
    }

    async fn delete_snapshot(&self, vm: &str, snapshot: &Name) -> Result<Operation> {
        let (vm, snapshot) = (vm.to_owned(), snapshot.clone());
        self.call(move |core| core.delete_snapshot(&vm, &snapshot)).await
    }

    async fn restore(&self, vm: &str, snapshot: &Name) -> Result<Operation> {
        let (vm, snapshot) = (vm.to_owned(), snapshot.clone());
        self.call(move |core| core.restore(&vm, &snapshot)).await
    }

    async fn clone_vm(&self, vm: &str, request: CloneRequest) -> Result<Operation> {
        let vm = vm.to_owned();
        self.call(move |core| core.clone_vm(&vm, request)).await
    }

    async fn migrate(&self, vm: &str, request: MigrateRequest) -> Result<Operation> {
        let vm = vm.to_owned();
        self.call(move |core| core.migrate(&vm, request)).await
    }

    async fn receive(&self, request: ReceiveRequest) -> Result<Operation> {
        self.call(move |core| core.receive(request)).await
    }

    async fn incoming(&self, vm: &str) -> Result<(std::path::PathBuf, Option<Arc<crate::Signs>>)> {
        let vm = vm.to_owned();
        self.call(move |core| core.incoming(&vm)).await
    }

    async fn forget_incoming(&self, vm: &str) -> Result<()> {
        let vm = vm.to_owned();
        self.call(move |core| core.forget_incoming(&vm)).await
    }

    async fn promise(&self, vm: &str, request: PromiseRequest) -> Result<BackupPromise> {
        let vm = vm.to_owned();
        self.call(move |core| core.promise(&vm, request)).await
    }

    async fn protect(&self, vm: &str, request: ProtectRequest) -> Result<Operation> {
        let vm = vm.to_owned();
        self.call(move |core| core.begin_protection(&vm, request)).await
    }

    async fn protection(&self, vm: &str) -> Result<Protection> {
        let vm = vm.to_owned();
        self.call(move |core| core.protection(&vm)).await
    }

    async fn unprotect(&self, vm: &str) -> Result<Operation> {
        let vm = vm.to_owned();
        self.call(move |core| core.end_protection(&vm)).await
    }

    fn node_port(&self) -> Option<tokio::sync::watch::Receiver<Option<crate::NodePort>>> {
        Some(self.core.cluster.port())
    }

    async fn node_with(&self, certificate: [u8; 32]) -> Option<Name> {
        self.call(move |core| Ok(core.node_with(&certificate))).await.ok().flatten()
    }

    async fn nodes(&self) -> Result<Vec<Node>> {
        self.call(|core| Ok(core.nodes())).await
    }

    async fn node_status(&self) -> Result<NodeStatus> {
        self.call(|core| Ok(core.node_status())).await
    }

    async fn init_node(&self, request: InitNode) -> Result<()> {
        self.call(|core| core.init_node(request)).await
    }

    async fn join_node(&self, request: JoinNode) -> Result<()> {
        self.call(|core| core.join_node(request)).await
    }

    async fn node_token(&self, request: NodeTokenRequest) -> Result<NodeToken> {
        self.call(|core| core.node_token(request)).await
    }

    async fn leave_cluster(&self, force: bool) -> Result<()> {
        self.call(move |core| core.leave_cluster(force)).await
    }

    async fn remove_node(&self, node: &str) -> Result<()> {
        let node = node.to_owned();
        self.call(move |core| core.remove_node(&node)).await
    }

    async fn drain_node(&self, node: &str) -> Result<Operation> {
        let node = node.to_owned();
        self.call(move |core| core.drain(&node)).await
    }

    async fn ready_node(&self, node: &str) -> Result<()> {
        let node = node.to_owned();
        self.call(move |core| core.set_draining(&node, false)).await
    }

    async fn admission(&self, request: AdmissionRequest) -> Result<Admission> {
        self.call(|core| core.admission(request)).await
    }

    async fn hello(&self, certificate: [u8; 32], hello: NodeHello) -> Result<()> {
        self.call(move |core| core.hello(&certificate, &hello)).await
    }

    async fn agreed(&self, query: AgreedQuery) -> Result<Vec<AgreedValue>> {
        self.call(move |core| core.agreed(&query)).await
    }

    async fn agree(&self, change: AgreedChange) -> Result<AgreedChanged> {
        self.call(move |core| core.agree(&change)).await
    }

    async fn images(&self) -> Result<Vec<Image>> {
        self.call(|core| core.images()).await
    }

    async fn image(&self, name: &Name) -> Result<Image> {
        let name = name.clone();
        self.call(move |core| core.image(&name)).await
    }

    async fn import_image(&self, request: ImportImage) -> Result<Operation> {
        self.call(|core| core.import_image(request)).await
    }

    async fn create_image(&self, request: CreateImage) -> Result<Operation> {
        self.call(|core| core.create_image(request)).await
    }

    async fn check_image(&self, name: &Name) -> Result<Operation> {
        let name = name.clone();
        self.call(move |core| core.check_image(&name)).await
    }

    async fn convert_image(&self, name: &Name, request: ConvertImage) -> Result<Operation> {
        let name = name.clone();
        self.call(move |core| core.convert_image(&name, request)).await
    }

    async fn resize_image(&self, name: &Name, request: ResizeImage) -> Result<Operation> {
        let name = name.clone();
        self.call(move |core| core.resize_image(&name, request)).await
    }

    async fn delete_image(&self, name: &Name) -> Result<()> {
        let name = name.clone();
        self.call(move |core| core.delete_image(&name)).await
    }

    async fn operations(&self) -> Result<Vec<Operation>> {
        self.call(|core| core.all_operations()).await
    }

    async fn operation(&self, id: &str) -> Result<Operation> {
        let id = id.to_owned();
        self.call(move |core| core.operation(&id)).await
    }

    async fn wait_operation(&self, id: &str, limit: Duration) -> Result<Operation> {
        match self.core.wait_operation(id, limit).await {
            Some(operation) => Ok(operation),
            None => self.operation(id).await,
        }
    }

    async fn cancel_operation(&self, id: &str) -> Result<Operation> {
        let id = id.to_owned();
        self.call(move |core| core.cancel_operation(&id)).await
    }

    async fn past_events(&self, limit: usize) -> Result<Vec<Event>> {
        self.call(move |core| Ok(core.store.last_events(limit.min(MAX_PAST_EVENTS))?)).await
    }

    async fn events(&self, after: Option<u64>) -> Result<Box<dyn EventStream>> {
        Ok(Box::new(Reader::new(&self.core, after)))
    }

    async fn benchmarks(&self) -> Result<Vec<BenchmarkRun>> {
        self.call(|core| core.benchmarks()).await
    }

    async fn benchmark(&self, id: &str) -> Result<BenchmarkRun> {
        let id = id.to_owned();
        self.call(move |core| core.benchmark(&id)).await
    }

    async fn run_benchmarks(&self, request: BenchmarkRequest) -> Result<Operation> {
        self.call(|core| core.run_benchmarks(request)).await
    }

    async fn delete_benchmark(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.call(move |core| core.delete_benchmark(&id)).await
    }

    async fn alerts(&self) -> Result<Vec<Alert>> {
        self.call(|core| core.all_alerts()).await
    }

    async fn daemon_figures(&self) -> Result<DaemonFigures> {
        self.call(|core| Ok(core.daemon_figures())).await
    }

    fn refused(&self) {
        self.core.alerts.refused();
    }

    async fn log(&self) -> Result<Vec<LogRecord>> {
        self.call(|_| Ok(queztl_telemetry::export::recent::log())).await
    }

    async fn audit(&self) -> Result<Vec<LogRecord>> {
        self.call(|_| Ok(queztl_telemetry::export::recent::audit())).await
    }

    async fn endpoints(&self, vm: &str) -> Result<Endpoints> {
        let machine = self.core.machines.find(vm)?;
        let folder = &machine.folder;
        Ok(Endpoints {
            console: folder.console(),
            vsock: folder.vsock(),
            log: folder.console_log(),
            process_log: folder.log(),
        })
    }

    async fn metrics(&self) -> Result<Vec<VmMetrics>> {
        self.call(|core| Ok(core.all_metrics())).await
    }

    async fn vm_metrics(&self, vm: &str) -> Result<VmMetrics> {
        let machine = self.core.machines.find(vm)?;
        self.call(move |core| core.metrics_of(&machine).ok_or_else(|| silent(&machine))).await
    }

    async fn history(&self, vm: &str, from: Timestamp, to: Timestamp) -> Result<Vec<Sample>> {
        let machine = self.core.machines.find(vm)?;
        self.call(move |core| core.history(&machine, from, to)).await
    }

    async fn tokens(&self) -> Result<Vec<Token>> {
        self.call(|core| core.tokens()).await
    }

    async fn create_token(&self, request: CreateToken) -> Result<NewToken> {
        self.call(|core| core.create_token(request)).await
    }

    async fn delete_token(&self, name: &Name) -> Result<()> {
        let name = name.clone();
        self.call(move |core| core.delete_token(&name)).await
    }

    async fn authenticate(&self, secret: &str) -> Result<Token> {
        let secret = secret.to_owned();
        self.call(move |core| core.authenticate(&secret)).await
    }

    async fn recall(&self, key: &str) -> Result<Option<Recorded>> {
        let key = key.to_owned();
        self.call(move |core| {
            let answered = core.store.get(IDEMPOTENCY, &key)?;
            let fresh = answered.filter(|answered| answered.at >= oldest_answer());
            Ok(fresh.map(|Answered { request, status, body, .. }| Recorded { request, status, body }))
        })
        .await
    }

    async fn record(&self, key: &str, recorded: Recorded) -> Result<()> {
        let key = key.to_owned();
        self.call(move |core| {
            let Recorded { request, status, body } = recorded;
            let answered = Answered { at: Timestamp::now(), request, status, body };
            core.store.write(|change| {
                if change.count(IDEMPOTENCY)? >= MAX_ANSWERS {
                    for (old, answered) in change.list_with(IDEMPOTENCY, "")? {
                        if answered.at < oldest_answer() {
                            change.remove(IDEMPOTENCY, &old)?;
                        }
                    }
                    if change.count(IDEMPOTENCY)? >= MAX_ANSWERS {
                        return Err(Problem::new(Code::Busy, "too many idempotency keys in a day: use fewer"));
                    }
                }
                Ok(change.put(IDEMPOTENCY, &key, &answered)?)
            })
        })
        .await
    }
}

fn oldest_answer() -> Timestamp {
    Timestamp::now().saturating_sub(crate::operations::KEPT).unwrap_or(Timestamp::MIN)
}

fn silent(machine: &Machine) -> Problem {
    let text = format!("{:?} does not run, so that it has no figures: start it first", machine.record().name.as_str());
    Problem::new(Code::State, text)
}
