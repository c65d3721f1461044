//! Tokens: secrets that say who may do what.
//!
//! A secret is 256 random bits, shown once; the store keeps its hash, so that who reads the store cannot use it. A plain hash
//! suffices, since nobody can guess so many bits.

use std::sync::Arc;

use queztl_api::{Code, CreateToken, Name, NewToken, Problem, Timestamp, Token};
use serde::{Deserialize, Serialize};

use crate::manager::Core;
use crate::store::TOKENS;
use crate::vms::naming::random_bytes;

/// Every secret begins so, and is known as one where it does not belong.
const PREFIX: &str = "qz_";
/// Most tokens of a store.
const MAX_TOKENS: usize = 1000;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    pub token: Token,
    /// blake3 of the secret.
    #[serde(with = "hex::serde")]
    pub hash: [u8; 32],
}

impl Core {
    pub(crate) fn tokens(&self) -> Result<Vec<Token>, Problem> {
        Ok(self.store.list(TOKENS)?.into_iter().map(|(_, record)| record.token).collect())
    }

    pub(crate) fn create_token(self: &Arc<Self>, request: CreateToken) -> Result<NewToken, Problem> {
        let created_at = Timestamp::now();
        let expires_at = request.expires_in_seconds.map(|seconds| expiry(created_at, seconds)).transpose()?;
        let secret = format!("{PREFIX}{}", hex::encode(random_bytes::<32>()?));
        let token = Token { name: request.name, scope: request.scope, created_at, expires_at };
        let record = TokenRecord { token: token.clone(), hash: *blake3::hash(secret.as_bytes()).as_bytes() };
        self.store.write(|change| {
            let name = token.name.as_str();
            if change.get(TOKENS, name)?.is_some() {
                return Err(Problem::new(Code::Exists, format!("there is a token {name:?} already: delete it first")));
            }
            if change.list_with(TOKENS, "")?.len() >= MAX_TOKENS {
                return Err(Problem::new(Code::Busy, format!("there are {MAX_TOKENS} tokens: delete some first")));
            }
            Ok(change.put(TOKENS, name, &record)?)
        })?;
        Ok(NewToken { token, secret })
    }

    pub(crate) fn delete_token(&self, name: &Name) -> Result<(), Problem> {
        self.store.write(|change| {
            let known = change.get(TOKENS, name.as_str())?;
            known.ok_or_else(|| Problem::not_found("token", name.as_str()))?;
            Ok(change.remove(TOKENS, name.as_str())?)
        })
    }

    pub(crate) fn authenticate(&self, secret: &str) -> Result<Token, Problem> {
        let hash = blake3::hash(secret.as_bytes());
        let now = Timestamp::now();
        // Hashes are compared in constant time; all of them, so that the time tells nothing of the order either.
        let mut found = None;
        for (_, record) in self.store.list(TOKENS)? {
            if hash == record.hash {
                found = Some(record.token);
            }
        }
        match found {
            Some(token) if token.expires_at.is_none_or(|end| now < end) => Ok(token),
            Some(token) => {
                let text = format!("the token {:?} has expired: make a new one", token.name.as_str());
                Err(Problem::new(Code::Unauthenticated, text))
            }
            None => {
                Err(Problem::new(Code::Unauthenticated, "the token is not known here: make one with `token create`"))
            }
        }
    }
}

fn expiry(now: Timestamp, seconds: u64) -> Result<Timestamp, Problem> {
    let span = i64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(jiff::SignedDuration::from_secs);
    span.and_then(|span| now.checked_add(span).ok())
        .ok_or_else(|| Problem::invalid("expires_in_seconds", "give at least 1, and not more than a calendar has"))
}
