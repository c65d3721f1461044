//! Operations, until they are over.

use std::time::Duration;

use queztl_api::Operation;

use crate::{Client, Error};

/// How long the daemon is asked to wait at a time: the interval of progress.
const STEP: Duration = Duration::from_secs(1);

impl Client {
    /// Waits for the end of an operation and shows each state on the way, the first and the last one too. Dropping the future
    /// changes nothing: the operation goes on.
    ///
    /// # Errors
    /// Those of the connection. How the operation ended is in what is given.
    pub async fn follow(&self, operation: Operation, mut shown: impl FnMut(&Operation)) -> Result<Operation, Error> {
        let mut now = operation;
        loop {
            shown(&now);
            if now.state.is_over() {
                return Ok(now);
            }
            now = self.wait_operation(&now.id, STEP).await?;
        }
    }

    /// The same, with an operation that failed or was cancelled as an error.
    ///
    /// # Errors
    /// Those of the connection, and the operation's own problem.
    pub async fn finish(&self, operation: Operation, shown: impl FnMut(&Operation)) -> Result<Operation, Error> {
        let ended = self.follow(operation, shown).await?;
        match ended.state {
            queztl_api::OperationState::Succeeded => Ok(ended),
            _ => Err(ended.problem.unwrap_or_else(|| cancelled(&ended.id)).into()),
        }
    }
}

fn cancelled(id: &str) -> queztl_api::Problem {
    queztl_api::Problem::new(queztl_api::Code::Cancelled, format!("operation {id} was cancelled"))
}
