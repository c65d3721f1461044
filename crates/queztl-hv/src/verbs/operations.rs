//! `operations`.

use queztl_api::Operation;

use super::lifecycle::report;
use super::session::{Session, failure};
use super::wait;
use crate::cli::{OperationsArgs, OperationsCommand, OutputFormat};
use crate::output::{self, List};
use crate::report::Failure;
use crate::status::Status;

/// Prints operations; people read names of machines rather than identifiers.
async fn show(session: &Session, mut operations: Vec<Operation>, format: OutputFormat) -> Result<Status, Failure> {
    if matches!(format, OutputFormat::Table | OutputFormat::Wide) {
        let names = session.names().await?;
        for target in operations.iter_mut().filter_map(|operation| operation.target.as_mut()) {
            *target = names.get(target).unwrap_or(target).clone();
        }
    }
    output::print(&List(&operations), format)
}

/// Lists operations, shows one, waits for some or cancels them.
pub async fn operations(session: &Session, args: OperationsArgs) -> Result<Status, Failure> {
    let client = &session.client;
    match args.command {
        None => {
            let operations = client.operations().await.map_err(failure)?;
            show(session, operations, args.output.format).await
        }
        Some(OperationsCommand::Show { id, output }) => {
            let operation = client.operation(&id).await.map_err(failure)?;
            show(session, vec![operation], output.format).await
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
