//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A station's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

/// A text that is not the address of one station.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a MAC address; write six bytes like 52:54:00:12:34:56, the first one even")]
pub struct ParseMacError(String);

impl Mac {
    /// An address for card number `card` of the machine called `name`: the same every time, locally administered (IEEE
    /// 802 §8.4), so that it collides with no real card.
    pub fn derived(name: &str, card: u32) -> Mac {
        // FNV-1a: stable from one build to the next, which the standard library's hash is not.
        let bytes = name.bytes().chain([0]).chain(card.to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let hash = (hash ^ hash >> 29).to_le_bytes();
        Mac([(hash[0] & !1) | 2, hash[1], hash[2], hash[3], hash[4], hash[5]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Mac, ParseMacError> {
        let error = || ParseMacError(text.to_string());
        let mut bytes = [0; 6];
        let mut words = text.split(':');
        for byte in &mut bytes {
            let word = words.next().filter(|w| w.len() == 2 && w.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = word.and_then(|w| u8::from_str_radix(w, 16).ok()).ok_or_else(error)?;
        }
        // Odd first bytes name groups of stations; all zeroes names none.
        if words.next().is_some() || bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(error());
        }
        Ok(Mac(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let mac: Mac = "52:54:00:12:34:aB".parse().unwrap();
        assert_eq!(mac, Mac([0x52, 0x54, 0, 0x12, 0x34, 0xab]));
        assert_eq!(mac.to_string(), "52:54:00:12:34:ab");
    }

    #[test]
    fn what_is_no_station_is_refused() {
        for text in ["", "52:54", "53:54:00:12:34:56", "52:54:00:12:34:56:78", "5254:00:12:34:56", "00:00:00:00:00:00"]
        {
            assert_eq!(text.parse::<Mac>(), Err(ParseMacError(text.to_string())));
        }
    }

    #[test]
    fn derived_addresses_are_local_stable_and_different() {
        let mac = Mac::derived("web", 0);
        assert_eq!(mac.0[0] & 3, 2);
        assert_eq!(mac, Mac::derived("web", 0));
        assert!(mac != Mac::derived("web", 1) && mac != Mac::derived("db", 0));
    }
}
