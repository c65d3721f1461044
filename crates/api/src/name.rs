//! Names that people give: virtual machines, snapshots, images.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The longest name, in bytes: what a host name label may have (RFC 1123), since a guest may be called so.
pub const MAX_NAME_BYTES: usize = 63;

/// A name: 1 to 63 of `a-z A-Z 0-9 . _ -`, the first a letter or digit. So it is a file name, a path segment of a URL and
/// a word of a shell as it is, and can lead nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", example = "web-1")]
pub struct Name(String);

/// Why a name cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name: take 1 to {MAX_NAME_BYTES} letters, digits, dots, hyphens and underscores, a letter or digit first"
)]
pub struct NameError(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let good = first && text.len() <= MAX_NAME_BYTES && text.bytes().all(inner);
        // A refused name is quoted in messages: not without end.
        let shown = || text.chars().take(MAX_NAME_BYTES).collect();
        if good { Ok(Name(text.to_owned())) } else { Err(NameError(shown())) }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Name, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for bad in ["", ".", "..", "../x", "a/b", "-x", ".x", "a b", "ä", "a\0", "a\n", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for good in ["a", "0", "web-1", "a.b_c", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }

    proptest! {
        #[test]
        fn what_is_a_name_is_one_path_segment(text in ".{0,80}") {
            if let Ok(name) = text.parse::<Name>() {
                let path = std::path::Path::new(name.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert_eq!(path.file_name().unwrap(), name.as_str());
            }
        }
    }
}
