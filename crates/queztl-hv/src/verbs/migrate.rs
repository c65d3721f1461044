//! `migrate`.

use std::path::Path;

use queztl_api::{MigrateRequest, MigrationReport};

use super::session::{Session, failure};
use super::wait;
use crate::cli::MigrateArgs;
use crate::output::{self, Made};
use crate::report::Failure;
use crate::status::Status;

/// Brings a machine to another daemon and tells what it took.
pub async fn migrate(session: &Session, args: MigrateArgs) -> Result<Status, Failure> {
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", path.display())))
    };
    let request = MigrateRequest {
        token: args.to_token_file.as_deref().map(read).transpose()?.map(|token| token.trim().to_owned()),
        authority: args.to_ca.as_deref().map(read).transpose()?,
        stripes: args.stripes,
        max_rounds: args.rounds,
        ..MigrateRequest::to(args.to)
    };
    let operation = session.client.migrate(&args.vm.vm, &request).await.map_err(failure)?;
    let ended = wait::finish(&session.client, operation).await?;
    let report: MigrationReport = serde_json::from_value(ended.result.unwrap_or_default())
        .map_err(|error| Failure::host(format!("the machine was moved, but its report cannot be read: {error}")))?;
    let made = Made { table: told(&report), names: vec![report.to.clone()], value: report };
    output::print(&made, args.output.format)
}

fn told(report: &MigrationReport) -> String {
    let milliseconds = |ns: u64| ns as f64 / 1e6;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    format!(
        "{:.1} MiB of memory in {} rounds ({:.1} MiB on the wire) in {:.0} ms\nthe machine stood still for {:.1} ms when it \
         was handed over, and for {:.1} ms before that\n",
        mib(report.data_bytes),
        report.rounds,
        mib(report.wire_bytes),
        milliseconds(report.total_ns),
        milliseconds(report.blackout_ns),
        milliseconds(report.pauses_ns)
    )
}
