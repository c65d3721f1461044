//! One-time codes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use queztl_api::{Problem, Scope, Timestamp};

use crate::vms::naming::random_bytes;

/// How long a code is good for: until a browser has started on a slow machine.
const LIFE: Duration = Duration::from_secs(300);
/// Codes that wait to be used; the oldest goes first.
const MOST: usize = 64;

/// Codes that nobody has used yet, by the hashes of them.
#[derive(Debug, Default)]
pub struct Codes(Mutex<HashMap<blake3::Hash, (Scope, Timestamp)>>);

impl Codes {
    /// A code, and when it ends.
    ///
    /// # Errors
    /// The host gives no random numbers.
    pub fn make(&self, scope: Scope) -> Result<(String, Timestamp), Problem> {
        let code = hex::encode(random_bytes::<16>()?);
        let now = Timestamp::now();
        let end = now + LIFE;
        let mut codes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        codes.retain(|_, (_, end)| now < *end);
        if codes.len() >= MOST
            && let Some(oldest) = codes.iter().min_by_key(|(_, (_, end))| *end).map(|(hash, _)| *hash)
        {
            codes.remove(&oldest);
        }
        codes.insert(blake3::hash(code.as_bytes()), (scope, end));
        Ok((code, end))
    }

    /// What a code is good for; from now on nothing.
    pub fn take(&self, code: &str, now: Timestamp) -> Option<Scope> {
        // Looked up by its hash, so that the time it takes tells nothing of the codes.
        let mut codes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (scope, end) = codes.remove(&blake3::hash(code.as_bytes()))?;
        (now < end).then_some(scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_works_once() {
        let codes = Codes::default();
        let (code, _) = codes.make(Scope::Operate).unwrap();

        let first = codes.take(&code, Timestamp::now());
        let second = codes.take(&code, Timestamp::now());

        assert_eq!((first, second), (Some(Scope::Operate), None));
    }

    #[test]
    fn a_code_ends() {
        let codes = Codes::default();
        let (code, end) = codes.make(Scope::Admin).unwrap();
        assert_eq!(codes.take(&code, end), None);
    }

    #[test]
    fn codes_that_nobody_uses_do_not_pile_up() {
        let codes = Codes::default();
        for _ in 0..MOST + 10 {
            codes.make(Scope::Read).unwrap();
        }
        assert_eq!(codes.0.lock().unwrap().len(), MOST);
    }
}
