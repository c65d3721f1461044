//! Frames: what is on the wire after the greeting (docs/qhp.md, "Frames").

use crate::ProtocolError;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;
/// The longest payload that a peer may ever allow, and the least that each must accept.
pub const MAX_PAYLOAD: u32 = 1 << 24;
pub const MIN_PAYLOAD: u32 = 1 << 14;

/// The frame opens its stream; its payload begins with the service number (4 bytes).
pub const OPEN: u8 = 1 << 0;
/// The sender sends no more on this stream.
pub const END: u8 = 1 << 1;
/// The header's last field is the CRC-32 of the payload.
pub const CHECKSUM: u8 = 1 << 2;
/// With OPEN: no answer is wanted; the stream is over with its END.
pub const ONE_WAY: u8 = 1 << 3;
const FLAGS: u8 = OPEN | END | CHECKSUM | ONE_WAY;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Data = 1,
    /// Grants more bytes on a stream, or on the connection (stream 0).
    Window = 2,
    /// Gives a stream up.
    Reset = 3,
    Ping = 4,
    Pong = 5,
    /// The sender takes no new streams.
    GoAway = 6,
}

impl TryFrom<u8> for Kind {
    type Error = ProtocolError;

    fn try_from(byte: u8) -> Result<Kind, ProtocolError> {
        Ok(match byte {
            1 => Kind::Data,
            2 => Kind::Window,
            3 => Kind::Reset,
            4 => Kind::Ping,
            5 => Kind::Pong,
            6 => Kind::GoAway,
            _ => return Err(ProtocolError::FrameType(byte)),
        })
    }
}

/// Who goes first when several streams have something to send; lower numbers go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Priority {
    /// Heartbeats, grants, fencing.
    Urgent = 0,
    /// Requests that somebody waits for.
    High = 1,
    #[default]
    Normal = 2,
    /// Bulk data.
    Bulk = 3,
}

impl Priority {
    pub const COUNT: usize = 4;

    fn from_byte(byte: u8) -> Result<Priority, ProtocolError> {
        Ok(match byte {
            0 => Priority::Urgent,
            1 => Priority::High,
            2 => Priority::Normal,
            3 => Priority::Bulk,
            _ => return Err(ProtocolError::Reserved),
        })
    }
}

/// A frame's header. On the wire, little-endian:
///
/// ```text
///  0 ┌───────────────────────────────┐
///    │ length of the payload         │ 4 bytes
///  4 ├───────┬───────┬───────┬───────┤
///    │ kind  │ flags │ prio  │   0   │
///  8 ├───────┴───────┴───────┴───────┤
///    │ stream                        │ 4
/// 12 ├───────────────────────────────┤
///    │ CRC-32 of the payload, or 0   │ 4
/// 16 └───────────────────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub length: u32,
    pub kind: Kind,
    pub flags: u8,
    pub priority: Priority,
    pub stream: u32,
    pub checksum: u32,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = self.flags;
        bytes[6] = self.priority as u8;
        bytes[8..12].copy_from_slice(&self.stream.to_le_bytes());
        bytes[12..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// # Errors
    /// What no header can be, and payloads of more than `max` bytes.
    pub fn decode(bytes: &[u8; HEADER_BYTES], max: u32) -> Result<Header, ProtocolError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (length, kind, flags) = (word(0), Kind::try_from(bytes[4])?, bytes[5]);
        if length > max {
            return Err(ProtocolError::FrameLength { bytes: length, max });
        }
        if flags & !FLAGS != 0 || bytes[7] != 0 || kind != Kind::Data && flags & !CHECKSUM != 0 {
            return Err(ProtocolError::Reserved);
        }
        if flags & ONE_WAY != 0 && flags & OPEN == 0 {
            return Err(ProtocolError::Reserved);
        }
        let priority = Priority::from_byte(bytes[6])?;
        Ok(Header { length, kind, flags, priority, stream: word(8), checksum: word(12) })
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// # Errors
    /// [`ProtocolError::Checksum`] where one is given and is not the payload's.
    pub fn check(&self, payload: &[u8]) -> Result<(), ProtocolError> {
        let wrong = self.has(CHECKSUM) && crc32fast::hash(payload) != self.checksum;
        if wrong { Err(ProtocolError::Checksum(self.stream)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_is_read_as_it_was_written(bytes in any::<[u8; HEADER_BYTES]>()) {
            if let Ok(header) = Header::decode(&bytes, u32::MAX) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }

    #[test]
    fn the_layout_is_that_of_the_specification() {
        let header = Header {
            length: 5,
            kind: Kind::Data,
            flags: OPEN | END,
            priority: Priority::High,
            stream: 0x0102_0304,
            checksum: 0x0a0b_0c0d,
        };
        assert_eq!(header.encode(), [5, 0, 0, 0, 1, 3, 1, 0, 4, 3, 2, 1, 0xd, 0xc, 0xb, 0xa]);
    }

    #[test]
    fn odd_headers_are_refused() {
        let good =
            Header { length: 5, kind: Kind::Data, flags: OPEN, priority: Priority::Urgent, stream: 1, checksum: 0 };
        let refused = |at: usize, value: u8| {
            let mut bytes = good.encode();
            bytes[at] = value;
            Header::decode(&bytes, 100).is_err()
        };
        assert!(!refused(4, 1));
        for (at, value) in [(0, 101), (4, 0), (4, 7), (5, 16), (5, 8), (6, 4), (7, 1)] {
            assert!(refused(at, value), "byte {at} = {value}");
        }
    }
}
