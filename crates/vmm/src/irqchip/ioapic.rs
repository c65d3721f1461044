//! The I/O APIC: one redirection entry for each input, edge or level triggering, remote IRR.
//!
//! A plain state machine: the caller holds the lock, and delivers the [`Message`]s it gets after releasing it. Source:
//! Intel 82093AA data sheet (order number 290566); the EOI register as in later chip sets (version 0x20).
//!
//! Inputs are logical: high means asserted, whatever the polarity bit says. An edge that arrives while its entry is
//! masked is kept and delivered on unmasking, as operating systems that program entries late expect.

use serde::{Deserialize, Serialize};

use super::message::{Destination, Message, Mode};
use crate::layout::IOAPIC_PINS;

const PINS: usize = IOAPIC_PINS as usize;
/// Version 0x20 (it has an EOI register), highest entry in bits 16..24.
const VERSION: u32 = 0x20 | ((IOAPIC_PINS - 1) << 16);

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;
const FIRST_ENTRY: u32 = 0x10;

const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR.
const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;

/// What a snapshot holds of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedIoApic {
    id: u32,
    select: u32,
    entries: Vec<u64>,
    lines: u64,
    edges: u64,
}

#[derive(Debug)]
pub(super) struct IoApic {
    id: u32,
    select: u32,
    entries: [u64; PINS],
    /// Present levels of the inputs.
    lines: u64,
    /// Edges that wait for their entry to be unmasked.
    edges: u64,
}

impl IoApic {
    pub(super) fn new() -> IoApic {
        IoApic { id: 0, select: 0, entries: [MASKED; PINS], lines: 0, edges: 0 }
    }

    pub(super) fn save(&self) -> SavedIoApic {
        let IoApic { id, select, entries, lines, edges } = *self;
        SavedIoApic { id, select, entries: entries.to_vec(), lines, edges }
    }

    /// `None` if there can be no such state.
    pub(super) fn restored(saved: SavedIoApic) -> Option<IoApic> {
        let SavedIoApic { id, select, entries, lines, edges } = saved;
        Some(IoApic { id, select, entries: entries.try_into().ok()?, lines, edges })
    }

    /// Sets input `pin`; gives the message to deliver, if any.
    pub(super) fn set_line(&mut self, pin: u32, high: bool) -> Option<Message> {
        if pin >= IOAPIC_PINS {
            return None;
        }
        let bit = 1 << pin;
        let rising = high && self.lines & bit == 0;
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
        if rising && self.entries[pin as usize] & LEVEL == 0 {
            self.edges |= bit;
        }
        if rising { self.service(pin as usize) } else { None }
    }

    /// The processors finished `vector`: level-triggered inputs that are still high ask again.
    pub(super) fn end_of_interrupt(&mut self, vector: u8) -> Vec<Message> {
        let finished = |entry: u64| entry as u8 == vector && entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR;
        let pins: Vec<usize> = (0..PINS).filter(|pin| finished(self.entries[*pin])).collect();
        for pin in &pins {
            self.entries[*pin] &= !REMOTE_IRR;
        }
        pins.into_iter().filter_map(|pin| self.service(pin)).collect()
    }

    /// The level-triggered inputs that are not masked, with their messages.
    pub(super) fn level_inputs(&self) -> impl Iterator<Item = (u32, Message)> + '_ {
        let level = |entry: u64| entry & (LEVEL | MASKED) == LEVEL;
        let inputs = (0..).zip(self.entries).filter(move |(_, entry)| level(*entry));
        inputs.filter_map(|(pin, entry)| Some((pin, message(entry)?)))
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => self.select,
            WINDOW => self.read_register(self.select),
            _ => 0,
        }
    }

    /// Writes a memory-mapped register; gives the messages to deliver.
    pub(super) fn write(&mut self, offset: u64, value: u32) -> Vec<Message> {
        match offset {
            SELECT => self.select = value & 0xff,
            WINDOW => return self.write_register(self.select, value).into_iter().collect(),
            EOI => return self.end_of_interrupt(value as u8),
            _ => (),
        }
        Vec::new()
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            0 => self.id << 24,
            1 => VERSION,
            // Arbitration ID.
            2 => self.id << 24,
            _ => match entry_of(register) {
                Some((pin, shift)) => (self.entries[pin] >> shift) as u32,
                None => 0,
            },
        }
    }

    fn write_register(&mut self, register: u32, value: u32) -> Option<Message> {
        if register == 0 {
            self.id = (value >> 24) & 0xf;
        }
        let (pin, shift) = entry_of(register)?;
        let old = self.entries[pin];
        let written = (old & !(0xffff_ffff << shift)) | u64::from(value) << shift;
        let mut new = (written & !READ_ONLY) | (old & READ_ONLY);
        if new & LEVEL == 0 {
            new &= !REMOTE_IRR;
        } else {
            self.edges &= !(1 << pin);
        }
        self.entries[pin] = new;
        self.service(pin)
    }

    fn service(&mut self, pin: usize) -> Option<Message> {
        let entry = self.entries[pin];
        let bit = 1 << pin;
        if entry & MASKED != 0 {
            return None;
        }
        if entry & LEVEL != 0 {
            if self.lines & bit == 0 || entry & REMOTE_IRR != 0 {
                return None;
            }
            let message = message(entry)?;
            // Only interrupts that end with an EOI can hold the input back.
            if message.mode.has_vector() {
                self.entries[pin] |= REMOTE_IRR;
            }
            return Some(message);
        }
        if self.edges & bit == 0 {
            return None;
        }
        self.edges &= !bit;
        message(entry)
    }
}

/// Pin and bit offset of an indirect register that is half of a redirection entry.
fn entry_of(register: u32) -> Option<(usize, u32)> {
    let index = register.checked_sub(FIRST_ENTRY)?;
    let pin = (index / 2) as usize;
    (pin < PINS).then_some((pin, (index % 2) * 32))
}

fn message(entry: u64) -> Option<Message> {
    let mode = Mode::from_bits((entry >> 8) as u32)?;
    let id = (entry >> 56) as u32;
    let destination = if entry & LOGICAL != 0 {
        Destination::Logical { mask: id, wide: false }
    } else {
        // Bits 49..=55 extend the identifier past 8 bits, as KVM's extended destination IDs do.
        let extension = ((entry >> 49) & 0x7f) as u32;
        Destination::Physical { id: extension << 8 | id, wide: extension != 0 }
    };
    Some(Message { mode, vector: entry as u8, level: entry & LEVEL != 0, destination })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_entry(pin: u32, entry: u64) -> IoApic {
        let mut ioapic = IoApic::new();
        program(&mut ioapic, pin, entry);
        ioapic
    }

    fn program(ioapic: &mut IoApic, pin: u32, entry: u64) -> Vec<Message> {
        ioapic.write(SELECT, FIRST_ENTRY + 2 * pin + 1);
        let mut messages = ioapic.write(WINDOW, (entry >> 32) as u32);
        ioapic.write(SELECT, FIRST_ENTRY + 2 * pin);
        messages.extend(ioapic.write(WINDOW, entry as u32));
        messages
    }

    #[test]
    fn registers_show_the_number_of_inputs_and_the_entries() {
        let mut ioapic = with_entry(63, 3 << 56 | 0x41);
        ioapic.write(SELECT, 1);
        assert_eq!(ioapic.read(WINDOW), 63 << 16 | 0x20);
        ioapic.write(SELECT, 0x10 + 127);
        assert_eq!(ioapic.read(WINDOW), 3 << 24);
        ioapic.write(SELECT, 0x10 + 128);
        assert_eq!(ioapic.read(WINDOW), 0);
    }

    #[test]
    fn a_level_input_is_delivered_once_until_its_end_and_again_while_high() {
        let mut ioapic = with_entry(20, LEVEL | 0x50);
        let message = ioapic.set_line(20, true).unwrap();
        assert_eq!((message.vector, message.level), (0x50, true));
        assert!(ioapic.set_line(20, true).is_none());
        assert!(ioapic.set_line(20, false).is_none());
        assert!(ioapic.set_line(20, true).is_none(), "remote IRR");
        assert_eq!(ioapic.end_of_interrupt(0x50).len(), 1);
        ioapic.set_line(20, false);
        assert!(ioapic.end_of_interrupt(0x50).is_empty());
        assert!(ioapic.set_line(20, true).is_some());
    }

    #[test]
    fn masking_holds_level_and_edge_back_until_unmasking() {
        let mut ioapic = with_entry(5, MASKED | 0x51);
        ioapic.set_line(5, true);
        ioapic.set_line(5, false);
        assert_eq!(program(&mut ioapic, 5, 0x51).len(), 1, "the edge was kept");
        assert!(program(&mut ioapic, 5, 0x51).is_empty(), "and is delivered once");

        assert!(ioapic.set_line(6, true).is_none());
        assert_eq!(program(&mut ioapic, 6, LEVEL | 0x52).len(), 1);
    }

    #[test]
    fn a_switch_to_edge_and_back_clears_the_remote_irr() {
        let mut ioapic = with_entry(20, LEVEL | 0x50);
        ioapic.set_line(20, true);
        ioapic.set_line(20, false);
        program(&mut ioapic, 20, MASKED | 0x50);
        program(&mut ioapic, 20, LEVEL | 0x50);
        assert!(ioapic.set_line(20, true).is_some());
    }

    #[test]
    fn the_eoi_register_ends_level_interrupts() {
        let mut ioapic = with_entry(20, LEVEL | 0x50);
        ioapic.set_line(20, true);
        assert!(ioapic.write(EOI, 0x51).is_empty());
        assert_eq!(ioapic.write(EOI, 0x50).len(), 1);
    }

    #[test]
    fn pins_past_the_end_do_nothing() {
        assert!(IoApic::new().set_line(64, true).is_none());
        assert!(IoApic::new().set_line(u32::MAX, true).is_none());
    }
}
