//! In the founder's store, asked for over the nodes' port.

use std::time::Duration;

use queztl_api::{AgreedChange, AgreedQuery};
use queztl_client::{Client, Error};
use tokio::runtime::Handle;

use super::{Coordinator, CoordinatorError};

/// How long the founder may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The founder, as another node sees it.
pub(crate) struct Founder<'a> {
    pub client: &'a Client,
    pub runtime: &'a Handle,
}

impl Founder<'_> {
    fn ask<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> Result<T, CoordinatorError> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await });
        Ok(answer.unwrap_or(Err(Error::Silent(PATIENCE)))?)
    }
}

impl Coordinator for Founder<'_> {
    fn list(&self, prefix: &str) -> Result<Vec<(String, String)>, CoordinatorError> {
        let found = self.ask(self.client.agreed(&AgreedQuery { prefix: prefix.to_owned() }))?;
        Ok(found.into_iter().map(|agreed| (agreed.key, agreed.value)).collect())
    }

    fn swap(&self, key: &str, before: Option<&str>, after: Option<&str>) -> Result<bool, CoordinatorError> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let change = AgreedChange { key: key.to_owned(), before: owned(before), after: owned(after) };
        Ok(self.ask(self.client.agree(&change))?.changed)
    }
}
