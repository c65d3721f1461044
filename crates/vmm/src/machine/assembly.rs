//! Putting a machine together: everything inside it is made here, in the order in which the parts need each other.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use queztl_guest_memory::GuestRam;
use queztl_network::{Backend, Mac, Tap, UserNetwork, UserNetworkConfig};
use queztl_storage::{ImageConfig, open_disk};

use super::Error;
use super::events::Events;
use super::restore::{self, Restoration};
use crate::accel::kvm::Kvm;
use crate::accel::probe::KvmSupport;
use crate::accel::soft::Soft;
use crate::accel::{Accelerator, State, Vcpu, Vm};
use crate::acpi::{self, AcpiConfig};
use crate::board::{Board, BoardParts};
use crate::boot::{self, BootConfig, InitialState};
use crate::bus::Bus;
use crate::clock::Clock;
use crate::config::{
    AccelChoice, ConsoleChoice, DiskConfig, MachineConfig, NetBackend, NetConfig, RateLimit, SerialOutput, SoftClock,
    SoftOptions,
};
use crate::confine;
use crate::devices::legacy::generation::{self, GenerationId};
use crate::devices::legacy::serial::Serial;
use crate::devices::legacy::{LegacyConfig, LegacyDevices};
use crate::devices::output::Output;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::block::{Block, BlockConfig};
use crate::devices::virtio::console::{self, ConsoleConfig};
use crate::devices::virtio::limit::Limiter;
use crate::devices::virtio::mem::Mem;
use crate::devices::virtio::mmio::{QUEUE_NOTIFY_OFFSET, Ties, WINDOW_BYTES};
use crate::devices::virtio::net;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::VsockConfig;
use crate::devices::virtio::{Gate, Lockstep, MmioTransport, VirtioDevice};
use crate::irq::{InterruptSink, IrqLine};
use crate::irqchip::{BASE_X2APIC, IrqChip, LapicState};
use crate::kvmclock::KvmClock;
use crate::layout;
use crate::numa;
use crate::snapshot::Snapshot;
use crate::timers::Timers;

/// The guest's time for one instruction where time is made of instructions.
const NS_PER_INSTRUCTION: u64 = 5;
/// The context identifier of the guest's socket device: the first that is not reserved (Virtio 1.2 §5.10.4).
const GUEST_CID: u32 = 3;
/// Where the entropy device of a repeatable machine starts.
const REPEATABLE_SEED: u64 = 0x5155_455a_544c;
/// The generation identifier of a repeatable machine.
const REPEATABLE_GENERATION: [u8; generation::LEN] = [0x51; generation::LEN];
/// IA32_MTRR_DEF_TYPE: ranges and fixed ranges enabled, type write-back.
const MTRR_ENABLED_WRITE_BACK: u64 = 0xc06;
/// Eight write-back parts of a fixed range.
const MTRR_WRITE_BACK: u64 = 0x0606_0606_0606_0606;
/// The fixed range from 0xa0000 to 0xbffff among [`queztl_soft_cpu::state::Msrs::mtrr_fixed`].
const MTRR_VIDEO: usize = 2;
/// Queues of a disk at most; more threads than that do not help one file.
const DISK_QUEUES: u32 = 4;

/// The guest's consoles, for whoever sits at the other end.
#[derive(Clone)]
pub(super) struct Console {
    serial: Arc<Serial>,
    /// Present if it is the one that has the terminal.
    virtio: Option<Arc<console::Console>>,
    outputs: Outputs,
}

impl Console {
    /// Gives input to the console that has the terminal; returns how many bytes it takes now.
    pub fn input(&self, bytes: &[u8]) -> usize {
        match &self.virtio {
            Some(console) => console.push_input(bytes),
            None => self.serial.push_input(bytes),
        }
    }

    /// Tells the guest the terminal's size, if its console can know one.
    pub fn resize(&self, columns: u16, rows: u16) {
        if let Some(console) = &self.virtio {
            console.resize(columns, rows);
        }
    }

    /// Passes on the last output, for `limit` at the longest.
    fn close(&self, limit: Duration) {
        self.serial.close();
        for output in [&self.outputs.serial, &self.outputs.virtio] {
            output.flush(limit);
            output.close();
        }
    }
}

/// Where the consoles' output goes. Two that go to the terminal share it, so that their lines keep their order.
#[derive(Clone)]
struct Outputs {
    serial: Arc<Output>,
    virtio: Arc<Output>,
}

impl Outputs {
    /// A file for the serial line is started anew if `fresh`, else goes on at its end.
    fn new(config: &MachineConfig, terminal: &Terminal, fresh: bool) -> Result<Outputs, Error> {
        let has_virtio = config.console == ConsoleChoice::Virtio;
        let needs_terminal = has_virtio || config.serial == SerialOutput::Stdio;
        let terminal =
            if needs_terminal { Output::start(terminal.writer()).map_err(device)? } else { Output::nowhere() };
        let serial = match &config.serial {
            SerialOutput::Stdio => terminal.clone(),
            SerialOutput::None => Output::nowhere(),
            SerialOutput::File(path) => {
                let mut options = File::options();
                let options = if fresh { options.write(true).truncate(true) } else { options.append(true) };
                let file = options.create(true).open(path);
                let file = file.map_err(|source| Error::SerialFile { path: path.clone(), source })?;
                Output::start(Box::new(file)).map_err(device)?
            }
        };
        Ok(Outputs { serial, virtio: if has_virtio { terminal } else { Output::nowhere() } })
    }
}

/// What can be looked at and changed while the machine runs.
#[derive(Clone)]
pub(super) struct Live {
    pub console: Console,
    pub accelerator: &'static str,
    pub ram: Arc<GuestRam>,
    /// Changed when the guest goes on as a copy of itself.
    pub generation: Arc<GenerationId>,
    pub nets: Vec<Arc<net::Net>>,
    /// By number.
    pub disks: Vec<Arc<Block>>,
    pub balloon: Arc<Balloon>,
    /// Memory that can be hot-plugged, if the machine has any.
    pub mem: Option<Arc<Mem>>,
    /// The rate limits by name: `disk0`, `net0-rx`, `net0-tx`, `rng`.
    pub limiters: Vec<(String, Arc<Limiter>)>,
    pub gate: Arc<Gate>,
    pub vm: Arc<dyn Vm>,
    pub board: Arc<Board>,
    pub legacy: Arc<LegacyDevices>,
    /// virtio devices by their windows, the disks first.
    pub transports: Vec<Arc<MmioTransport>>,
}

/// How a machine begins.
pub(super) enum Start<'a> {
    /// As after power-up. A serial line to a file starts the file anew if `fresh`, else goes on at its end.
    Boot { fresh: bool },
    /// Where a saved machine was.
    Restore(&'a mut Restoration),
}

impl Start<'_> {
    fn is_fresh(&self) -> bool {
        matches!(self, Start::Boot { fresh: true })
    }
}

/// A machine that has not started yet.
pub(super) struct Assembly {
    vcpus: Vec<Box<dyn Vcpu>>,
    live: Live,
}

/// What of the host a machine keeps over restarts of its guest: what could not be had again by a confined process, and
/// connections that need not break.
pub struct Host {
    accelerator: Box<dyn Accelerator>,
    options: SoftOptions,
    nets: Networks,
    terminal: Terminal,
}

/// The other ends of a machine's network devices: the part of a [`Host`] that other programs and privileges make.
pub struct Networks(Vec<Network>);

/// The other end of the consoles that lead to the terminal.
#[derive(Clone)]
pub struct Terminal(Arc<dyn Fn() -> Box<dyn Write + Send> + Send + Sync>);

/// A network device with its limits, to the guest and from it.
struct Network {
    device: Arc<net::Net>,
    limiters: [Arc<Limiter>; 2],
}

impl Host {
    /// Chooses the accelerator, for a machine that goes on from `snapshot` or boots, and starts the networks.
    pub fn open(config: &MachineConfig, snapshot: Option<&Snapshot>) -> Result<Host, Error> {
        Host::with_networks(Networks::open(config)?, config, snapshot)
    }

    /// Chooses the accelerator; `networks` were opened for the same configuration.
    pub fn with_networks(
        networks: Networks,
        config: &MachineConfig,
        snapshot: Option<&Snapshot>,
    ) -> Result<Host, Error> {
        let (accelerator, options) = choose(config.accel, snapshot.map(|saved| &*saved.state.accelerator))?;
        Ok(Host { accelerator, options, nets: networks, terminal: Terminal::stdout() })
    }

    /// Leads the consoles to another terminal than standard output.
    pub fn with_terminal(mut self, terminal: Terminal) -> Host {
        self.terminal = terminal;
        self
    }
}

impl Networks {
    /// Starts the networks: passt, TAP interfaces.
    pub fn open(config: &MachineConfig) -> Result<Networks, Error> {
        let nets = (0..).zip(&config.nets).map(|(number, net)| network(net, number, config));
        Ok(Networks(nets.collect::<Result<_, _>>()?))
    }
}

impl Terminal {
    /// `writer` is called for each run of the guest; what it gives may block without harm to the guest.
    pub fn new(writer: impl Fn() -> Box<dyn Write + Send> + Send + Sync + 'static) -> Terminal {
        Terminal(Arc::new(writer))
    }

    /// Standard output.
    pub fn stdout() -> Terminal {
        Terminal::new(|| Box::new(std::io::stdout()))
    }

    fn writer(&self) -> Box<dyn Write + Send> {
        (self.0)()
    }
}

impl Assembly {
    /// Makes the machine.
    pub fn new(
        config: &MachineConfig,
        host: &Host,
        events: Arc<Events>,
        mut start: Start<'_>,
    ) -> Result<Assembly, Error> {
        let ram_config = numa::ram(&config.numa, config.ram_bytes, config.pages);
        let (ram, clock) = match &mut start {
            Start::Boot { .. } => (GuestRam::with_hotplug(&ram_config, config.hotplug_bytes)?, clock(host.options)),
            Start::Restore(saved) => (saved.ram(&ram_config, config.hotplug_bytes)?, saved.clock()),
        };
        let (ram, clock) = (Arc::new(ram), Arc::new(clock));
        let timers = Timers::new(clock.clone());
        let irqchip = IrqChip::new(config.vcpus, clock.clone(), &timers);
        let sink: Arc<dyn InterruptSink> = irqchip.clone();

        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        irqchip.insert_into(&mut ports, &mut mmio).map_err(device)?;
        let outputs = Outputs::new(config, &host.terminal, start.is_fresh())?;
        let legacy_config = LegacyConfig {
            serial_output: Some(outputs.serial.clone()),
            debug_exit_port: config.debug_exit,
            repeatable: is_repeatable(config),
        };
        let legacy = LegacyDevices::new(legacy_config, &sink, &timers, events.clone());
        legacy.insert_into(&mut ports).map_err(|overlap| match config.debug_exit {
            Some(_) => Error::DebugExitPort,
            None => device(overlap),
        })?;
        let legacy = Arc::new(legacy);

        let mut slots = Slots {
            ram: ram.clone(),
            sink,
            mmio: &mut mmio,
            lockstep: is_repeatable(config),
            gate: Arc::default(),
            transports: Vec::new(),
            limiters: Vec::new(),
        };
        let Devices { disks, console: virtio, balloon, mem } = add_devices(config, host, &outputs, &mut slots)?;
        let Slots { gate, transports, limiters, .. } = slots;

        let kvmclock = KvmClock::new(ram.memory().clone(), clock.clone(), config.vcpus);
        let socket_vcpus = numa::socket_vcpus(&config.numa, config.vcpus);
        let parts = BoardParts { ports, mmio, irqchip, clock, timers, kvmclock, events, socket_vcpus };
        let board = Arc::new(Board::new(parts));
        let vm: Arc<dyn Vm> = host.accelerator.create_vm(ram.clone(), board.clone(), config.vcpus)?.into();
        if !is_repeatable(config) {
            bind_notifications(&*vm, &transports)?;
        }
        let console = Console { serial: legacy.serial.clone(), virtio, outputs };
        let accelerator = host.accelerator.name();
        let generation = Arc::new(GenerationId::new(ram.memory().clone(), legacy.notices.clone()));
        let live = Live {
            console,
            accelerator,
            ram,
            generation,
            disks,
            nets: host.nets.0.iter().map(|net| net.device.clone()).collect(),
            balloon,
            mem,
            limiters,
            gate,
            vm,
            board,
            legacy,
            transports,
        };
        let vcpus = match start {
            Start::Boot { .. } => boot(config, &live)?,
            Start::Restore(saved) => restore::parts(saved, config, &live)?,
        };
        Ok(Assembly { vcpus, live })
    }

    /// The vCPUs, each to be run by a thread of its own.
    pub fn take_vcpus(&mut self) -> Vec<Box<dyn Vcpu>> {
        std::mem::take(&mut self.vcpus)
    }

    pub fn live(&self) -> Live {
        self.live.clone()
    }

    /// Stops the devices and passes on the console's last output, for `limit` at the longest.
    pub fn close(self, limit: Duration) {
        self.live.transports.iter().for_each(|transport| transport.reset());
        self.live.console.close(limit);
    }
}

fn device(error: impl std::fmt::Display) -> Error {
    Error::Device(error.to_string())
}

/// The accelerator for a choice. `auto` is what Linux runs fastest on: KVM where it runs guests natively. But a guest that
/// goes on from a snapshot needs the processor it knows: for one that was taken on the software CPU, `auto` is that, and
/// nobody waits for a probe of KVM.
fn choose(choice: AccelChoice, taken_on: Option<&str>) -> Result<(Box<dyn Accelerator>, SoftOptions), Error> {
    let choice = match choice {
        AccelChoice::Auto if taken_on == Some(Soft::NAME) => AccelChoice::Soft(SoftOptions::default()),
        choice => choice,
    };
    match choice {
        AccelChoice::Auto => {
            let support = KvmSupport::probe();
            tracing::info!("{support}");
            if support.is_native() {
                Ok((Box::new(Kvm::open(support)?), SoftOptions::default()))
            } else {
                let options = SoftOptions::default();
                Ok((Box::new(Soft::new(options)), options))
            }
        }
        AccelChoice::Soft(options) => Ok((Box::new(Soft::new(options)), options)),
        AccelChoice::Kvm => Ok((Box::new(Kvm::open(KvmSupport::probe())?), SoftOptions::default())),
    }
}

fn clock(options: SoftOptions) -> Clock {
    match options.clock {
        SoftClock::RealTime => Clock::real_time(),
        SoftClock::Instructions => Clock::instruction_counted(NS_PER_INSTRUCTION),
    }
}

/// Whether each run is to be like the last: time is made of instructions, and there is one vCPU to execute them. Input
/// from the terminal, network and sockets still comes when it comes.
pub(super) fn is_repeatable(config: &MachineConfig) -> bool {
    let counted = matches!(config.accel, AccelChoice::Soft(SoftOptions { clock: SoftClock::Instructions, .. }));
    counted && config.vcpus == 1
}

/// Where virtio devices go: one window and one interrupt line after the other.
struct Slots<'a> {
    ram: Arc<GuestRam>,
    sink: Arc<dyn InterruptSink>,
    mmio: &'a mut Bus,
    lockstep: bool,
    gate: Arc<Gate>,
    transports: Vec<Arc<MmioTransport>>,
    limiters: Vec<(String, Arc<Limiter>)>,
}

impl Slots<'_> {
    fn add(&mut self, virtio: Arc<dyn VirtioDevice>) -> Result<(), Error> {
        let number = self.transports.len() as u32;
        let line = IrqLine::new(self.sink.clone(), layout::VIRTIO_GSI_BASE + number);
        let lockstep = self.lockstep.then(Lockstep::new).transpose().map_err(device)?.map(Arc::new);
        let ties = Ties { lockstep, gate: Some(self.gate.clone()) };
        let transport = MmioTransport::tied(virtio, self.ram.memory().clone(), line, ties).map_err(device)?;
        self.mmio.insert(window(number), WINDOW_BYTES, transport.clone()).map_err(device)?;
        self.transports.push(transport);
        Ok(())
    }

    /// A rate limit that can be changed by `name`.
    fn limiter(&mut self, name: String, limit: RateLimit) -> Arc<Limiter> {
        let limiter = Limiter::new(limit);
        self.limiters.push((name, limiter.clone()));
        limiter
    }
}

/// The devices that are reached while the machine runs.
struct Devices {
    disks: Vec<Arc<Block>>,
    console: Option<Arc<console::Console>>,
    balloon: Arc<Balloon>,
    mem: Option<Arc<Mem>>,
}

/// Disks come first, so that their numbers do not depend on the other devices.
fn add_devices(
    config: &MachineConfig,
    host: &Host,
    outputs: &Outputs,
    slots: &mut Slots<'_>,
) -> Result<Devices, Error> {
    let mut disks = Vec::new();
    for (number, disk) in config.disks.iter().enumerate() {
        let limiter = slots.limiter(format!("disk{number}"), disk.limit);
        let block = block(disk, limiter, config)?;
        slots.add(block.clone())?;
        disks.push(block);
    }
    for (number, Network { device, limiters: [receive, transmit] }) in host.nets.0.iter().enumerate() {
        slots.limiters.push((format!("net{number}-rx"), receive.clone()));
        slots.limiters.push((format!("net{number}-tx"), transmit.clone()));
        slots.add(device.clone())?;
    }
    if let Some(path) = &config.vsock {
        let vsock = VsockConfig { guest_cid: GUEST_CID, path: path.clone() };
        slots.add(vsock.build().map_err(|error| Error::Vsock(error.to_string()))?)?;
    }
    let console = match config.console {
        ConsoleChoice::Virtio => Some(terminal(config, outputs)?),
        ConsoleChoice::Serial | ConsoleChoice::None => None,
    };
    if let Some(console) = &console {
        slots.add(console.clone())?;
    }
    let limiter = slots.limiter("rng".to_owned(), config.rng_limit);
    slots.add(if is_repeatable(config) { Rng::repeatable(REPEATABLE_SEED) } else { Rng::limited(limiter) })?;
    let balloon = Balloon::new().map_err(device)?;
    balloon.set_target_bytes(config.balloon_bytes);
    slots.add(balloon.clone())?;
    let mem = slots.ram.hotplug().map(|(start, bytes)| Mem::new(slots.ram.memory().clone(), start, bytes));
    if let Some(mem) = &mem {
        mem.set_requested_bytes(config.hotplug_requested_bytes);
        slots.add(mem.clone())?;
    }
    Ok(Devices { disks, console, balloon, mem })
}

/// The console that has the terminal. Its size comes through the machine's handle.
fn terminal(config: &MachineConfig, outputs: &Outputs) -> Result<Arc<console::Console>, Error> {
    let output = outputs.virtio.clone();
    let console = ConsoleConfig { output, repeatable: is_repeatable(config), columns: 0, rows: 0 };
    console.build().map_err(device)
}

fn block(config: &DiskConfig, limiter: Arc<Limiter>, machine: &MachineConfig) -> Result<Arc<Block>, Error> {
    let DiskConfig { path, format, backing, read_only, serial, .. } = config.clone();
    let image = ImageConfig { path, format, read_only, backing, direct: false, in_order: is_repeatable(machine) };
    let disk = open_disk(&image).map_err(|source| Error::Disk { path: image.path, source })?;
    // A disk that has fewer queues than the guest sees serves them in turns: a snapshot may put such a one in its place.
    let queues = machine.vcpus.min(DISK_QUEUES) as u16;
    let block = BlockConfig { disk, serial: serial.unwrap_or_default(), queues, limiter };
    block.build().map_err(device)
}

fn network(config: &NetConfig, number: u32, machine: &MachineConfig) -> Result<Network, Error> {
    let backend: Box<dyn Backend> = match &config.backend {
        NetBackend::User => {
            let network = UserNetwork::start(&UserNetworkConfig {
                listener_starts: || confine::enter(confine::Kind::PasstLog),
                ..UserNetworkConfig::default()
            });
            Box::new(network.map_err(|error| Error::Net(error.to_string()))?)
        }
        NetBackend::Tap(name) => Box::new(Tap::open(name).map_err(|error| Error::Net(error.to_string()))?),
    };
    // One process runs one machine, so its number tells the machines of a host apart.
    let host_wide = std::process::id().to_string();
    let derived = || Mac::derived(if is_repeatable(machine) { "repeatable" } else { &host_wide }, number);
    let mac = config.mac.unwrap_or_else(derived);
    let limiters = [config.receive_limit, config.transmit_limit].map(Limiter::new);
    let [receive_limiter, transmit_limiter] = limiters.clone();
    let net = net::NetConfig { backend, mac, receive_limiter, transmit_limiter };
    Ok(Network { device: net.build().map_err(device)?, limiters })
}

/// The window of virtio device `number`.
fn window(number: u32) -> u64 {
    layout::VIRTIO_MMIO_BASE + u64::from(number) * layout::VIRTIO_MMIO_STRIDE
}

/// Loads tables and kernel, and makes the vCPUs that enter it.
fn boot(config: &MachineConfig, live: &Live) -> Result<Vec<Box<dyn Vcpu>>, Error> {
    let rsdp = acpi_tables(config, live.transports.len() as u32, &live.ram)?;
    let entry = load(config, rsdp, &live.ram)?;
    live.generation.set(new_generation(config).unwrap_or(REPEATABLE_GENERATION)).map_err(device)?;
    vcpus(&*live.vm, config.vcpus, &entry)
}

fn acpi_tables(config: &MachineConfig, virtio_devices: u32, ram: &GuestRam) -> Result<u64, Error> {
    let numa = numa::tables(&config.numa, ram);
    let tables = AcpiConfig { vcpus: config.vcpus, virtio_devices, numa, hotplug: ram.hotplug() };
    acpi::build(ram.boot_memory(), &tables).map_err(|error| Error::Acpi(error.to_string()))
}

fn load(config: &MachineConfig, rsdp: u64, ram: &GuestRam) -> Result<InitialState, Error> {
    let mut seed = [0; 32];
    let random = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
    // A run that must be repeatable gets the same seed every time.
    let rng_seed = if is_repeatable(config) { Some([0x51; 32]) } else { random.is_ok().then_some(seed) };
    let boot = BootConfig {
        kernel: &config.kernel,
        initrd: &config.initrd,
        cmdline: &config.cmdline,
        rsdp: Some(rsdp),
        protocol: config.protocol,
        rng_seed,
    };
    Ok(boot::load(&boot, ram.boot_memory())?)
}

/// A generation identifier that no machine has had; none for a machine whose runs are to be alike.
pub(super) fn new_generation(config: &MachineConfig) -> Option<[u8; generation::LEN]> {
    let mut id = [0; generation::LEN];
    if is_repeatable(config) || rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).is_err() {
        return None;
    }
    Some(id)
}

/// Lets the guest's notifications reach the devices' threads without the vCPUs leaving the guest, where that can be.
/// Whoever must see each notification, as a device in lockstep does, cannot have it.
fn bind_notifications(vm: &dyn Vm, transports: &[Arc<MmioTransport>]) -> Result<(), Error> {
    for (number, transport) in (0..).zip(transports) {
        for (queue, kick) in (0..).zip(transport.kicks()) {
            vm.bind_notification(window(number) + QUEUE_NOTIFY_OFFSET, queue, kick)?;
        }
    }
    Ok(())
}

fn vcpus(vm: &dyn Vm, count: u32, entry: &InitialState) -> Result<Vec<Box<dyn Vcpu>>, Error> {
    let mut vcpus = (0..count).map(|id| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
    for (id, vcpu) in vcpus.iter_mut().enumerate() {
        let mut state = vcpu.state();
        set_memory_types(&mut state);
        vcpu.set_state(&if id == 0 { entry_state(entry, state) } else { state });
    }
    choose_apic_mode(&mut vcpus)?;
    Ok(vcpus)
}

/// Where there are more vCPUs than local APICs in xAPIC mode can have identifiers, all start in x2APIC mode, as firmware
/// leaves them: Linux counts no other processors (`arch/x86/kernel/acpi/boot.c`, acpi_parse_x2apic).
pub(super) fn choose_apic_mode(vcpus: &mut [Box<dyn Vcpu>]) -> Result<(), Error> {
    const XAPIC_VCPUS: usize = 255;
    if vcpus.len() > XAPIC_VCPUS {
        for vcpu in vcpus {
            let local_apic = vcpu.local_apic()?;
            vcpu.set_local_apic(&LapicState { base: local_apic.base | BASE_X2APIC, ..local_apic })?;
        }
    }
    Ok(())
}

/// Memory types as firmware leaves them, the same on every vCPU, for kernels that trust nothing else: write-back but for
/// the video window (SDM vol. 3A §12.11.2).
fn set_memory_types(state: &mut State) {
    state.msrs.mtrr_default = MTRR_ENABLED_WRITE_BACK;
    state.msrs.mtrr_fixed = [MTRR_WRITE_BACK; 11];
    state.msrs.mtrr_fixed[MTRR_VIDEO] = 0;
}

/// The boot loader's registers on top of the state after reset.
fn entry_state(entry: &InitialState, mut state: State) -> State {
    use queztl_soft_cpu::state::{Segment, Table, gpr, seg};
    let segment = |from: &boot::Segment| Segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        attributes: u16::from(from.access) | u16::from(from.flags) << 12,
    };
    state.gpr = [0; 16];
    let registers = [
        (gpr::RAX, entry.rax),
        (gpr::RBX, entry.rbx),
        (gpr::RCX, entry.rcx),
        (gpr::RDX, entry.rdx),
        (gpr::RSI, entry.rsi),
        (gpr::RDI, entry.rdi),
        (gpr::RBP, entry.rbp),
        (gpr::RSP, entry.rsp),
    ];
    for (register, value) in registers {
        state.gpr[register] = value;
    }
    state.rip = entry.rip;
    state.rflags = entry.rflags();
    state.segments = [segment(&entry.data); 6];
    state.segments[seg::CS] = segment(&entry.cs);
    state.tr = segment(&entry.tr);
    state.gdtr = Table { base: entry.gdt.base, limit: entry.gdt.limit };
    state.idtr = Table::default();
    state.cr0 = entry.cr0();
    state.cr3 = entry.cr3();
    state.cr4 = entry.cr4();
    state.efer = entry.efer();
    state
}
