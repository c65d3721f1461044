use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::{Allocated, Error, GuestRam, PAGE_SIZE, Pages, RamConfig, RamNode};

const MIB: u64 = 1 << 20;

fn config() -> RamConfig {
    let node = |bytes| RamNode { bytes, host_node: None };
    RamConfig { nodes: vec![node(4 * MIB), node(2 * MIB)], pages: Pages::Host }
}

fn new_ram() -> GuestRam {
    plugged(GuestRam::with_hotplug(&config(), 2 * MIB).unwrap())
}

/// RAM whose block for hot-plug is in use.
fn plugged(ram: GuestRam) -> GuestRam {
    crate::plug(ram.memory(), GuestAddress(HOTPLUG), 2 * MIB).unwrap();
    ram
}

fn put(ram: &GuestRam, address: u64, byte: u8) {
    ram.memory().write_slice(&[byte; PAGE_SIZE as usize], GuestAddress(address)).unwrap();
}

fn get(ram: &GuestRam, address: u64) -> u8 {
    ram.memory().read_obj(GuestAddress(address)).unwrap()
}

fn freeze(ram: &GuestRam) -> MemoryImage {
    let (frozen, settling) = ram.freeze().unwrap();
    settling.run();
    frozen.image().clone()
}

fn child(image: &MemoryImage) -> GuestRam {
    plugged(GuestRam::from_image(&config(), 2 * MIB, image).unwrap())
}

/// Writes an image as another process would find it.
fn written(image: &MemoryImage, base: Option<LayerId>) -> (File, MemoryTable) {
    let file = tempfile::tempfile().unwrap();
    let Written { table, .. } = image.write(&file, base).unwrap();
    (file, MemoryTable::from_bytes(&table.to_bytes()).unwrap())
}

/// Where hot-plugged memory starts.
const HOTPLUG: u64 = 4 << 30;

#[test]
fn forks_do_not_see_each_other() {
    let ram = new_ram();
    [0, 4 * MIB, HOTPLUG].into_iter().for_each(|address| put(&ram, address, 1));
    let image = freeze(&ram);
    let (first, second) = (child(&image), child(&image));
    [0, 4 * MIB, HOTPLUG].into_iter().for_each(|address| put(&ram, address, 2));
    put(&first, 4 * MIB, 3);
    let all = |ram| [0, 4 * MIB, HOTPLUG].map(|address| get(ram, address));
    assert_eq!([all(&ram), all(&first), all(&second), all(&child(&image))], [[2; 3], [1, 3, 1], [1; 3], [1; 3]]);
}

#[test]
fn addresses_stay_and_files_are_no_longer_for_others_to_write_to() {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let ram = new_ram();
    let has_file = |ram: &GuestRam| ram.memory().find_region(GuestAddress(0)).unwrap().file_offset().is_some();
    let (host, had) = (ram.host_page(0).unwrap().host, has_file(&ram));
    freeze(&ram);
    assert_eq!((ram.host_page(0).unwrap().host, had, has_file(&ram)), (host, true, false));
}

#[test]
fn layers_hold_what_was_written_since_the_last_freeze() {
    let ram = new_ram();
    put(&ram, 0, 1);
    let first = freeze(&ram);
    put(&ram, MIB, 2);
    put(&ram, 4 * MIB - PAGE_SIZE, 3);
    put(&ram, 4 * MIB, 3);
    let second = freeze(&ram);
    let runs: Vec<_> = second.segments().iter().filter(|s| s.layer == 1).map(|s| (s.start, s.len)).collect();
    assert_eq!(runs, [(MIB, PAGE_SIZE), (4 * MIB - PAGE_SIZE, 2 * PAGE_SIZE)]);
    let addresses = [0, MIB, 4 * MIB];
    let all = |image| addresses.map(|address| get(&child(image), address));
    assert_eq!((all(&first), all(&second)), ([1, 0, 0], [1, 2, 3]));
}

#[test]
fn a_fork_of_a_fork_has_all_layers() {
    let ram = new_ram();
    put(&ram, 0, 1);
    let fork = child(&freeze(&ram));
    put(&fork, MIB, 2);
    let grandchild = child(&freeze(&fork));
    put(&fork, MIB, 4);
    assert_eq!([0, MIB].map(|address| get(&grandchild, address)), [1, 2]);
}

#[test]
fn another_process_gets_descriptors_and_a_table() {
    let ram = new_ram();
    put(&ram, 0, 1);
    freeze(&ram);
    put(&ram, 4 * MIB, 2);
    let (files, table) = freeze(&ram).parts();
    let table = MemoryTable::from_bytes(&table.to_bytes()).unwrap();
    let copy = |file: &dyn AsFd| File::from(file.as_fd().try_clone_to_owned().unwrap());
    let files: Vec<File> = files.iter().map(|file| copy(file)).collect();
    // Not even we can write to what others have been given.
    assert!(files.iter().all(|file| file.write_all_at(&[1], 0).is_err()));
    assert!(files.iter().all(|file| file.set_len(0).is_err()));
    let there = child(&MemoryImage::from_parts(files, &table).unwrap());
    assert_eq!((get(&there, 0), get(&there, 4 * MIB)), (1, 2));
}

#[test]
fn a_chain_of_files_is_the_image() {
    let ram = new_ram();
    put(&ram, 0, 1);
    put(&ram, MIB, 1);
    let full = freeze(&ram);
    put(&ram, MIB, 2);
    put(&ram, HOTPLUG, 2);
    let more = freeze(&ram);
    put(&ram, MIB, 0);
    let most = freeze(&ram);
    let chain = || {
        let first = written(&full, None);
        let second = written(&more, full.top());
        let third = written(&most, more.top());
        assert!(third.1.bytes() < MIB && second.1.bytes() < MIB);
        vec![first, second, third]
    };
    let read = |chain| {
        let ram = child(&MemoryImage::open(chain).unwrap());
        [0, MIB, HOTPLUG].map(|address| get(&ram, address))
    };
    assert_eq!(read(chain()), [1, 0, 2]);
    assert_eq!(read(chain().into_iter().take(2).collect()), [1, 2, 2]);
    assert_eq!(read(vec![written(&most, None)]), [1, 0, 2]);
    let skipped: Vec<_> = chain().into_iter().enumerate().filter(|(n, _)| *n != 1).map(|(_, link)| link).collect();
    assert!(matches!(MemoryImage::open(skipped), Err(ImageError::Chain)));
    assert!(matches!(MemoryImage::open(chain().split_off(1)), Err(ImageError::Chain)));
    assert!(matches!(MemoryImage::open(Vec::new()), Err(ImageError::Chain)));
}

#[test]
fn restored_ram_goes_on_with_increments_of_the_same_chain() {
    let ram = new_ram();
    put(&ram, 0, 1);
    let (file, table) = written(&freeze(&ram), None);
    let restored = child(&MemoryImage::open(vec![(file.try_clone().unwrap(), table.clone())]).unwrap());
    assert_eq!(restored.base(), table.top());
    put(&restored, MIB, 2);
    let increment = written(&freeze(&restored), restored.base().and(table.top()));
    assert_eq!(increment.1.bytes(), PAGE_SIZE);
    let again = child(&MemoryImage::open(vec![(file, table), increment]).unwrap());
    assert_eq!([0, MIB].map(|address| get(&again, address)), [1, 2]);
}

#[test]
fn an_increment_needs_a_base_among_the_ancestors() {
    let (one, other) = (new_ram(), new_ram());
    let (image, foreign) = (freeze(&one), freeze(&other));
    let result = image.write(&tempfile::tempfile().unwrap(), foreign.top());
    assert!(matches!(result, Err(ImageError::NotDescended)));
}

#[test]
fn zeroes_are_holes_in_the_file() {
    let ram = new_ram();
    put(&ram, 0, 1);
    put(&ram, MIB, 0);
    let file = tempfile::tempfile().unwrap();
    let mut seen = 0;
    let given_up = freeze(&ram).write_with(&tempfile::tempfile().unwrap(), None, |offset| {
        seen = offset;
        false
    });
    assert!(matches!(given_up, Err(ImageError::Cancelled)) && seen < freeze(&ram).shape.bytes());
    let Written { data_bytes, table } = freeze(&ram).write(&file, None).unwrap();
    assert_eq!((data_bytes, file.metadata().unwrap().len()), (PAGE_SIZE, 8 * MIB));
    assert_eq!(table.bytes(), 8 * MIB);
}

#[test]
fn damage_is_found_by_verifying() {
    let ram = new_ram();
    put(&ram, 0, 1);
    put(&ram, 5 * MIB, 1);
    let (file, table) = written(&freeze(&ram), None);
    table.verify(&file).unwrap();
    file.write_all_at(&[2], 5 * MIB + 7).unwrap();
    assert!(matches!(table.verify(&file), Err(ImageError::Checksum { chunk: 2 })));
    file.write_all_at(&[1], 5 * MIB + 7).unwrap();
    file.write_all_at(&[1], 3 * MIB).unwrap();
    assert!(matches!(table.verify(&file), Err(ImageError::Checksum { chunk: 1 })));
}

#[test]
fn files_that_are_too_short_or_anybodys_are_refused() {
    let ram = new_ram();
    let (file, table) = written(&freeze(&ram), None);
    file.set_len(8 * MIB - 1).unwrap();
    let open = |table| MemoryImage::open(vec![(file.try_clone().unwrap(), table)]);
    assert!(matches!(open(table.clone()), Err(ImageError::Short { bytes, needed }) if bytes == needed - 1));
    file.set_len(8 * MIB).unwrap();
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(8 * MIB).unwrap();
    named.as_file().set_permissions(std::fs::Permissions::from_mode(0o602)).unwrap();
    let anybodys = MemoryImage::open(vec![(named.as_file().try_clone().unwrap(), table)]);
    assert!(matches!(anybodys, Err(ImageError::Writable)));
}

#[test]
fn ram_of_another_shape_is_refused() {
    let image = freeze(&new_ram());
    let other = GuestRam::from_image(&RamConfig::plain(8 * MIB), 0, &image);
    assert!(matches!(other, Err(Error::Image(ImageError::OtherShape { .. }))));
}

#[test]
fn private_memory_is_told_from_shared() {
    let ram = new_ram();
    put(&ram, 0, 1);
    put(&ram, MIB, 1);
    let image = freeze(&ram);
    put(&ram, 0, 2);
    let fork = child(&image);
    assert_eq!(ram.allocated().unwrap(), Allocated { shared: 2 * PAGE_SIZE, private: PAGE_SIZE });
    assert_eq!(fork.allocated().unwrap(), Allocated { shared: 2 * PAGE_SIZE, private: 0 });
}

#[test]
fn discarding_gives_copies_back_and_leaves_the_image() {
    let ram = new_ram();
    put(&ram, 0, 1);
    let image = freeze(&ram);
    put(&ram, 0, 2);
    crate::discard(ram.memory(), GuestAddress(0), PAGE_SIZE).unwrap();
    assert_eq!(ram.allocated().unwrap().private, 0);
    assert_eq!((get(&child(&image), 0), get(&ram, 0)), (1, 1));
}

#[test]
fn trackers_are_left_alone() {
    let ram = new_ram();
    ram.trackers().for_each(|(_, tracker)| drop(tracker.take_dirty()));
    put(&ram, MIB, 1);
    freeze(&ram);
    let dirty: u32 = ram.trackers().flat_map(|(_, tracker)| tracker.take_dirty()).map(u64::count_ones).sum();
    assert_eq!(dirty, 1);
}

#[test]
fn tables_with_any_byte_changed_or_cut_are_refused() {
    let ram = new_ram();
    put(&ram, 0, 1);
    freeze(&ram);
    put(&ram, MIB, 1);
    let bytes = freeze(&ram).parts().1.to_bytes();
    for place in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[place] ^= 0x10;
        assert!(MemoryTable::from_bytes(&changed).is_err(), "byte {place}");
        assert!(MemoryTable::from_bytes(&bytes[..place]).is_err(), "cut at {place}");
    }
    assert!(matches!(MemoryTable::from_bytes(&[&bytes[..8], &[9, 0, 0, 0]].concat()), Err(ImageError::Version(9))));
}

/// Needs free huge pages: `sysctl vm.nr_hugepages=8`.
#[test]
fn reserved_huge_pages_are_copied() {
    let huge = RamConfig { nodes: vec![RamNode { bytes: 4 * MIB, host_node: None }], pages: Pages::Huge2M };
    let ram = match GuestRam::with(&huge) {
        Err(error @ (Error::HugePool { .. } | Error::NoHugePages { .. })) => return eprintln!("skipped: {error}"),
        ram => ram.unwrap(),
    };
    put(&ram, MIB, 1);
    let image = freeze(&ram);
    put(&ram, MIB, 2);
    let restored = match GuestRam::from_image(&huge, 0, &image) {
        Err(error @ Error::HugePool { .. }) => return eprintln!("skipped: {error}"),
        ram => ram.unwrap(),
    };
    let plain = GuestRam::from_image(&RamConfig::plain(4 * MIB), 0, &image).unwrap();
    assert_eq!([&ram, &restored, &plain].map(|ram| get(ram, MIB)), [2, 1, 1]);
}

/// Puts pieces where they belong, in a file that is full of something else.
fn pieces(image: &MemoryImage, base: Option<LayerId>, file: &File) -> u64 {
    let mut next = 0;
    let mut bytes = 0;
    let put = |offset: u64, piece: Piece<'_>| {
        assert!(offset >= next, "lowest first, and nothing twice");
        let data = match piece {
            Piece::Data(data) => data.to_vec(),
            Piece::Zero(len) => vec![0; len as usize],
        };
        next = offset + data.len() as u64;
        bytes += data.len() as u64;
        file.write_all_at(&data, offset).map_err(ImageError::io("test"))
    };
    image.for_each_piece(base, put).unwrap();
    bytes
}

#[test]
fn pieces_make_the_same_ram_elsewhere() {
    let ram = new_ram();
    [0, 4 * MIB, 5 * MIB, HOTPLUG].into_iter().for_each(|address| put(&ram, address, 1));
    let first = freeze(&ram);
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * MIB).unwrap();
    assert_eq!(pieces(&first, None, &file), 4 * PAGE_SIZE);

    // Data becomes zeroes, in the middle of what was written and at its end.
    [(PAGE_SIZE, 2), (4 * MIB, 0), (4 * MIB + PAGE_SIZE, 2), (5 * MIB, 0)]
        .into_iter()
        .for_each(|(at, to)| put(&ram, at, to));
    let second = freeze(&ram);
    assert!(pieces(&second, first.top(), &file) >= 4 * PAGE_SIZE);

    let copy = MemoryImage::of_file(file, second.shape().clone()).unwrap();
    let there = child(&copy);
    let at = [0, PAGE_SIZE, 4 * MIB, 4 * MIB + PAGE_SIZE, 5 * MIB, HOTPLUG];
    assert_eq!(at.map(|address| get(&there, address)), [1, 2, 0, 2, 0, 1]);
}
