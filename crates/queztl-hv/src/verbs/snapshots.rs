//! `snapshot`, `snapshots` and `restore`.

use queztl_api::{Name, Snapshot, SnapshotRequest};

use super::lifecycle::report;
use super::session::{Session, failure};
use super::wait;
use crate::cli::{OutputFormat, RestoreArgs, SnapshotArgs, SnapshotCommand, SnapshotsArgs};
use crate::output::{self, List};
use crate::report::Failure;
use crate::status::Status;

/// Takes one, or deletes some.
pub async fn snapshot(session: &Session, args: SnapshotArgs) -> Result<Status, Failure> {
    if let Some(SnapshotCommand::Delete { vm, names }) = args.command {
        return delete(session, &vm.vm, &names).await;
    }
    let vm = args.vm.unwrap_or_default();
    let request = SnapshotRequest { name: args.name, incremental: args.incremental, description: args.description };
    let operation = session.client.snapshot(&vm, &request).await.map_err(failure)?;
    let ended = wait::finish(&session.client, operation).await?;
    let taken: Snapshot = serde_json::from_value(ended.result.unwrap_or_default()).map_err(|error| {
        Failure::host(format!("the snapshot was taken, but its description cannot be read: {error}"))
    })?;
    match args.output.format {
        OutputFormat::Name => Ok(crate::print(&format!("{}\n", taken.name))),
        format => output::print(&List(&[taken]), format),
    }
}

async fn delete(session: &Session, vm: &str, names: &[Name]) -> Result<Status, Failure> {
    let mut ended = Vec::new();
    // One after the other, newest wish last: each may build on the one before.
    for name in names {
        ended.push(match session.client.delete_snapshot(vm, name).await {
            Ok(operation) => wait::finish(&session.client, operation).await,
            Err(error) => Err(failure(error)),
        });
    }
    report(&names.iter().map(ToString::to_string).collect::<Vec<_>>(), ended)
}

/// Lists a machine's snapshots.
pub async fn list(session: &Session, args: &SnapshotsArgs) -> Result<Status, Failure> {
    let snapshots = session.client.snapshots(&args.vm.vm).await.map_err(failure)?;
    output::print(&List(&snapshots), args.output.format)
}

/// Puts a machine back.
pub async fn restore(session: &Session, args: &RestoreArgs) -> Result<Status, Failure> {
    let operation = session.client.restore(&args.vm.vm, &args.name).await.map_err(failure)?;
    wait::finish(&session.client, operation).await?;
    Ok(Status::Success)
}
