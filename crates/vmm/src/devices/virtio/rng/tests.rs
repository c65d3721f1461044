use super::*;
use crate::devices::virtio::limit::Rate;
use crate::devices::virtio::testing::{Driver, Part};

#[test]
fn buffers_are_filled_with_different_bytes() {
    let mut driver = Driver::ready(Rng::new(), 0);
    let (written, parts) = driver.call(0, &[Part::Write(32), Part::Write(32)]);
    assert_eq!(written, 64);
    let (first, second) = (driver.read(parts[0], 32), driver.read(parts[1], 32));
    assert!(first != second && first != [0; 32] && second != [0; 32]);
}

#[test]
fn one_request_gets_a_bounded_answer() {
    let mut driver = Driver::ready(Rng::new(), 0);
    let (written, _) = driver.call(0, &[Part::Write(4 << 20)]);
    assert_eq!(u64::from(written), MAX_REQUEST_BYTES);
}

#[test]
fn a_request_with_nothing_to_fill_comes_back_empty() {
    let mut driver = Driver::ready(Rng::new(), 0);
    assert_eq!(driver.call(0, &[Part::Read(b"seed")]).0, 0);
    assert_eq!(driver.call(0, &[Part::Write(0)]).0, 0);
}

#[test]
fn broken_rings_stop_the_device_until_it_is_reset() {
    Driver::new(Rng::new()).every_broken_ring_stops_the_device(0, 0);
}

#[test]
fn repeatable_devices_give_the_same_bytes_and_others_do_not() {
    let bytes = |rng| {
        let mut driver = Driver::ready(rng, 0);
        let (_, parts) = driver.call(0, &[Part::Write(32)]);
        driver.read(parts[0], 32)
    };
    assert_eq!(bytes(Rng::repeatable(7)), bytes(Rng::repeatable(7)));
    assert_ne!(bytes(Rng::repeatable(7)), bytes(Rng::repeatable(8)));
    assert_ne!(bytes(Rng::new()), bytes(Rng::new()));
}

#[test]
fn no_more_random_bytes_than_the_limit_allows() {
    let limiter = Limiter::new(RateLimit { bytes: Some(Rate { per_second: 1, burst: 64 }), requests: None });
    let mut driver = Driver::ready(Rng::limited(limiter.clone()), 0);
    assert_eq!(driver.call(0, &[Part::Write(64)]).0, 64);
    driver.send(0, &[Part::Write(64)]);
    driver.kick(0);
    driver.wait_for("throttling", |_| (limiter.waits() > 0).then_some(()));
    assert_eq!(driver.poll(0), None);
    limiter.set(RateLimit::default());
    assert_eq!(driver.wait(0).1, 64);
}

#[test]
fn buffers_over_each_other_and_over_the_rings_do_no_harm() {
    Driver::in_lockstep(Rng::new()).overlapping_buffers_do_no_harm(0, 0);
}

/// Asking not to be notified makes a chain available there, asking to be notified takes it back.
#[test]
fn a_ring_whose_flags_lie_over_the_other_index_does_not_keep_the_thread_for_ever() {
    const DESCRIPTORS: u64 = 0x1_0000;
    const AVAILABLE: u64 = 0x2_0002;
    const USED: u64 = AVAILABLE + 2;
    let mut driver = Driver::new(Rng::new());
    driver.negotiate(crate::devices::virtio::feature::VERSION_1);
    driver.write32(0x30, 0);
    driver.write32(0x38, 16);
    for (register, address) in [(0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xa0, USED)] {
        driver.write32(register, address as u32);
        driver.write32(register + 4, 0);
    }
    driver.write32(0x44, 1);
    driver.write32(0x70, 15);
    driver.wait_broken();
    driver.reset();
    assert_eq!(driver.status(), 0);
}
