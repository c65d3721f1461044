//! The disks of a running machine: what they have done, and going on with new files while the machine stands still.

use std::path::PathBuf;
use std::sync::Arc;

use queztl_storage::{Backing, Format, open_overlay};

use super::assembly::is_repeatable;
use super::{MachineHandle, lock, read};
use crate::control::{Reason, Refusal};
use crate::devices::virtio::block::{Block, Cut, CutError, DiskFigures};

/// Disks that are about to go on with other files. Dropped, all goes on as before.
pub struct DiskCuts(Vec<Ready>);

struct Ready {
    index: usize,
    overlay: PathBuf,
    cut: Cut,
}

impl MachineHandle {
    /// What each disk has done since the guest was last started; nothing between two runs.
    pub fn disk_figures(&self) -> Vec<DiskFigures> {
        read(&self.shared.live).as_ref().map(|live| disk_figures(&live.disks)).unwrap_or_default()
    }

    /// Those that the guest can write to.
    pub(super) fn written_disks(&self) -> Vec<Arc<Block>> {
        self.disks().into_iter().filter(|disk| !disk.disk().read_only()).collect()
    }

    pub(super) fn disks(&self) -> Vec<Arc<Block>> {
        read(&self.shared.live).as_ref().map(|live| live.disks.clone()).unwrap_or_default()
    }

    /// Makes ready to let disks go on with overlays, each by the disk's number: empty qcow2 images that build directly on the
    /// disk's present file. All that the guest has written is durable then, and the present files can be read by others.
    ///
    /// The machine must stand still until the cuts are committed or dropped.
    pub fn prepare_disk_cuts(&self, overlays: &[(usize, PathBuf)]) -> Result<DiskCuts, Refusal> {
        let config = lock(&self.shared.config).clone();
        let disks = self.disks();
        let mut cuts: Vec<Ready> = Vec::new();
        for (index, overlay) in overlays {
            let (index, overlay) = (*index, overlay.clone());
            let (Some(disk), Some(present)) = (disks.get(index), config.disks.get(index)) else {
                let message = format!("the machine has no disk {index}: it has {}, numbered from 0", disks.len());
                return Err(Refusal::new(Reason::Missing, message));
            };
            if cuts.iter().any(|cut| cut.index == index) {
                return Err(Refusal::new(Reason::Invalid, format!("disk {index} is named twice")));
            }
            let in_order = is_repeatable(&config);
            let open = || Ok(open_overlay(&overlay, &present.path, in_order)?);
            let cut = disk.prepare_cut(open).map_err(|error| refusal(index, &error))?;
            cuts.push(Ready { index, overlay, cut });
        }
        Ok(DiskCuts(cuts))
    }

    /// Lets the disks go on with their overlays, also after a restart of the guest. After an error, the disk that it names
    /// stands still until the guest resets it, and all have their overlays nevertheless.
    pub fn commit_disk_cuts(&self, cuts: DiskCuts) -> Result<(), Refusal> {
        let mut result = Ok(());
        let mut config = lock(&self.shared.config);
        for Ready { index, overlay, cut } in cuts.0 {
            if let Err(error) = cut.commit() {
                result = Err(refusal(index, &error));
            }
            if let Some(disk) = config.disks.get_mut(index) {
                disk.path = overlay;
                disk.format = Some(Format::Qcow2);
                // What builds on what was decided when the files were opened.
                disk.backing = Backing::Any;
            }
        }
        result
    }
}

pub(super) fn disk_figures(disks: &[Arc<Block>]) -> Vec<DiskFigures> {
    disks.iter().map(|disk| disk.figures()).collect()
}

fn refusal(index: usize, error: &CutError) -> Refusal {
    let reason = match error {
        CutError::Start(_) | CutError::Lost(_) => Reason::Failed,
        _ => Reason::Invalid,
    };
    Refusal::new(reason, format!("disk {index}: {error}"))
}
