//! Work on frames that one side leaves to the other.

use std::ops::{BitAnd, BitOr};

/// A set of abilities (Virtio 1.2 §5.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads(u8);

impl Offloads {
    pub const NONE: Offloads = Offloads(0);
    /// Frames may come without their checksum.
    pub const CHECKSUM: Offloads = Offloads(1);
    /// TCP over IPv4 may come unsegmented.
    pub const TSO4: Offloads = Offloads(2);
    /// TCP over IPv6 may come unsegmented.
    pub const TSO6: Offloads = Offloads(4);
    /// Unsegmented TCP may carry explicit congestion notification.
    pub const ECN: Offloads = Offloads(8);
    pub const ALL: Offloads = Offloads(15);

    /// Whether all of `other` is in the set.
    pub fn contains(self, other: Offloads) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Offloads {
    type Output = Offloads;
    fn bitor(self, other: Offloads) -> Offloads {
        Offloads(self.0 | other.0)
    }
}

impl BitAnd for Offloads {
    type Output = Offloads;
    fn bitand(self, other: Offloads) -> Offloads {
        Offloads(self.0 & other.0)
    }
}
