//! Arrays of bytes of any fixed length, written as hexadecimal digits.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

/// `N` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes<const N: usize>(pub [u8; N]);

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(N * 2);
        for byte in self.0 {
            for digit in [byte >> 4, byte & 0xf] {
                text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
        serializer.serialize_str(&text)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Digits::<N>)
    }
}

struct Digits<const N: usize>;

impl<const N: usize> Visitor<'_> for Digits<N> {
    type Value = Bytes<N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hexadecimal digits", N * 2)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Bytes<N>, E> {
        let digits = text.as_bytes();
        if digits.len() != N * 2 {
            return Err(E::invalid_length(digits.len(), &self));
        }
        let mut bytes = [0; N];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            let (Some(high), Some(low)) = (digit(0), digit(1)) else {
                return Err(E::custom("not a hexadecimal digit"));
            };
            *byte = (high << 4 | low) as u8;
        }
        Ok(Bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_and_other_texts_are_refused() {
        let bytes = Bytes([0, 0x7f, 0xff, 0x1a]);
        let text = serde_json::to_string(&bytes).unwrap();
        assert_eq!(text, "\"007fff1a\"");
        assert_eq!(serde_json::from_str::<Bytes<4>>(&text).unwrap(), bytes);
        for wrong in ["\"007fff1\"", "\"007fff1a00\"", "\"007fff1x\"", "\"0é7ff1a\"", "12"] {
            assert!(serde_json::from_str::<Bytes<4>>(wrong).is_err(), "{wrong}");
        }
    }
}
