//! What a machine is made of and how its run can end: plain values, read by the command line and later by the API.
//!
//! A configuration is a wish; [`crate::machine`] checks it against the host and says which wish cannot be granted.

use std::path::PathBuf;

/// Most vCPUs a machine can have (the local APICs' 8-bit identifiers, less the broadcast one).
pub const MAX_VCPUS: u32 = 255;

/// Least RAM a machine can have, in bytes: room below the kernel's usual address for the boot structures.
pub const MIN_RAM_BYTES: u64 = 2 << 20;

/// One virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineConfig {
    /// ELF, bzImage or Multiboot kernel.
    pub kernel: PathBuf,
    /// Initial RAM disks (Linux: concatenated) or modules (Multiboot), in this order.
    pub initrd: Vec<PathBuf>,
    /// The kernel's command line, without the parts the machine adds itself.
    pub cmdline: String,
    /// virtio block devices, in this order.
    pub disks: Vec<DiskConfig>,
    /// virtio network devices, in this order.
    pub nets: Vec<NetConfig>,
    /// Host side of the virtio socket device: the path that guest ports are reached by.
    pub vsock: Option<PathBuf>,
    /// Number of vCPUs, `1..=`[`MAX_VCPUS`].
    pub vcpus: u32,
    /// RAM in bytes, at least [`MIN_RAM_BYTES`], a multiple of 4096.
    pub ram_bytes: u64,
    /// What executes the guest.
    pub accel: AccelChoice,
    /// Where the first serial port leads.
    pub serial: SerialOutput,
    /// An I/O port whose writes end the run as [`Outcome::DebugExit`].
    pub debug_exit: Option<u16>,
    /// Report when the guest's first user process starts.
    pub boot_timer: bool,
}

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Raw image or block device.
    pub path: PathBuf,
    /// The guest cannot write, and other readers may share the file.
    pub read_only: bool,
    /// The disk's serial number as the guest reads it, at most 20 bytes (Virtio 1.2 §5.2.6).
    pub serial: Option<String>,
}

/// A network device's other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetConfig {
    /// The host's network through user-mode address translation (passt); needs no privilege.
    User,
    /// A TAP interface of the host by its name; made if it does not exist.
    Tap(String),
}

/// What executes the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccelChoice {
    /// The accelerator on which Linux will run fastest on this host.
    Auto,
    /// The host's KVM.
    Kvm,
    /// The software CPU.
    Soft(SoftOptions),
}

/// How the software CPU behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SoftOptions {
    /// What the guest's time is made of.
    pub clock: SoftClock,
}

/// What the guest's time is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SoftClock {
    /// The host's clock.
    #[default]
    RealTime,
    /// The number of executed instructions: the same guest runs the same way every time.
    Instructions,
}

/// Where the first serial port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialOutput {
    /// Standard output; input comes through the machine's handle.
    Stdio,
    /// A file, created or truncated.
    File(PathBuf),
    /// Nowhere.
    None,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched itself off.
    PowerOff,
    /// The guest reported that it panicked (pvpanic).
    Panic,
    /// A vCPU shut down because an exception could not be delivered (SDM vol. 3A §6.15, double fault).
    TripleFault,
    /// The time given for the run is over.
    Timeout,
    /// The guest wrote this value to the debug exit port.
    DebugExit(u8),
    /// Somebody stopped the machine from outside.
    Stopped,
}
