//! qcow2 disks on real files, held against a model in memory and against qemu-img.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tempfile::TempDir;

use super::*;
use crate::image::check;
use crate::testing::{Numbers, config, next, qcow2, qemu_img, range, request, run};
use crate::{Format, Operation, RawConfig, RawFile, Request};

const MIB: u64 = 1 << 20;

fn read_all(path: &Path) -> Vec<u8> {
    let image = Qcow2Image::open(&Qcow2Config { read_only: true, ..config(path) }).unwrap();
    let mut bytes = vec![0xee; image.topology().size_bytes as usize];
    let mut queue = image.open_queue(64).unwrap();
    run(queue.as_mut(), request(Operation::Read, 0, &mut bytes)).unwrap();
    bytes
}

fn write(path: &Path, offset: u64, bytes: &[u8]) {
    let image = Qcow2Image::open(&config(path)).unwrap();
    let mut queue = image.open_queue(16).unwrap();
    run(queue.as_mut(), request(Operation::Write { durable: false }, offset, &mut bytes.to_vec())).unwrap();
    run(queue.as_mut(), range(Operation::Flush, 0, 0)).unwrap();
}

/// One step of a guest: on the disk and on the model.
fn step(numbers: &mut Numbers, queue: &mut dyn DiskQueue, model: &mut [u8]) {
    let sectors = model.len() as u64 / SECTOR_SIZE;
    let first = numbers.below(sectors);
    let count = (numbers.below(400) + 1).min(sectors - first);
    let (offset, bytes) = (first * SECTOR_SIZE, count * SECTOR_SIZE);
    let part = offset as usize..(offset + bytes) as usize;
    match numbers.below(10) {
        0..4 => {
            let value = numbers.below(255) as u8 + 1;
            let mut memory: Vec<u8> = (0..bytes).map(|at| value.wrapping_add(at as u8)).collect();
            let durable = numbers.below(8) == 0;
            run(queue, request(Operation::Write { durable }, offset, &mut memory)).unwrap();
            model[part].copy_from_slice(&memory);
        }
        4..8 => {
            let mut memory = vec![0xee; bytes as usize];
            run(queue, request(Operation::Read, offset, &mut memory)).unwrap();
            assert!(memory == model[part], "{bytes} bytes at {offset:#x} differ");
        }
        8 => {
            let unmap = numbers.below(2) == 0;
            run(queue, range(Operation::WriteZeroes { unmap }, offset, bytes)).unwrap();
            model[part].fill(0);
        }
        _ => {
            run(queue, range(Operation::Discard, offset, bytes)).unwrap();
            let mut memory = vec![0xee; bytes as usize];
            run(queue, request(Operation::Read, offset, &mut memory)).unwrap();
            // A sector that was discarded keeps its bytes or is zero.
            for (new, old) in memory.chunks(512).zip(model[part.clone()].chunks(512)) {
                assert!(new == old || new.iter().all(|byte| *byte == 0), "a discard near {offset:#x} made bytes up");
            }
            model[part].copy_from_slice(&memory);
        }
    }
}

fn assert_sound(path: &Path) {
    let report = check(path).unwrap();
    assert_eq!((report.errors, report.leaked_clusters), (0, 0), "{:?}", report.findings);
    qemu_img(&["check", path.to_str().unwrap()]);
}

#[test]
fn a_disk_is_what_was_written_to_it_whatever_the_order() {
    for (seed, in_order) in [(1, false), (2, true), (3, false)] {
        let folder = TempDir::new().unwrap();
        let path = qcow2(folder.path(), "disk.qcow2", 8 * MIB, None);
        let mut model = vec![0; 8 * MIB as usize];
        let mut numbers = Numbers(0x9e37_79b9 + seed);
        for _ in 0..4 {
            let image = Qcow2Image::open(&Qcow2Config { in_order, ..config(&path) }).unwrap();
            let mut queue = image.open_queue(16).unwrap();
            (0..60).for_each(|_| step(&mut numbers, queue.as_mut(), &mut model));
        }
        assert!(read_all(&path) == model, "the disk differs after it was opened again (seed {seed})");
        assert_sound(&path);
    }
}

#[test]
fn a_child_shows_its_parent_until_it_is_written_to_and_never_changes_it() {
    let folder = TempDir::new().unwrap();
    let base = folder.path().join("base.img");
    let pattern: Vec<u8> = (0..4 * MIB).map(|at| (at / 512) as u8 | 1).collect();
    std::fs::write(&base, &pattern).unwrap();
    let middle = qcow2(folder.path(), "middle.qcow2", 4 * MIB, Some((&base, Format::Raw)));
    write(&middle, 3 * 512, &[7; 1024]);
    let top = qcow2(folder.path(), "top.qcow2", 6 * MIB, Some((&middle, Format::Qcow2)));
    let before = (std::fs::read(&base).unwrap(), std::fs::read(&middle).unwrap());
    let mut model = vec![0; 6 * MIB as usize];
    model[..pattern.len()].copy_from_slice(&pattern);
    model[3 * 512..5 * 512].fill(7);
    let mut numbers = Numbers(77);

    let image = Qcow2Image::open(&config(&top)).unwrap();
    let mut queue = image.open_queue(16).unwrap();
    (0..100).for_each(|_| step(&mut numbers, queue.as_mut(), &mut model));
    drop((queue, image));

    assert!(read_all(&top) == model);
    assert!((std::fs::read(&base).unwrap(), std::fs::read(&middle).unwrap()) == before, "a parent has changed");
    assert_sound(&top);
}

#[test]
fn compressed_images_of_qemu_img_are_read_and_overwritten() {
    let folder = TempDir::new().unwrap();
    let raw = folder.path().join("raw");
    let mut bytes: Vec<u8> = (0..2 * MIB).map(|at| (at / 4096) as u8).collect();
    std::fs::write(&raw, &bytes).unwrap();
    let path = folder.path().join("small.qcow2");
    let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
    if qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", from, to]).is_none() {
        return;
    }

    let first = read_all(&path);
    write(&path, 65536 + 512, &[9; 512]);
    bytes[65536 + 512..65536 + 1024].fill(9);

    assert!(first.len() == bytes.len() && first[..65536] == bytes[..65536]);
    assert!(read_all(&path) == bytes);
    assert_sound(&path);
}

#[test]
fn many_requests_fly_at_once() {
    let folder = TempDir::new().unwrap();
    let path = qcow2(folder.path(), "disk.qcow2", 4 * MIB, None);
    let image = Qcow2Image::open(&config(&path)).unwrap();
    let mut queue = image.open_queue(8).unwrap();
    let mut memory: Vec<Vec<u8>> = (0..64u8).map(|value| vec![value + 1; 32 << 10]).collect();
    let mut ended = vec![false; memory.len()];

    for (token, bytes) in memory.iter_mut().enumerate() {
        while queue.room() == 0 {
            ended[next(queue.as_mut()).token as usize] = true;
        }
        let request = Request {
            token: token as u64,
            ..request(Operation::Write { durable: false }, token as u64 * (32 << 10), bytes)
        };
        // SAFETY: `memory` lives until the queue is drained.
        unsafe { queue.submit(request) };
    }
    queue.kick().unwrap();
    queue.drain();
    while let Some(completion) = queue.completed() {
        completion.result.unwrap();
        ended[completion.token as usize] = true;
    }

    assert!(ended.iter().all(|ended| *ended));
    drop((queue, image));
    assert!(read_all(&path)[..2 * MIB as usize] == memory.concat());
}

#[test]
fn an_image_has_one_writer_and_one_queue() {
    let folder = TempDir::new().unwrap();
    let base = qcow2(folder.path(), "base.qcow2", MIB, None);
    let child = qcow2(folder.path(), "child.qcow2", MIB, Some((&base, Format::Qcow2)));
    let image = Qcow2Image::open(&config(&child)).unwrap();
    let queue = image.open_queue(4).unwrap();

    assert!(matches!(image.open_queue(4), Err(Error::OneQueue(_))));
    assert!(matches!(Qcow2Image::open(&config(&child)), Err(Error::Locked { .. })));
    // Who writes to a backing file would change the child.
    assert!(matches!(Qcow2Image::open(&config(&base)), Err(Error::Locked { .. })));
    drop(queue);
    assert!(image.open_queue(4).is_ok());
}

#[test]
fn a_chain_leads_only_where_it_may() {
    let folder = TempDir::new().unwrap();
    let elsewhere = TempDir::new().unwrap();
    let secret = elsewhere.path().join("secret");
    std::fs::write(&secret, vec![1; MIB as usize]).unwrap();
    let outside = qcow2(folder.path(), "outside.qcow2", MIB, Some((&secret, Format::Raw)));
    std::os::unix::fs::symlink(&secret, folder.path().join("link")).unwrap();
    let linked = qcow2(folder.path(), "linked.qcow2", MIB, Some((&folder.path().join("link"), Format::Raw)));

    for path in [&outside, &linked] {
        assert!(matches!(Qcow2Image::open(&config(path)), Err(Error::BackingRefused { .. })));
        assert!(Qcow2Image::open(&Qcow2Config { backing: Backing::Any, ..config(path) }).is_ok());
        let none = Qcow2Config { backing: Backing::None, ..config(path) };
        assert!(matches!(Qcow2Image::open(&none), Err(Error::BackingRefused { .. })));
    }
}

#[test]
fn a_chain_without_end_or_without_its_parts_is_refused() {
    let folder = TempDir::new().unwrap();
    let first = qcow2(folder.path(), "first.qcow2", MIB, None);
    let second = qcow2(folder.path(), "second.qcow2", MIB, Some((&first, Format::Qcow2)));
    let third = qcow2(folder.path(), "third.qcow2", MIB, Some((&second, Format::Qcow2)));
    std::fs::remove_file(&second).unwrap();
    assert!(matches!(Qcow2Image::open(&config(&third)), Err(Error::BackingMissing { .. })));

    std::fs::copy(&third, &second).unwrap();
    assert!(matches!(Qcow2Image::open(&config(&third)), Err(Error::ChainLoop(_))));

    let mut parent = first;
    for number in 0..64 {
        parent = qcow2(folder.path(), &format!("long{number}.qcow2"), MIB, Some((&parent, Format::Qcow2)));
    }
    assert!(matches!(Qcow2Image::open(&config(&parent)), Err(Error::ChainTooLong { .. })));
}

#[test]
fn a_format_that_is_not_written_down_is_not_guessed() {
    let folder = TempDir::new().unwrap();
    let base = folder.path().join("base");
    std::fs::write(&base, vec![0; MIB as usize]).unwrap();
    let child = qcow2(folder.path(), "child.qcow2", MIB, Some((&base, Format::Raw)));
    let file = File::options().read(true).write(true).open(&child).unwrap();
    let mut head = [0; 512];
    file.read_exact_at(&mut head, 0).unwrap();
    let at = head.windows(4).position(|bytes| bytes == 0xe279_2acau32.to_be_bytes()).unwrap();
    file.write_all_at(&0x1234_5678u32.to_be_bytes(), at as u64).unwrap();

    assert!(matches!(Qcow2Image::open(&config(&child)), Err(Error::BackingFormatMissing { .. })));
}

#[test]
fn no_damage_makes_the_program_fall() {
    let folder = TempDir::new().unwrap();
    let path = qcow2(folder.path(), "disk.qcow2", 4 * MIB, None);
    (0..8).for_each(|number| write(&path, number * 400_000 / 512 * 512, &[number as u8 + 1; 8192]));
    let sound = std::fs::read(&path).unwrap();
    let mut numbers = Numbers(4711);
    let (mut opened, mut refused) = (0, 0);

    for _ in 0..400 {
        let mut bytes = sound.clone();
        for _ in 0..numbers.below(4) + 1 {
            // Mostly the header and the tables.
            let bound = [112, 512, 5 * 65536, bytes.len() as u64][numbers.below(4) as usize];
            let at = numbers.below(bound.min(bytes.len() as u64)) as usize;
            bytes[at] = [0, 0xff, 0x80, numbers.below(256) as u8][numbers.below(4) as usize];
        }
        bytes.truncate(bytes.len() - numbers.below(3) as usize * 70_000);
        std::fs::write(&path, &bytes).unwrap();
        let _ = check(&path);
        let Ok(image) = Qcow2Image::open(&config(&path)) else {
            refused += 1;
            continue;
        };
        opened += 1;
        let mut queue = image.open_queue(16).unwrap();
        let mut memory = vec![0; 256 << 10];
        for at in (0..image.topology().size_bytes.min(8 * MIB)).step_by(memory.len()) {
            let _ = run(queue.as_mut(), request(Operation::Read, at, &mut memory));
        }
        let end = image.topology().size_bytes - 512;
        for at in [0, end.min(700_416), end] {
            let _ = run(queue.as_mut(), request(Operation::Write { durable: false }, at, &mut memory[..512]));
            let _ = run(queue.as_mut(), range(Operation::WriteZeroes { unmap: true }, at, 512));
        }
        let _ = run(queue.as_mut(), range(Operation::Flush, 0, 0));
    }
    assert!(opened > 40 && refused > 40, "{opened} images opened, {refused} refused: the damage says nothing");
}

#[test]
fn an_extent_tells_holes_from_data() {
    let folder = TempDir::new().unwrap();
    let path = qcow2(folder.path(), "disk.qcow2", 4 * MIB, None);
    write(&path, MIB, &[1; 4096]);
    let image = Qcow2Image::open(&config(&path)).unwrap();
    let raw = folder.path().join("raw");
    let file = File::create(&raw).unwrap();
    file.set_len(4 * MIB).unwrap();
    file.write_all_at(&[1; 4096], MIB).unwrap();
    let raw = RawConfig { path: raw, read_only: true, direct: false, in_order: false };
    let raw = RawFile::open(&raw).unwrap();

    assert!(image.extent(0).unwrap().zeroes && !image.extent(MIB).unwrap().zeroes);
    assert!(image.extent(2 * MIB).unwrap().zeroes);
    let hole = raw.extent(0).unwrap();
    assert!(!hole.zeroes || hole.length_bytes <= MIB);
    assert!(!raw.extent(MIB).unwrap().zeroes);
}

#[test]
fn an_image_that_does_not_count_its_header_is_only_read() {
    let folder = TempDir::new().unwrap();
    let path = qcow2(folder.path(), "disk.qcow2", MIB, None);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let table = Header::read(&file).unwrap().refcount_table_offset;
    file.write_all_at(&[0; 8], table).unwrap();

    let refused = Qcow2Image::open(&config(&path)).unwrap_err();

    assert!(refused.to_string().contains("does not count its own header"), "{refused}");
    assert_eq!(read_all(&path).len(), MIB as usize);
}

#[test]
fn a_file_that_shrinks_gives_zeroes_or_errors_and_goes_on() {
    let folder = TempDir::new().unwrap();
    let path = qcow2(folder.path(), "disk.qcow2", 4 * MIB, None);
    write(&path, 0, &[5; 256 << 10]);
    let image = Qcow2Image::open(&config(&path)).unwrap();
    let mut queue = image.open_queue(16).unwrap();
    let mut memory = vec![0; 256 << 10];
    run(queue.as_mut(), request(Operation::Read, 0, &mut memory)).unwrap();
    assert!(memory.iter().all(|byte| *byte == 5));

    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();

    let read = run(queue.as_mut(), request(Operation::Read, 0, &mut memory));
    assert!(read.is_err() || memory.iter().all(|byte| matches!(byte, 0 | 5)), "bytes from nowhere");
    let _ = run(queue.as_mut(), request(Operation::Write { durable: true }, 2 * MIB, &mut [6; 4096]));
    let _ = run(queue.as_mut(), range(Operation::Flush, 0, 0));
    // It answers still.
    let mut sector = [0; 512];
    let _ = run(queue.as_mut(), request(Operation::Read, 2 * MIB, &mut sector));
    assert!(matches!(sector[0], 0 | 6));
}
