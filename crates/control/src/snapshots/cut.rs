//! Disks at one point in time.
//!
//! A machine that is cut goes on with new files on top of its present ones, which nobody writes any more. The daemon may die
//! at any moment of this, and the process may or may not have heard of it:
//!
//! ```text
//! make the new files ─> record: disks = new, cut_disks = old ─> ask the process ─> record: cut_disks gone
//!                                                                 │ refused, and the process does not use them
//!                                                                 └─> record: disks = old
//! ```
//! A new file that is not in use yet reads as the old one under it. So a machine without a process is right with the new
//! files whatever happened; for one with a process, its open files tell.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use queztl_api::{Code, Problem, Timestamp};
use queztl_storage::image::Parent;
use queztl_vmm::config::Format;
use queztl_vmm::control::DiskCut;

use super::layers::{self, LayerBase, LayerRecord};
use crate::manager::Core;
use crate::store::{LAYERS, VMS};
use crate::vms::naming::new_id;
use crate::vms::{DiskRecord, DiskSource, Machine};

/// New files for a machine's disks.
#[derive(Debug)]
pub(crate) struct Cut {
    /// The disks as they are before.
    pub old: Vec<DiskRecord>,
    /// The disks as they go on.
    pub new: Vec<DiskRecord>,
    pub layers: Vec<LayerRecord>,
    /// What the process is asked for.
    pub orders: Vec<DiskCut>,
}

impl Core {
    /// Makes files for a machine `vm` to go on from `disks`: one on top of each that can be written.
    pub(crate) fn stack(&self, vm: &str, disks: &[DiskRecord]) -> Result<Cut, Problem> {
        let mut cut = Cut { old: disks.to_vec(), new: disks.to_vec(), layers: Vec::new(), orders: Vec::new() };
        for (index, disk) in disks.iter().enumerate().filter(|(_, disk)| !disk.read_only) {
            let below = match &disk.source {
                DiskSource::Layer(id) => id.clone(),
                DiskSource::Image(_) => continue,
                DiskSource::Mirror(_) => {
                    let text = format!(
                        "disk {index} was copied here when the machine's host died, and cannot be kept in a snapshot yet: import \
                         its file as an image, and make the machine from that"
                    );
                    return Err(Problem::new(Code::State, text));
                }
                DiskSource::Path(path) => {
                    let text = format!(
                        "disk {index}, {path:?}, is a file of the host that is used in place, so that its content cannot \
                         be kept: import it as an image, and make the machine from that"
                    );
                    return Err(Problem::new(Code::State, text));
                }
            };
            let made = self.stack_one(vm, &below);
            let layer = match made {
                Ok(layer) => layer,
                Err(problem) => {
                    layers::remove_files(&self.config.home, &cut.layers);
                    return Err(problem);
                }
            };
            cut.orders.push(DiskCut { index, overlay: layer.path(&self.config.home) });
            cut.new[index].source = DiskSource::Layer(layer.id.clone());
            cut.layers.push(layer);
        }
        Ok(cut)
    }

    fn stack_one(&self, vm: &str, below: &str) -> Result<LayerRecord, Problem> {
        let base = self.store.get(LAYERS, below)?.ok_or_else(|| Problem::not_found("disk file", below))?;
        let (id, created_at) = (new_id(), Timestamp::now());
        let layer = LayerRecord { id, vm: vm.to_owned(), base: Some(LayerBase::Layer(base.id.clone())), created_at };
        let parent = Parent { path: base.path(&self.config.home), format: Format::Qcow2 };
        self.make_layer(&layer, Some(parent), None)?;
        Ok(layer)
    }

    /// Notes that the machine is about to go on with new files.
    pub(crate) fn begin_cut(&self, machine: &Machine, cut: &Cut) -> Result<(), Problem> {
        if cut.layers.is_empty() {
            return Ok(());
        }
        let noted = self.store.write(|change| {
            let mut inner = machine.lock();
            let mut record = inner.record.clone();
            record.disks = cut.new.clone();
            record.cut_disks = cut.old.clone();
            for layer in &cut.layers {
                change.put(LAYERS, &layer.id, layer)?;
            }
            change.put(VMS, &record.id, &record)?;
            inner.record = record;
            Ok(())
        });
        if noted.is_err() {
            layers::remove_files(&self.config.home, &cut.layers);
        }
        noted
    }

    /// Finds out which files the machine uses after a cut that has failed, or of which nobody knows, and notes that.
    pub(crate) fn settle_cut(&self, machine: &Machine) -> Result<(), Problem> {
        let (record, pid) = {
            let inner = machine.lock();
            (inner.record.clone(), inner.live.as_ref().map(|live| live.process.pid))
        };
        if record.cut_disks.is_empty() {
            return Ok(());
        }
        let went_on = match pid {
            None => true,
            Some(pid) => {
                let open = open_files(pid);
                let is_open = |path: &Path| std::fs::metadata(path).is_ok_and(|m| open.contains(&(m.dev(), m.ino())));
                let changed = record.disks.iter().zip(&record.cut_disks).filter(|(new, old)| new != old);
                let mut new = changed.filter_map(|(new, _)| match &new.source {
                    DiskSource::Layer(id) => self.store.get(LAYERS, id).ok().flatten(),
                    _ => None,
                });
                new.any(|layer| is_open(&layer.path(&self.config.home)))
            }
        };
        let forgotten = self.store.write(|change| {
            let mut inner = machine.lock();
            let mut record = inner.record.clone();
            let old = std::mem::take(&mut record.cut_disks);
            if !went_on {
                record.disks = old;
            }
            change.put(VMS, &record.id, &record)?;
            inner.record = record;
            drop(inner);
            layers::forget_unused(change)
        })?;
        layers::remove_files(&self.config.home, &forgotten);
        Ok(())
    }

    /// Removes files of disks that no record knows.
    pub(super) fn sweep_layers(&self) -> Result<(), Problem> {
        let forgotten = self.store.write(layers::forget_unused)?;
        let home = &self.config.home;
        layers::remove_files(home, &forgotten);
        let known: HashSet<_> = self.store.list(LAYERS)?.iter().map(|(_, layer)| layer.path(home)).collect();
        let Ok(folders) = std::fs::read_dir(home.join("vms")) else { return Ok(()) };
        for folder in folders.flatten() {
            let disks = folder.path().join("disks");
            let Ok(files) = std::fs::read_dir(&disks) else { continue };
            for file in files.flatten().filter(|file| !known.contains(&file.path())) {
                if let Err(error) = std::fs::remove_file(file.path()) {
                    tracing::warn!(path = ?file.path(), %error, "a disk file that nobody uses cannot be removed");
                }
            }
            // Both fail while something is in them.
            let _ = std::fs::remove_dir(&disks);
            let _ = std::fs::remove_dir(folder.path());
        }
        Ok(())
    }
}

/// Device and inode of each file that a process has open.
fn open_files(pid: u32) -> HashSet<(u64, u64)> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return HashSet::new() };
    let metadata = entries.flatten().filter_map(|entry| std::fs::metadata(entry.path()).ok());
    metadata.map(|metadata| (metadata.dev(), metadata.ino())).collect()
}
