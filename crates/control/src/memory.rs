//! A service without machines: it keeps what it is told in memory and changes states as if it had been done.
//!
//! For tests of the API and of its clients, and for measuring what the API itself costs.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use queztl_api::*;
use tokio::sync::{broadcast, watch};

use crate::{DaemonFigures, Endpoints, EventStream, Recorded, Service};

/// Events a reader may be behind.
const EVENTS: usize = 1024;

#[derive(Default)]
struct State {
    vms: BTreeMap<String, Vm>,
    snapshots: BTreeMap<(String, Name), Snapshot>,
    images: BTreeMap<Name, Image>,
    operations: BTreeMap<String, Operation>,
    tokens: BTreeMap<Name, (Token, String)>,
    recorded: HashMap<String, Recorded>,
    events: Vec<Event>,
    alerts: Vec<Alert>,
    refused: u64,
    created: u64,
}

/// The service.
pub struct MemoryService {
    state: Mutex<State>,
    news: broadcast::Sender<Event>,
    endpoints: Endpoints,
    hold: watch::Sender<bool>,
}

impl std::fmt::Debug for MemoryService {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("MemoryService").finish_non_exhaustive()
    }
}

impl Default for MemoryService {
    fn default() -> MemoryService {
        MemoryService::new(PathBuf::from("/nonexistent"))
    }
}

impl MemoryService {
    /// All machines are reached through this directory, if there is anything in it.
    pub fn new(directory: PathBuf) -> MemoryService {
        let endpoints = Endpoints {
            console: directory.join("console.sock"),
            vsock: directory.join("vsock.sock"),
            log: directory.join("console.log"),
            process_log: directory.join("vmm.log"),
        };
        MemoryService {
            state: Mutex::default(),
            news: broadcast::channel(EVENTS).0,
            endpoints,
            hold: watch::channel(false).0,
        }
    }

    /// While it is held, operations are begun and do not end.
    pub fn hold(&self, hold: bool) {
        self.hold.send_replace(hold);
        if !hold {
            for operation in self.state().operations.values_mut() {
                if operation.state == OperationState::Running {
                    operation.state = OperationState::Succeeded;
                    operation.ended_at = Some(Timestamp::now());
                }
            }
        }
    }

    /// A token with this secret.
    pub fn add_token(&self, scope: Scope, secret: &str) {
        let Ok(name) = secret.parse::<Name>() else { return };
        let token = Token { name: name.clone(), scope, created_at: Timestamp::now(), expires_at: None };
        self.state().tokens.insert(name, (token, secret.to_owned()));
    }

    /// How many operations there have been.
    pub fn operations_begun(&self) -> usize {
        self.state().operations.len()
    }

    /// There is an alert.
    pub fn add_alert(&self, alert: Alert) {
        self.state().alerts.push(alert);
    }

    /// Something happens.
    pub fn happen(&self, kind: EventKind) {
        let mut state = self.state();
        self.tell(&mut state, kind);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, state: &mut State, kind: EventKind) {
        let sequence = state.events.last().map_or(1, |event| event.sequence + 1);
        let event = Event { sequence, at: Timestamp::now(), kind, message: "It happened.".into() };
        state.events.push(event.clone());
        // Nobody may listen.
        let _ = self.news.send(event);
    }

    fn operation(&self, state: &mut State, kind: OperationKind, target: &str) -> Operation {
        state.created += 1;
        let held = *self.hold.borrow();
        let operation = Operation {
            id: format!("op-{}", state.created),
            kind,
            state: if held { OperationState::Running } else { OperationState::Succeeded },
            target: Some(target.to_owned()),
            created_at: Timestamp::now(),
            ended_at: (!held).then(Timestamp::now),
            progress: None,
            cancellable: held,
            result: None,
            problem: None,
        };
        state.operations.insert(operation.id.clone(), operation.clone());
        operation
    }

    fn change(&self, vm: &str, kind: OperationKind, to: VmState) -> Result<Operation, Problem> {
        let mut state = self.state();
        let changed = find(&mut state, vm)?;
        changed.state = to;
        let (id, name) = (changed.id.clone(), changed.name.to_string());
        self.tell(&mut state, EventKind::VmChanged { vm: id.clone(), name, state: to });
        Ok(self.operation(&mut state, kind, &id))
    }

    fn image_operation(&self, name: &Name, kind: OperationKind) -> Result<Operation, Problem> {
        let mut state = self.state();
        state.images.get(name).ok_or_else(|| Problem::not_found("image", name.as_str()))?;
        Ok(self.operation(&mut state, kind, name.as_str()))
    }

    fn add_image(&self, name: Name, size_bytes: u64, kind: OperationKind) -> Result<Operation, Problem> {
        let mut state = self.state();
        if state.images.contains_key(&name) {
            return Err(Problem::new(Code::Exists, format!("there is an image {name} already")));
        }
        let image = Image {
            name: name.clone(),
            format: ImageFormat::Raw,
            size_bytes,
            allocated_bytes: 0,
            backing: None,
            created_at: Timestamp::now(),
            used_by: Vec::new(),
        };
        state.images.insert(name.clone(), image);
        Ok(self.operation(&mut state, kind, name.as_str()))
    }
}

fn find<'a>(state: &'a mut State, vm: &str) -> Result<&'a mut Vm, Problem> {
    let found = state.vms.values_mut().find(|one| one.id == vm || one.name.as_str() == vm);
    found.ok_or_else(|| Problem::not_found("machine", vm))
}

fn spoken(number: u64, target: &str, message: &str) -> LogRecord {
    LogRecord {
        number,
        at: Timestamp::now(),
        level: LogLevel::Info,
        target: target.into(),
        message: message.into(),
        fields: [("caller".to_owned(), "uid 0".into())].into(),
    }
}

fn figures(vm: &Vm) -> VmMetrics {
    let vcpu = |_| VcpuMetrics {
        cpu_ns: 1_500_000_000,
        exits: vec![ExitCount { kind: "hlt".into(), count: 3 }],
        ..VcpuMetrics::default()
    };
    let latency = Histogram { buckets: vec![1; HISTOGRAM_BUCKETS], sum_ns: 2_000_000 };
    VmMetrics {
        vm: vm.id.clone(),
        name: vm.name.to_string(),
        at: Timestamp::now(),
        vcpus: (0..vm.spec.vcpus.min(256)).map(vcpu).collect(),
        memory: MemoryMetrics { ram_bytes: vm.spec.ram_bytes, ..MemoryMetrics::default() },
        disks: vec![DiskMetrics { device: "disk0".into(), reads: 7, read_latency: latency, ..DiskMetrics::default() }],
        nets: vec![NetMetrics { device: "net0".into(), sent_bytes: 9, ..NetMetrics::default() }],
        cpu_ns: 2_500_000_000,
        protection: None,
    }
}

struct Events {
    past: std::vec::IntoIter<Event>,
    news: broadcast::Receiver<Event>,
    last: u64,
}

#[async_trait]
impl EventStream for Events {
    async fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.past.next() {
            return Some(event);
        }
        loop {
            match self.news.recv().await {
                Ok(event) if event.sequence <= self.last => {}
                Ok(event) => {
                    self.last = event.sequence;
                    return Some(event);
                }
                Err(broadcast::error::RecvError::Lagged(count)) => {
                    self.last = self.last.saturating_add(count);
                    let kind = EventKind::Lost { up_to: self.last };
                    let message = format!("{count} events were dropped");
                    return Some(Event { sequence: self.last, at: Timestamp::now(), kind, message });
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

#[async_trait]
impl Service for MemoryService {
    async fn vms(&self) -> Result<Vec<Vm>, Problem> {
        Ok(self.state().vms.values().cloned().collect())
    }

    async fn vm(&self, vm: &str) -> Result<Vm, Problem> {
        find(&mut self.state(), vm).map(|vm| vm.clone())
    }

    async fn create(&self, request: CreateVm) -> Result<Operation, Problem> {
        let mut state = self.state();
        if find(&mut state, request.name.as_str()).is_ok() {
            return Err(Problem::new(Code::Exists, format!("there is a machine {} already", request.name)));
        }
        state.created += 1;
        let id = format!("vm-{}", state.created);
        let vm = Vm {
            id: id.clone(),
            name: request.name.clone(),
            state: if request.start { VmState::Running } else { VmState::Created },
            spec: request.spec,
            created_at: Timestamp::now(),
            origin: None,
            runtime: None,
            ended: None,
        };
        state.vms.insert(id.clone(), vm);
        self.tell(&mut state, EventKind::VmCreated { vm: id.clone(), name: request.name.to_string() });
        Ok(self.operation(&mut state, OperationKind::Create, &id))
    }

    async fn update(&self, vm: &str, request: UpdateVm) -> Result<Vm, Problem> {
        let mut state = self.state();
        let vm = find(&mut state, vm)?;
        let UpdateVm { name, limits, on_crash, checkpoints, autostart, labels } = request;
        vm.name = name.unwrap_or_else(|| vm.name.clone());
        vm.spec.limits = limits.unwrap_or_else(|| vm.spec.limits.clone());
        vm.spec.on_crash = on_crash.unwrap_or(vm.spec.on_crash);
        vm.spec.checkpoints = checkpoints.unwrap_or(vm.spec.checkpoints);
        vm.spec.autostart = autostart.unwrap_or(vm.spec.autostart);
        vm.spec.labels = labels.unwrap_or_else(|| vm.spec.labels.clone());
        Ok(vm.clone())
    }

    async fn delete(&self, vm: &str, force: bool) -> Result<Operation, Problem> {
        let mut state = self.state();
        let vm = find(&mut state, vm)?.clone();
        if vm.state == VmState::Running && !force {
            return Err(Problem::new(Code::State, format!("{} runs: stop it first, or force it", vm.name)));
        }
        state.vms.remove(&vm.id);
        state.snapshots.retain(|(owner, _), _| *owner != vm.id);
        self.tell(&mut state, EventKind::VmDeleted { vm: vm.id.clone(), name: vm.name.to_string() });
        Ok(self.operation(&mut state, OperationKind::Delete, &vm.id))
    }

    async fn start(&self, vm: &str) -> Result<Operation, Problem> {
        self.change(vm, OperationKind::Start, VmState::Running)
    }

    async fn stop(&self, vm: &str, _: StopRequest) -> Result<Operation, Problem> {
        self.change(vm, OperationKind::Stop, VmState::Stopped)
    }

    async fn kill(&self, vm: &str) -> Result<Operation, Problem> {
        self.change(vm, OperationKind::Kill, VmState::Stopped)
    }

    async fn pause(&self, vm: &str) -> Result<Operation, Problem> {
        self.change(vm, OperationKind::Pause, VmState::Paused)
    }

    async fn resume(&self, vm: &str) -> Result<Operation, Problem> {
        self.change(vm, OperationKind::Resume, VmState::Running)
    }

    async fn reboot(&self, vm: &str, _: StopRequest) -> Result<Operation, Problem> {
        self.change(vm, OperationKind::Reboot, VmState::Running)
    }

    async fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>, Problem> {
        let mut state = self.state();
        let id = find(&mut state, vm)?.id.clone();
        Ok(state.snapshots.values().filter(|snapshot| snapshot.vm == id).cloned().collect())
    }

    async fn snapshot(&self, vm: &str, request: SnapshotRequest) -> Result<Operation, Problem> {
        let mut state = self.state();
        let id = find(&mut state, vm)?.id.clone();
        let name = match request.name {
            Some(name) => name,
            None => format!("s{}", state.created).parse().map_err(|_| Problem::new(Code::Internal, "no name"))?,
        };
        let snapshot = Snapshot {
            name: name.clone(),
            vm: id.clone(),
            kind: SnapshotKind::Full,
            base: None,
            created_at: Timestamp::now(),
            description: request.description,
            scheduled: false,
            size_bytes: 0,
            pause_ns: 0,
        };
        state.snapshots.insert((id.clone(), name), snapshot);
        Ok(self.operation(&mut state, OperationKind::Snapshot, &id))
    }

    async fn delete_snapshot(&self, vm: &str, snapshot: &Name) -> Result<Operation, Problem> {
        let mut state = self.state();
        let id = find(&mut state, vm)?.id.clone();
        let gone = state.snapshots.remove(&(id.clone(), snapshot.clone()));
        gone.ok_or_else(|| Problem::not_found("snapshot", snapshot.as_str()))?;
        Ok(self.operation(&mut state, OperationKind::DeleteSnapshot, &id))
    }

    async fn restore(&self, vm: &str, snapshot: &Name) -> Result<Operation, Problem> {
        let mut state = self.state();
        let id = find(&mut state, vm)?.id.clone();
        let found = state.snapshots.get(&(id.clone(), snapshot.clone()));
        found.ok_or_else(|| Problem::not_found("snapshot", snapshot.as_str()))?;
        Ok(self.operation(&mut state, OperationKind::Restore, &id))
    }

    async fn clone_vm(&self, vm: &str, _: CloneRequest) -> Result<Operation, Problem> {
        self.change(vm, OperationKind::Clone, VmState::Running)
    }

    async fn migrate(&self, vm: &str, _: MigrateRequest) -> Result<Operation, Problem> {
        self.change(vm, OperationKind::Migrate, VmState::Running)
    }

    async fn receive(&self, request: ReceiveRequest) -> Result<Operation, Problem> {
        let request = CreateVm { name: request.name, spec: request.spec, start: true };
        self.create(request).await
    }

    async fn incoming(&self, vm: &str) -> Result<(PathBuf, Option<Arc<crate::Signs>>), Problem> {
        Err(Problem::new(Code::State, format!("{vm:?} is not expected here")))
    }

    async fn forget_incoming(&self, vm: &str) -> Result<(), Problem> {
        Err(Problem::new(Code::State, format!("{vm:?} is not expected here")))
    }

    async fn promise(&self, vm: &str, _: PromiseRequest) -> Result<BackupPromise, Problem> {
        Err(Problem::new(Code::State, format!("no copy of {vm:?} is kept here")))
    }

    async fn protect(&self, vm: &str, _: ProtectRequest) -> Result<Operation, Problem> {
        self.change(vm, OperationKind::Protect, VmState::Running)
    }

    async fn protection(&self, vm: &str) -> Result<Protection, Problem> {
        find(&mut self.state(), vm)?;
        Err(Problem::new(Code::State, format!("{vm:?} is not protected")))
    }

    async fn unprotect(&self, vm: &str) -> Result<Operation, Problem> {
        self.change(vm, OperationKind::Unprotect, VmState::Running)
    }

    async fn images(&self) -> Result<Vec<Image>, Problem> {
        Ok(self.state().images.values().cloned().collect())
    }

    async fn image(&self, name: &Name) -> Result<Image, Problem> {
        self.state().images.get(name).cloned().ok_or_else(|| Problem::not_found("image", name.as_str()))
    }

    async fn import_image(&self, request: ImportImage) -> Result<Operation, Problem> {
        self.add_image(request.name, 0, OperationKind::ImportImage)
    }

    async fn create_image(&self, request: CreateImage) -> Result<Operation, Problem> {
        self.add_image(request.name, request.size_bytes.unwrap_or(0), OperationKind::CreateImage)
    }

    async fn check_image(&self, name: &Name) -> Result<Operation, Problem> {
        self.image_operation(name, OperationKind::CheckImage)
    }

    async fn convert_image(&self, name: &Name, _: ConvertImage) -> Result<Operation, Problem> {
        self.image_operation(name, OperationKind::ConvertImage)
    }

    async fn resize_image(&self, name: &Name, _: ResizeImage) -> Result<Operation, Problem> {
        self.image_operation(name, OperationKind::ResizeImage)
    }

    async fn delete_image(&self, name: &Name) -> Result<(), Problem> {
        let gone = self.state().images.remove(name);
        gone.map(drop).ok_or_else(|| Problem::not_found("image", name.as_str()))
    }

    async fn operations(&self) -> Result<Vec<Operation>, Problem> {
        Ok(self.state().operations.values().cloned().collect())
    }

    async fn operation(&self, id: &str) -> Result<Operation, Problem> {
        self.state().operations.get(id).cloned().ok_or_else(|| Problem::not_found("operation", id))
    }

    async fn wait_operation(&self, id: &str, limit: Duration) -> Result<Operation, Problem> {
        Service::operation(self, id).await?;
        let mut hold = self.hold.subscribe();
        let _ = tokio::time::timeout(limit, hold.wait_for(|held| !held)).await;
        Service::operation(self, id).await
    }

    async fn cancel_operation(&self, id: &str) -> Result<Operation, Problem> {
        let mut state = self.state();
        let operation = state.operations.get_mut(id).ok_or_else(|| Problem::not_found("operation", id))?;
        if operation.state.is_over() {
            return Err(Problem::new(Code::State, "it is over: there is nothing to cancel"));
        }
        operation.state = OperationState::Cancelled;
        Ok(operation.clone())
    }

    async fn past_events(&self, limit: usize) -> Result<Vec<Event>, Problem> {
        let state = self.state();
        let skip = state.events.len().saturating_sub(limit);
        Ok(state.events.iter().skip(skip).cloned().collect())
    }

    async fn events(&self, after: Option<u64>) -> Result<Box<dyn EventStream>, Problem> {
        let state = self.state();
        let news = self.news.subscribe();
        let last = state.events.last().map_or(0, |event| event.sequence);
        let after = after.unwrap_or(last);
        let past: Vec<Event> = state.events.iter().filter(|event| event.sequence > after).cloned().collect();
        Ok(Box::new(Events { past: past.into_iter(), news, last }))
    }

    async fn benchmarks(&self) -> Result<Vec<BenchmarkRun>, Problem> {
        Ok(Vec::new())
    }

    async fn benchmark(&self, id: &str) -> Result<BenchmarkRun, Problem> {
        Err(Problem::not_found("run of benchmarks", id))
    }

    async fn run_benchmarks(&self, _: BenchmarkRequest) -> Result<Operation, Problem> {
        let mut state = self.state();
        Ok(self.operation(&mut state, OperationKind::Benchmark, "1"))
    }

    async fn delete_benchmark(&self, id: &str) -> Result<(), Problem> {
        Err(Problem::not_found("run of benchmarks", id))
    }

    async fn alerts(&self) -> Result<Vec<Alert>, Problem> {
        Ok(self.state().alerts.clone())
    }

    async fn daemon_figures(&self) -> Result<DaemonFigures, Problem> {
        let state = self.state();
        let alerts = state.alerts.iter().filter(|alert| alert.state == AlertState::Firing).cloned().collect();
        Ok(DaemonFigures { alerts, refused: state.refused, ..DaemonFigures::default() })
    }

    fn refused(&self) {
        self.state().refused += 1;
    }

    async fn log(&self) -> Result<Vec<LogRecord>, Problem> {
        Ok(vec![spoken(1, "queztl_control", "it is said")])
    }

    async fn audit(&self) -> Result<Vec<LogRecord>, Problem> {
        Ok(vec![spoken(1, "queztl::audit", ""), spoken(2, "queztl::audit", "")])
    }

    async fn endpoints(&self, vm: &str) -> Result<Endpoints, Problem> {
        find(&mut self.state(), vm)?;
        Ok(self.endpoints.clone())
    }

    async fn metrics(&self) -> Result<Vec<VmMetrics>, Problem> {
        Ok(self.state().vms.values().filter(|vm| vm.state == VmState::Running).map(figures).collect())
    }

    async fn vm_metrics(&self, vm: &str) -> Result<VmMetrics, Problem> {
        find(&mut self.state(), vm).map(|vm| figures(vm))
    }

    async fn history(&self, vm: &str, _: Timestamp, _: Timestamp) -> Result<Vec<Sample>, Problem> {
        find(&mut self.state(), vm)?;
        Ok(Vec::new())
    }

    async fn tokens(&self) -> Result<Vec<Token>, Problem> {
        Ok(self.state().tokens.values().map(|(token, _)| token.clone()).collect())
    }

    async fn create_token(&self, request: CreateToken) -> Result<NewToken, Problem> {
        let mut state = self.state();
        if state.tokens.contains_key(&request.name) {
            return Err(Problem::new(Code::Exists, format!("there is a token {} already", request.name)));
        }
        let CreateToken { name, scope, .. } = request;
        let token = Token { name: name.clone(), scope, created_at: Timestamp::now(), expires_at: None };
        let secret = format!("secret-of-{name}");
        state.tokens.insert(name, (token.clone(), secret.clone()));
        Ok(NewToken { token, secret })
    }

    async fn delete_token(&self, name: &Name) -> Result<(), Problem> {
        let gone = self.state().tokens.remove(name);
        gone.map(drop).ok_or_else(|| Problem::not_found("token", name.as_str()))
    }

    async fn authenticate(&self, secret: &str) -> Result<Token, Problem> {
        let state = self.state();
        let found = state.tokens.values().find(|(_, one)| one == secret);
        found
            .map(|(token, _)| token.clone())
            .ok_or_else(|| Problem::new(Code::Unauthenticated, "the token is not known"))
    }

    async fn recall(&self, key: &str) -> Result<Option<Recorded>, Problem> {
        Ok(self.state().recorded.get(key).cloned())
    }

    async fn record(&self, key: &str, recorded: Recorded) -> Result<(), Problem> {
        self.state().recorded.insert(key.to_owned(), recorded);
        Ok(())
    }
}
