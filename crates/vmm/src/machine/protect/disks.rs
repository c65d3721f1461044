//! Disks of a protected machine: each backup has files of its own ([`super::super::mirror`]).
//!
//! Writes are remembered all the time, and go with their epochs. A backup that is new gets the disks as a whole first; what counts
//! for it begins with the first epoch that is cut after it had all of them.

use std::sync::Arc;

use queztl_distributed_ram::{Epoch, Node};

use super::super::mirror::{copy_marked, copy_most, marked, put_writes};
use super::core::Protecting;
use crate::devices::virtio::block::Block;
use crate::protection::{DiskPart, Error, Link};

/// Brings all disks to a backup. The first epoch that it can have is one that follows the one that is given; any, if there are
/// no disks.
///
/// # Errors
/// A disk cannot be read, or the connection ends, as it does with the protection.
pub(super) fn copy(protecting: &Protecting, node: Node, link: &mut Link) -> Result<Option<Epoch>, Error> {
    let disks = protecting.disks();
    if disks.is_empty() {
        return Ok(None);
    }
    protecting.begin_disks(node);
    for disk in &disks {
        disk.journal().mark(node);
    }
    let copied = copy_whole(protecting, node, link, &disks);
    disks.iter().for_each(|disk| disk.journal().unmark(node));
    copied?;
    Ok(Some(protecting.end_disks(node)))
}

fn copy_whole(protecting: &Protecting, node: Node, link: &mut Link, disks: &[Arc<Block>]) -> Result<(), Error> {
    copy_most(disks, node, || protecting.wait_for_cut(), |part| link.disk(DiskPart::Whole, part))?;
    protecting.keep_writes(node);
    // What is still on its way to a disk belongs to the epoch that runs, and is kept.
    copy_marked(disks, &marked(disks, node), |part| link.disk(DiskPart::Whole, part))
}

/// Sends the writes that a backup lacks up to an epoch.
pub(super) fn send_writes(protecting: &Protecting, node: Node, epoch: Epoch, link: &mut Link) -> Result<(), Error> {
    let logs = protecting.writes_for(node, epoch);
    let writes =
        logs.iter().flat_map(|log| (0..).zip(&log.disks)).flat_map(|(n, writes)| writes.iter().map(move |w| (n, w)));
    put_writes(writes, |part| link.disk(DiskPart::Epoch, part))
}
