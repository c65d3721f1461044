//! Snapshots and forks of a guest that writes to its memory at a known rate: how long it stands still, and how soon others
//! go on from there.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use queztl_vmm::control::{Client, Request};

use crate::monitor::median;
use crate::payload::{self, Writer};

/// What runs, and how often.
#[derive(Debug, clap::Args)]
pub struct SnapshotsArgs {
    /// Sizes of the guest's RAM, MiB
    #[arg(long, value_delimiter = ',', default_value = "128,512,2048")]
    ram: Vec<u64>,

    /// Restores and incremental snapshots of each size; the median counts
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// Machines that go on from one snapshot at once
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=200))]
    parallel: u32,

    /// RAM of the guest that is forked, MiB
    #[arg(long, default_value_t = 1024)]
    fork_ram: u64,
}

/// How long a guest may take to say something; a large one writes all its RAM before.
const LIMIT: Duration = Duration::from_secs(120);
/// Pages that the guest writes in a second.
const RATE: u32 = 25_000;

/// Prints the figures.
///
/// # Errors
/// A guest does not run, or a snapshot is refused.
pub fn run(arguments: &SnapshotsArgs, queztl: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    println!("a guest that has filled its RAM and goes on to write one page after the other, soft");
    println!(
        "{:<10}{:>15}{:>14}{:>15}{:>14}{:>12}{:>14}  {} at once: last byte",
        "RAM", "full: pause", "on disk", "incr.: pause", "on disk", "", "restore", arguments.parallel
    );
    for ram in &arguments.ram {
        snapshots(arguments, queztl, folder.path(), *ram)?;
    }
    forks(arguments, queztl, folder.path())
}

fn snapshots(arguments: &SnapshotsArgs, queztl: &Path, folder: &Path, ram_mib: u64) -> Result<()> {
    let guest = Guest::boot(queztl, folder, ram_mib)?;
    guest.first_byte()?;
    let mut client = Client::connect(&guest.control)?;
    let place = |number: u32| folder.join(format!("snapshot-{ram_mib}-{number}"));
    let take = |client: &mut Client, number: u32| {
        let base = number.checked_sub(1).map(place);
        let request = Request::Snapshot { directory: place(number), base, disks: Vec::new(), stay_paused: false };
        client.snapshot(&request)
    };
    let full = take(&mut client, 0)?;
    let (mut pauses, mut totals) = (Vec::new(), Vec::new());
    for number in 1..=arguments.runs {
        std::thread::sleep(Duration::from_millis(50));
        let report = take(&mut client, number)?;
        pauses.push(milliseconds(report.pause_ns));
        totals.push(milliseconds(report.total_ns));
    }
    drop(guest);
    let mut restores = Vec::new();
    for _ in 0..arguments.runs {
        restores.push(Guest::restore(queztl, &place(0))?.first_byte()?.as_secs_f64() * 1e3);
    }
    let start = Instant::now();
    let guests: Vec<Guest> =
        (0..arguments.parallel).map(|_| Guest::restore(queztl, &place(0))).collect::<Result<_>>()?;
    guests.iter().try_for_each(|guest| guest.first_byte().map(drop))?;
    let all = start.elapsed().as_secs_f64() * 1e3;
    let middle = |values: &mut Vec<f64>| median(values).unwrap_or_default();
    println!(
        "{:<10}{:>12.2} ms{:>11.0} ms{:>12.2} ms{:>11.0} ms{:>12}{:>11.1} ms{:>14.1} ms",
        format!("{ram_mib} MiB"),
        milliseconds(full.pause_ns),
        milliseconds(full.total_ns),
        middle(&mut pauses),
        middle(&mut totals),
        "",
        middle(&mut restores),
        all
    );
    Ok(())
}

fn forks(arguments: &SnapshotsArgs, queztl: &Path, folder: &Path) -> Result<()> {
    let guest = Guest::boot(queztl, folder, arguments.fork_ram)?;
    guest.first_byte()?;
    let (before, start) = (guest.bytes.load(Ordering::Relaxed), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let rate = (guest.bytes.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    let mut client = Client::connect(&guest.control)?;
    let mut pauses = Vec::new();
    for number in 0..arguments.runs {
        let directory = folder.join(format!("fork-{number}"));
        let (report, _files) = client.fork(&Request::Fork { directory, disks: Vec::new() })?;
        pauses.push(milliseconds(report.pause_ns));
        std::thread::sleep(Duration::from_millis(200));
    }
    let (first, mut later) = (pauses[0], pauses.split_off(1));
    let middle = median(&mut later).unwrap_or(first);
    let worst = later.last().copied().unwrap_or(first);
    println!(
        "live fork of {} MiB, {rate:.0} pages/s written: pause {first:.2} ms the first time, then {middle:.2} ms \
         (median of {}), {worst:.2} ms at worst",
        arguments.fork_ram,
        later.len()
    );
    Ok(())
}

fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// A machine in a process of its own, and what its guest says. It is killed when dropped.
struct Guest {
    child: Child,
    control: PathBuf,
    start: Instant,
    first: Receiver<Instant>,
    /// A byte for each page written.
    bytes: Arc<AtomicU64>,
}

impl Guest {
    fn boot(queztl: &Path, folder: &Path, ram_mib: u64) -> Result<Guest> {
        let kernel =
            payload::write_program(folder, &format!("writer-{ram_mib}"), &Writer { ram_mib, rate: RATE }.code()?)?;
        let control = folder.join(format!("control-{ram_mib}"));
        let mut command = Command::new(queztl);
        command.args(["run", "--accel", "soft", "--ram", &format!("{ram_mib}M"), "--control"]).arg(&control);
        command.arg("--kernel").arg(kernel);
        Guest::start(command, control)
    }

    fn restore(queztl: &Path, snapshot: &Path) -> Result<Guest> {
        let mut command = Command::new(queztl);
        command.arg("run").arg("--restore").arg(snapshot);
        Guest::start(command, PathBuf::new())
    }

    fn start(mut command: Command, control: PathBuf) -> Result<Guest> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let start = Instant::now();
        let mut child = command.spawn().context("cannot start queztl-hv")?;
        let mut output = child.stdout.take().context("queztl-hv has no output")?;
        let (sender, first) = sync_channel(1);
        let bytes = Arc::new(AtomicU64::new(0));
        let count = bytes.clone();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut piece) {
                if count.fetch_add(read as u64, Ordering::Relaxed) == 0 {
                    // Whoever asked may have gone.
                    let _ = sender.send(Instant::now());
                }
            }
        });
        Ok(Guest { child, control, start, first, bytes })
    }

    /// From the start of the process.
    fn first_byte(&self) -> Result<Duration> {
        match self.first.recv_timeout(LIMIT) {
            Ok(at) => Ok(at - self.start),
            Err(_) => bail!("a guest says nothing within {LIMIT:?}"),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
