//! InterruptStatus and the level of the interrupt line, kept together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::devices::virtio::{Gate, Interrupt, Lockstep, lock};
use crate::irq::IrqLine;

/// InterruptStatus bits (Virtio 1.2 §4.2.2).
pub(super) const USED_BUFFER: u32 = 1;
pub(super) const CONFIG_CHANGE: u32 = 2;

/// What ties a device to the rest of its machine.
#[derive(Debug, Clone, Default)]
pub struct Ties {
    /// Notifications return when the device has nothing left to do; for devices with one thread, and machines with one
    /// vCPU.
    pub lockstep: Option<Arc<Lockstep>>,
    /// Where the device stops while the machine is paused.
    pub gate: Option<Arc<Gate>>,
}

pub(super) struct MmioInterrupt {
    line: IrqLine,
    /// Held while the line is set, so that a raise and an acknowledgement cannot leave the line at the wrong level.
    status: Mutex<u32>,
    broken: AtomicBool,
    lockstep: Option<Arc<Lockstep>>,
    gate: Option<Arc<Gate>>,
}

impl MmioInterrupt {
    pub(super) fn new(line: IrqLine, ties: Ties) -> MmioInterrupt {
        let Ties { lockstep, gate } = ties;
        MmioInterrupt { line, status: Mutex::new(0), broken: AtomicBool::new(false), lockstep, gate }
    }

    /// Waits until the device has nothing left to do, if it must keep step with the vCPU.
    pub(super) fn settle(&self) {
        if let Some(lockstep) = &self.lockstep {
            lockstep.settle();
        }
    }

    pub(super) fn status(&self) -> u32 {
        *lock(&self.status)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.change(|status| status & !bits);
    }

    pub(super) fn reset(&self) {
        self.broken.store(false, Ordering::Release);
        self.change(|_| 0);
    }

    /// Puts both back as they were.
    pub(super) fn restore(&self, status: u32, broken: bool) {
        self.broken.store(broken, Ordering::Release);
        self.change(|_| status);
    }

    fn change(&self, new: impl FnOnce(u32) -> u32) {
        let mut status = lock(&self.status);
        let before = *status;
        *status = new(before);
        if (before != 0) != (*status != 0) {
            self.line.set(*status != 0);
        }
    }
}

impl Interrupt for MmioInterrupt {
    fn queue_used(&self, _queue: u16) {
        self.change(|status| status | USED_BUFFER);
    }

    fn config_changed(&self) {
        self.change(|status| status | CONFIG_CHANGE);
    }

    fn needs_reset(&self) {
        self.broken.store(true, Ordering::Release);
        self.config_changed();
    }

    fn lockstep(&self) -> Option<Arc<Lockstep>> {
        self.lockstep.clone()
    }

    fn gate(&self) -> Option<Arc<Gate>> {
        self.gate.clone()
    }
}
