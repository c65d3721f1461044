use super::handler::INPUT_BYTES;
use super::*;
use crate::devices::virtio::testing::{Driver, Part};

/// A sink whose content the test can see.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn console() -> (Arc<Console>, Screen) {
    let screen = Screen::default();
    let config = ConsoleConfig { output: Box::new(screen.clone()), columns: 80, rows: 25 };
    (config.build().unwrap(), screen)
}

#[test]
fn what_the_guest_writes_reaches_the_sink_in_order() {
    let (console, screen) = console();
    let mut driver = Driver::ready(console, F_SIZE);
    let long = vec![b'x'; 10000];
    driver.call(1, &[Part::Read(b"hello "), Part::Read(b"world"), Part::Read(&long)]);
    assert_eq!(*lock(&screen.0), [b"hello world".as_slice(), &long].concat());
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
    assert_eq!(driver.config::<4>(0), [80, 0, 25, 0]);
    let generation = driver.read32(0xfc);
    console.resize(132, 50);
    assert_eq!(driver.config::<4>(0), [132, 0, 50, 0]);
    assert_eq!((driver.read32(0x60), driver.line.is_high()), (2, true));
    assert_ne!(driver.read32(0xfc), generation);
}

#[test]
fn emergency_writes_need_no_queue() {
    let (console, screen) = console();
    let driver = Driver::new(console);
    driver.write32(0x108, u32::from(b'!'));
    assert_eq!(*lock(&screen.0), b"!");
}

#[test]
fn broken_rings_stop_the_device_until_it_is_reset() {
    for queue in [0, 1] {
        let (console, _) = console();
        console.push_input(&[b'x'; 100]);
        Driver::new(console).every_broken_ring_stops_the_device(queue, F_SIZE);
    }
}
