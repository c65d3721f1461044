//! A small driver for tests: it finds a device by its registers as a guest does, builds rings in guest memory, and can
//! build wrong ones.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use queztl_guest_memory::{GuestMemory, GuestRam, RamConfig};
use vm_memory::{Bytes, GuestAddress};

use super::mmio::{MmioTransport, Ties};
use super::{Lockstep, VirtioDevice, feature, lock};
use crate::bus::BusDevice;
use crate::irq::{InterruptSink, IrqLine};
use crate::snapshot::Persist;

/// Bytes of RAM in a test machine.
pub const RAM_BYTES: u64 = 8 << 20;
/// How long a test waits for a device.
pub const PATIENCE: Duration = Duration::from_secs(20);

const RINGS: u64 = 0x1_0000;
const RING_STRIDE: u64 = 0x4000;
const HEAP: u64 = 0x10_0000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// An interrupt line that counts.
#[derive(Default)]
pub struct Line {
    state: Mutex<(bool, u32)>,
    raised: Condvar,
}

impl InterruptSink for Line {
    fn set_level(&self, _gsi: u32, high: bool) {
        let mut state = lock(&self.state);
        if high && !state.0 {
            state.1 += 1;
            self.raised.notify_all();
        }
        state.0 = high;
    }
}

impl Line {
    pub fn is_high(&self) -> bool {
        lock(&self.state).0
    }

    /// How often the line has gone from low to high.
    pub fn raises(&self) -> u32 {
        lock(&self.state).1
    }
}

/// One queue as the driver keeps it.
#[derive(Default, Clone)]
struct Ring {
    size: u16,
    next_descriptor: u16,
    available: u16,
    seen: u16,
}

/// A part of a request.
pub enum Part<'a> {
    /// Bytes for the device to read.
    Read(&'a [u8]),
    /// Room for the device to write so many bytes.
    Write(u32),
}

/// A request on its way: the addresses of its parts.
pub struct Sent {
    pub head: u16,
    pub parts: Vec<u64>,
}

pub struct Driver {
    pub ram: GuestRam,
    pub transport: Arc<MmioTransport>,
    pub line: Arc<Line>,
    rings: Vec<Ring>,
    heap: u64,
}

impl Driver {
    /// A machine with one device, not yet set up.
    pub fn new(device: Arc<dyn VirtioDevice>) -> Driver {
        Driver::tied(device, Ties::default())
    }

    /// The same, where a notification waits until the device has nothing left to do.
    pub fn in_lockstep(device: Arc<dyn VirtioDevice>) -> Driver {
        Driver::tied(device, Ties { lockstep: Some(Arc::new(Lockstep::new().unwrap())), gate: None })
    }

    /// A machine with hot-plug memory, which `device` makes of it.
    pub fn with_hotplug(bytes: u64, device: impl FnOnce(&GuestRam) -> Arc<dyn VirtioDevice>) -> Driver {
        let ram = GuestRam::with_hotplug(&RamConfig::plain(RAM_BYTES), bytes).unwrap();
        let device = device(&ram);
        Driver::over(ram, device, Ties::default())
    }

    fn tied(device: Arc<dyn VirtioDevice>, ties: Ties) -> Driver {
        Driver::over(GuestRam::new(RAM_BYTES).unwrap(), device, ties)
    }

    fn over(ram: GuestRam, device: Arc<dyn VirtioDevice>, ties: Ties) -> Driver {
        let line = Arc::new(Line::default());
        let interrupt = IrqLine::new(line.clone(), 20);
        let transport = MmioTransport::tied(device, ram.memory().clone(), interrupt, ties).unwrap();
        Driver { ram, transport, line, rings: Vec::new(), heap: HEAP }
    }

    /// A machine whose driver has agreed to `features` (and those of the transport without event index) and is ready.
    pub fn ready(device: Arc<dyn VirtioDevice>, features: u64) -> Driver {
        let mut driver = Driver::new(device);
        driver.start(features);
        driver
    }

    /// The state of the transport and its device as a snapshot holds it.
    pub fn saved(&self) -> serde_json::Value {
        serde_json::to_value(self.transport.save()).unwrap()
    }

    /// The same machine, stopped, with `device` in its place in the state of the old one.
    pub fn moved_to(self, device: Arc<dyn VirtioDevice>) -> Driver {
        let saved = self.saved();
        self.transport.reset();
        let (driver, result) = self.restored(device, saved);
        result.unwrap();
        driver
    }

    /// The same machine with `device`, which is given the state `saved`.
    pub fn restored(self, device: Arc<dyn VirtioDevice>, saved: serde_json::Value) -> (Driver, Result<(), String>) {
        let line = Arc::new(Line::default());
        let memory = self.ram.memory().clone();
        let transport = MmioTransport::new(device, memory, IrqLine::new(line.clone(), 20)).unwrap();
        let saved = serde_json::from_value(saved).map_err(|error| error.to_string());
        let result = saved.and_then(|saved| transport.restore(saved).map_err(|error| error.to_string()));
        (Driver { transport, line, ..self }, result)
    }

    pub fn memory(&self) -> &GuestMemory {
        self.ram.memory()
    }

    pub fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write32(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.transport.read(0x100 + offset, &mut data);
        data
    }

    /// Writes a field of the configuration space.
    pub fn transport_write_config(&self, offset: u64, value: u32) {
        self.write32(0x100 + offset, value);
    }

    pub fn status(&self) -> u32 {
        self.read32(0x70)
    }

    pub fn reset(&mut self) {
        self.write32(0x70, 0);
        self.rings.clear();
        self.heap = HEAP;
    }

    /// The whole dance of Virtio 1.2 §3.1.1.
    pub fn start(&mut self, features: u64) {
        self.negotiate(features | feature::VERSION_1);
        assert_eq!(self.status() & 8, 8, "features refused");
        self.set_up_queues();
        self.write32(0x70, 15);
    }

    pub fn negotiate(&mut self, features: u64) {
        self.write32(0x70, 1);
        self.write32(0x70, 3);
        self.write32(0x24, 0);
        self.write32(0x20, features as u32);
        self.write32(0x24, 1);
        self.write32(0x20, (features >> 32) as u32);
        self.write32(0x70, 11);
    }

    pub fn set_up_queues(&mut self) {
        for queue in 0u32.. {
            self.write32(0x30, queue);
            let max = self.read32(0x34);
            if max == 0 {
                break;
            }
            let size = max.min(256);
            self.write32(0x38, size);
            let base = RINGS + u64::from(queue) * RING_STRIDE;
            let zeroes = vec![0; RING_STRIDE as usize];
            self.memory().write_slice(&zeroes, GuestAddress(base)).unwrap();
            for (register, address) in [(0x80, base), (0x90, base + 0x1000), (0xa0, base + 0x2000)] {
                self.write32(register, address as u32);
                self.write32(register + 4, (address >> 32) as u32);
            }
            self.write32(0x44, 1);
            self.rings.push(Ring { size: size as u16, ..Ring::default() });
        }
    }

    fn base(queue: usize) -> u64 {
        RINGS + queue as u64 * RING_STRIDE
    }

    pub fn allocate(&mut self, bytes: u64) -> u64 {
        if self.heap + bytes > RAM_BYTES {
            self.heap = HEAP;
        }
        let address = self.heap;
        self.heap = (self.heap + bytes + 63) & !63;
        address
    }

    /// Writes a descriptor, right or wrong.
    pub fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory().write_slice(&bytes, GuestAddress(table + u64::from(index) * 16)).unwrap();
    }

    /// The descriptor table of a queue.
    pub fn table(queue: usize) -> u64 {
        Self::base(queue)
    }

    /// Makes the chain at `head` available, whatever it is.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = Self::base(queue) + 0x1000 + 4 + u64::from(ring.available % ring.size) * 2;
        ring.available = ring.available.wrapping_add(1);
        let available = ring.available;
        self.memory().write_slice(&head.to_le_bytes(), GuestAddress(slot)).unwrap();
        self.set_available(queue, available);
    }

    /// Writes the index of the available ring, right or wrong.
    pub fn set_available(&self, queue: usize, index: u16) {
        self.memory().store(index.to_le(), GuestAddress(Self::base(queue) + 0x1002), Ordering::SeqCst).unwrap();
    }

    /// Writes the flags of the available ring.
    pub fn set_available_flags(&self, queue: usize, flags: u16) {
        self.memory().store(flags.to_le(), GuestAddress(Self::base(queue) + 0x1000), Ordering::SeqCst).unwrap();
    }

    /// Sets the used index after which the driver wants an interrupt (event index only).
    pub fn set_used_event(&self, queue: usize, index: u16) {
        let address = Self::base(queue) + 0x1000 + 4 + u64::from(self.rings[queue].size) * 2;
        self.memory().store(index.to_le(), GuestAddress(address), Ordering::SeqCst).unwrap();
    }

    pub fn kick(&self, queue: usize) {
        self.write32(0x50, queue as u32);
    }

    /// Builds a chain and makes it available.
    pub fn send(&mut self, queue: usize, parts: &[Part]) -> Sent {
        let size = self.rings[queue].size;
        let head = self.rings[queue].next_descriptor;
        let mut addresses = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let index = (head + i as u16) % size;
            let next = if i + 1 < parts.len() { NEXT } else { 0 };
            let (len, flags) = match part {
                Part::Read(bytes) => (bytes.len() as u32, next),
                Part::Write(len) => (*len, next | WRITE),
            };
            let address = self.allocate(u64::from(len));
            if let Part::Read(bytes) = part {
                self.memory().write_slice(bytes, GuestAddress(address)).unwrap();
            }
            self.descriptor(Self::table(queue), index, address, len, flags, (index + 1) % size);
            addresses.push(address);
        }
        self.rings[queue].next_descriptor = (head + parts.len() as u16) % size;
        self.offer(queue, head);
        Sent { head, parts: addresses }
    }

    /// The next used chain, if the device has finished one: its head and how many bytes were written.
    pub fn poll(&mut self, queue: usize) -> Option<(u16, u32)> {
        let base = Self::base(queue) + 0x2000;
        let index: u16 = self.memory().load(GuestAddress(base + 2), Ordering::SeqCst).unwrap();
        let ring = &mut self.rings[queue];
        if u16::from_le(index) == ring.seen {
            return None;
        }
        let slot = base + 4 + u64::from(ring.seen % ring.size) * 8;
        ring.seen = ring.seen.wrapping_add(1);
        let head: u32 = self.memory().read_obj(GuestAddress(slot)).unwrap();
        let written: u32 = self.memory().read_obj(GuestAddress(slot + 4)).unwrap();
        Some((head as u16, written))
    }

    /// Waits for the next used chain.
    pub fn wait(&mut self, queue: usize) -> (u16, u32) {
        self.wait_for("a used buffer", |driver| driver.poll(queue))
    }

    /// Sends a request, notifies, waits for it; returns how many bytes were written and where the parts lie.
    pub fn call(&mut self, queue: usize, parts: &[Part]) -> (u32, Vec<u64>) {
        let sent = self.send(queue, parts);
        self.kick(queue);
        let (head, written) = self.wait(queue);
        assert_eq!(head, sent.head);
        (written, sent.parts)
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory().read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    /// Waits until `check` gives something.
    pub fn wait_for<T>(&mut self, what: &str, mut check: impl FnMut(&mut Driver) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = check(self) {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "{what} never came");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits until the device asks for a reset.
    pub fn wait_broken(&mut self) {
        self.wait_for("DEVICE_NEEDS_RESET", |driver| (driver.status() & 64 != 0).then_some(()));
    }

    /// Offers each kind of broken chain on a fresh device and expects DEVICE_NEEDS_RESET, then a working device again.
    pub fn every_broken_ring_stops_the_device(&mut self, queue: usize, features: u64) {
        type Breaker = fn(&mut Driver, usize);
        let breakers: [(&str, Breaker); 13] = [
            ("head outside of the table", |d, q| d.offer(q, 60000)),
            ("available index too far ahead", |d, q| d.set_available(q, 30000)),
            ("a loop", |d, q| {
                d.descriptor(Self::table(q), 0, HEAP, 64, NEXT, 1);
                d.descriptor(Self::table(q), 1, HEAP, 64, NEXT, 0);
                d.offer(q, 0);
            }),
            ("a buffer outside of RAM", |d, q| {
                d.descriptor(Self::table(q), 0, RAM_BYTES - 8, 64, WRITE, 0);
                d.offer(q, 0);
            }),
            ("a buffer that wraps around", |d, q| {
                d.descriptor(Self::table(q), 0, u64::MAX - 7, 64, 0, 0);
                d.offer(q, 0);
            }),
            ("4 GiB", |d, q| {
                d.descriptor(Self::table(q), 0, HEAP, u32::MAX, 0, 0);
                d.offer(q, 0);
            }),
            ("next outside of the table", |d, q| {
                d.descriptor(Self::table(q), 0, HEAP, 64, NEXT, 50000);
                d.offer(q, 0);
            }),
            ("a nested indirect table", |d, q| {
                d.descriptor(Self::table(q), 0, HEAP, 32, INDIRECT, 0);
                d.descriptor(HEAP, 0, HEAP + 64, 16, INDIRECT, 0);
                d.offer(q, 0);
            }),
            ("an indirect table outside of RAM", |d, q| {
                d.descriptor(Self::table(q), 0, RAM_BYTES, 32, INDIRECT, 0);
                d.offer(q, 0);
            }),
            ("an indirect table of 4 GiB", |d, q| {
                d.descriptor(Self::table(q), 0, HEAP, !15, INDIRECT, 0);
                d.descriptor(HEAP, 0, HEAP, 64, NEXT, 60000);
                d.offer(q, 0);
            }),
            ("an indirect table with half a descriptor", |d, q| {
                d.descriptor(Self::table(q), 0, HEAP, 24, INDIRECT, 0);
                d.offer(q, 0);
            }),
            ("an indirect table that loops", |d, q| {
                d.descriptor(Self::table(q), 0, HEAP, 32, INDIRECT, 0);
                d.descriptor(HEAP, 0, HEAP + 64, 8, NEXT, 1);
                d.descriptor(HEAP, 1, HEAP + 64, 8, NEXT, 0);
                d.offer(q, 0);
            }),
            ("readable after writable", |d, q| {
                d.descriptor(Self::table(q), 0, HEAP, 64, NEXT | WRITE, 1);
                d.descriptor(Self::table(q), 1, HEAP, 64, 0, 0);
                d.offer(q, 0);
            }),
        ];
        for (name, break_ring) in breakers {
            self.reset();
            assert_eq!(self.status(), 0, "{name}");
            self.start(features);
            break_ring(self, queue);
            self.kick(queue);
            println!("{name}");
            self.wait_broken();
            // The status comes first.
            self.wait_for("the interrupt", |driver| driver.line.is_high().then_some(()));
        }
        self.reset();
        self.start(features);
        assert_eq!(self.status(), 15);
    }
    /// Offers chains whose buffers lie over each other and over the rings: the device does what it is told or asks for a
    /// reset, but it touches no other memory, and works after a reset. For
    /// a driver [`in lockstep`](Driver::in_lockstep).
    pub fn overlapping_buffers_do_no_harm(&mut self, queue: usize, features: u64) {
        const CANARY: u64 = HEAP - 0x1000;
        let base = Self::base(queue);
        // The same buffer twice; over its own descriptor; over the available ring; over the used ring.
        for address in [HEAP, base, base + 0x1000, base + 0x2000] {
            self.reset();
            self.memory().write_slice(&[0xa5; 0x1000], GuestAddress(CANARY)).unwrap();
            self.start(features);
            let table = Self::table(queue);
            self.descriptor(table, 0, address, 512, NEXT, 1);
            self.descriptor(table, 1, address, 512, NEXT | WRITE, 2);
            self.descriptor(table, 2, address + 8, 512, WRITE, 0);
            self.offer(queue, 0);
            self.offer(queue, 0);
            self.kick(queue);
            assert_eq!(self.read(CANARY, 0x1000), [0xa5; 0x1000], "{address:#x}");
        }
        self.reset();
        self.start(features);
        assert_eq!(self.status(), 15);
    }
}
