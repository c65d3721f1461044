//! Machines come to be.

use std::path::Path;
use std::sync::Arc;

use queztl_api::{
    Code, CreateVm, Disk, EventKind, ImageFormat, Name, Operation, OperationKind, Problem, Timestamp, VmSpec,
};
use queztl_storage::image::{self, CreateConfig, Parent};
use queztl_vmm::config::Format;
use serde_json::json;

use super::lifecycle::Command;
use super::naming::{new_id, random_mac};
use super::{DiskRecord, DiskSource, Machine, VmRecord, Wish, config};
use crate::images::{self, ImageRecord};
use crate::manager::Core;
use crate::snapshots::{LayerBase, LayerRecord};
use crate::store::{Change, IMAGES, LAYERS, VM_NAMES, VMS};

/// Most machines of a store.
const MAX_VMS: usize = 10_000;

impl Core {
    pub(crate) fn create(self: &Arc<Self>, request: CreateVm) -> Result<Operation, Problem> {
        self.check_takes_machines()?;
        config::check(&request.spec)?;
        config::check_files(&request.spec)?;
        let record = blank(&request.name, request.spec)?;
        let machine = Arc::new(Machine::new(&self.config.home, record.clone()));
        // Nobody else knows the machine yet.
        let claim = machine.claim(OperationKind::Create, Command::Start)?;
        let noted = record.clone();
        let known = machine.clone();
        let begun = self.begin(
            OperationKind::Create,
            Some(record.id.clone()),
            |change| {
                insert(change, &noted)?;
                self.machines.insert(known);
                Ok(())
            },
            move |core, _| {
                if let Err(problem) = core.furnish(&machine) {
                    core.discard(&machine);
                    return Err(problem);
                }
                drop(claim);
                if request.start {
                    let claim = machine.claim(OperationKind::Start, Command::Start)?;
                    core.run(&machine, &claim)?;
                }
                Ok(json!(machine.describe()))
            },
        );
        if begun.is_err() {
            self.machines.remove(&record.id);
        }
        begun
    }

    /// Makes all that belongs to a machine, and says so.
    fn furnish(&self, machine: &Machine) -> Result<(), Problem> {
        let mut record = machine.record();
        let home = &self.config.home;
        make_folder(machine.folder.path())?;
        let mut layers = Vec::new();
        for (index, disk) in record.spec.disks.clone().iter().enumerate() {
            let (disk, layer) = self.furnish_disk(&record.id, index, disk)?;
            record.disks.push(disk);
            layers.extend(layer);
        }
        record.complete = true;
        let noted = self.store.write(|change| {
            // Somebody may have deleted the image meanwhile.
            for name in config::images(&record.spec) {
                let image = change.get(IMAGES, name.as_str())?;
                image.ok_or_else(|| Problem::not_found("image", name.as_str()))?;
            }
            for layer in &layers {
                change.put(LAYERS, &layer.id, layer)?;
            }
            change.put(VMS, &record.id, &record)?;
            let kind = EventKind::VmCreated { vm: record.id.clone(), name: record.name.to_string() };
            Ok(change.event(kind, format!("virtual machine {} was made", record.name))?)
        });
        if noted.is_err() {
            crate::snapshots::layers::remove_files(home, &layers);
        }
        noted?;
        machine.lock().record = record;
        Ok(())
    }

    fn furnish_disk(&self, vm: &str, index: usize, disk: &Disk) -> Result<(DiskRecord, Option<LayerRecord>), Problem> {
        let record = |source| DiskRecord { source, read_only: disk.read_only, serial: disk.serial.clone() };
        if let Some(path) = &disk.path {
            return Ok((record(DiskSource::Path(path.clone())), None));
        }
        let image = disk.image.as_ref().map(|name| self.image_record(name)).transpose()?;
        if let Some(image) = &image {
            if disk.read_only {
                return Ok((record(DiskSource::Image(image.name.clone())), None));
            }
            if disk.size_bytes.is_some_and(|bytes| bytes < image.size_bytes) {
                let message = format!("is less than the {} bytes of image {}", image.size_bytes, image.name);
                return Err(Problem::invalid(format!("spec.disks[{index}].size_bytes"), message));
            }
        }
        let layer = LayerRecord {
            id: new_id(),
            vm: vm.to_owned(),
            base: image.as_ref().map(|image| LayerBase::Image(image.name.clone())),
            created_at: Timestamp::now(),
        };
        let parent = image.map(|image| parent_of(&self.config.home, &image));
        self.make_layer(&layer, parent, disk.size_bytes)?;
        Ok((record(DiskSource::Layer(layer.id.clone())), Some(layer)))
    }

    /// Makes a layer's file.
    pub(crate) fn make_layer(
        &self,
        layer: &LayerRecord,
        parent: Option<Parent>,
        size_bytes: Option<u64>,
    ) -> Result<(), Problem> {
        let path = layer.path(&self.config.home);
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        let config = CreateConfig { path, format: Format::Qcow2, size_bytes, parent };
        image::create(&config).map(drop).map_err(|error| Problem::new(Code::Host, error.to_string()))
    }

    pub(crate) fn image_record(&self, name: &Name) -> Result<ImageRecord, Problem> {
        let record = self.store.get(IMAGES, name.as_str())?;
        record.ok_or_else(|| Problem::not_found("image", name.as_str()))
    }
}

/// A machine of which nothing has been made.
pub(crate) fn blank(name: &Name, spec: VmSpec) -> Result<VmRecord, Problem> {
    let macs = spec.nets.iter().enumerate().map(|(index, net)| match config::mac(index, net)? {
        Some(mac) => Ok(mac),
        None => random_mac(),
    });
    let macs = macs.collect::<Result<_, Problem>>()?;
    Ok(VmRecord {
        id: new_id(),
        name: name.clone(),
        spec,
        created_at: Timestamp::now(),
        origin: None,
        complete: false,
        arriving: false,
        leaving: None,
        protection: None,
        again: None,
        node: None,
        deleting: false,
        wish: Wish::Off,
        started_before: false,
        ended: None,
        disks: Vec::new(),
        cut_disks: Vec::new(),
        macs,
        crashes: Vec::new(),
        last_snapshot: None,
    })
}

/// Gives a new machine its place in the store and its name.
pub(crate) fn insert(change: &mut Change<'_>, record: &VmRecord) -> Result<(), Problem> {
    let name = record.name.as_str();
    if change.get(VM_NAMES, name)?.is_some() {
        let text = format!("there is a virtual machine {name:?} already: choose another name, or delete it first");
        return Err(Problem::new(Code::Exists, text));
    }
    if change.list_with(VM_NAMES, "")?.len() >= MAX_VMS {
        return Err(Problem::new(Code::Busy, format!("there are {MAX_VMS} virtual machines: delete some first")));
    }
    change.put(VM_NAMES, name, &record.id)?;
    Ok(change.put(VMS, &record.id, record)?)
}

pub(crate) fn parent_of(home: &Path, image: &ImageRecord) -> Parent {
    let format = if image.format == ImageFormat::Raw { Format::Raw } else { Format::Qcow2 };
    Parent { path: images::image_path(home, &image.name, image.format), format }
}

/// Makes a directory that only its owner can look into.
pub(crate) fn make_folder(path: &Path) -> Result<(), Problem> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| Problem::new(Code::Host, format!("the directory {path:?} cannot be made: {error}")))
}
