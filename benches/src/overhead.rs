//! The memory of a monitor whose guest sleeps.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::monitor::{Monitor, RAM_MIB};
use crate::payload;

/// What runs.
#[derive(Debug, clap::Args)]
pub struct OverheadArgs {
    /// Monitors to compare
    #[arg(long, value_delimiter = ',', default_value = "soft,kvm,qemu-kvm,qemu-tcg")]
    monitors: Vec<Monitor>,

    /// List the mappings that hold most of each monitor's private memory
    #[arg(long)]
    mappings: bool,
}

/// How long one start may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the monitor is left alone before it is looked at.
const SETTLE: Duration = Duration::from_secs(2);

/// Memory in KiB.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Memory {
    rss: u64,
    pss: u64,
    /// Private pages that are not guest RAM.
    private: u64,
    /// Private memory by mapping, guest RAM left out.
    mappings: Vec<(String, u64)>,
}

/// Prints the table.
///
/// # Errors
/// The payload cannot be written. A monitor that does not run is named and left out.
pub fn run(arguments: &OverheadArgs, queztl: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kernel = payload::write(folder.path())?;
    let mut rows = Vec::new();
    for monitor in &arguments.monitors {
        match measure(*monitor, queztl, &kernel) {
            Ok(memory) => rows.push((*monitor, memory)),
            Err(error) => eprintln!("  left out: {error:#}"),
        }
    }
    println!("memory of a monitor with one sleeping guest of {RAM_MIB} MiB, MiB");
    println!("{:<16}{:>8}{:>8}{:>24}  of its peer's", "monitor", "RSS", "PSS", "private less guest RAM");
    for (monitor, memory) in &rows {
        let peer = monitor.peer().and_then(|peer| rows.iter().find(|(other, _)| *other == peer));
        let ratio = |(peer, theirs): &(Monitor, Memory)| {
            format!("{:.2} x {peer}", memory.private as f64 / theirs.private as f64)
        };
        let ratio = peer.map(ratio).unwrap_or_default();
        let [rss, pss, private] = [memory.rss, memory.pss, memory.private].map(|kib| kib as f64 / 1024.0);
        println!("{:<16}{rss:>8.2}{pss:>8.2}{private:>24.2}  {ratio}", monitor.to_string());
        for (name, kib) in memory.mappings.iter().take(if arguments.mappings { 12 } else { 0 }) {
            println!("    {kib:>6} KiB  {name}");
        }
    }
    Ok(())
}

fn measure(monitor: Monitor, queztl: &Path, kernel: &Path) -> Result<Memory> {
    let running = monitor.start(queztl, kernel, LIMIT)?;
    std::thread::sleep(SETTLE);
    let path = format!("/proc/{}/smaps", running.id());
    let smaps = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(parse(&smaps))
}

/// Sums up what `/proc/PID/smaps` tells (proc(5)).
fn parse(smaps: &str) -> Memory {
    let mut memory = Memory::default();
    let mut name = "";
    for line in smaps.lines() {
        let (key, rest) = line.split_once(' ').unwrap_or((line, ""));
        let kib = || rest.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match key {
            "Rss:" => memory.rss += kib(),
            "Pss:" => memory.pss += kib(),
            "Private_Clean:" | "Private_Dirty:" if !name.contains("guest-ram") && !name.contains("memory-backend") => {
                memory.private += kib();
                match memory.mappings.iter_mut().find(|(other, _)| other == name) {
                    Some((_, sum)) => *sum += kib(),
                    None => memory.mappings.push((name.to_owned(), kib())),
                }
            }
            // `ADDRESSES PERMISSIONS OFFSET DEVICE INODE NAME`
            _ if !key.ends_with(':') => name = rest.splitn(5, ' ').nth(4).unwrap_or("").trim_start(),
            _ => {}
        }
    }
    for (name, _) in &mut memory.mappings {
        if name.is_empty() {
            "anonymous".clone_into(name);
        }
    }
    memory.mappings.sort_by_key(|(_, kib)| std::cmp::Reverse(*kib));
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_no_overhead() {
        let smaps = "\
7f0000000000-7f0008000000 rw-s 00000000 00:01 5                          /memfd:guest-ram (deleted)
Rss:                2048 kB
Pss:                2048 kB
Private_Clean:         0 kB
Private_Dirty:      2048 kB
7f1000000000-7f1000001000 rw-p 00000000 00:00 0
Rss:                   8 kB
Pss:                   6 kB
Private_Clean:         0 kB
Private_Dirty:         4 kB
VmFlags: rd wr mr mw me ac sd
7f2000000000-7f2000001000 r-xp 00000000 08:01 77                         /usr/bin/my program
Rss:                 100 kB
Pss:                  50 kB
Private_Clean:        12 kB
Private_Dirty:         0 kB
";
        let memory = parse(smaps);
        assert_eq!((memory.rss, memory.pss, memory.private), (2156, 2104, 16));
        assert_eq!(memory.mappings, [("/usr/bin/my program".to_owned(), 12), ("anonymous".to_owned(), 4)]);
    }
}
