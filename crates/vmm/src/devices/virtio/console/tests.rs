use super::handler::INPUT_BYTES;
use super::{Console, ConsoleConfig, F_SIZE, Output, lock};
use std::sync::Arc;

use crate::devices::output::LIMIT_BYTES;
use crate::devices::output::testing::Screen;
use crate::devices::virtio::testing::{Driver, PATIENCE, Part};

struct Bench {
    console: Arc<Console>,
    output: Arc<Output>,
    screen: Screen,
}

fn bench(columns: u16, rows: u16) -> Bench {
    let screen = Screen::default();
    let output = screen.output();
    let console = ConsoleConfig { output: output.clone(), repeatable: false, columns, rows }.build().unwrap();
    Bench { console, output, screen }
}

impl Bench {
    fn shown(&self) -> Vec<u8> {
        assert!(self.output.flush(PATIENCE));
        lock(&self.screen.bytes).clone()
    }
}

fn console() -> (Arc<Console>, Bench) {
    let bench = bench(0, 0);
    (bench.console.clone(), bench)
}

#[test]
fn what_the_guest_writes_reaches_the_sink_in_order() {
    let (console, screen) = console();
    let mut driver = Driver::ready(console, F_SIZE);
    let long = vec![b'x'; 10000];
    driver.call(1, &[Part::Read(b"hello "), Part::Read(b"world"), Part::Read(&long)]);
    assert_eq!(screen.shown(), [b"hello world".as_slice(), &long].concat());
}

#[test]
fn typed_bytes_wait_for_buffers_and_fill_them_in_order() {
    let (console, _) = console();
    assert_eq!(console.push_input(b"early "), 6);
    let mut driver = Driver::ready(console.clone(), F_SIZE);
    let (written, parts) = driver.call(0, &[Part::Write(4)]);
    assert_eq!((written, driver.read(parts[0], 4)), (4, b"earl".to_vec()));
    let (written, parts) = driver.call(0, &[Part::Write(64)]);
    assert_eq!((written, driver.read(parts[0], 2)), (2, b"y ".to_vec()));
    let sent = driver.send(0, &[Part::Write(64)]);
    driver.kick(0);
    console.push_input(b"late");
    let (head, written) = driver.wait(0);
    assert_eq!((head, written, driver.read(sent.parts[0], 4)), (sent.head, 4, b"late".to_vec()));
}

#[test]
fn input_is_bounded() {
    let (console, _) = console();
    assert_eq!(console.push_input(&vec![0; INPUT_BYTES + 5]), INPUT_BYTES);
    assert_eq!(console.push_input(b"x"), 0);
}

#[test]
fn a_new_size_raises_a_configuration_interrupt() {
    let (console, _) = console();
    let driver = Driver::ready(console.clone(), F_SIZE);
    assert_eq!(driver.read32(0x60), 0, "there is no size to announce");
    let generation = driver.read32(0xfc);
    console.resize(132, 50);
    assert_eq!(driver.config::<4>(0), [132, 0, 50, 0]);
    assert_eq!((driver.read32(0x60), driver.line.is_high()), (2, true));
    assert_ne!(driver.read32(0xfc), generation);
}

#[test]
fn a_size_known_at_the_start_is_announced_to_the_driver() {
    let bench = bench(80, 25);
    let driver = Driver::ready(bench.console.clone(), F_SIZE);
    assert_eq!(driver.config::<4>(0), [80, 0, 25, 0]);
    assert_eq!((driver.read32(0x60), driver.line.is_high()), (2, true));
}

#[test]
fn a_screen_that_blocks_holds_back_the_guests_buffers_and_loses_nothing() {
    let (console, screen) = console();
    let mut driver = Driver::ready(console, F_SIZE);
    let gate = lock(&screen.screen.gate);
    screen.output.block_writer();
    let line = [b'x'; 4096];
    let count = 4 * LIMIT_BYTES / line.len();
    for _ in 0..count {
        driver.send(1, &[Part::Read(&line)]);
    }
    driver.kick(1);
    driver.wait_for("a full buffer", |_| screen.output.is_full().then_some(()));
    let early = std::iter::from_fn(|| driver.poll(1)).count();
    assert!(early < count, "{early} of {count} buffers are done although the screen blocks");
    drop(gate);
    for _ in early..count {
        driver.wait(1);
    }
    assert_eq!(screen.shown().len(), 1 + count * line.len());
}

#[test]
fn a_screen_that_blocks_does_not_hold_up_a_reset() {
    let (console, screen) = console();
    let mut driver = Driver::ready(console, F_SIZE);
    let gate = lock(&screen.screen.gate);
    screen.output.block_writer();
    driver.send(1, &[Part::Read(&vec![b'x'; 4 * LIMIT_BYTES])]);
    driver.kick(1);
    driver.wait_for("a full buffer", |_| screen.output.is_full().then_some(()));
    driver.reset();
    assert_eq!(driver.status(), 0);
    drop(gate);
}

#[test]
fn emergency_writes_need_no_queue() {
    let (console, screen) = console();
    let driver = Driver::new(console);
    driver.write32(0x108, u32::from(b'!'));
    assert_eq!(screen.shown(), b"!");
}

#[test]
fn broken_rings_stop_the_device_until_it_is_reset() {
    for queue in [0, 1] {
        let (console, _) = console();
        console.push_input(&[b'x'; 100]);
        Driver::new(console).every_broken_ring_stops_the_device(queue, F_SIZE);
    }
}

#[test]
fn buffers_over_each_other_and_over_the_rings_do_no_harm() {
    for queue in [0, 1] {
        let (console, _) = console();
        console.push_input(&[b'x'; 100]);
        Driver::in_lockstep(console).overlapping_buffers_do_no_harm(queue, F_SIZE);
    }
}
