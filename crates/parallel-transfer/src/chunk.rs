//! What is on a connection: chunks, one after the other.
//!
//! ```text
//!  0  magic "QPT1"
//!  4  kind: 0 data as it is, 1 LZ4 block, 2 zeroes, 3 end of the round; 3 bytes of zeroes
//!  8  round u64
//! 16  offset of the data u64; at the end of a round, the chunks that this connection has carried in it
//! 24  bytes of the data u64
//! 32  bytes that follow the header u32
//! 36  CRC-32 of bytes 0 to 35 and of what follows u32
//! ```
//! All numbers are little-endian.

/// The most data in a chunk.
pub const MAX_CHUNK_BYTES: usize = 256 << 10;

pub(crate) const HEADER_BYTES: usize = 40;
const MAGIC: [u8; 4] = *b"QPT1";

/// What a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Raw,
    Lz4,
    Zero,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: Kind,
    pub round: u64,
    pub offset: u64,
    pub bytes: u64,
    pub payload_bytes: u32,
    crc: u32,
}

impl Header {
    /// The header of a chunk whose payload is `payload`.
    pub fn new(kind: Kind, round: u64, offset: u64, bytes: u64, payload: &[u8]) -> Header {
        let mut header = Header { kind, round, offset, bytes, payload_bytes: payload.len() as u32, crc: 0 };
        header.crc = header.checksum(payload);
        header
    }

    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind as u8;
        bytes[8..16].copy_from_slice(&self.round.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[36..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// A header as it came; its checksum is looked at with the payload.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, &'static str> {
        if bytes[..4] != MAGIC || bytes[5..8] != [0; 3] {
            return Err("no chunk begins there");
        }
        let kind = match bytes[4] {
            0 => Kind::Raw,
            1 => Kind::Lz4,
            2 => Kind::Zero,
            3 => Kind::End,
            _ => return Err("a chunk is of an unknown kind"),
        };
        let header = Header {
            kind,
            round: long(bytes, 8),
            offset: long(bytes, 16),
            bytes: long(bytes, 24),
            payload_bytes: word(bytes, 32),
            crc: word(bytes, 36),
        };
        header.check_lengths().map(|()| header)
    }

    fn check_lengths(&self) -> Result<(), &'static str> {
        let payload = u64::from(self.payload_bytes);
        let fits = match self.kind {
            Kind::Raw => self.bytes == payload && self.bytes <= MAX_CHUNK_BYTES as u64,
            Kind::Lz4 => payload < self.bytes && self.bytes <= MAX_CHUNK_BYTES as u64,
            Kind::Zero | Kind::End => payload == 0,
        };
        if fits { Ok(()) } else { Err("a chunk's lengths do not fit together") }
    }

    /// Whether header and payload are what was sent.
    pub fn verify(&self, payload: &[u8]) -> Result<(), &'static str> {
        if self.crc == self.checksum(payload) {
            Ok(())
        } else {
            Err("a chunk has another checksum than it was sent with")
        }
    }

    fn checksum(&self, payload: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.encode()[..36]);
        hasher.update(payload);
        hasher.finalize()
    }
}

fn long(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn word(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_as_it_was() {
        let header = Header::new(Kind::Raw, 7, 4096, 3, b"abc");
        let back = Header::decode(&header.encode()).unwrap();
        assert_eq!(back, header);
        assert!(back.verify(b"abc").is_ok() && back.verify(b"abd").is_err());
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        let mut raw = Header::new(Kind::Raw, 1, 0, 3, b"abc");
        raw.bytes = 4;
        assert!(Header::decode(&raw.encode()).is_err());
        let mut large = Header::new(Kind::Lz4, 1, 0, u64::MAX, b"abc");
        assert!(Header::decode(&large.encode()).is_err());
        (large.kind, large.bytes) = (Kind::Zero, 4096);
        assert!(Header::decode(&large.encode()).is_err());
    }
}
