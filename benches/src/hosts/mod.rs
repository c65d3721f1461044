//! Two daemons of this host as two hosts, and a guest that writes to its memory at a known rate: what protection costs it, how
//! soon it goes on elsewhere, and how it moves.

pub mod migration;
pub mod protection;
mod qemu;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use queztl_api::{CreateVm, Operation, OperationState, Vm, VmSpec, VmState};
use queztl_client::{Address, Client, Message, Options};

use queztl_vmm::process::Folder;

use crate::payload::{self, Writer};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
const VM: &str = "writer";

/// A daemon with a home of its own, which ends with its machines.
struct Host {
    home: PathBuf,
    daemon: Child,
    client: Client,
}

impl Host {
    async fn start(queztl: &Path, home: PathBuf) -> Result<Host> {
        std::fs::create_dir_all(&home)?;
        let mut command = Command::new(queztl);
        command.arg("daemon").env("QUEZTL_HOME", &home);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(home.join("log"))?);
        let daemon = command.spawn().context("cannot start queztl-hv")?;
        let client = Client::new(Address::Unix(home.join("daemon.sock")), Options::default())?;
        let host = Host { home, daemon, client };
        let start = Instant::now();
        while host.client.info().await.is_err() {
            if start.elapsed() > LIMIT {
                bail!("a daemon does not answer within {LIMIT:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(host)
    }

    fn address(&self) -> String {
        format!("unix:{}", self.home.join("daemon.sock").display())
    }

    /// Waits for the good end of an operation.
    async fn done(&self, operation: Operation) -> Result<Operation> {
        let operation = self.client.finish(operation, |_| ()).await?;
        match operation.state {
            OperationState::Succeeded => Ok(operation),
            state => bail!("an operation is {state:?}: {}", operation.problem.map_or_else(String::new, |p| p.detail)),
        }
    }

    /// Makes the guest, and waits until it has filled its memory.
    async fn boot(&self, writer: &Writer) -> Result<Console> {
        let kernel = payload::write_program(&self.home, "writer", &writer.code()?)?;
        let spec =
            VmSpec { kernel: Some(kernel), ram_bytes: writer.ram_mib << 20, accel: "soft".into(), ..VmSpec::default() };
        let request = CreateVm { name: VM.parse()?, spec, start: true };
        self.done(self.client.create(&request).await?).await?;
        let console = Console::watch(self, writer).await?;
        console.hears_within(LIMIT).await?;
        Ok(console)
    }

    /// Ends daemon and machine at once, as when a host loses its power.
    async fn die(&mut self) -> Result<Instant> {
        let vm = self.client.vm(VM).await?;
        let at = Instant::now();
        kill(self.daemon.id());
        vm.runtime.iter().for_each(|runtime| kill(runtime.pid));
        self.daemon.wait()?;
        Ok(at)
    }

    async fn waits_for(&self, state: VmState) -> Result<Vm> {
        let start = Instant::now();
        loop {
            match self.client.vm(VM).await {
                Ok(vm) if vm.state == state => return Ok(vm),
                _ if start.elapsed() > LIMIT => bail!("the machine is not {state:?} within {LIMIT:?}"),
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    async fn stop(mut self) {
        if let Ok(operation) = self.client.delete_vm(VM, true).await {
            let _ = self.client.finish(operation, |_| ()).await;
        }
        kill_softly(self.daemon.id());
        let _ = self.daemon.wait();
    }
}

impl Drop for Host {
    /// What is left after a failure: machines outlive their daemon.
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let folders = std::fs::read_dir(self.home.join("vms")).into_iter().flatten().flatten();
        for process in folders.filter_map(|folder| Folder::new(folder.path()).runner().ok().flatten()) {
            // 0 is one that has not said yet who it is; as a number of `kill` it would mean this program's own group.
            if process.pid > 0 {
                kill(process.pid);
            }
        }
    }
}

fn kill(pid: u32) {
    // SAFETY: the call touches no memory.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
}

fn kill_softly(pid: u32) {
    // SAFETY: as above.
    unsafe { libc::kill(pid as i32, libc::SIGTERM) };
}

/// What a guest says: a byte for each page that it writes, or for [`Writer::pages_per_byte`].
struct Console {
    heard: Arc<Mutex<Heard>>,
    pages_per_byte: u32,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Heard {
    bytes: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Console {
    async fn watch(host: &Host, writer: &Writer) -> Result<Console> {
        let mut session = host.client.console(VM, true).await?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let notes = heard.clone();
        let task = tokio::spawn(async move {
            while let Ok(Some(message)) = session.next().await {
                let Message::Bytes(bytes) = message else { continue };
                let mut heard = notes.lock().unwrap_or_else(PoisonError::into_inner);
                heard.bytes += bytes.len() as u64;
                heard.last = Some(Instant::now());
                heard.first = heard.first.or(heard.last);
            }
        });
        Ok(Console { heard, pages_per_byte: writer.pages_per_byte(), task })
    }

    fn heard(&self) -> Heard {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages that the guest has written since this listens.
    fn pages(&self) -> u64 {
        self.heard().bytes * u64::from(self.pages_per_byte)
    }

    async fn hears_within(&self, limit: Duration) -> Result<Instant> {
        let start = Instant::now();
        loop {
            match self.heard().first {
                Some(at) => return Ok(at),
                None if start.elapsed() > limit => bail!("the guest says nothing within {limit:?}"),
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Pages that the guest writes in a second.
    async fn rate(&self, time: Duration) -> f64 {
        let (before, start) = (self.pages(), Instant::now());
        tokio::time::sleep(time).await;
        (self.pages() - before) as f64 / start.elapsed().as_secs_f64()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The value below which `part` of them are.
fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = ((values.len() as f64 * part) as usize).min(values.len().saturating_sub(1));
    values.get(index).copied().unwrap_or_default()
}

fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_are_of_the_values_in_order() {
        let mut values: Vec<f64> = (0..100).rev().map(f64::from).collect();
        assert_eq!((quantile(&mut values, 0.5), quantile(&mut values, 0.99)), (50.0, 99.0));
        assert_eq!((quantile(&mut [7.0], 0.99), quantile(&mut [], 0.5)), (7.0, 0.0));
    }
}
