//! Where RAM lies among guest-physical addresses.

/// End of RAM below 4 GiB; from here to 4 GiB lie the devices, as on any PC.
pub const LOW_RAM_END: u64 = 0xc000_0000;

/// Start of the RAM that does not fit below [`LOW_RAM_END`].
pub const HIGH_RAM_START: u64 = 1 << 32;

/// Splits `bytes` of RAM into (start, length in bytes) around the device hole.
pub fn ranges_for(bytes: u64) -> Vec<(u64, u64)> {
    place(&[bytes]).into_iter().map(|piece| (piece.start, piece.len)).collect()
}

/// A run of guest-physical addresses that belongs to one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub start: u64,
    /// Bytes; never zero.
    pub len: u64,
    pub node: usize,
    /// Where the piece starts among its node's bytes.
    pub offset: u64,
}

/// Lays the nodes' RAM, given in bytes, one after the other, around the device hole.
pub(crate) fn place(nodes: &[u64]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut next = 0;
    for (node, bytes) in nodes.iter().copied().enumerate() {
        let mut offset = 0;
        while offset < bytes {
            if next == LOW_RAM_END {
                next = HIGH_RAM_START;
            }
            let room = if next < LOW_RAM_END { LOW_RAM_END - next } else { u64::MAX - next };
            let len = room.min(bytes - offset);
            pieces.push(Piece { start: next, len, node, offset });
            (next, offset) = (next + len, offset + len);
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_is_split_around_the_device_hole() {
        assert_eq!(ranges_for(LOW_RAM_END), [(0, LOW_RAM_END)]);
        assert_eq!(ranges_for(4 * GIB), [(0, LOW_RAM_END), (HIGH_RAM_START, GIB)]);
    }

    #[test]
    fn nodes_follow_each_other_and_may_straddle_the_hole() {
        let piece = |start, len, node, offset| Piece { start, len, node, offset };
        let pieces = place(&[2 * GIB, 0, 2 * GIB, GIB]);
        assert_eq!(
            pieces,
            [
                piece(0, 2 * GIB, 0, 0),
                piece(2 * GIB, GIB, 2, 0),
                piece(4 * GIB, GIB, 2, GIB),
                piece(5 * GIB, GIB, 3, 0),
            ]
        );
    }
}
