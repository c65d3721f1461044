use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn nodes(sizes: &[u64], pages: Pages) -> RamConfig {
    RamConfig { nodes: sizes.iter().map(|bytes| RamNode { bytes: *bytes, host_node: None }).collect(), pages }
}

#[test]
fn device_writes_reach_the_tracker_of_the_page() {
    let ram = GuestRam::new(16 << 20).unwrap();
    ram.memory().write_slice(&[1; 8], GuestAddress(0x2ffc)).unwrap();
    let page = ram.host_page(0x3000).unwrap();
    assert!(page.tracker.is_dirty(2) && page.tracker.is_dirty(3) && !page.tracker.is_dirty(4));
}

#[test]
fn there_is_no_ram_in_the_hole_below_4_gib() {
    let ram = GuestRam::new(8 << 30).unwrap();
    assert!(ram.host_page(LOW_RAM_END).is_none());
    assert!(ram.host_page(HIGH_RAM_START).is_some());
    assert_eq!(ram.ranges().map(|(_, len)| len).sum::<u64>(), 8 << 30);
}

#[test]
fn sizes_that_cannot_be_ram_are_refused() {
    assert!(matches!(GuestRam::new(0), Err(Error::TooSmall(0))));
    assert!(matches!(GuestRam::new((1 << 20) + 1), Err(Error::Unaligned { unit: 4096, .. })));
    let odd = nodes(&[4 * MIB, 3 * MIB], Pages::Huge2M);
    assert!(matches!(GuestRam::with(&odd), Err(Error::Unaligned { bytes: 0x30_0000, unit: HUGE_PAGE_SIZE })));
    let overflowing = nodes(&[!0xfff; 3], Pages::Host);
    assert!(GuestRam::with(&overflowing).is_err());
}

#[test]
fn each_node_has_its_own_file_and_nodes_are_neighbours() {
    let ram = GuestRam::with(&nodes(&[4 * MIB, 0, 8 * MIB], Pages::Host)).unwrap();
    assert_eq!(ram.ranges_of(0).collect::<Vec<_>>(), [(0, 4 * MIB)]);
    assert_eq!(ram.ranges_of(1).count(), 0);
    assert_eq!(ram.ranges_of(2).collect::<Vec<_>>(), [(4 * MIB, 8 * MIB)]);
    let second = ram.memory().find_region(GuestAddress(4 * MIB)).unwrap();
    assert_eq!(second.file_offset().unwrap().file().metadata().unwrap().len(), 8 * MIB);
}

#[test]
fn an_access_across_two_nodes_is_one_access() {
    let ram = GuestRam::with(&nodes(&[4 * MIB, 4 * MIB], Pages::Host)).unwrap();
    let border = GuestAddress(4 * MIB - 4);
    ram.memory().write_slice(&[1, 2, 3, 4, 5, 6, 7, 8], border).unwrap();
    let mut read = [0; 8];
    ram.memory().read_slice(&mut read, border).unwrap();
    assert_eq!(read, [1, 2, 3, 4, 5, 6, 7, 8]);
    let (before, after) = (ram.host_page(4 * MIB - 1).unwrap(), ram.host_page(4 * MIB).unwrap());
    assert_eq!(before.host.wrapping_add(PAGE_SIZE as usize), after.host);
    assert!(before.tracker.is_dirty(before.index) && after.tracker.is_dirty(after.index));
}

#[test]
fn guest_and_host_pages_of_2_mib_coincide() {
    let ram = GuestRam::new(5 * GIB).unwrap();
    for (start, _) in ram.ranges() {
        let host = ram.host_page(start).unwrap().host as u64;
        assert_eq!(host % HUGE_PAGE_SIZE, start % HUGE_PAGE_SIZE);
    }
}

#[test]
fn memory_outlives_the_ram_it_came_from() {
    let memory = GuestRam::new(4 * MIB).unwrap().memory().clone();
    memory.write_slice(&[9], GuestAddress(MIB)).unwrap();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(MIB)).unwrap(), 9);
}

#[test]
fn half_a_tebibyte_costs_what_is_touched() {
    let before = MemoryFigures::of_this_process().unwrap();
    let ram = GuestRam::new(512 * GIB).unwrap();
    ram.memory().write_slice(&[1; 4096], GuestAddress(513 * GIB - 4096)).unwrap();
    let logged: u32 = ram.trackers().flat_map(|(_, tracker)| tracker.take_dirty()).map(u64::count_ones).sum();
    let after = MemoryFigures::of_this_process().unwrap();
    assert_eq!((logged, ram.allocated_bytes().unwrap()), (1, 4096));
    // Other tests of this process allocate as well, but nobody 16 MiB: the dirty log alone would be that.
    let grown = after.monitor.resident.saturating_sub(before.monitor.resident);
    assert!(grown < 16 * MIB, "the tables take {grown} bytes");
}

#[test]
fn what_the_guest_touches_is_told_from_the_monitor() {
    let ram = GuestRam::new(64 * MIB).unwrap();
    ram.memory().write_slice(&vec![1; 32 << 20], GuestAddress(0)).unwrap();
    assert_eq!(ram.allocated_bytes().unwrap(), 32 * MIB);
    assert!(MemoryFigures::of_this_process().unwrap().guest.resident >= 32 * MIB);
}

#[test]
fn ram_prefers_the_host_node_it_is_given() {
    let mut config = nodes(&[4 * MIB, 4 * MIB], Pages::Host);
    config.nodes[1].host_node = Some(0);
    let ram = match GuestRam::with(&config) {
        Err(Error::Place { source, .. }) => return eprintln!("skipped: mbind is not permitted: {source}"),
        ram => ram.unwrap(),
    };
    let policies = [MIB, 5 * MIB].map(|address| policy(&ram, address));
    assert_eq!(policies, [(0, 0), (1, 1)], "(default, no node), (preferred, node 0)");
}

/// Mode and first nodes of the policy for an address.
fn policy(ram: &GuestRam, address: u64) -> (libc::c_int, u64) {
    const MPOL_F_ADDR: libc::c_long = 2;
    let (mut mode, mut mask): (libc::c_int, _) = (0, [0_u64; 16]);
    let host = ram.host_page(address).unwrap().host;
    // SAFETY: the kernel writes the mode and a mask of 1024 bits.
    let done = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, mask.as_mut_ptr(), 1025_usize, host, MPOL_F_ADDR)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    (mode, mask[0])
}

#[test]
fn a_node_the_host_does_not_have_is_refused() {
    let mut config = RamConfig::plain(4 * MIB);
    config.nodes[0].host_node = Some(1000);
    assert!(matches!(GuestRam::with(&config), Err(Error::NoHostNode { node: 1000, .. })));
}

#[test]
fn transparent_huge_pages_hold_a_guest_page_of_2_mib() {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    if !["[advise]", "[always]", "[within_size]"].iter().any(|word| setting.contains(word)) {
        return eprintln!("skipped: no transparent huge pages for shared memory on this host: {setting}");
    }
    let ram = GuestRam::with(&nodes(&[8 * MIB], Pages::Transparent)).unwrap();
    ram.memory().write_slice(&[1], GuestAddress(2 * MIB)).unwrap();
    assert_eq!(ram.allocated_bytes().unwrap(), HUGE_PAGE_SIZE, "the first write brings the whole page");
}

#[test]
fn a_pool_of_huge_pages_that_is_too_small_is_told_with_the_mend() {
    let error = GuestRam::with(&nodes(&[64 << 40], Pages::Huge2M)).unwrap_err();
    match error {
        Error::NoHugePages { .. } => eprintln!("skipped: no huge pages in this host's kernel"),
        Error::HugePool { wanted, free, mend, .. } => assert!(wanted == 32 << 20 && mend >= wanted - free),
        other => panic!("{other}"),
    }
}

/// Needs free huge pages: `sysctl vm.nr_hugepages=4`.
#[test]
fn reserved_huge_pages_are_taken_from_the_pool() {
    let ram = match GuestRam::with(&nodes(&[4 * MIB, 2 * MIB], Pages::Huge2M)) {
        Err(error @ (Error::HugePool { .. } | Error::NoHugePages { .. })) => return eprintln!("skipped: {error}"),
        ram => ram.unwrap(),
    };
    ram.memory().write_slice(&[1; 8], GuestAddress(4 * MIB - 4)).unwrap();
    assert_eq!(ram.allocated_bytes().unwrap(), 2 * HUGE_PAGE_SIZE);
    assert!(MemoryFigures::of_this_process().unwrap().guest.resident >= 2 * HUGE_PAGE_SIZE);
}

#[test]
fn memory_for_hot_plug_lies_above_and_is_not_for_boot_loaders() {
    let ram = GuestRam::with_hotplug(&RamConfig::plain(5 << 30), 4 << 20).unwrap();
    let start = 6 << 30;
    assert_eq!(ram.hotplug(), Some((start, 4 << 20)));
    assert_eq!(ram.ranges().last(), Some((start, 4 << 20)));
    assert!(ram.ranges_of(0).all(|(first, _)| first < start));
    crate::plug(ram.memory(), GuestAddress(start), 4 << 20).unwrap();
    assert!(ram.host_page(start + (4 << 20) - 1).is_some() && ram.host_page(start + (4 << 20)).is_none());
    ram.memory().write_slice(&[1; 8], GuestAddress(start)).unwrap();
    assert!(ram.boot_memory().write_slice(&[1; 8], GuestAddress(start)).is_err());
    assert_eq!(ram.allocated_bytes().unwrap(), PAGE_SIZE);
    let page = ram.host_page(start).unwrap();
    assert!(page.tracker.is_dirty(0));

    crate::unplug(ram.memory(), GuestAddress(start), 2 << 20).unwrap();
    assert!(ram.host_page(start).is_none() && ram.host_page(start + (2 << 20)).is_some());
    assert!(ram.memory().write_slice(&[1; 8], GuestAddress(start)).is_err());
    assert!(crate::plug(ram.memory(), GuestAddress(start), 4096).is_err(), "no whole block");

    assert_eq!(GuestRam::new(16 << 20).unwrap().hotplug(), None);
    assert!(matches!(GuestRam::with_hotplug(&RamConfig::plain(1 << 30), 4096), Err(Error::Unaligned { .. })));
    assert!(matches!(GuestRam::with_hotplug(&RamConfig::plain(1 << 30), 1 << 62), Err(Error::AddressSpace { .. })));
}
