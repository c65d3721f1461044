//! Raw disks on real files, each promise on both kinds of queue.

use std::os::unix::fs::FileExt;

use super::*;
use crate::Operation;
use crate::testing::{next, range, request, run};

const MIB: usize = 1 << 20;

fn image(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn config(path: &Path) -> RawConfig {
    RawConfig { path: path.to_path_buf(), read_only: false, direct: false, in_order: false }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// Runs `test` with the io_uring queue (where the host has it) and with the fall-back.
fn with_both_queues(disk: &RawFile, test: impl Fn(&mut dyn DiskQueue)) {
    test(disk.open_queue(16).unwrap().as_mut());
    test(disk.open_sync_queue(16).unwrap().as_mut());
}

#[test]
fn what_is_written_is_in_the_file_and_is_read_back() {
    let file = image(4 * MIB as u64);
    let disk = RawFile::open(&config(file.path())).unwrap();
    with_both_queues(&disk, |queue| {
        let mut data = pattern(MIB);
        run(queue, request(Operation::Write { durable: true }, 8192, &mut data)).unwrap();
        let mut direct = vec![0; MIB];
        file.as_file().read_exact_at(&mut direct, 8192).unwrap();
        assert!(direct == data);
        let mut back = vec![0; MIB];
        run(queue, request(Operation::Read, 8192, &mut back)).unwrap();
        assert!(back == data);
        run(queue, request(Operation::Flush, 0, &mut [])).unwrap();
        file.as_file().write_all_at(&vec![0; MIB], 8192).unwrap();
    });
}

#[test]
fn many_requests_fly_at_once_and_each_comes_back_with_its_token() {
    let file = image(MIB as u64);
    let content = pattern(MIB);
    file.as_file().write_all_at(&content, 0).unwrap();
    let disk = RawFile::open(&config(file.path())).unwrap();
    with_both_queues(&disk, |queue| {
        let mut memory = vec![0u8; 16 * 4096];
        for (i, chunk) in memory.chunks_mut(4096).enumerate() {
            let mut read = request(Operation::Read, (15 - i as u64) * 4096, chunk);
            read.token = 100 + i as u64;
            // SAFETY: `memory` outlives the completions collected below.
            unsafe { queue.submit(read) };
        }
        let mut tokens: Vec<u64> = (0..16).map(|_| next(queue).token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (100..116).collect::<Vec<_>>());
        for (i, chunk) in memory.chunks(4096).enumerate() {
            assert!(chunk == &content[(15 - i) * 4096..(16 - i) * 4096]);
        }
    });
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes_and_the_size_stays() {
    let file = image(MIB as u64);
    let disk = RawFile::open(&config(file.path())).unwrap();
    let operations =
        [Operation::Discard, Operation::WriteZeroes { unmap: true }, Operation::WriteZeroes { unmap: false }];
    with_both_queues(&disk, |queue| {
        for operation in operations {
            file.as_file().write_all_at(&vec![0xa5; MIB], 0).unwrap();
            run(queue, range(operation, 64 << 10, 512 << 10)).unwrap();
            let mut content = vec![1; MIB];
            file.as_file().read_exact_at(&mut content, 0).unwrap();
            let zero = |range: std::ops::Range<usize>| content[range].iter().all(|b| *b == 0);
            assert!(zero(64 << 10..576 << 10), "{operation:?}");
            assert_eq!((content[(64 << 10) - 1], content[576 << 10]), (0xa5, 0xa5));
            assert_eq!(file.as_file().metadata().unwrap().len(), MIB as u64);
        }
    });
}

#[test]
fn requests_beyond_the_end_are_refused_and_touch_nothing() {
    let file = image(8192);
    let disk = RawFile::open(&config(file.path())).unwrap();
    with_both_queues(&disk, |queue| {
        let mut memory = [1u8; 4096];
        for offset in [8192, 4608, u64::MAX, u64::MAX - 4095] {
            assert!(run(queue, request(Operation::Write { durable: false }, offset, &mut memory)).is_err());
        }
        assert!(run(queue, range(Operation::Discard, 4096, 4608)).is_err());
        assert!(run(queue, range(Operation::WriteZeroes { unmap: false }, 4096, u64::MAX)).is_err());
        assert_eq!(std::fs::read(file.path()).unwrap(), vec![0; 8192]);
    });
}

#[test]
fn a_file_that_shrinks_gives_an_error() {
    let file = image(MIB as u64);
    let disk = RawFile::open(&config(file.path())).unwrap();
    file.as_file().set_len(4096).unwrap();
    with_both_queues(&disk, |queue| {
        let mut memory = vec![0; 8192];
        let error = run(queue, request(Operation::Read, 0, &mut memory)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        run(queue, request(Operation::Read, 0, &mut memory[..4096])).unwrap();
    });
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let file = image(8192);
    let disk = RawFile::open(&RawConfig { read_only: true, ..config(file.path()) }).unwrap();
    with_both_queues(&disk, |queue| {
        assert!(run(queue, request(Operation::Write { durable: false }, 0, &mut [1; 512])).is_err());
        assert!(run(queue, range(Operation::Discard, 0, 4096)).is_err());
        run(queue, request(Operation::Read, 0, &mut [1; 512])).unwrap();
    });
}

#[test]
fn direct_io_serves_aligned_and_unaligned_memory_alike() {
    let file = image(MIB as u64);
    let disk = match RawFile::open(&RawConfig { direct: true, ..config(file.path()) }) {
        Err(Error::NoDirect { source, .. }) => return println!("skipped: no direct I/O here: {source}"),
        other => other.unwrap(),
    };
    with_both_queues(&disk, |queue| {
        let mut data = pattern(8192 + 4096);
        let aligned = data.as_ptr().align_offset(4096);
        for start in [aligned, aligned + 3] {
            run(queue, request(Operation::Write { durable: false }, 4096, &mut data[start..start + 4096])).unwrap();
            let mut back = vec![0; 4096];
            run(queue, request(Operation::Read, 4096, &mut back)).unwrap();
            assert!(back == data[start..start + 4096]);
        }
    });
}

#[test]
fn a_second_writer_is_refused_and_told_who_has_the_disk() {
    let file = image(8192);
    let first = RawFile::open(&config(file.path())).unwrap();
    let error = RawFile::open(&config(file.path())).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    let read_only = RawConfig { read_only: true, ..config(file.path()) };
    assert!(matches!(RawFile::open(&read_only), Err(Error::Locked { .. })));
    drop(first);
    let _reader = RawFile::open(&read_only).unwrap();
    let _reader = RawFile::open(&read_only).unwrap();
    assert!(matches!(RawFile::open(&config(file.path())), Err(Error::Locked { .. })));
}

#[test]
fn a_queue_keeps_the_lock_after_its_disk_is_gone() {
    let file = image(8192);
    let queue = RawFile::open(&config(file.path())).unwrap().open_queue(4).unwrap();
    assert!(matches!(RawFile::open(&config(file.path())), Err(Error::Locked { .. })));
    drop(queue);
    RawFile::open(&config(file.path())).unwrap();
}

#[test]
fn what_cannot_be_a_disk_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let open = |path: &Path| RawFile::open(&config(path)).unwrap_err();
    assert!(matches!(open(&directory.path().join("none")), Error::Missing(_)));
    assert!(matches!(open(directory.path()), Error::Directory(_)));
    assert!(matches!(open(Path::new("/dev/null")), Error::NotADisk(_)));
    assert!(matches!(open(image(0).path()), Error::Empty(_)));
    assert!(matches!(open(image(1000).path()), Error::Unaligned { bytes: 1000, .. }));
}
