//! What a snapshot holds of virtio devices.

use serde::{Deserialize, Serialize};

/// What a device is besides its transport's registers and its queues. What is configured anew with the machine (disks,
/// networks, sockets) is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "device", rename_all = "snake_case", deny_unknown_fields)]
pub enum DeviceState {
    /// Nothing that would not be there anyway.
    Stateless {},
    /// The address by which the guest knows its card.
    Net { mac: [u8; 6] },
    /// Pages that the balloon is to hold, and those it holds.
    Balloon { target_pages: u32, actual_pages: u32 },
    /// What the host wishes, and which blocks are plugged: a bit each, the first block's lowest.
    Mem { requested_bytes: u64, usable_bytes: u64, plugged: Vec<u64> },
    /// The terminal's size.
    Console { columns: u16, rows: u16 },
}
