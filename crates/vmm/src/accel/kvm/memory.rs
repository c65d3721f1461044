//! Guest RAM as KVM's memory slots, and the dirty log.
//!
//! The region for hot-plug has a slot for each piece of it, of one block or of as many as keep the number of slots small, and
//! only while some block of the piece is plugged: elsewhere, a guest that touches memory it was not given finds none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use queztl_guest_memory::{GuestRam, PAGE_SIZE, PLUG_UNIT, Plugging};

use crate::accel::DirtyPages;

/// Most pieces of the region for hot-plug. KVM has 32764 slots, and each takes memory of the host's kernel.
const MAX_PIECES: u64 = 4096;

/// The slots of RAM. Holds the RAM for as long as KVM may use it: must be dropped after the machine.
pub(super) struct Slots {
    ram: Arc<GuestRam>,
    logging: AtomicBool,
    hotplug: Option<Hotplug>,
}

/// The region for hot-plug.
struct Hotplug {
    first_slot: u32,
    start: u64,
    bytes: u64,
    piece_bytes: u64,
    /// How many blocks of each piece are plugged.
    plugged: Mutex<Vec<u64>>,
}

impl Hotplug {
    fn new(first_slot: u32, start: u64, bytes: u64) -> Hotplug {
        let piece_bytes = bytes.div_ceil(MAX_PIECES).next_multiple_of(PLUG_UNIT);
        let plugged = Mutex::new(vec![0; bytes.div_ceil(piece_bytes) as usize]);
        Hotplug { first_slot, start, bytes, piece_bytes, plugged }
    }

    fn plugged(&self) -> MutexGuard<'_, Vec<u64>> {
        self.plugged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number, start and length of a piece's slot.
    fn slot(&self, piece: usize) -> (u32, u64, u64) {
        let offset = piece as u64 * self.piece_bytes;
        (self.first_slot + piece as u32, self.start + offset, self.piece_bytes.min(self.bytes - offset))
    }

    /// The logs of the pieces in use as that of the whole region, which is one run of RAM to everybody else.
    fn union(
        &self,
        plugged: &[u64],
        log: impl Fn((u32, u64, u64)) -> Result<DirtyPages, kvm_ioctls::Error>,
    ) -> Result<DirtyPages, kvm_ioctls::Error> {
        let mut bitmap = Vec::new();
        for piece in (0..plugged.len()).filter(|piece| plugged[*piece] > 0) {
            let own = log(self.slot(piece))?.bitmap;
            // Blocks are whole words of the bitmap.
            bitmap.resize(piece * (self.piece_bytes / PAGE_SIZE / 64) as usize, 0);
            bitmap.extend(own);
        }
        Ok(DirtyPages { start: self.start, bitmap })
    }

    /// The pieces that `change` touches, and how many of its blocks lie in each.
    fn touched(&self, change: Plugging) -> impl Iterator<Item = (usize, u64)> + use<> {
        let (first, end) = (change.start - self.start, change.start - self.start + change.bytes);
        let piece_bytes = self.piece_bytes;
        (first / piece_bytes..end.div_ceil(piece_bytes)).map(move |piece| {
            let (from, to) = (first.max(piece * piece_bytes), end.min((piece + 1) * piece_bytes));
            (piece as usize, (to - from) / PLUG_UNIT)
        })
    }
}

impl Slots {
    /// Gives all of `ram` to `vm`, but for the region for hot-plug.
    pub fn new(vm: &VmFd, ram: Arc<GuestRam>) -> Result<Slots, kvm_ioctls::Error> {
        let first_slot = ram.ranges().count() as u32;
        let hotplug = ram.hotplug().map(|(start, bytes)| Hotplug::new(first_slot, start, bytes));
        let slots = Slots { ram, logging: AtomicBool::new(false), hotplug };
        slots.set_all(vm)?;
        Ok(slots)
    }

    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The slots in use: number, start and length. `plugged` is that of the region for hot-plug.
    fn used(&self, plugged: Option<&[u64]>) -> Vec<(u32, u64, u64)> {
        let is_hotplug = |start| self.ram.hotplug().is_some_and(|(first, _)| first == start);
        let fixed = (0..).zip(self.ram.ranges()).filter(|(_, (start, _))| !is_hotplug(*start));
        let mut used: Vec<(u32, u64, u64)> = fixed.map(|(slot, (start, len))| (slot, start, len)).collect();
        if let (Some(hotplug), Some(plugged)) = (&self.hotplug, plugged) {
            let pieces = (0..plugged.len()).filter(|piece| plugged[*piece] > 0);
            used.extend(pieces.map(|piece| hotplug.slot(piece)));
        }
        used
    }

    fn set_all(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        let plugged = self.hotplug.as_ref().map(Hotplug::plugged);
        self.used(plugged.as_ref().map(|plugged| plugged.as_slice()))
            .into_iter()
            .try_for_each(|slot| self.set(vm, slot, true))
    }

    /// Makes a slot or changes its flags, or takes it away.
    fn set(&self, vm: &VmFd, (slot, start, len): (u32, u64, u64), present: bool) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: if self.is_logging() { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: start,
            memory_size: if present { len } else { 0 },
            userspace_addr: self.ram.host_address(start).map_or(0, |host| host as u64),
        };
        // SAFETY: the mapping has this length and lives as long as `self`, which outlives the machine.
        unsafe { vm.set_user_memory_region(region) }
    }

    /// Follows a change of what is plugged.
    pub fn change(&self, vm: &VmFd, change: Plugging) -> Result<(), kvm_ioctls::Error> {
        let Some(hotplug) = &self.hotplug else { return Ok(()) };
        let mut plugged = hotplug.plugged();
        let mut result = Ok(());
        for (piece, blocks) in hotplug.touched(change) {
            let before = plugged[piece];
            let after = if change.plugged { before + blocks } else { before.saturating_sub(blocks) };
            plugged[piece] = after;
            if (before > 0) != (after > 0) {
                result = result.and(self.set(vm, hotplug.slot(piece), after > 0));
            }
        }
        result
    }

    /// Starts or ends the log. Starting one that runs changes nothing.
    pub fn log_dirty_pages(&self, vm: &VmFd, on: bool) -> Result<(), kvm_ioctls::Error> {
        self.logging.store(on, Ordering::Relaxed);
        self.set_all(vm)
    }

    pub fn is_logging(&self) -> bool {
        self.logging.load(Ordering::Relaxed)
    }

    /// Takes what vCPUs wrote to since the last call; writes during the call are in this result or in the next. Only
    /// while there is a log.
    pub fn take_dirty_pages(&self, vm: &VmFd) -> Result<Vec<DirtyPages>, kvm_ioctls::Error> {
        let plugged = self.hotplug.as_ref().map(Hotplug::plugged);
        let log = |(slot, start, len)| Ok(DirtyPages { start, bitmap: vm.get_dirty_log(slot, len as usize)? });
        let mut logs = self.used(None).into_iter().map(log).collect::<Result<Vec<_>, kvm_ioctls::Error>>()?;
        if let (Some(hotplug), Some(plugged)) = (&self.hotplug, plugged) {
            logs.push(hotplug.union(&plugged, log)?);
        }
        Ok(logs)
    }
}
