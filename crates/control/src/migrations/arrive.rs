//! The target: a machine arrives.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_api::{Code, EventKind, Operation, OperationKind, Problem, ReceiveRequest, SharedDisk};
use queztl_vmm::config::Mac;
use queztl_vmm::process::Start;
use serde_json::json;

use crate::Signs;
use crate::manager::Core;
use crate::store::VMS;
use crate::vms::lifecycle::{self, Command};
use crate::vms::{DiskRecord, DiskSource, Machine, Wish, config, create};

/// How long a process whose source's connection has ended may take to run its machine, or to end.
const DECIDE_LIMIT: Duration = Duration::from_secs(1);
/// How long a process may take until it waits for its machine.
const READY_LIMIT: Duration = Duration::from_secs(30);

impl Core {
    /// Makes ready for a machine: a process that waits for it. The operation ends when the machine runs here, or will not.
    pub(crate) fn receive(self: &Arc<Self>, request: ReceiveRequest) -> Result<Operation, Problem> {
        if let Some(order) = &request.backup
            && let Some(keeps) = self.hear_again(&request.id, order)?
        {
            return Ok(keeps);
        }
        self.check_takes_machines()?;
        config::check(&request.spec)?;
        let disks = self.arriving_disks(&request)?;
        let mut record = create::blank(&request.name, request.spec.clone())?;
        record.id = identifier(&request.id)?;
        record.macs = addresses(&request.macs, record.macs.len())?;
        record.arriving = true;
        // Who goes on knows who it is, and what is to be done, also if this daemon ends in between.
        record.node = request.backup.as_ref().map(|order| order.node);
        record.again = request.backup.as_ref().and_then(|order| order.again.as_deref().cloned());
        let mirrors = disks.iter().enumerate().filter(|(_, disk)| matches!(disk.source, DiskSource::Mirror(_)));
        let mirrors: Vec<usize> = mirrors.map(|(index, _)| index).collect();
        record.disks = disks;
        if self.machines.find(&record.id).is_ok() {
            let text = format!("the machine {} is here already: is it the same daemon?", record.id);
            return Err(Problem::new(Code::Exists, text));
        }
        let machine = Arc::new(Machine::new(&self.config.home, record.clone()));
        machine.lock().order = request.backup.clone();
        let kind = if request.backup.is_some() { OperationKind::KeepCopy } else { OperationKind::Receive };
        let claim = machine.claim(kind, Command::Start)?;
        let known = machine.clone();
        let begun = self.begin(
            kind,
            Some(record.id.clone()),
            |change| {
                create::insert(change, &record)?;
                self.machines.insert(known);
                Ok(())
            },
            move |core, _| {
                let arrived = match request.backup {
                    Some(order) => core.keep_copy(&machine, &claim, order),
                    None => core.run_from(&machine, &claim, Start::Incoming { disks: mirrors }, Vec::new()),
                };
                if let Err(problem) = arrived.and_then(|()| core.arrived(&machine)) {
                    // Its process is ended with it.
                    core.discard(&machine);
                    return Err(problem);
                }
                drop(claim);
                core.protect_again(&machine);
                Ok(json!(machine.describe()))
            },
        );
        if begun.is_err() {
            self.machines.remove(&request.id);
        }
        begun
    }

    /// Where its disks are here. Those that it writes to come with it, unless they are here already.
    fn arriving_disks(&self, request: &ReceiveRequest) -> Result<Vec<DiskRecord>, Problem> {
        let disks = (0..).zip(&request.spec.disks).map(|(index, disk)| {
            let shared = request.shared.iter().find(|shared| shared.index == index);
            let source = match (&disk.path, &disk.image, shared) {
                (Some(path), _, Some(shared)) if !disk.read_only && request.backup.is_none() => {
                    check_same(path, shared)?;
                    DiskSource::Path(path.clone())
                }
                (_, _, Some(_)) => {
                    return Err(Problem::invalid("shared", "names disks that are written to and given by a path"));
                }
                _ if !disk.read_only => DiskSource::Mirror(index),
                (Some(path), _, _) => DiskSource::Path(path.clone()),
                (_, Some(image), _) => DiskSource::Image(self.image_record(image)?.name),
                _ => return Err(Problem::invalid("spec.disks", "has one that is read only and is nowhere")),
            };
            Ok(DiskRecord { source, read_only: disk.read_only, serial: disk.serial.clone() })
        });
        disks.collect()
    }

    /// It is a machine like all others from now on.
    pub(crate) fn arrived(&self, machine: &Machine) -> Result<(), Problem> {
        self.store.write(|change| {
            let mut inner = machine.lock();
            (inner.record.complete, inner.record.arriving, inner.record.wish) = (true, false, Wish::On);
            change.put(VMS, &machine.id, &inner.record)?;
            let kind = EventKind::VmCreated { vm: machine.id.clone(), name: inner.record.name.to_string() };
            Ok(change.event(kind, format!("virtual machine {} has arrived", inner.record.name))?)
        })
    }

    /// The daemon has died while a machine was on its way here: if it runs, it is here; if not, it is not coming, since the
    /// connections were the dead daemon's.
    pub(crate) fn recover_arrival(&self, machine: &Machine) -> Result<(), Problem> {
        let deadline = Instant::now() + DECIDE_LIMIT;
        while lifecycle::is_alive(machine.state()) && Instant::now() < deadline {
            if crate::supervisor::status(&machine.folder).is_some() {
                return self.arrived(machine);
            }
            // It may have been told to run a moment ago; if it was not, it ends by itself.
            std::thread::sleep(Duration::from_millis(2));
        }
        if lifecycle::is_alive(machine.state()) {
            self.end_process(machine)?;
        }
        self.discard(machine);
        Ok(())
    }

    /// The socket where a machine's process waits for it or for the rest of its memory, once that is there, and who wants to know of its owner's life.
    pub(crate) fn incoming(&self, id: &str) -> Result<(PathBuf, Option<Arc<Signs>>), Problem> {
        let machine = self.machines.find(id)?;
        let deadline = Instant::now() + READY_LIMIT;
        while Instant::now() < deadline {
            let socket = machine.folder.incoming();
            if socket.exists() {
                return Ok((socket, machine.lock().signs.clone()));
            }
            // One that has arrived waits for no more than the rest of its memory.
            if !machine.lock().record.arriving {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(Problem::new(Code::State, "no machine is expected here under this identifier"))
    }

    /// The machine does not come.
    pub(crate) fn forget_incoming(&self, id: &str) -> Result<(), Problem> {
        let machine = self.machines.find(id)?;
        if !machine.lock().record.arriving {
            return Err(Problem::new(Code::State, "the machine has arrived: it is not expected any more"));
        }
        if lifecycle::is_alive(machine.state()) {
            self.end_process(&machine)?;
        }
        Ok(())
    }
}

/// Whether a file here is the one that the source speaks of.
fn check_same(path: &Path, shared: &SharedDisk) -> Result<(), Problem> {
    use std::os::unix::fs::MetadataExt;
    let refused =
        |why: String| Problem::new(Code::Invalid, format!("the disk {path:?} is not shared with this host: {why}"));
    let found = std::fs::metadata(path).map_err(|error| refused(error.to_string()))?;
    let same = (found.ino(), found.len()) == (shared.inode, shared.length_bytes);
    if same { Ok(()) } else { Err(refused("here it is another file; leave --shared-disks out to copy it".into())) }
}

fn identifier(id: &str) -> Result<String, Problem> {
    let valid = id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    valid.then(|| id.to_owned()).ok_or_else(|| Problem::invalid("id", "is 32 hexadecimal digits"))
}

fn addresses(macs: &[String], count: usize) -> Result<Vec<Mac>, Problem> {
    if macs.len() != count {
        return Err(Problem::invalid("macs", format!("is of {} addresses for {count} network devices", macs.len())));
    }
    let parsed = macs.iter().enumerate().map(|(index, mac)| {
        mac.parse::<Mac>().map_err(|error| Problem::invalid(format!("macs[{index}]"), error.to_string()))
    });
    parsed.collect()
}
