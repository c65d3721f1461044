//! Local APICs outside of this process's control: those that KVM keeps in the host's kernel. The PIC pair and the
//! I/O APIC stay here; their messages go out, ends of level-triggered interrupts come back.

use std::sync::Arc;

use super::message::{Destination, Message, Mode};
use super::{IrqChip, MutexGuard, PoisonError};
use crate::layout::LAPIC_BASE;
use std::sync::atomic::Ordering;

/// A message-signalled interrupt (SDM vol. 3A §11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    pub address: u64,
    pub data: u32,
}

/// Local APICs that somebody else keeps.
pub trait LocalApics: Send + Sync {
    /// Delivers an interrupt.
    fn send(&self, msi: Msi);

    /// The level-triggered inputs of the I/O APIC have changed: for these, by input number, an end of interrupt must be
    /// told to [`IrqChip::end_of_interrupt`].
    fn set_level_inputs(&self, inputs: &[(u32, Msi)]);
}

const LOGICAL: u64 = 1 << 2;
const REDIRECTED: u64 = 1 << 3;
const ASSERTED: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;

impl Message {
    /// As a message-signalled interrupt; `None` for destinations that none can have.
    pub(super) fn to_msi(self) -> Option<Msi> {
        let place = |id: u32| u64::from(id & 0xff) << 12 | u64::from(id >> 8 & 0x7f) << 5;
        let address = match self.destination {
            Destination::Physical { id, .. } => place(id),
            Destination::Logical { mask, wide: false } => place(mask) | LOGICAL,
            Destination::Logical { wide: true, .. } | Destination::Itself | Destination::All | Destination::Others => {
                return None;
            }
        };
        let mode = match self.mode {
            Mode::Fixed => 0,
            Mode::LowestPriority => 1,
            Mode::Nmi => 4,
            Mode::Init => 5,
            Mode::Startup => 6,
        };
        let redirected = if self.mode == Mode::LowestPriority { REDIRECTED } else { 0 };
        let trigger = if self.level { LEVEL | ASSERTED } else { 0 };
        Some(Msi { address: LAPIC_BASE | address | redirected, data: u32::from(self.vector) | mode << 8 | trigger })
    }
}

impl IrqChip {
    /// Uses `apics` instead of the local APICs here, whose state has no effect any more. Once, before any vCPU runs.
    pub fn use_local_apics(&self, apics: Arc<dyn LocalApics>) {
        let _ = self.external.set(apics);
    }

    /// A local APIC outside ended the level-triggered interrupt `vector`.
    pub fn end_of_interrupt(&self, vector: u8) {
        let messages = self.lock_ioapic().end_of_interrupt(vector);
        self.deliver_all(messages);
    }

    /// Whether the PIC pair asks the first processor for attention; for local APICs outside, which know whether it
    /// listens.
    pub fn pic_pending(&self) -> bool {
        self.pic_output.load(Ordering::SeqCst)
    }

    /// Acknowledges the PIC pair's interrupt and gives its vector.
    pub fn take_pic(&self) -> Option<u8> {
        self.acknowledge_pic()
    }

    /// Tells the local APICs outside which inputs are level-triggered now.
    pub(super) fn announce_level_inputs(&self) {
        let Some(apics) = self.external.get() else { return };
        // One at a time, so that the last announcement is the latest.
        let _turn: MutexGuard<'_, ()> = self.announcing.lock().unwrap_or_else(PoisonError::into_inner);
        let inputs: Vec<(u32, Message)> = self.lock_ioapic().level_inputs().collect();
        let inputs: Vec<(u32, Msi)> =
            inputs.into_iter().filter_map(|(pin, message)| Some((pin, message.to_msi()?))).collect();
        apics.set_level_inputs(&inputs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Bus;
    use crate::clock::Clock;
    use crate::irq::InterruptSink;
    use crate::layout::IOAPIC_BASE;
    use crate::timers::Timers;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder {
        sent: Mutex<Vec<Msi>>,
        inputs: Mutex<Vec<(u32, Msi)>>,
    }

    impl LocalApics for Recorder {
        fn send(&self, msi: Msi) {
            self.sent.lock().unwrap().push(msi);
        }

        fn set_level_inputs(&self, inputs: &[(u32, Msi)]) {
            *self.inputs.lock().unwrap() = inputs.to_vec();
        }
    }

    #[test]
    fn a_message_survives_the_way_through_an_msi() {
        for msi in [(0xfee0_3000, 0x41), (0xfee0_f004, 0x42), (0xfee0_100c, 0x0143)] {
            let message = Message::from_msi(msi.0, msi.1).unwrap();
            assert_eq!(message.to_msi(), Some(Msi { address: msi.0, data: msi.1 }));
        }
    }

    #[test]
    fn level_inputs_are_announced_sent_out_and_sent_again_after_their_end() {
        let clock = Arc::new(Clock::instruction_counted(1));
        let timers = Timers::new(clock.clone());
        let chip = IrqChip::new(1, clock, &timers);
        let outside = Arc::new(Recorder::default());
        chip.use_local_apics(outside.clone());
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        chip.insert_into(&mut ports, &mut mmio).unwrap();
        let register = |index: u32, value: u32| {
            mmio.write(IOAPIC_BASE, &index.to_le_bytes());
            mmio.write(IOAPIC_BASE + 0x10, &value.to_le_bytes());
        };
        register(0x10 + 2 * 20, 0x8000 | 0x51);
        let expected = Msi { address: 0xfee0_0000, data: 0xc051 };
        assert_eq!(*outside.inputs.lock().unwrap(), [(20, expected)]);
        chip.set_level(20, true);
        chip.end_of_interrupt(0x51);
        assert_eq!(*outside.sent.lock().unwrap(), [expected, expected]);
        register(0x10 + 2 * 20, 0x1_8000 | 0x51);
        assert_eq!(*outside.inputs.lock().unwrap(), []);
    }
}
