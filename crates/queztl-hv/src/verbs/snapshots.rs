//! `snapshot`, `snapshots` and `restore`.

use std::collections::HashSet;

use queztl_api::{Name, Snapshot, SnapshotRequest};
use queztl_vmm::process::Folder;
use queztl_vmm::snapshot;

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

/// Lists a machine's snapshots, or reads them.
pub async fn list(session: &Session, args: &SnapshotsArgs) -> Result<Status, Failure> {
    let snapshots = session.client.snapshots(&args.vm.vm).await.map_err(failure)?;
    if args.check {
        return check(session, &snapshots);
    }
    output::print(&List(&snapshots), args.output.format)
}

/// A line for each; those that are damaged are failures.
fn check(session: &Session, snapshots: &[Snapshot]) -> Result<Status, Failure> {
    let home = session.home().ok_or_else(|| {
        Failure::usage(
            "snapshots are read where they lie: leave out --address and QUEZTL_ADDRESS, or run this on the daemon's host",
        )
    })?;
    let (mut known, mut status) = (HashSet::new(), Status::Success);
    for Snapshot { name, vm, .. } in snapshots {
        let folder = Folder::new(home.join("vms").join(vm)).snapshots().join(name.as_str());
        match snapshot::Snapshot::verify(&folder, &mut known) {
            Ok(()) => drop(crate::print(&format!("{name}: sound\n"))),
            Err(error) => status = Failure::usage(crate::report::chain(&error)).about(name.as_str()).report(),
        }
    }
    Ok(status)
}

/// Puts a machine back.
pub async fn restore(session: &Session, args: &RestoreArgs) -> Result<Status, Failure> {
    let operation = session.client.restore(&args.vm.vm, &args.name).await.map_err(failure)?;
    wait::finish(&session.client, operation).await?;
    Ok(Status::Success)
}
