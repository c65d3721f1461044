//! What admits one new node: where the cluster is, which authority it has, and a secret.
//!
//! ```text
//! qzj1_ base64url( JSON of the token, 4 bytes of its blake3 )
//! ```
//! The last bytes tell a token that was cut or mistyped from one that the founder does not know.

use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use queztl_api::Name;
use serde::{Deserialize, Serialize};

const PREFIX: &str = "qzj1_";
/// What tokens of all versions begin with.
const FAMILY: &str = "qzj";
/// The longest token that is looked at.
const MAX_BYTES: usize = 2048;
const CHECK_BYTES: usize = 4;

/// A token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinToken {
    /// The cluster's identifier.
    pub cluster: String,
    /// The node that gave it out, and where it is.
    pub founder: Name,
    pub address: String,
    /// blake3 of the authority's certificate.
    #[serde(with = "hex::serde")]
    pub authority: [u8; 32],
    pub secret: String,
}

impl std::fmt::Debug for JoinToken {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken").field("founder", &self.founder).finish_non_exhaustive()
    }
}

/// Why a text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("this is no token for a node: copy what `queztl-hv node token` has printed at the cluster's founder")]
    Foreign,
    #[error("the token is of another version of this program: use the same version at all nodes")]
    Version,
    #[error("the token is damaged: copy all of it again")]
    Damaged,
}

impl std::fmt::Display for JoinToken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        let check = *blake3::hash(&bytes).as_bytes();
        bytes.extend_from_slice(&check[..CHECK_BYTES]);
        write!(formatter, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<JoinToken, TokenError> {
        let text = text.trim();
        if !text.starts_with(FAMILY) || text.len() > MAX_BYTES {
            return Err(TokenError::Foreign);
        }
        let Some(coded) = text.strip_prefix(PREFIX) else {
            let version = text[FAMILY.len()..].split_once('_').map_or("", |(version, _)| version);
            let is_number = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
            return Err(if is_number { TokenError::Version } else { TokenError::Foreign });
        };
        let bytes = URL_SAFE_NO_PAD.decode(coded).map_err(|_| TokenError::Damaged)?;
        let (json, check) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(TokenError::Damaged)?;
        if blake3::hash(json).as_bytes()[..CHECK_BYTES] != check[..] {
            return Err(TokenError::Damaged);
        }
        serde_json::from_slice(json).map_err(|_| TokenError::Version)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            cluster: "0123456789abcdef".into(),
            founder: "a".parse().unwrap(),
            address: "10.0.0.1:7444".into(),
            authority: [7; 32],
            secret: "s".repeat(64),
        }
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let text = format!(" {}\n", token());
        assert_eq!(text.parse::<JoinToken>(), Ok(token()));
    }

    #[test]
    fn what_is_no_token_is_told_from_a_damaged_one_and_one_of_another_version() {
        let text = token().to_string();
        assert_eq!(text[..text.len() - 3].parse::<JoinToken>(), Err(TokenError::Damaged));
        assert_eq!(text.replacen("qzj1_", "qzj2_", 1).parse::<JoinToken>(), Err(TokenError::Version));
        for foreign in ["", "qz_0123", "qzj", "qzjx_1", "https://a:1"] {
            assert_eq!(foreign.parse::<JoinToken>(), Err(TokenError::Foreign), "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_is_none(text in "(qzj1_)?[ -~é]{0,300}") {
            let _ = text.parse::<JoinToken>();
        }

        #[test]
        fn any_damage_is_noticed(at in 5usize..300, with in "[A-Za-z0-9_-]") {
            let mut text = token().to_string();
            let at = at.min(text.len() - 1);
            prop_assume!(text[at..=at] != with);
            text.replace_range(at..=at, &with);
            // The last character has bits that mean nothing: those it must not have, either.
            prop_assert_eq!(text.parse::<JoinToken>(), Err(TokenError::Damaged));
        }
    }
}
