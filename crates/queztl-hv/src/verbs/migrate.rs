//! `migrate`.

use std::io::{self, IsTerminal};
use std::path::Path;

use queztl_api::{MigrateRequest, MigrationMode, MigrationReport};

use super::session::{Session, failure};
use super::wait;
use crate::cli::{MigrateArgs, MigrationModeArg};
use crate::output::{self, Made};
use crate::report::Failure;
use crate::status::Status;

/// Brings a machine to another daemon and tells what it took.
pub async fn migrate(session: &Session, args: MigrateArgs) -> Result<Status, Failure> {
    if args.mode != MigrationModeArg::PreCopy && !args.yes {
        confirm(&args.vm.vm)?;
    }
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", path.display())))
    };
    let request = MigrateRequest {
        token: args.to_token_file.as_deref().map(read).transpose()?.map(|token| token.trim().to_owned()),
        authority: args.to_ca.as_deref().map(read).transpose()?,
        stripes: args.stripes,
        max_rounds: args.rounds,
        shared_disks: args.shared_disks,
        mode: match args.mode {
            MigrationModeArg::PreCopy => MigrationMode::PreCopy,
            MigrationModeArg::PostCopy => MigrationMode::PostCopy,
            MigrationModeArg::Auto => MigrationMode::Auto,
        },
        source_loss_accepted: args.mode != MigrationModeArg::PreCopy,
        patience_s: args.patience,
        ..MigrateRequest::to(args.to)
    };
    let operation = session.client.migrate(&args.vm.vm, &request).await.map_err(failure)?;
    let ended = wait::finish(&session.client, operation).await?;
    let report: MigrationReport = serde_json::from_value(ended.result.unwrap_or_default())
        .map_err(|error| Failure::host(format!("the machine was moved, but its report cannot be read: {error}")))?;
    let made = Made { table: told(&report), names: vec![report.to.clone()], value: report };
    output::print(&made, args.output.format)
}

/// Says what memory that goes after its machine means, and asks whether that is understood.
fn confirm(vm: &str) -> Result<(), Failure> {
    let warning = format!(
        "{vm:?} may run at the target before its memory is there: if this host or the connection to it is lost for good \
         until then, the machine ends there, and what its guest had not written to a disk is gone"
    );
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{warning}; --yes says that this is understood")));
    }
    eprint!("queztl-hv: {warning}. Go on? [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| Failure::host(format!("no answer can be read: {error}")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::usage("the machine stays here")),
    }
}

fn told(report: &MigrationReport) -> String {
    let ms = |ns: u64| format!("{:.1} ms", ns as f64 / 1e6);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let MigrationReport { blackout: parts, .. } = report;
    let mut text = format!(
        "memory    {:.1} MiB in {} rounds ({:.1} MiB on the wire)\n",
        mib(report.data_bytes),
        report.rounds,
        mib(report.wire_bytes)
    );
    if report.disk_bytes > 0 {
        text += &format!("disks     {:.1} MiB; they are raw files there\n", mib(report.disk_bytes));
    }
    text += &format!(
        "time      {} in all; the guest stood still for {} of it in the rounds, and then for {}:\n",
        ms(report.total_ns),
        ms(report.pauses_ns),
        ms(report.blackout_ns)
    );
    let rows = [
        ("the vCPUs and devices stop", parts.stop_ns),
        ("their states are taken", parts.cut_ns),
        ("the last of the disks goes", parts.disks_ns),
        ("the last pages and the state go", parts.memory_ns),
        ("on the way", parts.network_ns),
        ("the machine is made there", parts.start_ns),
    ];
    for (what, ns) in rows {
        text += &format!("          {what:<32}{:>10}\n", ms(ns));
    }
    if let Some(late) = &report.late {
        text += &format!(
            "after it  {:.1} MiB came in {}; the connection broke {} times; the guest waited for {} pages,\n          \
             half of them at most {}, 99 of 100 at most {}\n",
            mib(late.missing_bytes),
            ms(late.whole_ns),
            late.reconnects,
            late.faults,
            ms(late.fault_p50_ns),
            ms(late.fault_p99_ns)
        );
    }
    text
}
