//! Interrupt messages: what travels between I/O APIC, local APICs and devices with message-signalled interrupts.

/// Delivery mode (SDM vol. 3A §11.6.1, table 11-3 of the MSI data register alike).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Fixed,
    LowestPriority,
    Nmi,
    Init,
    Startup,
}

impl Mode {
    /// From the three bits of an ICR, a redirection entry or an MSI; `None` for those that have no effect here (SMI,
    /// reserved, and ExtINT, which reaches processors over LINT0 only).
    pub(super) fn from_bits(bits: u32) -> Option<Mode> {
        match bits & 7 {
            0 => Some(Mode::Fixed),
            1 => Some(Mode::LowestPriority),
            4 => Some(Mode::Nmi),
            5 => Some(Mode::Init),
            6 => Some(Mode::Startup),
            _ => None,
        }
    }

    /// Whether the message ends up as a vector in a local APIC, to be ended by an EOI.
    pub(super) fn has_vector(self) -> bool {
        matches!(self, Mode::Fixed | Mode::LowestPriority)
    }
}

/// Who receives a message. `wide` tells 32-bit destinations (x2APIC) from 8-bit ones, which matters for broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    Physical { id: u32, wide: bool },
    Logical { mask: u32, wide: bool },
    Itself,
    All,
    Others,
}

/// One interrupt message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) mode: Mode,
    pub(super) vector: u8,
    /// Level-triggered: the EOI is broadcast to the I/O APIC.
    pub(super) level: bool,
    pub(super) destination: Destination,
}

impl Message {
    /// From the address and data of a message-signalled interrupt (SDM vol. 3A §11.11); `None` when it means nothing.
    pub(super) fn from_msi(address: u64, data: u32) -> Option<Message> {
        let mode = Mode::from_bits(data >> 8)?;
        let id = (address >> 12) as u32 & 0xff;
        let destination = if address & (1 << 2) != 0 {
            Destination::Logical { mask: id, wide: false }
        } else {
            let extension = (address >> 5) as u32 & 0x7f;
            Destination::Physical { id: extension << 8 | id, wide: extension != 0 }
        };
        // Message-signalled interrupts are edges; a level one could never be taken back.
        Some(Message { mode, vector: data as u8, level: false, destination })
    }
}
