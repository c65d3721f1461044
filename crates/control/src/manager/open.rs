//! A manager begins, and ends.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use queztl_api::{EventKind, Problem};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{Config, Core, Machines, Manager};
use crate::alerts::Alerts;
use crate::cgroup::Groups;
use crate::cluster::Cluster;
use crate::metrics::Figures;
use crate::operations::Operations;
use crate::store::{Store, StoreError, VMS};
use crate::supervisor::Spawner;
use crate::vms::{Machine, make_folder};

/// The longest home, bytes: the name of a socket in a machine's directory below it has at most 107.
const MAX_HOME_BYTES: usize = 48;
/// How long operations may take to end when the manager is closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no manager.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0:?} cannot be the home of virtual machines: give an absolute path of at most {MAX_HOME_BYTES} bytes")]
    Home(std::path::PathBuf),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("alerts or logs cannot be sent as configured: {0}")]
    Telemetry(String),
    #[error("the state of the daemon before cannot be put in order: {0}")]
    Recovery(Problem),
}

impl Manager {
    /// Opens the manager of a home, finds its running machines and puts in order what a daemon before has left. To be called
    /// in a runtime with several threads.
    pub async fn open(config: Config) -> Result<Manager, OpenError> {
        if !config.home.is_absolute() || config.home.as_os_str().len() > MAX_HOME_BYTES {
            return Err(OpenError::Home(config.home));
        }
        let runtime = Handle::current();
        let opened = tokio::task::spawn_blocking(move || open(config, runtime)).await;
        let core = opened.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        Ok(Manager { core })
    }

    /// Lets operations end, for a while, and stops to look after machines. They go on.
    pub async fn close(&self) {
        self.core.closed.send_replace(true);
        let deadline = tokio::time::Instant::now() + CLOSE_LIMIT;
        // Nobody but this manager has the store then, and another can open it.
        let in_use = || self.core.is_busy() || Arc::strong_count(&self.core) > 1;
        while in_use() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.core.closed.send_replace(true);
    }
}

fn open(config: Config, runtime: Handle) -> Result<Arc<Core>, OpenError> {
    let store = Store::open(&config.home)?;
    let alerts = Alerts::open(&config.telemetry, &store).map_err(OpenError::Telemetry)?;
    let core = Arc::new(Core {
        spawner: Spawner::new(&config.program),
        config,
        store,
        machines: Machines::default(),
        operations: Operations::default(),
        figures: Figures::default(),
        groups: Groups::default(),
        alerts,
        cluster: Cluster::default(),
        own_boot: Mutex::default(),
        runtime,
        closed: watch::Sender::new(false),
    });
    core.recover().map_err(OpenError::Recovery)?;
    Ok(core)
}

impl Core {
    /// Puts in order what a daemon before has left, and goes on from there.
    fn recover(self: &Arc<Self>) -> Result<(), Problem> {
        make_folder(&self.config.home.join("vms"))?;
        make_folder(&crate::images::folder(&self.config.home))?;
        self.store.write(|change| Ok(change.event(EventKind::DaemonStarted, "the daemon has started")?))?;
        // Machines on their way, and copies of machines, are of its nodes.
        self.open_cluster()?;
        for (_, record) in self.store.list(VMS)? {
            if !record.complete && !record.arriving {
                self.remove_incomplete(&record)?;
                continue;
            }
            self.machines.insert(Arc::new(Machine::new(&self.config.home, record)));
        }
        // Each may have to wait for a process.
        std::thread::scope(|scope| {
            for machine in self.machines.all() {
                scope.spawn(move || self.adopt(&machine));
            }
        });
        for machine in self.machines.all() {
            if machine.record().arriving {
                self.recover_arrival(&machine)?;
            }
        }
        for machine in self.machines.all() {
            if machine.record().deleting {
                self.end_process(&machine)?;
                self.remove(&machine)?;
            }
        }
        self.recover_snapshots()?;
        self.recover_images()?;
        self.recover_operations()?;
        self.recover_benchmarks()?;
        for machine in self.machines.all() {
            self.recover_departure(&machine)?;
            self.recover_protection(&machine)?;
            self.protect_again(&machine);
        }
        self.autostart();
        self.start_sampling();
        self.start_checkpoints();
        self.start_alerts();
        Ok(())
    }
}
