//! In this daemon's store.

use super::{Coordinator, CoordinatorError};
use crate::store::{AGREED, Store};

/// The founder's own store.
pub(crate) struct Embedded<'a>(pub &'a Store);

impl Coordinator for Embedded<'_> {
    fn list(&self, prefix: &str) -> Result<Vec<(String, String)>, CoordinatorError> {
        Ok(self.0.list_with(AGREED, prefix)?)
    }

    fn swap(&self, key: &str, before: Option<&str>, after: Option<&str>) -> Result<bool, CoordinatorError> {
        let changed = self.0.change(|change| {
            if change.get(AGREED, key)?.as_deref() != before {
                return Ok(false);
            }
            match after {
                Some(after) => change.put(AGREED, key, &after.to_owned())?,
                None => change.remove(AGREED, key)?,
            }
            Ok(true)
        });
        Ok(changed?)
    }
}
