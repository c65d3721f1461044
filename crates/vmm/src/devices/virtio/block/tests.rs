//! A block device on real files, seen by the test driver and by the host.

mod cut;

use std::os::unix::fs::FileExt;

use queztl_storage::image::{CreateConfig, create};
use queztl_storage::{Format, ImageConfig, RawConfig, RawFile, open_disk};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::limit::{Rate, RateLimit};
use crate::devices::virtio::testing::{Driver, INDIRECT, NEXT, Part, WRITE};

const SECTORS: u64 = 4096;

struct Setup {
    file: tempfile::NamedTempFile,
    driver: Driver,
    limiter: Arc<Limiter>,
}

fn setup_with(read_only: bool, features: u64, queues: u16) -> Setup {
    let file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..SECTORS * 512).map(|i| (i / 512 + i % 7) as u8).collect();
    file.as_file().write_all_at(&content, 0).unwrap();
    let config = RawConfig { path: file.path().to_path_buf(), read_only, direct: false, in_order: false };
    let disk = Arc::new(RawFile::open(&config).unwrap());
    let limiter = Limiter::new(RateLimit::default());
    let block = BlockConfig { disk, serial: "serial-1".into(), queues, limiter: limiter.clone() }.build().unwrap();
    Setup { file, driver: Driver::ready(block, features), limiter }
}

fn setup() -> Setup {
    setup_with(false, F_FLUSH | F_DISCARD | F_WRITE_ZEROES, 1)
}

impl Setup {
    fn disk_bytes(&self, sector: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.as_file().read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    }

    /// Sends a request without data for the device to fill; returns the status byte.
    fn request(&mut self, kind: u32, sector: u64, data: &[u8]) -> u8 {
        let header = header(kind, sector);
        let (written, parts) = self.driver.call(0, &[Part::Read(&header), Part::Read(data), Part::Write(1)]);
        assert_eq!(written, 1);
        self.driver.read(parts[2], 1)[0]
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [sector.to_le_bytes().as_slice(), &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn reads_bring_the_disk_into_guest_memory_and_the_dirty_log_knows() {
    let mut s = setup();
    for (_, tracker) in s.driver.ram.trackers() {
        tracker.take_dirty();
    }
    let (written, parts) =
        s.driver.call(0, &[Part::Read(&header(0, 5)), Part::Write(512), Part::Write(8192), Part::Write(1)]);
    assert_eq!((written, s.driver.read(parts[3], 1)), (512 + 8192 + 1, vec![0]));
    let data = [s.driver.read(parts[1], 512), s.driver.read(parts[2], 8192)].concat();
    assert!(data == s.disk_bytes(5, 512 + 8192));
    let page = s.driver.ram.host_page(parts[2] + 8191).unwrap();
    assert!(page.tracker.is_dirty(page.index));
}

#[test]
fn a_request_in_a_long_indirect_table_is_carried_out_whole_and_the_dirty_log_knows_its_answer() {
    let mut s = setup();
    let (table, data, pieces) = (0x20_0000, 0x30_0000, 20u16);
    s.driver.memory().write_slice(&header(0, 5), GuestAddress(table + 0x1000)).unwrap();
    s.driver.descriptor(table, 0, table + 0x1000, 16, NEXT, 1);
    // The data's runs lie in reverse order in the table's second part, the status last.
    for piece in 0..pieces {
        let at = data + u64::from(piece) * 0x1000;
        s.driver.descriptor(table, pieces - piece, at, 512, NEXT | WRITE, pieces - piece - 1);
    }
    s.driver.descriptor(table, 0, table + 0x1000, 16, NEXT, pieces);
    s.driver.descriptor(table, 1, data + u64::from(pieces - 1) * 0x1000, 512, NEXT | WRITE, pieces + 1);
    s.driver.descriptor(table, pieces + 1, table + 0x1010, 1, WRITE, 0);
    s.driver.descriptor(Driver::table(0), 0, table, u32::from(pieces + 2) * 16, INDIRECT, 0);
    let used = s.driver.ram.host_page(Driver::table(0) + 0x2000).unwrap();
    used.tracker.take_dirty();
    s.driver.offer(0, 0);
    s.driver.kick(0);

    assert_eq!(s.driver.wait(0), (0, u32::from(pieces) * 512 + 1));
    for piece in 0..pieces {
        let read = s.driver.read(data + u64::from(piece) * 0x1000, 512);
        assert_eq!(read, s.disk_bytes(5 + u64::from(piece), 512), "piece {piece}");
    }
    let used = s.driver.ram.host_page(Driver::table(0) + 0x2000).unwrap();
    assert!(used.tracker.is_dirty(used.index));
}

#[test]
fn writes_reach_the_disk() {
    let mut s = setup();
    let data: Vec<u8> = (0..16384).map(|i| (i * 3) as u8).collect();
    assert_eq!(s.request(1, 100, &data), 0);
    assert!(s.disk_bytes(100, data.len()) == data);
    assert_eq!(s.request(4, 0, &[]), 0);
}

#[test]
fn writes_work_without_the_flush_feature_too() {
    let mut s = setup_with(false, 0, 1);
    assert_eq!(s.request(1, 7, &[9; 512]), 0);
    assert_eq!(s.disk_bytes(7, 512), [9; 512]);
}

#[test]
fn many_requests_are_answered_each_with_its_own_data() {
    let mut s = setup();
    let sent: Vec<_> = (0..60)
        .map(|i| s.driver.send(0, &[Part::Read(&header(0, i * 8)), Part::Write(4096), Part::Write(1)]))
        .collect();
    s.driver.kick(0);
    let mut heads: Vec<u16> = (0..60).map(|_| s.driver.wait(0).0).collect();
    heads.sort_unstable();
    assert_eq!(heads, sent.iter().map(|s| s.head).collect::<Vec<_>>());
    for (i, sent) in (0..).zip(&sent) {
        assert!(s.driver.read(sent.parts[1], 4096) == s.disk_bytes(i * 8, 4096));
    }
}

#[test]
fn every_queue_works() {
    let mut s = setup_with(false, F_FLUSH | F_MQ, 3);
    assert_eq!(s.driver.config::<2>(34), [3, 0]);
    for queue in 0..3 {
        let (_, parts) = s.driver.call(queue, &[Part::Read(&header(0, 9)), Part::Write(512), Part::Write(1)]);
        assert!(s.driver.read(parts[1], 512) == s.disk_bytes(9, 512));
    }
}

#[test]
fn discarded_and_zeroed_sectors_read_as_zeroes() {
    let mut s = setup();
    assert_eq!(s.request(11, 0, &[range(8, 8, 0), range(32, 16, 0)].concat()), 0);
    assert_eq!(s.disk_bytes(8, 4096), [0; 4096]);
    assert_eq!(s.disk_bytes(32, 8192), [0; 8192]);
    assert_ne!(s.disk_bytes(16, 4096), [0; 4096]);
    for flags in [0, 1] {
        assert_eq!(s.request(1, 64, &[5; 4096]), 0);
        assert_eq!(s.request(13, 0, &range(64, 8, flags)), 0);
        assert_eq!(s.disk_bytes(64, 4096), [0; 4096]);
    }
}

#[test]
fn the_serial_number_is_told() {
    let mut s = setup();
    let (written, parts) = s.driver.call(0, &[Part::Read(&header(8, 0)), Part::Write(20), Part::Write(1)]);
    assert_eq!((written, s.driver.read(parts[2], 1)[0]), (21, 0));
    assert_eq!(s.driver.read(parts[1], 20), *b"serial-1\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn serial_numbers_that_do_not_fit_are_refused() {
    let s = setup_with(true, 0, 1);
    let config = RawConfig { path: s.file.path().to_path_buf(), read_only: true, direct: false, in_order: false };
    let disk: Arc<dyn Disk> = Arc::new(RawFile::open(&config).unwrap());
    for serial in ["123456789012345678901", "tab\t"] {
        let limiter = Limiter::new(RateLimit::default());
        let config = BlockConfig { disk: disk.clone(), serial: serial.into(), queues: 1, limiter };
        assert!(matches!(config.build(), Err(Error::Serial(_))));
    }
}

#[test]
fn what_lies_off_the_disk_is_an_io_error() {
    let mut s = setup();
    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        assert_eq!(s.request(1, sector, &[0; 1024]), 1, "{sector}");
        assert_eq!(s.request(11, 0, &range(sector, 2, 0)), 1);
        assert_eq!(s.request(13, 0, &range(sector, 2, 0)), 1);
    }
    assert_eq!(s.request(11, 0, &range(0, u32::MAX, 0)), 1);
}

#[test]
fn misshapen_requests_are_refused() {
    let mut s = setup();
    assert_eq!(s.request(1, 0, &[0; 100]), 1);
    assert_eq!(s.request(11, 0, &[0; 15]), 1);
    assert_eq!(s.request(11, 0, &[]), 1);
    assert_eq!(s.request(11, 0, &vec![0; 16 * 17]), 1);
    assert_eq!(s.request(11, 0, &range(0, 1, 1)), 2);
    assert_eq!(s.request(13, 0, &range(0, 1, 2)), 2);
    assert_eq!(s.request(8, 0, &[]), 1);
    assert_eq!(s.request(77, 0, &[]), 2);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut s = setup_with(true, F_FLUSH | F_RO, 1);
    let before = s.disk_bytes(0, 4096);
    assert_eq!(s.request(1, 0, &[1; 512]), 1);
    assert_eq!(s.request(11, 0, &range(0, 8, 0)), 1);
    assert_eq!(s.request(13, 0, &range(0, 8, 0)), 1);
    assert!(s.disk_bytes(0, 4096) == before);
}

#[test]
fn a_file_that_shrinks_gives_the_guest_an_io_error() {
    let mut s = setup();
    s.file.as_file().set_len(512).unwrap();
    let (written, parts) = s.driver.call(0, &[Part::Read(&header(0, 8)), Part::Write(512), Part::Write(1)]);
    assert_eq!((written, s.driver.read(parts[2], 1)[0]), (1, 1));
}

/// A file system of this test's own with room for `bytes`, seen by this thread alone; none without the right to mount.
fn small_file_system(folder: &std::path::Path, bytes: u64) -> bool {
    let path = std::ffi::CString::new(folder.to_str().unwrap()).unwrap();
    let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
    // SAFETY: a mount namespace of this thread's own; mounts in it lead nowhere else. All strings end with a zero byte.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
            && libc::mount(c"none".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast()) == 0
    }
}

#[test]
fn a_full_host_disk_fails_the_request_and_the_guest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let test = scope.spawn(|| {
            if !small_file_system(folder.path(), 1 << 20) {
                println!("skipped: this user may not mount file systems");
                return;
            }
            for (name, format) in [("raw", Format::Raw), ("qcow2", Format::Qcow2)] {
                let path = folder.path().join(name);
                create(&CreateConfig { path: path.clone(), format, size_bytes: Some(8 << 20), parent: None }).unwrap();
                let config = ImageConfig {
                    path: path.clone(),
                    format: Some(format),
                    read_only: false,
                    backing: Default::default(),
                    direct: false,
                    in_order: false,
                };
                let limiter = Limiter::new(RateLimit::default());
                let disk = open_disk(&config).unwrap();
                let block = BlockConfig { disk, serial: String::new(), queues: 1, limiter }.build().unwrap();
                let mut driver = Driver::ready(block.clone(), F_FLUSH | F_DISCARD);
                let mut status = |kind, sector, data: &[u8]| {
                    let (_, parts) =
                        driver.call(0, &[Part::Read(&header(kind, sector)), Part::Read(data), Part::Write(1)]);
                    driver.read(parts[2], 1)[0]
                };
                let piece = vec![0x5a; 256 << 10];
                let statuses: Vec<u8> = (0..8).map(|i| status(1, i * 512, &piece)).collect();
                assert_eq!((statuses[0], statuses[7]), (0, 1), "{name}: {statuses:?}");
                assert!(block.figures().errors > 0);
                // What was written is there, and there is room again after a discard.
                assert_eq!(status(11, 0, &range(0, 1024, 0)), 0);
                assert_eq!(status(1, 0, &piece), 0);
                driver.reset();
                drop(block);
                std::fs::remove_file(path).unwrap();
            }
        });
        test.join().unwrap();
    });
}

#[test]
fn what_a_disk_has_done_is_counted() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SECTORS * 512).unwrap();
    let config = RawConfig { path: file.path().to_path_buf(), read_only: false, direct: false, in_order: false };
    let limiter = Limiter::new(RateLimit::default());
    let disk = Arc::new(RawFile::open(&config).unwrap());
    let block = BlockConfig { disk, serial: String::new(), queues: 1, limiter }.build().unwrap();
    let mut driver = Driver::ready(block.clone(), F_FLUSH | F_DISCARD);
    for (kind, data) in [(1, vec![1; 1024]), (4, Vec::new()), (11, range(0, 8, 0)), (77, Vec::new())] {
        driver.call(0, &[Part::Read(&header(kind, 0)), Part::Read(&data), Part::Write(1)]);
    }
    driver.call(0, &[Part::Read(&header(0, 0)), Part::Write(4096), Part::Write(1)]);

    let figures = block.figures();

    assert_eq!((figures.reads, figures.writes, figures.flushes, figures.discards), (1, 1, 1, 1));
    assert_eq!((figures.read_bytes, figures.written_bytes), (4096, 1024));
    assert_eq!((figures.errors, figures.in_flight), (1, 0));
    let counted = [&figures.read_times, &figures.write_times, &figures.other_times];
    assert_eq!(counted.map(|times| times.latency_us_log2.iter().sum::<u64>()), [1, 1, 2]);
    assert!(counted.iter().any(|times| times.busy_ns > 0));
}

#[test]
fn chains_that_are_no_requests_stop_the_device() {
    let header = header(0, 0);
    let chains: [&[Part]; 4] = [
        &[Part::Read(&header)],
        &[Part::Write(513)],
        &[Part::Read(&[0; 15]), Part::Write(1)],
        &[Part::Read(&header), Part::Write(0)],
    ];
    for chain in chains {
        let mut s = setup();
        s.driver.send(0, chain);
        s.driver.kick(0);
        s.driver.wait_broken();
    }
}

#[test]
fn broken_rings_stop_the_device_until_it_is_reset() {
    let mut s = setup();
    s.driver.every_broken_ring_stops_the_device(0, F_FLUSH | feature::INDIRECT_DESC);
    assert_eq!(s.request(4, 0, &[]), 0);
}

#[test]
fn a_reset_in_the_middle_of_the_work_leaves_a_device_that_works() {
    let mut s = setup();
    for _ in 0..30 {
        for i in 0..40 {
            s.driver.send(0, &[Part::Read(&header(0, i)), Part::Write(65536), Part::Write(1)]);
        }
        s.driver.kick(0);
        s.driver.reset();
        s.driver.start(F_FLUSH);
    }
    assert_eq!(s.request(4, 0, &[]), 0);
}

#[test]
fn the_configuration_tells_size_and_limits() {
    let s = setup();
    assert_eq!(u64::from_le_bytes(s.driver.config(0)), SECTORS);
    assert_eq!(u32::from_le_bytes(s.driver.config(12)), 254);
    assert_eq!(u32::from_le_bytes(s.driver.config(20)), 512);
    assert_eq!(s.driver.config::<4>(60), [0; 4]);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    /// Any header with any layout of buffers gets an answer or a request for a reset, and never touches other memory.
    #[test]
    fn random_requests_harm_nothing(
        kind in proptest::prop_oneof![0u32..16, proptest::num::u32::ANY],
        sector in proptest::prop_oneof![0u64..SECTORS + 8, proptest::num::u64::ANY],
        data in proptest::collection::vec(proptest::num::u8::ANY, 0..2000),
        header_bytes in 0usize..17,
        room in 0u32..5000,
    ) {
        let mut s = setup();
        let guard = s.driver.allocate(64);
        s.driver.memory().write_slice(&[0x5a; 64], GuestAddress(guard)).unwrap();
        let header = header(kind, sector);
        s.driver.send(0, &[Part::Read(&header[..header_bytes]), Part::Read(&data), Part::Write(room)]);
        let after = s.driver.allocate(64);
        s.driver.memory().write_slice(&[0x5a; 64], GuestAddress(after)).unwrap();
        s.driver.kick(0);
        s.driver.wait_for("an end", |d| (d.poll(0).is_some() || d.status() & 64 != 0).then_some(()));
        proptest::prop_assert_eq!(s.driver.read(guard, 64), vec![0x5a; 64]);
        proptest::prop_assert_eq!(s.driver.read(after, 64), vec![0x5a; 64]);
    }
}

/// So little that a test does not live to see a token come back.
const NEXT_TO_NOTHING: u64 = 1;

#[test]
fn a_request_beyond_the_limit_waits_and_goes_on_when_the_limit_is_lifted() {
    let bytes = Rate { per_second: NEXT_TO_NOTHING, burst: 8192 };
    let requests = Rate { per_second: NEXT_TO_NOTHING, burst: 2 };
    let limits = [
        (RateLimit { bytes: Some(bytes), requests: None }, 8192, 512),
        (RateLimit { bytes: None, requests: Some(requests) }, 512, 512),
    ];
    for (limit, first, second) in limits {
        let mut s = setup();
        s.limiter.set(limit);
        s.driver.call(0, &[Part::Read(&header(0, 0)), Part::Write(first), Part::Write(1)]);
        s.driver.call(0, &[Part::Read(&header(4, 0)), Part::Write(1)]);
        let sent = s.driver.send(0, &[Part::Read(&header(0, 5)), Part::Write(second), Part::Write(1)]);
        let after = s.driver.send(0, &[Part::Read(&header(4, 0)), Part::Write(1)]);
        s.driver.kick(0);
        let limiter = s.limiter.clone();
        s.driver.wait_for("throttling", |_| (limiter.waits() > 0).then_some(()));
        assert_eq!(s.driver.poll(0), None);

        s.limiter.set(RateLimit::default());

        assert_eq!(s.driver.wait(0).0.min(s.driver.wait(0).0), sent.head.min(after.head));
        assert!(s.driver.read(sent.parts[1], second as usize) == s.disk_bytes(5, second as usize));
    }
}

#[test]
fn all_queues_share_the_limit_and_every_request_passes_in_the_end() {
    const REQUESTS: u32 = 20;
    let mut s = setup_with(false, F_FLUSH | F_MQ, 2);
    s.limiter.set(RateLimit { bytes: Some(Rate { per_second: 1 << 20, burst: 512 }), requests: None });
    let start = std::time::Instant::now();
    for queue in [0, 1] {
        for _ in 0..REQUESTS {
            s.driver.send(queue, &[Part::Read(&header(0, 0)), Part::Write(8192), Part::Write(1)]);
        }
        s.driver.kick(queue);
    }
    for queue in [0, 1] {
        for _ in 0..REQUESTS {
            s.driver.wait(queue);
        }
    }
    // The last request of all was admitted when everything before it was paid for: no host is so fast as to break this.
    let least = f64::from((2 * REQUESTS - 1) * 8192 - 512) / f64::from(1 << 20);
    assert!(start.elapsed().as_secs_f64() >= least);
}

#[test]
fn a_throttled_disk_can_be_reset() {
    let mut s = setup();
    s.limiter.set(RateLimit { bytes: Some(Rate { per_second: NEXT_TO_NOTHING, burst: 1 }), requests: None });
    for _ in 0..2 {
        s.driver.send(0, &[Part::Read(&header(0, 0)), Part::Write(8192), Part::Write(1)]);
    }
    s.driver.kick(0);
    s.driver.wait(0);
    s.driver.reset();
    s.limiter.set(RateLimit::default());
    s.driver.start(F_FLUSH);
    assert_eq!(s.driver.call(0, &[Part::Read(&header(0, 0)), Part::Write(512), Part::Write(1)]).0, 513);
}

#[test]
fn buffers_over_each_other_and_over_the_rings_do_no_harm() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SECTORS * 512).unwrap();
    let config = RawConfig { path: file.path().to_path_buf(), read_only: false, direct: false, in_order: true };
    let disk = Arc::new(RawFile::open(&config).unwrap());
    let block = BlockConfig { disk, serial: String::new(), queues: 1, limiter: Limiter::new(RateLimit::default()) }
        .build()
        .unwrap();
    Driver::in_lockstep(block).overlapping_buffers_do_no_harm(0, F_FLUSH);
}
