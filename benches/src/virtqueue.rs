//! A driver of a virtio block device without a guest: it finds the device by its registers, builds a ring in RAM, keeps
//! requests in flight, and sleeps until the device interrupts, as a guest's driver would (Virtio 1.2 §2.7, §4.2, §5.2).
//!
//! Before it sleeps it looks for finished requests a while, as KVM does for a vCPU that halts ([`HaltPoll`]).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use queztl_guest_memory::{GuestMemory, GuestRam};
use queztl_vmm::bus::BusDevice;
use queztl_vmm::devices::virtio::{MmioTransport, VirtioDevice, feature};
use queztl_vmm::irq::{InterruptSink, IrqLine};
use vm_memory::{Bytes, GuestAddress};

const FEATURES_SELECT: u64 = 0x14;
const FEATURES: u64 = 0x10;
const DRIVER_FEATURES_SELECT: u64 = 0x24;
const DRIVER_FEATURES: u64 = 0x20;
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_MAX: u64 = 0x34;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const RINGS: [u64; 3] = [0x80, 0x90, 0xa0];

/// Where the rings, the requests' headers and the data lie.
const DESCRIPTORS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x1_2000;
const USED: u64 = 0x1_4000;
const HEADERS: u64 = 0x1_8000;
const HEADER_STRIDE: u64 = 32;
const DATA: u64 = 0x10_0000;

const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;
/// VIRTIO_BLK_F_FLUSH.
const F_FLUSH: u64 = 1 << 9;

/// The longest that a device may think.
const PATIENCE: Duration = Duration::from_secs(30);

/// A read or a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the disk into RAM.
    Read,
    /// From RAM to the disk.
    Write,
}

/// The device's interrupt line.
#[derive(Default)]
struct Line {
    high: Mutex<bool>,
    raised: Condvar,
}

impl InterruptSink for Line {
    fn set_level(&self, _gsi: u32, high: bool) {
        *self.lock() = high;
        if high {
            self.raised.notify_one();
        }
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.high.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an interrupt; false if none comes.
    fn wait(&self) -> bool {
        let waited = self.raised.wait_timeout_while(self.lock(), PATIENCE, |high| !*high);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// How long to look before sleeping, as KVM decides it for a vCPU that halts, with the settings it has on x86
/// (`halt_poll_ns`, `halt_poll_ns_grow_start`, `halt_poll_ns_grow`, `halt_poll_ns_shrink`).
#[derive(Debug, Default)]
pub struct HaltPoll {
    pub limit: Duration,
}

impl HaltPoll {
    const LONGEST: Duration = Duration::from_micros(200);
    const FIRST: Duration = Duration::from_micros(10);

    /// Takes a wait into account, looking included: one that looking could have covered makes the next look longer, one
    /// beyond [`HaltPoll::LONGEST`] ends looking.
    pub fn learn(&mut self, waited: Duration) {
        if waited > Self::LONGEST {
            self.limit = Duration::ZERO;
        } else if waited > self.limit {
            self.limit = (self.limit * 2).clamp(Self::FIRST, Self::LONGEST);
        }
    }
}

/// The driver, with `depth` places for requests, each with a buffer of `block_bytes`.
pub struct Driver {
    ram: GuestRam,
    transport: Arc<MmioTransport>,
    line: Arc<Line>,
    size: u16,
    /// How many requests were offered and how many answers seen, modulo 2^16.
    offered: u16,
    seen: u16,
    announced: u16,
    depth: u16,
    block_bytes: u32,
    poll: HaltPoll,
}

impl Driver {
    /// Sets up the device.
    ///
    /// # Errors
    /// The depth does not fit into the queue, or the device does not come up.
    pub fn new(device: Arc<dyn VirtioDevice>, depth: u16, block_bytes: u32) -> Result<Driver> {
        let ram_bytes = (DATA + u64::from(depth) * u64::from(block_bytes)).next_multiple_of(1 << 21);
        let ram = GuestRam::new(ram_bytes).context("no RAM for the rings")?;
        let line = Arc::new(Line::default());
        let transport = MmioTransport::new(device, ram.memory().clone(), IrqLine::new(line.clone(), 16))?;
        let poll = HaltPoll::default();
        let mut driver =
            Driver { ram, transport, line, size: 0, offered: 0, seen: 0, announced: 0, depth, block_bytes, poll };
        driver.start()?;
        for slot in 0..depth {
            driver.write_slot(slot)?;
        }
        Ok(driver)
    }

    fn memory(&self) -> &GuestMemory {
        self.ram.memory()
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// Virtio 1.2 §3.1.1.
    fn start(&mut self) -> Result<()> {
        self.write(STATUS, 1);
        self.write(STATUS, 3);
        let mut offered = 0;
        for half in [0, 1] {
            self.write(FEATURES_SELECT, half);
            offered |= u64::from(self.read(FEATURES)) << (32 * half);
        }
        let features = offered & (feature::VERSION_1 | feature::EVENT_IDX | F_FLUSH);
        for half in [0, 1] {
            self.write(DRIVER_FEATURES_SELECT, half);
            self.write(DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.write(STATUS, 11);
        ensure!(features & feature::EVENT_IDX != 0 && self.read(STATUS) & 8 != 0, "the device refuses its features");
        self.write(QUEUE_SELECT, 0);
        let size = self.read(QUEUE_MAX);
        ensure!(
            u32::from(self.depth) * 3 <= size,
            "a queue of {size} descriptors has no room for {} requests",
            self.depth
        );
        self.write(QUEUE_SIZE, size);
        self.size = size as u16;
        for (register, address) in RINGS.into_iter().zip([DESCRIPTORS, AVAILABLE, USED]) {
            self.write(register, address as u32);
            self.write(register + 4, 0);
        }
        self.write(QUEUE_READY, 1);
        self.write(STATUS, 15);
        ensure!(self.read(STATUS) == 15, "the device does not start");
        Ok(())
    }

    fn header(slot: u16) -> u64 {
        HEADERS + u64::from(slot) * HEADER_STRIDE
    }

    /// The descriptors of a place: header, data, status. They stay; only the header changes.
    fn write_slot(&self, slot: u16) -> Result<()> {
        let first = slot * 3;
        let data = DATA + u64::from(slot) * u64::from(self.block_bytes);
        let status = Self::header(slot) + 16;
        self.descriptor(first, Self::header(slot), 16, NEXT, first + 1)?;
        self.descriptor(first + 1, data, self.block_bytes, NEXT, first + 2)?;
        self.descriptor(first + 2, status, 1, DEVICE_WRITES, 0)
    }

    fn descriptor(&self, index: u16, address: u64, bytes: u32, flags: u16, next: u16) -> Result<()> {
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&bytes.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        descriptor[14..].copy_from_slice(&next.to_le_bytes());
        Ok(self.memory().write_slice(&descriptor, GuestAddress(DESCRIPTORS + u64::from(index) * 16))?)
    }

    /// Puts a request for the block at `sector` into a free place; [`Driver::notify`] starts it.
    ///
    /// # Errors
    /// RAM cannot be written.
    pub fn offer(&mut self, slot: u16, direction: Direction, sector: u64) -> Result<()> {
        let mut header = [0; 17];
        let (kind, flags) = match direction {
            Direction::Read => (0u32, NEXT | DEVICE_WRITES),
            Direction::Write => (1, NEXT),
        };
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        header[16] = 0xff;
        self.memory().write_slice(&header, GuestAddress(Self::header(slot)))?;
        let data_flags = GuestAddress(DESCRIPTORS + u64::from(slot * 3 + 1) * 16 + 12);
        self.memory().write_obj(flags.to_le(), data_flags)?;
        let place = AVAILABLE + 4 + u64::from(self.offered % self.size) * 2;
        self.memory().write_obj((slot * 3).to_le(), GuestAddress(place))?;
        self.offered = self.offered.wrapping_add(1);
        Ok(())
    }

    /// Makes what was offered available, and notifies the device if it wants to know (§2.7.7.2).
    ///
    /// # Errors
    /// RAM cannot be accessed.
    pub fn notify(&mut self) -> Result<()> {
        self.memory().store(self.offered.to_le(), GuestAddress(AVAILABLE + 2), Ordering::SeqCst)?;
        std::sync::atomic::fence(Ordering::SeqCst);
        let wanted = GuestAddress(USED + 4 + u64::from(self.size) * 8);
        let wanted = u16::from_le(self.memory().load::<u16>(wanted, Ordering::SeqCst)?);
        let passed = self.offered.wrapping_sub(wanted).wrapping_sub(1) < self.offered.wrapping_sub(self.announced);
        self.announced = self.offered;
        if passed {
            self.write(QUEUE_NOTIFY, 0);
        }
        Ok(())
    }

    /// The next place whose request is done.
    ///
    /// # Errors
    /// The device reports a failed request.
    pub fn finished(&mut self) -> Result<Option<u16>> {
        if self.used()? == self.seen {
            return Ok(None);
        }
        let place = USED + 4 + u64::from(self.seen % self.size) * 8;
        let head = u32::from_le(self.memory().read_obj(GuestAddress(place))?);
        self.seen = self.seen.wrapping_add(1);
        let slot = (head / 3) as u16;
        let status: u8 = self.memory().read_obj(GuestAddress(Self::header(slot) + 16))?;
        ensure!(status == 0, "a request failed with status {status}");
        Ok(Some(slot))
    }

    /// Looks for something that is done as long as `limit` says; true if there is.
    fn look(&self, limit: Duration) -> Result<bool> {
        let start = Instant::now();
        while start.elapsed() < limit {
            for _ in 0..32 {
                if self.used()? != self.seen {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            // Whoever else is ready to run here goes first.
            std::thread::yield_now();
        }
        Ok(false)
    }

    fn used(&self) -> Result<u16> {
        Ok(u16::from_le(self.memory().load::<u16>(GuestAddress(USED + 2), Ordering::SeqCst)?))
    }

    /// Waits until something is done: looks a while, then sleeps until the device interrupts.
    ///
    /// # Errors
    /// Nothing was done for a long time.
    pub fn wait(&mut self) -> Result<()> {
        if self.used()? != self.seen {
            return Ok(());
        }
        let start = Instant::now();
        if !self.look(self.poll.limit)? {
            self.sleep()?;
        }
        self.poll.learn(start.elapsed());
        Ok(())
    }

    fn sleep(&self) -> Result<()> {
        let wanted = AVAILABLE + 4 + u64::from(self.size) * 2;
        self.memory().store(self.seen.to_le(), GuestAddress(wanted), Ordering::SeqCst)?;
        std::sync::atomic::fence(Ordering::SeqCst);
        while self.used()? == self.seen {
            ensure!(self.line.wait(), "the device answers no request");
            let status = self.read(INTERRUPT_STATUS);
            self.write(INTERRUPT_ACK, status);
        }
        Ok(())
    }
}
