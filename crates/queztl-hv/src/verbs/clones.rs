//! `clone`.

use queztl_api::{CloneRequest, Vm};

use super::session::{Session, failure};
use super::wait;
use crate::cli::CloneArgs;
use crate::output::{self, List};
use crate::report::Failure;
use crate::status::Status;

/// Makes clones and prints their names, or more of them.
pub async fn clone(session: &Session, args: CloneArgs) -> Result<Status, Failure> {
    let request =
        CloneRequest { count: args.count, snapshot: args.snapshot, name: args.name, wait_for_agent: !args.no_agent };
    let operation = session.client.clone_vm(&args.vm.vm, &request).await.map_err(failure)?;
    let ended = wait::finish(&session.client, operation).await?;
    let clones: Vec<Vm> = serde_json::from_value(ended.result.unwrap_or_default())
        .map_err(|error| Failure::host(format!("the clones were made, but their list cannot be read: {error}")))?;
    output::print(&List(&clones), args.output.format)
}
