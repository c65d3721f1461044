//! The manager: one for each home, all of the daemon but its API.
//!
//! Promises: the death of a daemon loses no machine and no state. Machines go on; the next manager finds them, finishes or
//! undoes what its predecessor was at, and serves on.
//!
//! ```text
//!  Service (async) ──> Manager ── threads that may wait ──> Core
//!                                   ├ store       records, events, one transaction for each change
//!                                   ├ machines    what is known of them now
//!                                   ├ operations  what is being done
//!                                   └ supervisor  their processes
//! ```
//! Everything below [`Manager`] is plain code that waits for disks and processes; only the edge is asynchronous.

mod machines;
mod open;
mod service;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use queztl_api::{Code, Problem, VmSpec};
use queztl_guest_image::{self as guest_image, Silent};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::alerts::Alerts;
use crate::cgroup::Groups;
use crate::cluster::Cluster;
use crate::metrics::Figures;
use crate::operations::Operations;
use crate::store::Store;
use crate::supervisor::Spawner;
use crate::vms::config::BootFiles;
pub(crate) use machines::Machines;
pub use open::OpenError;

/// What a manager needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where store, machines and images are: an absolute path. It is short, since sockets lie below it.
    pub home: PathBuf,
    /// The program that runs machines: `queztl-hv`.
    pub program: PathBuf,
    /// Where guest kernels are; none for the user's store.
    pub kernels: Option<PathBuf>,
    /// What is looked for, and who is told.
    pub telemetry: queztl_telemetry::Config,
}

impl Config {
    /// The manager of `home`, with the program that runs now.
    ///
    /// # Errors
    /// The program cannot be found.
    pub fn new(home: impl Into<PathBuf>) -> std::io::Result<Config> {
        Ok(Config {
            home: home.into(),
            program: std::env::current_exe()?,
            kernels: None,
            telemetry: Default::default(),
        })
    }
}

/// The manager of virtual machines.
#[derive(Debug)]
pub struct Manager {
    core: Arc<Core>,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub config: Config,
    pub store: Store,
    pub machines: Machines,
    pub operations: Operations,
    pub figures: Figures,
    pub groups: Groups,
    pub spawner: Spawner,
    pub alerts: Alerts,
    pub cluster: Cluster,
    /// Our own kernel and root file system, once they have been looked for.
    own_boot: Mutex<Option<BootFiles>>,
    pub runtime: Handle,
    closed: watch::Sender<bool>,
}

impl Core {
    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Waits until the manager is closed.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut closed = self.closed.subscribe();
        async move {
            // Without a sender there is no manager either.
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    /// What a machine starts from.
    pub(crate) fn boot_files(&self, spec: &VmSpec) -> Result<BootFiles, Problem> {
        if let Some(kernel) = &spec.kernel {
            return Ok(BootFiles { kernel: kernel.clone(), initrd: spec.initrd.clone(), own: false });
        }
        let mut known = self.own_boot.lock().unwrap_or_else(PoisonError::into_inner);
        let there = |files: &BootFiles| files.kernel.exists() && files.initrd.iter().all(|file| file.exists());
        let mut files = match known.as_ref().filter(|files| there(files)) {
            Some(files) => files.clone(),
            None => known.insert(self.find_own_boot()?).clone(),
        };
        if !spec.initrd.is_empty() {
            files.initrd = spec.initrd.clone();
        }
        Ok(files)
    }

    /// Our own kernel and root file system; made if they are not there yet. Takes a while: the root file system is put
    /// together to see whether it is the one that is there.
    fn find_own_boot(&self) -> Result<BootFiles, Problem> {
        let failed = |error: guest_image::Error| {
            Problem::new(Code::Host, format!("there is no guest kernel to boot: {error}; try `queztl-hv kernel build`"))
        };
        let store = match &self.config.kernels {
            Some(path) => guest_image::Store::at(path),
            None => guest_image::Store::open(),
        };
        let store = store.map_err(failed)?;
        let kernel = guest_image::default_kernel_in(&store, &mut Silent).map_err(failed)?.vmlinux;
        let initrd = guest_image::rootfs::build(&store, &[], &mut Silent).map_err(failed)?.initramfs;
        Ok(BootFiles { kernel, initrd: vec![initrd], own: true })
    }
}

impl Manager {
    #[cfg(test)]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Runs a call that may wait.
    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Arc<Core>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let core = self.core.clone();
        let result = tokio::task::spawn_blocking(move || call(&core)).await;
        result.unwrap_or_else(|error| {
            Err(Problem::new(Code::Internal, format!("the daemon made a mistake here: {error}")))
        })
    }
}
