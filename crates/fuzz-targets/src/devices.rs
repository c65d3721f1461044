//! Every virtio device behind its registers: any queue memory, any registers, any configuration.

use std::sync::Arc;

use queztl_guest_memory::{GuestRam, RamConfig};
use queztl_network::{Backend, Mac, Offloads, Received};
use queztl_storage::{RawConfig, RawFile};
use queztl_vmm::bus::BusDevice;
use queztl_vmm::devices::output::Output;
use queztl_vmm::devices::virtio::balloon::Balloon;
use queztl_vmm::devices::virtio::block::BlockConfig;
use queztl_vmm::devices::virtio::console::{Console, ConsoleConfig};
use queztl_vmm::devices::virtio::limit::{Limiter, RateLimit};
use queztl_vmm::devices::virtio::mem::{BLOCK_BYTES, Mem};
use queztl_vmm::devices::virtio::mmio::Ties;
use queztl_vmm::devices::virtio::net::NetConfig;
use queztl_vmm::devices::virtio::rng::Rng;
use queztl_vmm::devices::virtio::vsock::VsockConfig;
use queztl_vmm::devices::virtio::{Lockstep, MmioTransport, VirtioDevice, feature};
use queztl_vmm::irq::{InterruptSink, IrqLine};
use vm_memory::{Bytes as _, GuestAddress};

use crate::bytes::Bytes;

const RAM_BYTES: u64 = 4 << 20;
const HOTPLUG_START: u64 = 4 << 30;
const HOTPLUG_BYTES: u64 = 2 * BLOCK_BYTES;
/// Where the rings of queue 0 lie; each queue has four pages.
const RINGS: u64 = 0x1_0000;
const RING_STRIDE: u64 = 0x4000;
const QUEUE_SIZE: u32 = 16;
const DISK_BYTES: u64 = 64 << 10;
/// Actions of the driver at most.
const ACTIONS: usize = 64;

/// An interrupt line that leads nowhere.
struct NoLine;

impl InterruptSink for NoLine {
    fn set_level(&self, _: u32, _: bool) {}
}

/// A network that gives back what it was sent.
struct Echo {
    frames: Vec<Vec<u8>>,
    event: std::os::fd::OwnedFd,
}

impl Backend for Echo {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }
    fn set_guest_offloads(&mut self, _: Offloads) -> std::io::Result<()> {
        Ok(())
    }
    fn mtu(&self) -> Option<u16> {
        Some(1500)
    }
    fn event(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.event)
    }
    fn receive(&mut self, frame: &mut [u8]) -> std::io::Result<Received> {
        let Some(sent) = self.frames.pop() else { return Ok(Received::Nothing) };
        frame[..sent.len()].copy_from_slice(&sent);
        Ok(Received::Frame(sent.len()))
    }
    fn send(&mut self, frame: &[u8]) -> std::io::Result<()> {
        if self.frames.len() < 8 {
            self.frames.push(frame.to_vec());
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
        Ok(())
    }
}

/// A device as the host has it in hand.
enum Device {
    Balloon(Arc<Balloon>),
    Console(Arc<Console>),
    Memory(Arc<Mem>),
    /// The host asks nothing of it.
    Other(Arc<dyn VirtioDevice>),
}

impl Device {
    /// The device of that number, with what must outlive it.
    fn new(number: u8, ram: &GuestRam) -> (Device, Option<tempfile::TempDir>) {
        let folder = || tempfile::tempdir().expect("a folder");
        let unlimited = || Limiter::new(RateLimit::default());
        match number % 7 {
            0 => {
                let folder = folder();
                let path = folder.path().join("disk");
                std::fs::File::create(&path).and_then(|file| file.set_len(DISK_BYTES)).expect("a disk");
                let raw = RawConfig { path, read_only: number & 0x80 != 0, direct: false, in_order: true };
                let disk = Arc::new(RawFile::open(&raw).expect("the disk opens"));
                let block = BlockConfig { disk, serial: "fuzz".into(), queues: 1, limiter: unlimited() };
                (Device::Other(block.build().expect("a block device")), Some(folder))
            }
            1 => {
                let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("an eventfd");
                let backend = Box::new(Echo { frames: Vec::new(), event });
                let (receive_limiter, transmit_limiter) = (unlimited(), unlimited());
                let net = NetConfig { backend, mac: Mac::derived("fuzz", 0), receive_limiter, transmit_limiter };
                (Device::Other(net.build().expect("a network device")), None)
            }
            2 => (Device::Other(Rng::repeatable(1)), None),
            3 => {
                let folder = folder();
                let vsock = VsockConfig { guest_cid: 3, path: folder.path().join("vsock") };
                (Device::Other(vsock.build().expect("a socket device")), Some(folder))
            }
            4 => (Device::Balloon(Balloon::new().expect("a balloon")), None),
            5 => {
                let mem = Mem::new(ram.memory().clone(), HOTPLUG_START, HOTPLUG_BYTES);
                mem.set_requested_bytes(HOTPLUG_BYTES);
                (Device::Memory(mem), None)
            }
            _ => {
                let output = Output::nowhere();
                let console = ConsoleConfig { output, repeatable: number & 0x80 != 0, columns: 80, rows: 25 };
                (Device::Console(console.build().expect("a console")), None)
            }
        }
    }

    fn virtio(&self) -> Arc<dyn VirtioDevice> {
        match self {
            Device::Balloon(balloon) => balloon.clone(),
            Device::Console(console) => console.clone(),
            Device::Memory(mem) => mem.clone(),
            Device::Other(device) => device.clone(),
        }
    }

    /// What the host may do at any time.
    fn bother(&self, choice: u8, bytes: &mut Bytes) {
        match self {
            Device::Balloon(balloon) if choice & 1 == 0 => {
                balloon.refresh_stats(std::time::Duration::ZERO);
                let _ = (balloon.stats(), balloon.actual_bytes());
            }
            Device::Balloon(balloon) => balloon.set_target_bytes(bytes.u32().into()),
            Device::Console(console) if choice & 1 == 0 => {
                let input = bytes.take(usize::from(choice));
                assert!(console.push_input(input) <= input.len());
            }
            Device::Console(console) => console.resize(bytes.u16(), bytes.u16()),
            Device::Memory(mem) => mem.set_requested_bytes(u64::from(choice & 3) * BLOCK_BYTES),
            Device::Other(_) => {}
        }
    }
}

struct Driver {
    ram: GuestRam,
    transport: Arc<MmioTransport>,
}

impl Driver {
    fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn read(&self, register: u64) -> u32 {
        let mut value = [0; 4];
        self.transport.read(register, &mut value);
        u32::from_le_bytes(value)
    }

    fn poke(&self, address: u64, value: &[u8]) {
        // Outside of RAM a guest writes to nothing.
        let _ = self.ram.memory().write_slice(value, GuestAddress(address));
    }

    fn ring(queue: u8) -> u64 {
        RINGS + u64::from(queue % 4) * RING_STRIDE
    }

    /// What a proper driver does, up to DRIVER_OK (Virtio 1.2 §3.1.1).
    fn start(&self, features: u64) {
        for status in [0, 1, 3] {
            self.write(0x70, status);
        }
        self.write(0x14, 0);
        let low = self.read(0x10);
        self.write(0x14, 1);
        let offered = u64::from(low) | u64::from(self.read(0x10)) << 32;
        let accepted = features & offered | feature::VERSION_1;
        for page in [0, 1] {
            self.write(0x24, page);
            self.write(0x20, (accepted >> (32 * page)) as u32);
        }
        self.write(0x70, 11);
        for queue in 0..4_u8 {
            self.write(0x30, queue.into());
            if self.read(0x34) == 0 {
                break;
            }
            self.write(0x38, QUEUE_SIZE);
            for (register, offset) in [(0x80, 0), (0x90, 0x1000), (0xa0, 0x2000)] {
                self.write(register, (Self::ring(queue) + offset) as u32);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
    }

    /// One thing that a driver may do, rightly or wrongly, or that the host does meanwhile.
    fn act(&self, device: &Device, bytes: &mut Bytes) {
        let action = bytes.u8();
        let queue = bytes.u8();
        match action % 11 {
            // A descriptor.
            0..=2 => {
                let slot = u64::from(bytes.u8() % 16);
                let address = match action >> 6 {
                    0 => u64::from(bytes.u32()) % RAM_BYTES,
                    1 => HOTPLUG_START + u64::from(bytes.u32()) % HOTPLUG_BYTES,
                    _ => bytes.u64(),
                };
                let len = if action & 0x20 != 0 { bytes.u32() } else { u32::from(bytes.u16()) };
                self.poke(Self::ring(queue) + slot * 16, &address.to_le_bytes());
                self.poke(Self::ring(queue) + slot * 16 + 8, &len.to_le_bytes());
                self.poke(Self::ring(queue) + slot * 16 + 12, &(bytes.u8() & 7).to_le_bytes());
                self.poke(Self::ring(queue) + slot * 16 + 14, &u16::from(bytes.u8() % 20).to_le_bytes());
            }
            // The available ring: an entry, then the index.
            3 | 4 => {
                let (slot, head) = (u64::from(bytes.u8() % 16), u16::from(bytes.u8() % 20));
                self.poke(Self::ring(queue) + 0x1000 + 4 + slot * 2, &head.to_le_bytes());
                let index = if action & 0x80 != 0 { bytes.u16() } else { slot as u16 + 1 };
                self.poke(Self::ring(queue) + 0x1002, &index.to_le_bytes());
                self.write(0x50, u32::from(queue % 4));
            }
            // Any memory.
            5 => {
                let address = u64::from(bytes.u32()) % RAM_BYTES;
                let count = usize::from(bytes.u8());
                self.poke(address, bytes.take(count));
            }
            6 => self.write(0x50, u32::from(queue % 5)),
            // Any register, the configuration among them, in any width.
            7 => {
                let register = u64::from(bytes.u16() % 0x200);
                let count = usize::from(bytes.u8() % 9);
                self.transport.write(register, bytes.take(count));
            }
            8 => {
                let mut value = vec![0; usize::from(queue % 9)];
                self.transport.read(u64::from(bytes.u16() % 0x200), &mut value);
            }
            9 => self.start(bytes.u64()),
            _ => device.bother(queue, bytes),
        }
    }
}

/// The first byte chooses the device, then come the features, then what the driver does.
pub fn drive(data: &[u8]) {
    let mut bytes = Bytes(data);
    let ram = GuestRam::with_hotplug(&RamConfig::plain(RAM_BYTES), HOTPLUG_BYTES).expect("memory for a guest");
    let (device, _folder) = Device::new(bytes.u8(), &ram);
    let line = IrqLine::new(Arc::new(NoLine), 20);
    let lockstep = Some(Arc::new(Lockstep::new().expect("an eventfd")));
    let ties = Ties { lockstep, gate: None };
    let transport = MmioTransport::tied(device.virtio(), ram.memory().clone(), line, ties).expect("a transport");
    let driver = Driver { ram, transport };
    driver.start(bytes.u64());
    for _ in 0..ACTIONS {
        if bytes.is_empty() {
            break;
        }
        driver.act(&device, &mut bytes);
    }
    driver.transport.reset();
    // A reset device answers as a fresh one.
    assert_eq!(driver.read(0x70), 0);
    assert_eq!(driver.read(0x00), 0x7472_6976);
}
