//! Who needs an image as it is.

use queztl_api::{Code, Name, Problem};

use crate::snapshots::LayerBase;
use crate::store::{Change, IMAGES, LAYERS, SNAPSHOTS, StoreError, VMS};
use crate::vms::{DiskRecord, DiskSource, VmRecord};

/// Everything that needs an image.
#[derive(Debug, Default)]
pub(super) struct Users {
    /// Machines, by identifier and name.
    pub vms: Vec<(String, String)>,
    images: Vec<String>,
    /// There are layers of machines that are gone, for the sake of others.
    layers: bool,
}

impl Users {
    /// Finds them in the records.
    pub(super) fn of(name: &Name, records: &Records) -> Users {
        let reads = |disk: &DiskRecord| matches!(&disk.source, DiskSource::Image(image) if image == name);
        let on_image: Vec<&str> = records
            .layers
            .iter()
            .filter(|(_, base)| matches!(base, Some(LayerBase::Image(image)) if image == name))
            .map(|(vm, _)| vm.as_str())
            .collect();
        let mut users = Users::default();
        for vm in &records.vms {
            if on_image.contains(&vm.id.as_str()) || vm.disks.iter().any(reads) {
                users.vms.push((vm.id.clone(), vm.name.to_string()));
            }
        }
        users
            .images
            .extend(records.images.iter().filter(|(_, on)| on.as_ref() == Some(name)).map(|(n, _)| n.to_string()));
        users.layers = users.vms.is_empty() && (!on_image.is_empty() || records.snapshots.iter().any(reads));
        users
    }

    /// A refusal that names them, if there are any.
    pub(super) fn refuse(&self, name: &Name, what: &str) -> Result<(), Problem> {
        let vms = self.vms.iter().map(|(_, vm)| format!("virtual machine {vm:?}"));
        let images = self.images.iter().map(|image| format!("image {image:?}"));
        let clones = self.layers.then(|| "the disks of clones and snapshots".to_owned());
        let all: Vec<String> = vms.chain(images).chain(clones).collect();
        if all.is_empty() {
            return Ok(());
        }
        let shown = all.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        let more = if all.len() > 5 { format!(" and {} more", all.len() - 5) } else { String::new() };
        let (builds, these) = if all.len() == 1 { ("builds", "it") } else { ("build", "these") };
        let text =
            format!("image {:?} cannot be {what}: {shown}{more} {builds} on it; delete {these} first", name.as_str());
        Err(Problem::new(Code::InUse, text))
    }
}

/// What can use images.
#[derive(Debug)]
pub(super) struct Records {
    vms: Vec<VmRecord>,
    /// Machine and base of each layer.
    layers: Vec<(String, Option<LayerBase>)>,
    images: Vec<(Name, Option<Name>)>,
    snapshots: Vec<DiskRecord>,
}

impl Records {
    pub(super) fn read(change: &Change<'_>) -> Result<Records, StoreError> {
        let layers = change.list_with(LAYERS, "")?.into_iter().map(|(_, layer)| (layer.vm, layer.base));
        let images = change.list_with(IMAGES, "")?.into_iter().map(|(_, image)| (image.name, image.backing));
        let snapshots = change.list_with(SNAPSHOTS, "")?.into_iter().flat_map(|(_, snapshot)| snapshot.disks);
        Ok(Records {
            vms: change.list_with(VMS, "")?.into_iter().map(|(_, vm)| vm).collect(),
            layers: layers.collect(),
            images: images.collect(),
            snapshots: snapshots.collect(),
        })
    }
}
