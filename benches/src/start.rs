//! From the start of a monitor's process to the first byte of its guest.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::monitor::{Monitor, median};
use crate::payload;

/// What runs, and how often.
#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// Starts of each monitor; the median counts
    #[arg(long, default_value_t = 51, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,

    /// Monitors to compare
    #[arg(long, value_delimiter = ',', default_value = "soft,kvm,qemu-kvm,qemu-tcg")]
    monitors: Vec<Monitor>,
}

/// How long one start may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Times of one monitor, ms.
struct Column {
    monitor: Monitor,
    times: Vec<f64>,
}

/// Prints the table.
///
/// # Errors
/// The payload cannot be written. A monitor that does not run is named and left out.
pub fn run(arguments: &StartArgs, queztl: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kernel = payload::write(folder.path())?;
    let mut columns: Vec<Column> =
        arguments.monitors.iter().map(|monitor| Column { monitor: *monitor, times: Vec::new() }).collect();
    // Round by round, so that a change of the host's load meets all alike.
    for _ in 0..arguments.runs {
        columns.retain_mut(|column| match column.monitor.start(queztl, &kernel, LIMIT) {
            Ok(running) => {
                column.times.push(running.to_first_byte.as_secs_f64() * 1e3);
                true
            }
            Err(error) => {
                eprintln!("  left out: {error:#}");
                false
            }
        });
    }
    println!("process start to first guest byte, {} MiB, {} starts each", crate::monitor::RAM_MIB, arguments.runs);
    println!("{:<28}{:>10}{:>10}{:>10}  of its peer's median", "monitor", "median ms", "least ms", "p90 ms");
    let medians: Vec<(Monitor, f64)> =
        columns.iter_mut().filter_map(|c| Some((c.monitor, median(&mut c.times)?))).collect();
    for (column, (monitor, middle)) in columns.iter().zip(&medians) {
        let peer = monitor.peer().and_then(|peer| medians.iter().find(|(other, _)| *other == peer));
        let ratio = peer.map_or_else(String::new, |(peer, theirs)| format!("{:.2} x {peer}", middle / theirs));
        let p90 = column.times[column.times.len() * 9 / 10];
        println!("{:<28}{:>10.1}{:>10.1}{:>10.1}  {ratio}", monitor.to_string(), middle, column.times[0], p90);
    }
    Ok(())
}
