//! A guest that writes moves to another daemon, and the same guest between two QEMUs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use queztl_api::{LateMemory, MigrateRequest, MigrationMode, MigrationReport};

use super::{Host, VM, mebibytes, milliseconds, qemu, quantile};
use crate::payload::Writer;

/// What runs.
#[derive(Debug, clap::Args)]
pub struct MigrationArgs {
    /// Pages that the guest writes in a second; 0 for as many as it can
    #[arg(long, value_delimiter = ',', default_value = "0,1000,10000,30000")]
    rates: Vec<u32>,

    /// RAM of the guest, all of which it has written to, MiB
    #[arg(long, default_value_t = 256)]
    ram: u64,

    /// Connections for memory
    #[arg(long, default_value_t = 4)]
    stripes: u32,

    /// Moves of each kind; the median counts
    #[arg(long, default_value_t = 3)]
    runs: u32,

    /// Without QEMU
    #[arg(long)]
    no_peer: bool,
}

/// How a move went.
pub(super) struct Move {
    pub total: f64,
    /// How long the guest stood still, by the word of whoever moved it.
    pub gap: f64,
    pub sent_mib: f64,
}

/// Prints the table.
///
/// # Errors
/// A daemon does not start, or a move fails. A QEMU that does not move its guest is named and left out.
pub fn run(arguments: &MigrationArgs, queztl: &Path) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        println!(
            "a guest with {} MiB that has written to all of it moves while it writes; software CPUs, {} connections",
            arguments.ram, arguments.stripes
        );
        println!("{:>10}  {:<14} {:>12} {:>14} {:>12}", "pages/s", "who", "total", "stands still", "sent");
        for rate in &arguments.rates {
            let writer = Writer { ram_mib: arguments.ram, rate: *rate };
            let mut moves = Vec::new();
            for _ in 0..arguments.runs {
                moves.push(moved(arguments, queztl, &writer, MigrationMode::PreCopy).await?.0);
            }
            print(*rate, "queztl", moves);
            let mut moves = Vec::new();
            for _ in 0..arguments.runs {
                let (moved, late) = moved(arguments, queztl, &writer, MigrationMode::PostCopy).await?;
                late.iter().for_each(tell);
                moves.push(moved);
            }
            print(*rate, "post-copy", moves);
            for channels in [0, arguments.stripes].into_iter().filter(|_| !arguments.no_peer) {
                let name = if channels == 0 { "qemu".into() } else { format!("qemu, {channels} chan.") };
                let moved: Result<Vec<Move>> = (0..arguments.runs).map(|_| qemu::migrate(&writer, channels)).collect();
                match moved {
                    Ok(moves) => print(*rate, &name, moves),
                    Err(error) => println!("{rate:>10}  {name:<14} {error:#}"),
                }
            }
        }
        Ok(())
    })
}

fn print(rate: u32, name: &str, moves: Vec<Move>) {
    let middle = |part: fn(&Move) -> f64| quantile(&mut moves.iter().map(part).collect::<Vec<_>>(), 0.5);
    let rate = if rate == 0 { "all it can".to_owned() } else { rate.to_string() };
    println!(
        "{:>10}  {:<14} {:>9.0} ms {:>11.1} ms {:>8.0} MiB",
        rate,
        name,
        middle(|one| one.total),
        middle(|one| one.gap),
        middle(|one| one.sent_mib)
    );
}

/// What a guest saw whose memory came after it.
fn tell(late: &LateMemory) {
    println!(
        "{:>10}  whole after {:.0} ms, {} pages waited for: half at most {:.2} ms, 99 % at most {:.2} ms",
        "",
        milliseconds(late.whole_ns),
        late.faults,
        milliseconds(late.fault_p50_ns),
        milliseconds(late.fault_p99_ns)
    );
}

async fn moved(
    arguments: &MigrationArgs,
    queztl: &Path,
    writer: &Writer,
    mode: MigrationMode,
) -> Result<(Move, Option<LateMemory>)> {
    let folder = tempfile::tempdir()?;
    let one = Host::start(queztl, folder.path().join("one")).await?;
    let two = Host::start(queztl, folder.path().join("two")).await?;
    let console = one.boot(writer).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(console);
    let request = MigrateRequest {
        stripes: arguments.stripes,
        mode,
        source_loss_accepted: true,
        ..MigrateRequest::to(two.address())
    };
    let moved = one.done(one.client.migrate(VM, &request).await?).await?;
    let report: MigrationReport = serde_json::from_value(moved.result.context("a move without a report")?)?;
    one.stop().await;
    two.stop().await;
    let moved = Move {
        total: milliseconds(report.total_ns),
        gap: milliseconds(report.blackout_ns),
        sent_mib: mebibytes(report.wire_bytes),
    };
    Ok((moved, report.late))
}
