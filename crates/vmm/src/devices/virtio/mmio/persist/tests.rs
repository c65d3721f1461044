//! Devices that are stopped in one machine and go on in another.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use queztl_storage::{RawConfig, RawFile};
use serde_json::Value;

use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::block::BlockConfig;
use crate::devices::virtio::limit::{Limiter, RateLimit};
use crate::devices::virtio::mem::{BLOCK_BYTES, Mem};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::testing::{Driver, Part};
use crate::devices::virtio::vsock::VsockConfig;

fn block(file: &tempfile::NamedTempFile) -> Arc<dyn VirtioDevice> {
    let raw = RawConfig { path: file.path().into(), read_only: false, direct: false, in_order: false };
    let disk = Arc::new(RawFile::open(&raw).unwrap());
    let limiter = Limiter::new(RateLimit::default());
    BlockConfig { disk, serial: String::new(), queues: 1, limiter }.build().unwrap()
}

/// The header of a write to `sector`.
fn write_header(sector: u64) -> Vec<u8> {
    [1u32.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat()
}

#[test]
fn a_moved_device_takes_what_was_waiting_and_repeats_nothing() {
    let mut driver = Driver::ready(Rng::new(), 0);
    (0..300).for_each(|_| drop(driver.call(0, &[Part::Write(16)])));
    // Made available, but never announced: the new device must look by itself.
    let waiting = driver.send(0, &[Part::Write(16)]);

    let mut driver = driver.moved_to(Rng::new());

    assert_eq!(driver.wait(0), (waiting.head, 16));
    assert!(driver.line.is_high());
    assert_eq!(driver.call(0, &[Part::Write(32)]).0, 32);
    assert!(driver.poll(0).is_none());
}

#[test]
fn a_moved_disk_goes_on_where_it_was() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let mut driver = Driver::ready(block(&file), 0);
    for sector in 0..20 {
        driver.call(0, &[Part::Read(&write_header(sector)), Part::Read(&[1; 512]), Part::Write(1)]);
    }
    let saved = driver.saved();
    driver.transport.reset();

    // The first disk holds the file's lock; it goes with its machine.
    let (driver, result) = driver.restored(Rng::new(), saved.clone());
    assert!(result.unwrap_err().contains("another device"));
    let (mut driver, result) = driver.restored(block(&file), saved);
    result.unwrap();
    for sector in 20..40 {
        driver.call(0, &[Part::Read(&write_header(sector)), Part::Read(&[2; 512]), Part::Write(1)]);
    }

    let mut bytes = vec![0; 40 * 512];
    file.as_file().read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..20 * 512] == [1; 20 * 512] && bytes[20 * 512..] == [2; 20 * 512]);
}

#[test]
fn a_moved_balloon_keeps_its_size_and_its_statistics_buffer() {
    const STATS: u64 = 1 << 1;
    let balloon = Balloon::new().unwrap();
    balloon.set_target_bytes(1 << 20);
    let mut driver = Driver::ready(balloon, STATS);
    driver.transport_write_config(4, 17);
    // The device holds on to this buffer until it wants new figures.
    let numbers = [4u16.to_le_bytes().as_slice(), &4096u64.to_le_bytes()].concat();
    driver.send(2, &[Part::Read(&numbers)]);
    driver.kick(2);

    let balloon = Balloon::new().unwrap();
    let mut driver = driver.moved_to(balloon.clone());

    assert_eq!((balloon.target_bytes(), balloon.actual_bytes()), (1 << 20, 17 << 12));
    let asked = std::thread::spawn(move || balloon.refresh_stats(Duration::from_secs(10)));
    driver.wait(2);
    driver.send(2, &[Part::Read(&numbers)]);
    driver.kick(2);
    assert!(asked.join().unwrap());
}

#[test]
fn moved_hot_plug_memory_keeps_its_blocks() {
    const START: u64 = 1 << 32;
    let mut driver = Driver::with_hotplug(100 * BLOCK_BYTES, |ram| {
        let from = Mem::new(ram.memory().clone(), START, 100 * BLOCK_BYTES);
        from.set_requested_bytes(70 * BLOCK_BYTES);
        from
    });
    driver.start(0);
    let plug = |block: u64, count: u16| {
        let address = START + block * BLOCK_BYTES;
        let padding = [0; 6];
        [&0u16.to_le_bytes()[..], &padding, &address.to_le_bytes(), &count.to_le_bytes(), &padding].concat()
    };
    driver.call(0, &[Part::Read(&plug(63, 3)), Part::Write(10)]);

    let to = Mem::new(driver.ram.memory().clone(), START, 100 * BLOCK_BYTES);
    let mut driver = driver.moved_to(to.clone());

    assert_eq!((to.plugged_bytes(), to.requested_bytes()), (3 * BLOCK_BYTES, 70 * BLOCK_BYTES));
    let (_, parts) = driver.call(0, &[Part::Read(&plug(65, 1)), Part::Write(10)]);
    assert_eq!(driver.read(parts[1], 2), [3, 0], "the block is plugged already");
}

#[test]
fn the_guest_learns_that_its_socket_connections_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let device = |name: &str| VsockConfig { guest_cid: 3, path: folder.path().join(name) }.build().unwrap();
    let mut driver = Driver::ready(device("first"), 0);
    let event = driver.send(2, &[Part::Write(4)]);

    let mut driver = driver.moved_to(device("second"));

    assert_eq!(driver.wait(2), (event.head, 4));
    assert_eq!(driver.read(event.parts[0], 4), [0; 4]);
}

#[test]
fn a_device_that_was_never_started_stays_so() {
    let mut driver = Driver::new(Rng::new()).moved_to(Rng::new());
    assert_eq!(driver.status(), 0);
    driver.start(0);
    assert_eq!(driver.call(0, &[Part::Write(8)]).0, 8);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A state with wrong numbers is refused, stops the device, or harms only what the guest could harm itself.
    #[test]
    fn no_state_makes_the_program_fall(damage in prop::collection::vec((any::<prop::sample::Index>(), number()), 1..5)) {
        let mut driver = Driver::ready(Rng::new(), 0);
        driver.call(0, &[Part::Write(8)]);
        let mut saved = driver.saved();
        driver.transport.reset();
        for (place, value) in damage {
            let mut numbers = Vec::new();
            collect_numbers(&mut saved, &mut numbers);
            *numbers.swap_remove(place.index(numbers.len())) = value.into();
        }
        let (mut driver, result) = driver.restored(Rng::new(), saved);
        if result.is_ok() {
            driver.send(0, &[Part::Write(8)]);
            driver.kick(0);
            std::thread::sleep(Duration::from_millis(1));
        }
        driver.reset();
        driver.start(0);
        prop_assert_eq!(driver.call(0, &[Part::Write(8)]).0, 8);
    }
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(u64::from(u32::MAX)), 0u64..256, any::<u64>()]
}

fn collect_numbers<'a>(value: &'a mut Value, numbers: &mut Vec<&'a mut Value>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| collect_numbers(item, numbers)),
        Value::Object(fields) => fields.values_mut().for_each(|field| collect_numbers(field, numbers)),
        Value::Number(_) => numbers.push(value),
        _ => (),
    }
}
