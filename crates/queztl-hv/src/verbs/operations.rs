//! `operations`.

use super::lifecycle::report;
use super::session::{Session, failure};
use super::wait;
use crate::cli::{OperationsArgs, OperationsCommand};
use crate::output::{self, List};
use crate::report::Failure;
use crate::status::Status;

/// Lists operations, shows one, waits for some or cancels them.
pub async fn operations(session: &Session, args: OperationsArgs) -> Result<Status, Failure> {
    let client = &session.client;
    match args.command {
        None => {
            let operations = client.operations().await.map_err(failure)?;
            output::print(&List(&operations), args.output.format)
        }
        Some(OperationsCommand::Show { id, output }) => {
            let operation = client.operation(&id).await.map_err(failure)?;
            output::print(&List(&[operation]), output.format)
        }
        Some(OperationsCommand::Wait { ids }) => {
            let asked = futures_util::future::join_all(ids.iter().map(|id| client.operation(id))).await;
            let begun = asked.into_iter().map(|asked| asked.map_err(failure)).collect();
            report(&ids, wait::finish_all(client, begun).await)
        }
        Some(OperationsCommand::Cancel { ids }) => {
            let asked = futures_util::future::join_all(ids.iter().map(|id| client.cancel_operation(id))).await;
            report(&ids, asked.into_iter().map(|asked| asked.map_err(failure)).collect())
        }
    }
}
