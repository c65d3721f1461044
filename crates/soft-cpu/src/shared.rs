//! What all CPUs of one machine share.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use queztl_guest_memory::GuestRam;

use crate::control::{Control, DROP_WRITES};
use crate::cpuid::CpuidTable;
use crate::native::NativePool;
use crate::platform::Platform;

/// The machine around the CPUs.
pub struct Shared {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) cpuid: CpuidTable,
    pub(crate) native: NativePool,
    controls: Vec<Arc<Control>>,
    /// CPUs that are turning a page into code at this moment.
    pub(crate) watching: AtomicU32,
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
            watching: AtomicU32::new(0),
            split_lock: Mutex::new(()),
        })
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

    /// Runs `mark`, which turns a page into code and says whether it held none before, and then `drop_writes` if some CPU
    /// may still have a fast write path to the page: after the first to mark it, or while that one is not done yet.
    pub(crate) fn watch(&self, mark: impl FnOnce() -> bool, drop_writes: impl FnOnce()) {
        let others = self.watching.fetch_add(1, Ordering::SeqCst);
        let first = mark();
        if first || others > 0 || self.watching.load(Ordering::SeqCst) > 1 {
            drop_writes();
        }
        self.watching.fetch_sub(1, Ordering::SeqCst);
    }

    /// Makes every CPU drop its fast write paths and waits until each has, or is not touching guest RAM: a page whose
    /// dirty bit was taken before is marked anew by its next write. Not for a thread that is executing guest code.
    pub fn drop_write_paths(&self) {
        const NONE: u32 = u32::MAX;
        self.drop_writes_elsewhere(NONE, || {});
    }

    /// Makes every other CPU drop its fast write paths and waits until each has, or is not touching guest RAM.
    /// `answer` is called while waiting, so that two CPUs that ask each other both go on.
    pub(crate) fn drop_writes_elsewhere(&self, id: u32, mut answer: impl FnMut()) {
        let others = || self.controls.iter().enumerate().filter(|(other, _)| *other != id as usize);
        for (_, control) in others() {
            control.raise_quietly(DROP_WRITES);
        }
        for (_, control) in others() {
            let mut spins = 0;
            while !control.has_dropped_writes() {
                answer();
                spins += 1;
                if spins % 64 == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
        }
    }
}
