use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::testing::{Driver, PATIENCE, Part, RAM_BYTES};

const PAGE: usize = PAGE_SIZE as usize;

fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

fn fill(driver: &Driver, page: u64, count: usize) {
    driver.memory().write_slice(&vec![0xa5; count * PAGE], GuestAddress(page * PAGE_SIZE)).unwrap();
}

/// Whether the pages from `address` on hold nothing but `byte`.
fn is(driver: &Driver, address: u64, pages: usize, byte: u8) -> bool {
    driver.read(address, pages * PAGE).iter().all(|b| *b == byte)
}

/// Bytes of host memory behind the guest's RAM.
fn resident(driver: &Driver) -> u64 {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let region = driver.memory().iter().next().unwrap();
    rustix::fs::fstat(region.file_offset().unwrap().file()).unwrap().st_blocks as u64 * 512
}

#[test]
fn inflated_pages_go_back_to_the_host_and_read_as_zeroes() {
    let mut driver = Driver::ready(Balloon::new().unwrap(), 0);
    fill(&driver, 1024, 64);
    // The page that the request itself will lie in.
    let request = driver.allocate(0);
    fill(&driver, request / PAGE_SIZE, 1);
    let before = resident(&driver);
    let pages: Vec<u32> = (1032..1064).rev().collect();
    driver.call(0, &[Part::Read(&numbers(&pages)), Part::Read(&numbers(&[1024]))]);
    assert_eq!(before - resident(&driver), 33 * PAGE_SIZE);
    assert!(is(&driver, 1024 * PAGE_SIZE, 1, 0) && is(&driver, 1032 * PAGE_SIZE, 32, 0));
    assert!(is(&driver, 1025 * PAGE_SIZE, 7, 0xa5) && is(&driver, 1064 * PAGE_SIZE, 24, 0xa5));
}

#[test]
fn the_dirty_log_knows_of_discarded_pages() {
    let mut driver = Driver::ready(Balloon::new().unwrap(), 0);
    fill(&driver, 1024, 1);
    for (_, tracker) in driver.ram.trackers() {
        tracker.take_dirty();
    }
    driver.call(0, &[Part::Read(&numbers(&[1024]))]);
    let page = driver.ram.host_page(1024 * PAGE_SIZE).unwrap();
    assert!(page.tracker.is_dirty(page.index));
}

#[test]
fn pages_outside_of_ram_change_nothing() {
    let mut driver = Driver::ready(Balloon::new().unwrap(), 0);
    fill(&driver, 1024, 4);
    let before = resident(&driver);
    let last = (RAM_BYTES / PAGE_SIZE) as u32;
    driver.call(0, &[Part::Read(&numbers(&[last, u32::MAX, last + 1, 0xc0000])), Part::Read(&[1, 2, 3])]);
    assert!(resident(&driver) >= before);
}

#[test]
fn deflate_requests_are_answered() {
    let mut driver = Driver::ready(Balloon::new().unwrap(), 0);
    assert_eq!(driver.call(1, &[Part::Read(&numbers(&[1024]))]).0, 0);
}

#[test]
fn a_new_target_interrupts_and_the_guest_answers_with_what_it_gave() {
    let balloon = Balloon::new().unwrap();
    let driver = Driver::ready(balloon.clone(), 0);
    balloon.set_target_bytes(5 * PAGE_SIZE + 17);
    assert_eq!(driver.read32(0x60), 2);
    assert_eq!(driver.config::<4>(0), [5, 0, 0, 0]);
    driver.write32(0x104, 3);
    assert_eq!((balloon.target_bytes(), balloon.actual_bytes()), (5 * PAGE_SIZE, 3 * PAGE_SIZE));
    driver.write32(0x100, 9);
    assert_eq!(balloon.target_bytes(), 5 * PAGE_SIZE);
}

#[test]
fn statistics_are_asked_for_and_read() {
    let balloon = Balloon::new().unwrap();
    let mut driver = Driver::ready(balloon.clone(), F_STATS_VQ);
    let stat = |tag: u16, value: u64| [tag.to_le_bytes().as_slice(), &value.to_le_bytes()].concat();
    let free = |balloon: &Balloon| balloon.stats().and_then(|(stats, _)| stats.free_bytes);
    assert_eq!(balloon.stats(), None);
    let first = driver.send(2, &[Part::Read(&[stat(4, 111), stat(999, 5), stat(6, 222)].concat())]);
    driver.kick(2);
    driver.wait_for("statistics", |_| free(&balloon));
    assert_eq!(driver.poll(2), None);
    let (stats, _) = balloon.stats().unwrap();
    assert_eq!((stats.free_bytes, stats.available_bytes, stats.total_bytes), (Some(111), Some(222), None));
    let asking = std::thread::spawn({
        let balloon = balloon.clone();
        move || balloon.refresh_stats(PATIENCE)
    });
    assert_eq!(driver.wait(2).0, first.head);
    driver.send(2, &[Part::Read(&stat(4, 333))]);
    driver.kick(2);
    assert!(asking.join().unwrap());
    assert_eq!(free(&balloon), Some(333));
    driver.reset();
    assert_eq!(balloon.stats(), None);
}

#[test]
fn reported_free_pages_go_back_to_the_host() {
    for (features, queue) in [(F_REPORTING, 2), (F_REPORTING | F_STATS_VQ, 3)] {
        let mut driver = Driver::ready(Balloon::new().unwrap(), features);
        let free = driver.allocate(0);
        fill(&driver, free / PAGE_SIZE, 17);
        let (_, parts) = driver.call(queue, &[Part::Write(16 * 4096)]);
        assert_eq!((parts[0], free % PAGE_SIZE), (free, 0));
        assert!(is(&driver, free, 16, 0) && is(&driver, free + 16 * PAGE_SIZE, 1, 0xa5));
    }
}

#[test]
fn a_request_of_too_many_pages_stops_the_device() {
    let mut driver = Driver::ready(Balloon::new().unwrap(), 0);
    driver.send(0, &[Part::Read(&vec![0; 80 << 10])]);
    driver.kick(0);
    driver.wait_broken();
}

#[test]
fn broken_rings_stop_the_device_until_it_is_reset() {
    for queue in 0..4 {
        let features = F_STATS_VQ | F_REPORTING;
        Driver::new(Balloon::new().unwrap()).every_broken_ring_stops_the_device(queue, features);
    }
}

#[test]
fn buffers_over_each_other_and_over_the_rings_do_no_harm() {
    for queue in 0..4 {
        let features = F_STATS_VQ | F_REPORTING;
        Driver::in_lockstep(Balloon::new().unwrap()).overlapping_buffers_do_no_harm(queue, features);
    }
}
