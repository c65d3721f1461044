//! The register protocol, on a device that echoes.

use super::*;
use vm_memory::{Bytes, GuestAddress};

use crate::devices::virtio::testing::{self, Driver, Part};
use crate::devices::virtio::worker::{Fault, Handler, Poller, Ready, Worker};
use crate::devices::virtio::{ActivateError, read_config_bytes};

const ECHO_FEATURE: u64 = 1 << 3;

/// Copies what it reads to what it may write.
#[derive(Default)]
struct Echo {
    worker: Mutex<Option<Worker<EchoHandler>>>,
}

struct EchoHandler(VirtQueue);

impl Handler for EchoHandler {
    fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
        poller.add(self.0.kick_fd(), 0, Ready::IN)?;
        self.handle(0, Ready::IN, poller)
    }

    fn handle(&mut self, _token: u64, _ready: Ready, _poller: &Poller) -> Result<(), Fault> {
        self.0.clear_kick();
        Ok(self.0.serve(|memory, chain| {
            let mut data = vec![0; chain.readable.bytes() as usize];
            chain.readable.read_at(memory, 0, &mut data);
            Ok(chain.writable.write_at(memory, 0, &data) as u32)
        })?)
    }
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        ECHO_FEATURE
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![64]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&[1, 2, 3], offset, data);
    }
    fn activate(&self, mut activation: Activation) -> Result<(), ActivateError> {
        let handler = EchoHandler(activation.take_queue(0)?);
        let worker = Worker::spawn("echo", handler, activation.interrupt).map_err(ActivateError::Thread)?;
        *lock(&self.worker) = Some(worker);
        Ok(())
    }
    fn reset(&self) {
        if let Some(worker) = lock(&self.worker).take() {
            worker.stop();
        }
    }
}

fn echo() -> Arc<dyn VirtioDevice> {
    Arc::new(Echo::default())
}

#[test]
fn the_registers_show_a_version_2_device() {
    let driver = Driver::new(echo());
    assert_eq!((driver.read32(0), driver.read32(4), driver.read32(8)), (0x7472_6976, 2, 42));
    driver.write32(0x14, 0);
    assert_eq!(u64::from(driver.read32(0x10)), ECHO_FEATURE | feature::EVENT_IDX | feature::INDIRECT_DESC);
    driver.write32(0x14, 1);
    assert_eq!(driver.read32(0x10), 1);
    driver.write32(0x14, 2);
    assert_eq!(driver.read32(0x10), 0);
    assert_eq!(driver.read32(0xb0), u32::MAX);
    assert_eq!(driver.config::<4>(1), [2, 3, 0, 0]);
    assert_eq!(driver.config::<2>(0xeff), [0, 0]);
}

#[test]
fn a_request_comes_back_and_raises_the_line_until_it_is_acknowledged() {
    let mut driver = Driver::ready(echo(), 0);
    let (written, parts) = driver.call(0, &[Part::Read(b"hello"), Part::Write(3), Part::Write(8)]);
    assert_eq!(written, 5);
    assert_eq!((driver.read(parts[1], 3), driver.read(parts[2], 2)), (b"hel".to_vec(), b"lo".to_vec()));
    driver.wait_for("the interrupt", |d| d.line.is_high().then_some(()));
    assert_eq!(driver.read32(0x60), 1);
    driver.write32(0x64, 1);
    assert_eq!(driver.read32(0x60), 0);
    assert!(!driver.line.is_high());
}

#[test]
fn an_indirect_table_is_followed() {
    let mut driver = Driver::ready(echo(), feature::INDIRECT_DESC);
    let table = driver.allocate(64);
    let data = driver.allocate(64);
    driver.memory().write_slice(b"indirect", GuestAddress(data)).unwrap();
    driver.descriptor(table, 0, data, 8, testing::NEXT, 1);
    driver.descriptor(table, 1, data + 32, 8, testing::WRITE, 0);
    driver.descriptor(Driver::table(0), 0, table, 32, testing::INDIRECT, 0);
    driver.offer(0, 0);
    driver.kick(0);
    assert_eq!(driver.wait(0), (0, 8));
    assert_eq!(driver.read(data + 32, 8), b"indirect");
}

#[test]
fn the_event_index_holds_interrupts_back_until_the_driver_wants_one() {
    let mut driver = Driver::ready(echo(), feature::EVENT_IDX);
    driver.set_used_event(0, 2);
    for _ in 0..2 {
        driver.call(0, &[Part::Read(b"x"), Part::Write(1)]);
        assert_eq!(driver.line.raises(), 0);
    }
    driver.call(0, &[Part::Read(b"x"), Part::Write(1)]);
    driver.wait_for("the interrupt", |d| (d.line.raises() == 1).then_some(()));
}

#[test]
fn a_driver_that_refuses_interrupts_gets_none() {
    let mut driver = Driver::ready(echo(), 0);
    driver.set_available_flags(0, 1);
    driver.call(0, &[Part::Read(b"x"), Part::Write(1)]);
    // The second answer comes after the first would have interrupted.
    driver.call(0, &[Part::Read(b"x"), Part::Write(1)]);
    assert_eq!(driver.line.raises(), 0);
    driver.set_available_flags(0, 0);
    driver.call(0, &[Part::Read(b"x"), Part::Write(1)]);
    driver.wait_for("the interrupt", |d| (d.line.raises() == 1).then_some(()));
}

#[test]
fn features_that_were_not_offered_do_not_stick() {
    let mut driver = Driver::new(echo());
    for features in [feature::VERSION_1 | 1, feature::VERSION_1 | 1 << 40, ECHO_FEATURE] {
        driver.write32(0x70, 0);
        driver.negotiate(features);
        assert_eq!(driver.status(), 3, "{features:#x}");
        driver.write32(0x70, 7);
        assert_eq!(driver.status() & 4, 0);
    }
    driver.write32(0x70, 0);
    driver.negotiate(feature::VERSION_1 | ECHO_FEATURE);
    assert_eq!(driver.status(), 11);
}

#[test]
fn status_bits_are_not_taken_back_without_a_reset() {
    let mut driver = Driver::ready(echo(), 0);
    driver.write32(0x70, 1);
    assert_eq!(driver.status(), 15);
    driver.reset();
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_queue_outside_of_ram_needs_a_reset() {
    let mut driver = Driver::new(echo());
    driver.negotiate(feature::VERSION_1);
    driver.set_up_queues();
    driver.write32(0x30, 0);
    driver.write32(0x44, 0);
    driver.write32(0x84, 0x1000);
    driver.write32(0x44, 1);
    driver.write32(0x70, 15);
    assert_eq!(driver.status() & 64, 64);
    driver.reset();
    driver.start(0);
    driver.call(0, &[Part::Read(b"x"), Part::Write(1)]);
}

#[test]
fn a_queue_that_was_not_set_up_needs_a_reset() {
    let mut driver = Driver::new(echo());
    driver.negotiate(feature::VERSION_1);
    driver.write32(0x70, 15);
    assert_eq!(driver.status() & 64, 64);
}

#[test]
fn odd_accesses_do_nothing() {
    let driver = Driver::ready(echo(), 0);
    driver.transport.write(0x70, &[0]);
    driver.transport.write(0x70, &[0; 8]);
    driver.write32(0x30, 77);
    driver.write32(0x38, 8);
    driver.write32(0x44, 1);
    driver.write32(0x50, 77);
    assert_eq!((driver.status(), driver.read32(0x34)), (15, 0));
}

#[test]
fn broken_rings_stop_the_device_until_it_is_reset() {
    Driver::new(echo()).every_broken_ring_stops_the_device(0, feature::INDIRECT_DESC);
}

#[test]
fn a_device_can_be_reset_and_started_again_while_it_works() {
    let mut driver = Driver::new(echo());
    for _ in 0..50 {
        driver.start(0);
        for _ in 0..8 {
            driver.send(0, &[Part::Read(b"abc"), Part::Write(3)]);
            driver.kick(0);
        }
        driver.reset();
        assert_eq!((driver.status(), driver.read32(0x60), driver.line.is_high()), (0, 0, false));
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    /// Whatever lies in the table and the ring, the device answers or asks for a reset, and works after one.
    #[test]
    fn random_descriptors_harm_nothing(
        words in proptest::collection::vec(
            (0u64..0x90_0000, proptest::prop_oneof![0u32..5000, proptest::num::u32::ANY], 0u16..8, 0u16..70), 64),
        heads in proptest::collection::vec(0u16..66, 1..20),
    ) {
        let mut driver = Driver::ready(echo(), feature::INDIRECT_DESC);
        for (i, (address, len, flags, next)) in (0u16..).zip(words) {
            // The rings themselves are left alone: a device that overwrites them on request is no finding.
            let address = if address < 0x10_0000 { address + 0x10_0000 } else { address };
            driver.descriptor(Driver::table(0), i, address, len, flags, next);
        }
        for head in &heads {
            driver.offer(0, *head);
        }
        driver.kick(0);
        let mut used = 0;
        driver.wait_for("an end", |d| {
            used += usize::from(d.poll(0).is_some());
            (used == heads.len() || d.status() & 64 != 0).then_some(())
        });
        driver.reset();
        driver.start(0);
        proptest::prop_assert_eq!(driver.call(0, &[Part::Read(b"x"), Part::Write(1)]).0, 1);
    }
}

#[test]
fn buffers_over_each_other_and_over_the_rings_do_no_harm() {
    Driver::in_lockstep(echo()).overlapping_buffers_do_no_harm(0, feature::INDIRECT_DESC);
}
