//! A disk at the virtqueue against fio with io_uring: the same file, the same pattern, in turns. For a qcow2 image, against the
//! same disk as a raw file, both at the virtqueue.
//!
//! What is measured is the whole of our storage path — the ring, the device's thread, the disk's queue — without a
//! guest in front of it. fio is one thread, a virtqueue has one on each side; what two threads can do at best on this host
//! is measured beside it ([`handoff`]).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use queztl_storage::image::{CreateConfig, create};
use queztl_storage::{Format, ImageConfig, open_disk};
use queztl_vmm::devices::virtio::block::BlockConfig;
use queztl_vmm::devices::virtio::limit::{Limiter, RateLimit};

use crate::handoff::{self, Work};
use crate::monitor::median;
use crate::virtqueue::{Direction, Driver};

/// What runs.
#[derive(Debug, clap::Args)]
pub struct BlockArgs {
    /// Kinds to measure: words that the mode and pattern contain, such as "cached random" [default: all]
    #[arg(value_name = "WORDS")]
    only: Vec<String>,

    /// Folder for the file that is read and written
    #[arg(long, default_value = ".", value_name = "FOLDER")]
    folder: PathBuf,

    /// Size of the file, MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    size: u64,

    /// Seconds of each measurement
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,

    /// Measurements of each kind; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// Format of the disk; fio reads and writes raw files, so qcow2 is compared with raw at the virtqueue
    #[arg(long, default_value_t = Format::Raw)]
    format: Format,

    /// Requests in flight
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=85))]
    depth: u16,
}

/// A pattern of requests.
#[derive(Debug, Clone, Copy)]
struct Pattern {
    name: &'static str,
    /// fio's word.
    fio: &'static str,
    direction: Direction,
    random: bool,
    block_bytes: u32,
}

const PATTERNS: [Pattern; 4] = [
    Pattern { name: "random read 4K", fio: "randread", direction: Direction::Read, random: true, block_bytes: 4096 },
    Pattern { name: "random write 4K", fio: "randwrite", direction: Direction::Write, random: true, block_bytes: 4096 },
    Pattern {
        name: "sequential read 128K",
        fio: "read",
        direction: Direction::Read,
        random: false,
        block_bytes: 128 << 10,
    },
    Pattern {
        name: "sequential write 128K",
        fio: "write",
        direction: Direction::Write,
        random: false,
        block_bytes: 128 << 10,
    },
];

/// Prints the table.
///
/// # Errors
/// The file cannot be made, fio is missing or fails, or the device fails.
pub fn run(arguments: &BlockArgs) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("queztl-bench-").tempdir_in(&arguments.folder)?;
    let raw = Image { path: folder.path().join("disk"), format: Format::Raw };
    fill(&raw.path, arguments.size << 20)?;
    let (image, peer) = match arguments.format {
        Format::Raw => (Image { path: raw.path.clone(), format: Format::Raw }, "fio"),
        Format::Qcow2 => (qcow2(folder.path(), arguments)?, "raw"),
    };
    println!(
        "{} disk at the virtqueue against {peer}, one queue, {} in flight, {} MiB",
        image.format, arguments.depth, arguments.size
    );
    println!(
        "{:<8}{:<24}{:>12}{:>12}{:>10}{:>12}{:>14}",
        "mode",
        "pattern",
        format!("{peer} IOPS"),
        "ours IOPS",
        "ratio",
        "ours MiB/s",
        "two threads"
    );
    // A qcow2 image goes through the host's page cache.
    let modes: &[bool] = if image.format == Format::Raw { &[false, true] } else { &[false] };
    for &direct in modes {
        let mode = if direct { "direct" } else { "cached" };
        for pattern in &PATTERNS {
            let kind = format!("{mode} {}", pattern.name);
            if !arguments.only.is_empty() && !arguments.only.iter().any(|words| kind.contains(words)) {
                continue;
            }
            let (mut theirs, mut ours, mut bare) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..arguments.rounds {
                theirs.push(match image.format {
                    Format::Raw => fio(&raw.path, pattern, direct, arguments)?,
                    Format::Qcow2 => at_the_queue(&raw, pattern, direct, arguments)?,
                });
                ours.push(at_the_queue(&image, pattern, direct, arguments)?);
                bare.push(two_threads(&raw.path, pattern, direct, arguments)?);
            }
            let [theirs, ours, bare] =
                [&mut theirs, &mut ours, &mut bare].map(|values| median(values).unwrap_or(f64::NAN));
            let mib = ours * f64::from(pattern.block_bytes) / f64::from(1 << 20);
            let ratio = ours / theirs * 100.0;
            println!("{mode:<8}{:<24}{theirs:>12.0}{ours:>12.0}{ratio:>8.1} %{mib:>12.0}{bare:>14.0}", pattern.name);
        }
    }
    Ok(())
}

/// A file with a disk in it.
struct Image {
    path: PathBuf,
    format: Format,
}

/// A qcow2 image with all its clusters, as a disk has that was in use for a while.
fn qcow2(folder: &Path, arguments: &BlockArgs) -> Result<Image> {
    let (path, format) = (folder.join("disk.qcow2"), Format::Qcow2);
    let size_bytes = Some(arguments.size << 20);
    create(&CreateConfig { path: path.clone(), format, size_bytes, parent: None })?;
    let image = Image { path, format };
    let mut driver = driver(&image, false, 1, 1 << 20)?;
    for piece in 0..arguments.size {
        driver.offer(0, Direction::Write, piece << 11)?;
        driver.notify()?;
        driver.wait()?;
        ensure!(driver.finished()?.is_some(), "the image cannot be filled");
    }
    Ok(image)
}

/// A driver of a disk.
fn driver(image: &Image, direct: bool, depth: u16, block_bytes: u32) -> Result<Driver> {
    let config = ImageConfig {
        path: image.path.clone(),
        format: Some(image.format),
        read_only: false,
        backing: Default::default(),
        direct,
        in_order: false,
    };
    let (disk, limiter) = (open_disk(&config)?, Limiter::new(RateLimit::default()));
    let device = BlockConfig { disk, serial: String::new(), queues: 1, limiter }.build()?;
    Driver::new(device, depth, block_bytes)
}

/// Writes the whole file, so that it has its blocks and lies in the page cache.
fn fill(path: &Path, bytes: u64) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    let mut piece = vec![0u8; 1 << 20];
    for (index, byte) in piece.iter_mut().enumerate() {
        *byte = (index * 31 + index / 4096) as u8;
    }
    for _ in 0..bytes >> 20 {
        std::io::Write::write_all(&mut file, &piece)?;
    }
    Ok(file.sync_all()?)
}

/// fio's requests a second.
fn fio(path: &Path, pattern: &Pattern, direct: bool, arguments: &BlockArgs) -> Result<f64> {
    let mut command = Command::new("fio");
    // Neither its start nor its clock shall cost fio anything here: no bookkeeping of latencies, the cache kept.
    command.args(["--name=bench", "--ioengine=io_uring", "--output-format=json", "--time_based", "--gtod_reduce=1"]);
    command.args(["--norandommap", "--randrepeat=0", "--invalidate=0", "--thread", "--numjobs=1"]);
    command.arg(format!("--filename={}", path.display()));
    command.arg(format!("--size={}M", arguments.size)).arg(format!("--runtime={}", arguments.seconds));
    command.arg(format!("--rw={}", pattern.fio)).arg(format!("--bs={}", pattern.block_bytes));
    command.arg(format!("--iodepth={}", arguments.depth)).arg(format!("--direct={}", u8::from(direct)));
    let output = command.output().context("cannot start fio; install it: apt-get install fio")?;
    ensure!(output.status.success(), "fio failed: {}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).context("fio's report is no JSON")?;
    let kind = if pattern.direction == Direction::Read { "read" } else { "write" };
    report["jobs"][0][kind]["iops"].as_f64().context("fio's report has no IOPS")
}

/// Our requests a second.
fn at_the_queue(image: &Image, pattern: &Pattern, direct: bool, arguments: &BlockArgs) -> Result<f64> {
    let mut driver = driver(image, direct, arguments.depth, pattern.block_bytes)?;
    let mut blocks = Blocks::new(pattern, arguments.size << 20);
    let start = Instant::now();
    let limit = Duration::from_secs(arguments.seconds);
    for slot in 0..arguments.depth {
        driver.offer(slot, pattern.direction, blocks.next_sector())?;
    }
    driver.notify()?;
    let mut done = 0u64;
    while start.elapsed() < limit {
        driver.wait()?;
        while let Some(slot) = driver.finished()? {
            done += 1;
            driver.offer(slot, pattern.direction, blocks.next_sector())?;
            // At once: the device may sleep, or work while the next request is made.
            driver.notify()?;
        }
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

/// The same by two threads with nothing between them.
fn two_threads(path: &Path, pattern: &Pattern, direct: bool, arguments: &BlockArgs) -> Result<f64> {
    let mut blocks = Blocks::new(pattern, arguments.size << 20);
    let (direction, block_bytes, depth) = (pattern.direction, pattern.block_bytes, arguments.depth);
    let work = Work { direction, direct, block_bytes, depth, limit: Duration::from_secs(arguments.seconds) };
    handoff::measure(path, work, || blocks.next_sector())
}

/// Which blocks are asked for, one after the other.
struct Blocks {
    count: u64,
    sectors: u64,
    random: bool,
    state: u64,
}

impl Blocks {
    fn new(pattern: &Pattern, bytes: u64) -> Blocks {
        let count = bytes / u64::from(pattern.block_bytes);
        Blocks { count, sectors: u64::from(pattern.block_bytes) / 512, random: pattern.random, state: 0 }
    }

    fn next_sector(&mut self) -> u64 {
        self.state = self.state.wrapping_add(1);
        // SplitMix64 of the counter, or the counter itself.
        let number = if self.random { mix(self.state) } else { self.state };
        number % self.count * self.sectors
    }
}

fn mix(state: u64) -> u64 {
    let state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_reads_and_writes_the_file_through_the_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fill(file.path(), 1 << 20).unwrap();
        let image = Image { path: file.path().to_owned(), format: Format::Raw };
        let mut driver = driver(&image, false, 8, 4096).unwrap();
        // A place's buffer takes block 3 and then writes it to block 9.
        for (direction, sector) in [(Direction::Read, 3 * 8), (Direction::Write, 9 * 8)] {
            driver.offer(5, direction, sector).unwrap();
            driver.notify().unwrap();
            driver.wait().unwrap();
            assert_eq!(driver.finished().unwrap(), Some(5));
            assert_eq!(driver.finished().unwrap(), None);
        }
        let content = std::fs::read(file.path()).unwrap();
        assert_ne!(content[3 * 4096..4 * 4096], content[4 * 4096..5 * 4096]);
        assert_eq!(content[3 * 4096..4 * 4096], content[9 * 4096..10 * 4096]);
    }

    #[test]
    fn blocks_lie_in_the_file() {
        for pattern in &PATTERNS {
            let mut blocks = Blocks::new(pattern, 1 << 20);
            let bytes = u64::from(pattern.block_bytes);
            assert!((0..1000).all(|_| blocks.next_sector() * 512 + bytes <= 1 << 20), "{}", pattern.name);
        }
    }
}
