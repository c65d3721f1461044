use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::devices::virtio::testing::{Driver, Part};

/// Where the region lies, two blocks.
const START: u64 = 4 << 30;
const ACK: (u16, u16) = (0, 0);
const NACK: (u16, u16) = (1, 0);
const ERROR: (u16, u16) = (3, 0);

fn setup(requested_blocks: u64) -> (Arc<Mem>, Driver) {
    let mut mem = None;
    let mut driver = Driver::with_hotplug(2 * BLOCK_BYTES, |ram| {
        assert_eq!(ram.hotplug(), Some((START, 2 * BLOCK_BYTES)));
        mem.insert(Mem::new(ram.memory().clone(), START, 2 * BLOCK_BYTES)).clone()
    });
    let mem = mem.unwrap();
    mem.set_requested_bytes(requested_blocks * BLOCK_BYTES);
    driver.start(F_UNPLUGGED_INACCESSIBLE);
    (mem, driver)
}

fn request(kind: u16, address: u64, count: u16) -> [u8; 24] {
    let mut request = [0; 24];
    request[..2].copy_from_slice(&kind.to_le_bytes());
    request[8..16].copy_from_slice(&address.to_le_bytes());
    request[16..18].copy_from_slice(&count.to_le_bytes());
    request
}

/// The answer and the state in it.
fn ask(driver: &mut Driver, kind: u16, address: u64, count: u16) -> (u16, u16) {
    let (written, parts) = driver.call(0, &[Part::Read(&request(kind, address, count)), Part::Write(10)]);
    assert_eq!(written, 10);
    let response = driver.read(parts[1], 10);
    (u16::from_le_bytes([response[0], response[1]]), u16::from_le_bytes([response[8], response[9]]))
}

#[test]
fn the_guest_plugs_what_is_requested_and_no_more() {
    let (mem, mut driver) = setup(1);
    assert_eq!(ask(&mut driver, 0, START, 2), NACK);
    assert_eq!(ask(&mut driver, 0, START, 1), ACK);
    assert_eq!(ask(&mut driver, 0, START + BLOCK_BYTES, 1), NACK);
    assert_eq!(mem.plugged_bytes(), BLOCK_BYTES);
    mem.set_requested_bytes(u64::MAX);
    assert_eq!(driver.read32(0x60) & 2, 2, "a new size interrupts");
    assert_eq!(ask(&mut driver, 0, START + BLOCK_BYTES, 1), ACK);
    assert_eq!((mem.plugged_bytes(), mem.requested_bytes()), (2 * BLOCK_BYTES, 2 * BLOCK_BYTES));
}

#[test]
fn unplugged_blocks_go_back_to_the_host_and_others_stay() {
    let (mem, mut driver) = setup(2);
    assert_eq!(ask(&mut driver, 0, START, 2), ACK);
    driver.memory().write_slice(&vec![7; 2 * BLOCK_BYTES as usize], GuestAddress(START)).unwrap();
    let before = driver.ram.allocated_bytes().unwrap();
    assert_eq!(ask(&mut driver, 1, START, 1), ACK);
    assert_eq!(before - driver.ram.allocated_bytes().unwrap(), BLOCK_BYTES);
    assert_eq!(driver.read(START + BLOCK_BYTES, 8), [7; 8]);
    assert_eq!(ask(&mut driver, 2, 0, 0), ACK);
    assert_eq!(mem.plugged_bytes(), 0);
    assert_eq!(ask(&mut driver, 0, START, 2), ACK);
    assert_eq!((driver.read(START, 8), driver.read(START + BLOCK_BYTES, 8)), (vec![0; 8], vec![0; 8]));
}

#[test]
fn blocks_that_are_not_plugged_are_no_memory_to_anybody() {
    let (_, mut driver) = setup(2);
    let is_memory = |driver: &Driver, block: u64| {
        let address = START + block * BLOCK_BYTES;
        let device = driver.memory().write_slice(&[1], GuestAddress(address)).is_ok();
        assert_eq!(driver.ram.host_page(address).is_some(), device);
        device
    };
    assert!(!is_memory(&driver, 0) && !is_memory(&driver, 1));
    assert_eq!(ask(&mut driver, 0, START + BLOCK_BYTES, 1), ACK);
    assert!(!is_memory(&driver, 0) && is_memory(&driver, 1));
    assert!(!driver.memory().check_range(GuestAddress(START + BLOCK_BYTES - 1), 2), "half of it is none");
    assert_eq!(ask(&mut driver, 1, START + BLOCK_BYTES, 1), ACK);
    assert!(!is_memory(&driver, 1));
}

#[test]
fn memory_that_an_accelerator_does_not_take_is_not_plugged() {
    let (mem, mut driver) = setup(2);
    driver
        .ram
        .watch_plugging(|change| if change.plugged { Err(std::io::ErrorKind::OutOfMemory.into()) } else { Ok(()) });
    assert_eq!(ask(&mut driver, 0, START, 1), (2, 0), "busy");
    assert_eq!((mem.plugged_bytes(), driver.ram.host_page(START).is_some()), (0, false));
}

#[test]
fn the_state_of_blocks_is_told() {
    let (_, mut driver) = setup(2);
    assert_eq!(ask(&mut driver, 0, START, 1), ACK);
    assert_eq!(ask(&mut driver, 3, START, 1), (0, 0));
    assert_eq!(ask(&mut driver, 3, START + BLOCK_BYTES, 1), (0, 1));
    assert_eq!(ask(&mut driver, 3, START, 2), (0, 2));
}

#[test]
fn senseless_requests_are_errors_and_change_nothing() {
    let (mem, mut driver) = setup(2);
    assert_eq!(ask(&mut driver, 0, START, 1), ACK);
    driver.memory().write_slice(&[7; 8], GuestAddress(START)).unwrap();
    let places = [
        (0, 1),
        (START - BLOCK_BYTES, 1),
        (START + 4096, 1),
        (START, 0),
        (START, 3),
        (START + 2 * BLOCK_BYTES, 1),
        (u64::MAX, 1),
        (u64::MAX - BLOCK_BYTES + 1, u16::MAX),
        (START, u16::MAX),
    ];
    for kind in [0, 1, 3] {
        for (address, count) in places {
            assert_eq!(ask(&mut driver, kind, address, count), ERROR, "{kind} at {address:#x}, {count} blocks");
        }
    }
    assert_eq!(ask(&mut driver, 0, START, 1), ERROR, "plugged twice");
    assert_eq!(ask(&mut driver, 1, START + BLOCK_BYTES, 1), ERROR, "unplugged, though it was not plugged");
    assert_eq!(ask(&mut driver, 1, START, 2), ERROR, "partly plugged");
    assert_eq!(ask(&mut driver, 4, START, 1), ERROR, "no such request");
    assert_eq!((mem.plugged_bytes(), driver.read(START, 8)), (BLOCK_BYTES, vec![7; 8]));
}

#[test]
fn plugged_blocks_survive_a_reset_of_the_device() {
    let (mem, mut driver) = setup(2);
    assert_eq!(ask(&mut driver, 0, START, 1), ACK);
    driver.memory().write_slice(&[7; 8], GuestAddress(START)).unwrap();
    driver.reset();
    driver.start(0);
    assert_eq!((mem.plugged_bytes(), driver.read(START, 8)), (BLOCK_BYTES, vec![7; 8]));
}

#[test]
fn the_configuration_space_says_where_and_how_much() {
    let (mem, mut driver) = setup(1);
    assert_eq!(ask(&mut driver, 0, START, 1), ACK);
    let field = |n: u64| u64::from_le_bytes(driver.config(n * 8));
    let fields = [BLOCK_BYTES, 0, START, 2 * BLOCK_BYTES, 2 * BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES];
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(field), fields);
    assert_eq!(mem.region_bytes(), 2 * BLOCK_BYTES);
}

#[test]
fn chains_that_are_no_requests_stop_the_device() {
    for parts in [[Part::Read(&[0; 23]), Part::Write(10)], [Part::Read(&[0; 24]), Part::Write(9)]] {
        let (_, mut driver) = setup(2);
        driver.send(0, &parts);
        driver.kick(0);
        driver.wait_broken();
    }
}

#[test]
fn broken_rings_stop_the_device_until_it_is_reset() {
    let (_, mut driver) = setup(1);
    driver.every_broken_ring_stops_the_device(0, 0);
}

proptest! {
    /// Whatever is asked for, the sums are right and the limits hold.
    #[test]
    fn plugged_bytes_are_the_plugged_blocks(steps in proptest::collection::vec((0u8..5, 0u64..520, 0u16..300), 1..60)) {
        const BLOCKS: u64 = 512;
        let mut blocks = Blocks::new(START, BLOCKS * BLOCK_BYTES);
        for (kind, place, count) in steps {
            let address = START + place * BLOCK_BYTES;
            let before = blocks.plugged_bytes();
            match kind {
                0 => blocks.request(place * BLOCK_BYTES),
                1 | 2 => {
                    let answer = blocks.plug(address, count);
                    let grown = blocks.plugged_bytes() - before;
                    prop_assert_eq!(grown, if answer == Answer::Ack { u64::from(count) * BLOCK_BYTES } else { 0 });
                    prop_assert!(grown == 0 || blocks.plugged_bytes() <= blocks.requested_bytes());
                }
                3 => drop(blocks.unplug(address, count)),
                _ => blocks.unplug_all(),
            }
            prop_assert!(blocks.usable_bytes() <= blocks.region_bytes());
            let plugged = (0..BLOCKS).filter(|n| {
                blocks.state(START + n * BLOCK_BYTES, 1) == Some(super::blocks::BlockState::Plugged)
            });
            prop_assert_eq!(plugged.count() as u64 * BLOCK_BYTES, blocks.plugged_bytes());
        }
    }
}
