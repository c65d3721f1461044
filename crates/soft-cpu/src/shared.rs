//! What all CPUs of one machine share.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use queztl_guest_memory::{GuestRam, PAGE_SIZE};

use crate::control::{Control, DROP_ALL, DROP_WRITES};
use crate::cpuid::CpuidTable;
use crate::native::NativePool;
use crate::platform::Platform;

/// No CPU's number.
const NOBODY: u32 = u32::MAX;

/// The machine around the CPUs.
pub struct Shared {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) cpuid: CpuidTable,
    pub(crate) native: NativePool,
    controls: Vec<Arc<Control>>,
    /// The host cannot run all CPUs at once.
    overcommitted: bool,
    /// How many CPUs are turning a page into code at this moment; which pages, their handles say.
    watching: AtomicU32,
    /// Held while a locked instruction works on bytes that one host instruction cannot reach: an operand across two
    /// pages, or in device memory.
    pub(crate) split_lock: Mutex<()>,
}

impl Shared {
    /// A machine of `cpus` processors over `ram`.
    pub fn new(
        ram: Arc<GuestRam>,
        platform: Arc<dyn Platform>,
        cpuid: CpuidTable,
        cpus: u32,
    ) -> std::io::Result<Shared> {
        Ok(Shared {
            ram,
            platform,
            cpuid,
            native: NativePool::new()?,
            controls: (0..cpus).map(|_| Arc::new(Control::default())).collect(),
            overcommitted: false,
            watching: AtomicU32::new(0),
            split_lock: Mutex::new(()),
        })
    }

    /// The same for a host that runs so many threads at once: with fewer than the machine has processors, those that wait for
    /// others make room for them.
    pub fn on_host_cpus(self, host_cpus: usize) -> Shared {
        Shared { overcommitted: self.controls.len() > host_cpus, ..self }
    }

    pub(crate) fn is_overcommitted(&self) -> bool {
        self.overcommitted
    }

    /// What CPUID tells.
    pub fn cpuid(&self) -> &CpuidTable {
        &self.cpuid
    }

    /// The handle of CPU `id`.
    ///
    /// # Panics
    /// If the machine has no such CPU.
    pub fn control(&self, id: u32) -> Arc<Control> {
        self.controls[id as usize].clone()
    }

    /// Makes CPU `id` leave HLT, now or when it executes the next one. Nothing happens if there is no such CPU.
    pub(crate) fn kick(&self, id: u64) {
        if let Some(control) = usize::try_from(id).ok().and_then(|id| self.controls.get(id)) {
            control.kick();
        }
    }

    /// Runs `mark`, by which CPU `id` turns the page at `gpa` into code and which says whether it held none before; the first
    /// to mark a page then runs `drop_writes`, after which no CPU has a fast write path to it. Returns whether another CPU is
    /// still at that: the caller must wait until [`Shared::is_watched_elsewhere`] says no more.
    ///
    /// Nobody waits for other pages than its own, and nobody drops twice: on a host with fewer CPUs than the guest, each
    /// round takes until all vCPUs have had their turn.
    pub(crate) fn watch(&self, id: u32, gpa: u64, mark: impl FnOnce() -> bool, drop_writes: impl FnOnce()) -> bool {
        let own = self.controls.get(id as usize);
        // Before the mark, so that whoever finds the page marked also finds who may not be done with it.
        own.inspect(|control| control.set_watching(Some(gpa / PAGE_SIZE)));
        self.watching.fetch_add(1, Ordering::SeqCst);
        let first = mark();
        if first {
            drop_writes();
        }
        // Before waiting, so that no two CPUs wait for each other.
        own.inspect(|control| control.set_watching(None));
        let others = self.watching.fetch_sub(1, Ordering::SeqCst) > 1;
        !first && others && self.is_watched_elsewhere(id, gpa)
    }

    /// Whether a CPU other than `id` may be turning the page at `gpa` into code.
    pub(crate) fn is_watched_elsewhere(&self, id: u32, gpa: u64) -> bool {
        let page = gpa / PAGE_SIZE;
        let others = self.controls.iter().enumerate().filter(|(other, _)| *other != id as usize);
        others.map(|(_, control)| control).any(|control| control.is_watching(page))
    }

    /// Makes every CPU drop its fast write paths and waits until each has, or is not touching guest RAM: a page whose
    /// dirty bit was taken before is marked anew by its next write. Not for a thread that is executing guest code.
    pub fn drop_write_paths(&self) {
        self.drop_elsewhere(NOBODY, DROP_WRITES);
    }

    /// The same for all paths to RAM: what is no RAM any more ([`queztl_guest_memory::unplug`]) is then reached by no CPU.
    /// For a thread of a device; a CPU that waits for it is one that is not touching guest RAM.
    pub fn drop_all_paths(&self) {
        self.drop_elsewhere(NOBODY, DROP_ALL);
    }

    /// Makes every other CPU drop its fast write paths and waits until each has, or is not touching guest RAM. The caller
    /// must not touch it either, so that two CPUs that ask each other both go on.
    pub(crate) fn drop_writes_elsewhere(&self, id: u32) {
        self.drop_elsewhere(id, DROP_WRITES);
    }

    fn drop_elsewhere(&self, id: u32, paths: u32) {
        let others = || self.controls.iter().enumerate().filter(|(other, _)| *other != id as usize);
        for (_, control) in others() {
            control.raise_quietly(paths);
        }
        for (_, control) in others() {
            self.wait_while(|| !control.has_dropped(paths));
        }
    }

    /// Waits for other CPUs, first by spinning, then by giving way to them. Not while touching guest RAM.
    pub(crate) fn wait_while(&self, mut busy: impl FnMut() -> bool) {
        const SPINS: u32 = 64;
        const YIELDS: u32 = 16;
        const SLEEP: Duration = Duration::from_micros(50);
        let mut turns: u32 = 0;
        while busy() {
            turns = turns.saturating_add(1);
            match turns {
                ..=SPINS => std::hint::spin_loop(),
                _ if turns > SPINS + YIELDS && self.overcommitted => std::thread::sleep(SLEEP),
                _ => std::thread::yield_now(),
            }
        }
    }
}
