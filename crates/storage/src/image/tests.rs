//! Images that nobody runs from.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::testing::{config, qcow2, qemu_img, request, run};
use crate::{Backing, Disk, Error, Format, ImageConfig, Operation, Qcow2Image, settle_format};

const MIB: u64 = 1 << 20;

fn disk(path: &Path, format: Format) -> ImageConfig {
    let backing = Backing::SameFolder;
    ImageConfig { path: path.into(), format: Some(format), read_only: true, backing, direct: false, in_order: false }
}

fn new(path: &Path, format: Format, size_bytes: Option<u64>) -> CreateConfig {
    CreateConfig { path: path.into(), format, size_bytes, parent: None }
}

#[test]
fn a_disk_survives_the_way_through_both_formats_and_stays_sparse() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str| folder.path().join(name);
    let raw = File::options().write(true).create(true).truncate(true).open(file("a.img")).unwrap();
    raw.set_len(64 * MIB).unwrap();
    raw.write_all_at(&[3; 100_000], 5 * MIB + 512).unwrap();
    raw.write_all_at(&[4; 512], 64 * MIB - 512).unwrap();

    let mut last = (0, 0);
    convert(&disk(&file("a.img"), Format::Raw), &file("b.qcow2"), Format::Qcow2, |done, all| last = (done, all))
        .unwrap();
    convert(&disk(&file("b.qcow2"), Format::Qcow2), &file("c.img"), Format::Raw, |_, _| ()).unwrap();

    assert_eq!(last, (64 * MIB, 64 * MIB));
    assert!(std::fs::read(file("a.img")).unwrap() == std::fs::read(file("c.img")).unwrap());
    let report = check(&file("b.qcow2")).unwrap();
    assert_eq!((report.errors, report.leaked_clusters, report.allocated_clusters), (0, 0, 3));
    assert!(info(&file("c.img"), None, Backing::None).unwrap().chain[0].file_bytes < MIB);
    qemu_img(&["compare", file("a.img").to_str().unwrap(), file("b.qcow2").to_str().unwrap()]);
}

#[test]
fn nothing_that_exists_is_overwritten() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.img");
    std::fs::write(&path, "precious").unwrap();
    for format in [Format::Raw, Format::Qcow2] {
        assert!(matches!(create(&new(&path, format, Some(MIB))), Err(Error::Exists(_))));
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_failed_copy_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let missing = disk(&folder.path().join("missing"), Format::Raw);
    let target = folder.path().join("new.qcow2");
    assert!(convert(&missing, &target, Format::Qcow2, |_, _| ()).is_err());
    assert!(!target.exists());
}

#[test]
fn sizes_that_no_disk_can_have_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.qcow2");
    for (size, format) in [(Some(0), Format::Raw), (Some(1000), Format::Qcow2)] {
        assert!(matches!(create(&new(&path, format, size)), Err(Error::DiskSize { .. })));
    }
    assert!(matches!(create(&new(&path, Format::Qcow2, None)), Err(Error::SizeMissing(_))));
    assert!(!path.exists());
}

#[test]
fn a_child_takes_its_parents_size_and_its_chain_is_told() {
    let folder = TempDir::new().unwrap();
    let base = qcow2(folder.path(), "base.qcow2", 3 * MIB, None);
    let path = folder.path().join("child.qcow2");
    let parent = Some(Parent { path: base, format: Format::Qcow2 });
    create(&CreateConfig { parent, ..new(&path, Format::Qcow2, None) }).unwrap();

    let info = info(&path, None, Backing::SameFolder).unwrap();

    assert_eq!((info.disk_bytes, info.chain.len()), (3 * MIB, 2));
    assert!(info.chain[1].path.ends_with("base.qcow2"));
    if let Some(text) = qemu_img(&["info", path.to_str().unwrap()]) {
        assert!(text.contains("backing file: base.qcow2"), "{text}");
    }
}

#[test]
fn a_disk_grows_and_shrinks_and_keeps_what_is_left() {
    let folder = TempDir::new().unwrap();
    let path = qcow2(folder.path(), "a.qcow2", 4 * MIB, None);
    let write = |at| {
        let image = Qcow2Image::open(&config(&path)).unwrap();
        let mut queue = image.open_queue(4).unwrap();
        run(queue.as_mut(), request(Operation::Write { durable: true }, at, &mut [5; 4096])).unwrap();
    };
    write(0);
    resize(&path, Format::Qcow2, 64 * MIB).unwrap();
    write(60 * MIB);
    resize(&path, Format::Qcow2, 2 * MIB).unwrap();

    let image = Qcow2Image::open(&config(&path)).unwrap();
    let mut bytes = vec![0; 8192];
    run(image.open_queue(4).unwrap().as_mut(), request(Operation::Read, 0, &mut bytes)).unwrap();
    assert_eq!(image.topology().size_bytes, 2 * MIB);
    assert!(bytes[..4096] == [5; 4096] && bytes[4096..] == [0; 4096]);
    drop(image);
    assert_eq!(check(&path).unwrap().errors, 0);
}

#[test]
fn a_check_finds_what_is_wrong() {
    let folder = TempDir::new().unwrap();
    let path = qcow2(folder.path(), "a.qcow2", 4 * MIB, None);
    {
        let image = Qcow2Image::open(&config(&path)).unwrap();
        let mut queue = image.open_queue(4).unwrap();
        run(queue.as_mut(), request(Operation::Write { durable: true }, 0, &mut [5; 4096])).unwrap();
    }
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let number = |at| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let l2 = number(number(40)) & 0x00ff_ffff_ffff_fe00;
    let entry = number(l2);
    assert_eq!(check(&path).unwrap(), Report { allocated_clusters: 1, total_clusters: 64, ..Report::default() });

    // The same cluster twice.
    file.write_all_at(&entry.to_be_bytes(), l2 + 8).unwrap();
    assert!(check(&path).unwrap().errors > 0);
    // A cluster outside the file.
    file.write_all_at(&((1u64 << 63) | (1 << 40)).to_be_bytes(), l2 + 8).unwrap();
    assert!(check(&path).unwrap().findings[0].contains("outside the file"));
    // A cluster that nothing leads to.
    file.write_all_at(&[0; 16], l2).unwrap();
    let report = check(&path).unwrap();
    assert_eq!((report.errors, report.leaked_clusters), (0, 1));
}

#[test]
fn a_raw_disk_that_its_guest_made_look_like_an_image_is_not_taken_for_one() {
    let folder = TempDir::new().unwrap();
    let image = qcow2(folder.path(), "real.qcow2", MIB, None);
    let raw = folder.path().join("disk.img");
    std::fs::copy(&image, &raw).unwrap();

    assert!(matches!(settle_format(&raw, None), Err(Error::UnclearFormat(_))));
    assert_eq!(settle_format(&raw, Some(Format::Raw)).unwrap(), Format::Raw);
    assert_eq!(settle_format(&image, None).unwrap(), Format::Qcow2);
}
