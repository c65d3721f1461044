//! The greeting: version, features, sizes, and the proof of a key (docs/qhp.md, "Greeting").

use crate::ProtocolError;
use crate::frame::{MAX_PAYLOAD, MIN_PAYLOAD};

/// The version that this side speaks.
pub const VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"QHP\n";
/// Bytes of a greeting, and of a proof.
pub const HELLO_BYTES: usize = 64;
pub const PROOF_BYTES: usize = 32;

/// What both sides can do beyond the version; only what both have counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(pub u64);

impl Features {
    /// Checksums of bulk frames.
    pub const CHECKSUMS: Features = Features(1 << 0);
    pub const ALL: Features = Features::CHECKSUMS;

    pub fn has(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn common(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }
}

/// A secret that both sides have, for transports that say nothing of who is at the other end.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    pub fn new(bytes: [u8; 32]) -> Key {
        Key(bytes)
    }

    /// What the side that sent `own`, having read `peer`, proves that it has the key with. The roles make a proof useless
    /// for whoever would send it back.
    pub fn proof(&self, is_client: bool, own: &[u8; HELLO_BYTES], peer: &[u8; HELLO_BYTES]) -> [u8; PROOF_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(if is_client { b"QHP 1 client" } else { b"QHP 1 server" });
        hasher.update(own).update(peer);
        *hasher.finalize().as_bytes()
    }

    /// Whether `proof` is the one expected; takes the same time for every wrong one.
    pub fn verify(
        &self,
        proof: [u8; PROOF_BYTES],
        is_client: bool,
        own: &[u8; HELLO_BYTES],
        peer: &[u8; HELLO_BYTES],
    ) -> bool {
        blake3::Hash::from_bytes(self.proof(is_client, own, peer)) == blake3::Hash::from_bytes(proof)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Key(…)")
    }
}

/// What each side says first. On the wire, little-endian:
///
/// ```text
///  0 magic "QHP\n" │ 4 least version, greatest version (2 + 2) │ 8 features (8)
/// 16 longest payload (4) │ 20 window of a stream (4) │ 24 window of the connection (4) │ 28 streams at a time (4)
/// 32 nonce (31) │ 63 authentication: 0 by the transport, 1 by a key
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    pub min: u16,
    pub max: u16,
    pub features: Features,
    pub max_payload: u32,
    /// How much the other side may send on a new stream before it is granted more.
    pub stream_window: u32,
    /// The same, on all streams together.
    pub connection_window: u32,
    /// How many streams the other side may have open.
    pub max_streams: u32,
    pub nonce: [u8; 31],
    pub keyed: bool,
}

impl Hello {
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.min.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.max.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.features.0.to_le_bytes());
        let words = [self.max_payload, self.stream_window, self.connection_window, self.max_streams];
        for (place, word) in bytes[16..32].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[32..63].copy_from_slice(&self.nonce);
        bytes[63] = u8::from(self.keyed);
        bytes
    }

    /// # Errors
    /// What is no greeting, or one of a peer that cannot be talked to.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Hello, ProtocolError> {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..4] != MAGIC {
            return Err(ProtocolError::Magic);
        }
        let (min, max) = (half(4), half(6));
        if min > VERSION || max < VERSION {
            return Err(ProtocolError::Version { min, max });
        }
        let features = u64::from(word(8)) | u64::from(word(12)) << 32;
        let mut nonce = [0; 31];
        nonce.copy_from_slice(&bytes[32..63]);
        let hello = Hello {
            min,
            max,
            features: Features(features),
            max_payload: word(16),
            stream_window: word(20),
            connection_window: word(24),
            max_streams: word(28),
            nonce,
            keyed: bytes[63] == 1,
        };
        let sizes = (MIN_PAYLOAD..=MAX_PAYLOAD).contains(&hello.max_payload)
            && hello.stream_window <= i32::MAX as u32
            && hello.connection_window <= i32::MAX as u32;
        if sizes && bytes[63] <= 1 { Ok(hello) } else { Err(ProtocolError::Hello) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello() -> Hello {
        Hello {
            min: 1,
            max: 3,
            features: Features::ALL,
            max_payload: 1 << 18,
            stream_window: 1 << 20,
            connection_window: 1 << 24,
            max_streams: 100,
            nonce: [7; 31],
            keyed: true,
        }
    }

    #[test]
    fn a_greeting_is_read_as_it_was_written() {
        assert_eq!(Hello::decode(&hello().encode()), Ok(hello()));
    }

    #[test]
    fn peers_that_cannot_be_talked_to_are_told_apart() {
        let refused = |change: fn(&mut Hello)| {
            let mut hello = hello();
            change(&mut hello);
            Hello::decode(&hello.encode()).unwrap_err()
        };
        assert_eq!(refused(|h| h.min = 2), ProtocolError::Version { min: 2, max: 3 });
        assert_eq!(refused(|h| h.max_payload = 1), ProtocolError::Hello);
        assert_eq!(refused(|h| h.stream_window = u32::MAX), ProtocolError::Hello);
        assert_eq!(Hello::decode(&[b'G'; HELLO_BYTES]), Err(ProtocolError::Magic));
    }

    #[test]
    fn a_proof_serves_one_side_of_one_connection() {
        let (key, a, b) = (Key::new([1; 32]), hello().encode(), [9; HELLO_BYTES]);
        let proof = key.proof(true, &a, &b);
        assert!(key.verify(proof, true, &a, &b));
        assert!(!key.verify(proof, false, &a, &b) && !key.verify(proof, true, &b, &a));
        assert!(!Key::new([2; 32]).verify(proof, true, &a, &b));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_greeting_or_an_error(tail in proptest::collection::vec(any::<u8>(), 60)) {
            let mut bytes = [0; HELLO_BYTES];
            bytes[..4].copy_from_slice(b"QHP\n");
            bytes[4..].copy_from_slice(&tail);
            if let Ok(hello) = Hello::decode(&bytes) {
                prop_assert_eq!(hello.encode(), bytes);
            }
        }
    }
}
