//! The files that machines' disks are made of.
//!
//! A disk is a chain of qcow2 files. The first belongs to one machine, which writes to it; a snapshot or a fork ends its being
//! written, and the machine goes on with a new first file on top. What is below may be shared by machines, snapshots and
//! clones of both.
//!
//! ```text
//!  machine ──> layer C ──> layer B ──> layer A ──> image
//!                             ^ ^
//!  clone ────> layer D ───────┘ └── snapshot
//! ```
//! Who uses a layer is read from the records, all of which change in one transaction with it; there is no count that could
//! be wrong. A layer lies in the directory of the machine it was made for, and stays there after the machine is gone for as
//! long as somebody uses it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use queztl_api::{Name, Problem, Timestamp};
use serde::{Deserialize, Serialize};

use crate::store::{Change, LAYERS, SNAPSHOTS, VMS};
use crate::vms::{DiskRecord, DiskSource};

/// A file of a disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub id: String,
    /// The machine in whose directory it lies; it may be gone.
    pub vm: String,
    pub base: Option<LayerBase>,
    pub created_at: Timestamp,
}

/// What a layer builds on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LayerBase {
    Layer(String),
    Image(Name),
    /// A file of the host that a machine used in place before it was cut.
    Path(PathBuf),
}

impl LayerRecord {
    pub(crate) fn path(&self, home: &Path) -> PathBuf {
        folder(home, &self.vm).join(format!("{}.qcow2", self.id))
    }
}

/// Where the layers made for a machine are.
pub(crate) fn folder(home: &Path, vm: &str) -> PathBuf {
    home.join("vms").join(vm).join("disks")
}

/// Forgets the layers that nobody uses any more, and gives them: their files can go once the change has happened.
pub(crate) fn forget_unused(change: &mut Change<'_>) -> Result<Vec<LayerRecord>, Problem> {
    let mut layers = change.list_with(LAYERS, "")?;
    let mut used: HashSet<String> = HashSet::new();
    let layer = |disk: &DiskRecord| match &disk.source {
        DiskSource::Layer(id) => Some(id.clone()),
        DiskSource::Image(_) | DiskSource::Path(_) | DiskSource::Mirror(_) => None,
    };
    for (_, vm) in change.list_with(VMS, "")? {
        used.extend(vm.disks.iter().chain(&vm.cut_disks).filter_map(layer));
    }
    for (_, snapshot) in change.list_with(SNAPSHOTS, "")? {
        used.extend(snapshot.disks.iter().filter_map(layer));
    }
    let mut forgotten = Vec::new();
    loop {
        let bases = layers.iter().filter_map(|(_, layer)| match &layer.base {
            Some(LayerBase::Layer(id)) => Some(id.clone()),
            _ => None,
        });
        let bases: HashSet<String> = bases.collect();
        let is_used = |id: &String| used.contains(id) || bases.contains(id);
        let (kept, unused): (Vec<_>, Vec<_>) = layers.into_iter().partition(|(id, _)| is_used(id));
        if unused.is_empty() {
            return Ok(forgotten);
        }
        for (id, layer) in unused {
            change.remove(LAYERS, &id)?;
            forgotten.push(layer);
        }
        layers = kept;
    }
}

/// Removes the files of forgotten layers, and the directories of machines that are gone once they are empty. What cannot
/// be removed now is when the next daemon starts.
pub(crate) fn remove_files(home: &Path, forgotten: &[LayerRecord]) {
    for layer in forgotten {
        let path = layer.path(home);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(?path, %error, "a disk file that nobody uses cannot be removed");
            }
            _ => {}
        }
        // Fails as long as something is in it, as it should.
        let folder = folder(home, &layer.vm);
        let _ = std::fs::remove_dir(&folder);
        let _ = folder.parent().map(std::fs::remove_dir);
    }
}
