//! Measures what freezing and forking guest RAM costs: `cargo run --release -p queztl-guest-memory --example freeze`.
//!
//! One thread writes to random pages at a known rate, as a guest would; the main thread makes it stand still, freezes, and
//! lets it go on, again and again. Then forks in processes of their own read and write some pages and tell what they take.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use queztl_guest_memory::{GuestRam, MemoryFigures, MemoryImage, MemoryTable, PAGE_SIZE, RamConfig};

const RAM_BYTES: u64 = 1 << 30;
const PAGES: u64 = RAM_BYTES / PAGE_SIZE;
/// Pages written between two freezes.
const RATES: [u64; 3] = [1_000, 10_000, 100_000];
const ROUNDS: usize = 7;
const FORKS: usize = 10;
/// Pages that a fork reads and writes.
const FORK_READS: u64 = 2_000;
const FORK_WRITES: u64 = 500;

/// A fixed sequence of pages that looks random.
struct Pages(u64);

impl Iterator for Pages {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        Some((self.0 >> 33) % PAGES)
    }
}

fn write(ram: &GuestRam, page: u64, value: u64) {
    let host = ram.host_page(page * PAGE_SIZE).expect("RAM").host;
    // SAFETY: the page is RAM and mapped; other writers write whole words as well.
    unsafe { host.cast::<u64>().write_volatile(value) };
}

fn read(ram: &GuestRam, page: u64) -> u64 {
    let host = ram.host_page(page * PAGE_SIZE).expect("RAM").host;
    // SAFETY: as above.
    unsafe { host.cast::<u64>().read_volatile() }
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("fork") => fork(),
        _ => measure(),
    }
}

fn measure() {
    let ram = Arc::new(GuestRam::new(RAM_BYTES).expect("RAM"));
    (0..PAGES).for_each(|page| write(&ram, page, page | 1));
    println!("{} MiB, all of it resident", RAM_BYTES >> 20);
    println!("write to a page that is resident: {} ns", write_ns(&ram, 20_000));
    let (pause, total, _) = freeze(&ram);
    println!("first freeze: pause {} µs, settled after {} ms", pause.as_micros(), total.as_millis());
    println!("first write to a frozen page: {} ns", write_ns(&ram, 20_000));
    for rate in RATES {
        later(&ram, rate);
    }
    forks(&ram);
}

/// Time that this thread has run, which other processes do not lengthen.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Time for one write each to pages in random order, per page.
fn write_ns(ram: &GuestRam, count: u64) -> u128 {
    let pages: Vec<u64> = Pages(count).take(count as usize).collect();
    let started = Instant::now();
    pages.iter().for_each(|page| write(ram, *page, 3));
    started.elapsed().as_nanos() / u128::from(count)
}

/// Freezes; returns the pause, the time until all was settled, and the image.
fn freeze(ram: &GuestRam) -> (Duration, Duration, MemoryImage) {
    let started = Instant::now();
    let (frozen, settling) = ram.freeze().expect("a freeze");
    let work = std::thread::spawn(|| settling.run());
    let pause = started.elapsed();
    let image = frozen.image().clone();
    let total = started.elapsed();
    work.join().expect("settled");
    (pause, total, image)
}

/// Freezes while a thread writes `count` pages between two freezes.
fn later(ram: &Arc<GuestRam>, count: u64) {
    let (gate, stop, written) =
        (Arc::new(Mutex::new(())), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let longest = Arc::new(AtomicU64::new(0));
    let writer = {
        let (ram, gate, stop, written, longest) =
            (ram.clone(), gate.clone(), stop.clone(), written.clone(), longest.clone());
        std::thread::spawn(move || {
            for page in Pages(count) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                if written.load(Ordering::Relaxed) >= count {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                let _running = gate.lock().expect("a lock");
                let started = Instant::now();
                write(&ram, page, count);
                longest.fetch_max(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
                written.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let (mut pauses, mut busy, mut totals) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        while written.load(Ordering::Relaxed) < count {
            std::thread::sleep(Duration::from_millis(1));
        }
        let standing_still = gate.lock().expect("a lock");
        written.store(0, Ordering::Relaxed);
        let (started, ran) = (Instant::now(), thread_time());
        let (frozen, settling) = ram.freeze().expect("a freeze");
        let work = std::thread::spawn(|| settling.run());
        drop(standing_still);
        pauses.push(started.elapsed());
        busy.push(thread_time() - ran);
        frozen.image();
        totals.push(started.elapsed());
        work.join().expect("settled");
        drop(frozen);
        ram.reclaim().expect("reclaim");
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the writer");
    pauses.sort_unstable();
    busy.sort_unstable();
    totals.sort_unstable();
    let allocated = ram.allocated().expect("figures");
    println!(
        "later freeze, {count} pages written: pause {} µs (median, {} at most; {} µs of CPU time), settled after {} ms, longest write {} µs; \
         RAM takes {} MiB frozen and {} MiB copies",
        pauses[ROUNDS / 2].as_micros(),
        pauses[ROUNDS - 1].as_micros(),
        busy[ROUNDS / 2].as_micros(),
        totals[ROUNDS / 2].as_millis(),
        longest.load(Ordering::Relaxed) / 1000,
        allocated.shared >> 20,
        allocated.private >> 20,
    );
}

/// Starts processes that have forks of the RAM.
fn forks(ram: &GuestRam) {
    let (_, _, image) = freeze(ram);
    let (files, table) = image.parts();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), table.to_bytes()).expect("the table");
    let numbers: Vec<String> = files.iter().map(|file| inherited(file.as_fd()).to_string()).collect();
    let start = || {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.arg("fork").arg(file.path()).args(&numbers).stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::piped()).spawn().expect("a fork")
    };
    let mut forks: Vec<_> = (0..FORKS).map(|_| start()).collect();
    for fork in &mut forks {
        let mut line = String::new();
        let output = fork.stdout.as_mut().expect("output");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).expect("a line");
        print!("fork: {line}");
    }
    for fork in &forks {
        let figures = MemoryFigures::of_process(fork.id()).expect("figures").guest;
        println!(
            "fork among {FORKS}: guest RAM resident {} KiB, proportional {} KiB, private {} KiB",
            figures.resident >> 10,
            figures.proportional >> 10,
            figures.private >> 10
        );
    }
    for mut fork in forks {
        drop(fork.stdin.take());
        fork.wait().expect("the fork's end");
    }
}

/// A descriptor that the programs we start have, too.
fn inherited(file: std::os::fd::BorrowedFd<'_>) -> i32 {
    rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).expect("a descriptor");
    file.as_raw_fd()
}

/// A fork in a process of its own.
fn fork() {
    let mut arguments = std::env::args().skip(2);
    let table = std::fs::read(arguments.next().expect("a table")).expect("the table");
    let table = MemoryTable::from_bytes(&table).expect("a table");
    // SAFETY: whoever started this program left these descriptors open for it.
    let files = arguments.map(|number| unsafe { File::from_raw_fd(number.parse().expect("a number")) }).collect();
    let started = Instant::now();
    let image = MemoryImage::from_parts(files, &table).expect("an image");
    let ram = GuestRam::from_image(&RamConfig::plain(RAM_BYTES), 0, &image).expect("RAM");
    let made = started.elapsed();
    Pages(5).take(FORK_READS as usize).for_each(|page| assert_ne!(read(&ram, page), 0));
    Pages(6).take(FORK_WRITES as usize).for_each(|page| write(&ram, page, 2));
    println!(
        "made in {} µs; {FORK_READS} reads and {FORK_WRITES} writes in {} µs",
        made.as_micros(),
        (started.elapsed() - made).as_micros()
    );
    std::io::stdin().read_line(&mut String::new()).expect("the end");
}
