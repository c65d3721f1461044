//! How devices ask for attention, whoever delivers it: the user-space controllers of [`crate::irqchip`] or, later, KVM's.

use std::sync::Arc;

/// Takes level changes of interrupt lines. Global system interrupt numbers below 16 are the legacy IRQs; the sink does
/// the routing to the PIC pair and the I/O APIC.
pub trait InterruptSink: Send + Sync {
    /// Sets the line to high (asserted) or low. Repeating the present level does nothing.
    fn set_level(&self, gsi: u32, high: bool);
}

/// One device's interrupt line.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn InterruptSink>,
    gsi: u32,
}

impl IrqLine {
    pub fn new(sink: Arc<dyn InterruptSink>, gsi: u32) -> IrqLine {
        IrqLine { sink, gsi }
    }

    /// The line's global system interrupt number.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// Sets the level of a level-triggered line.
    pub fn set(&self, high: bool) {
        self.sink.set_level(self.gsi, high);
    }

    /// Signals an edge-triggered line once.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}
