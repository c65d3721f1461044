//! `queztl-hv run`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use queztl_vmm::config::{AccelChoice, ConsoleChoice, DiskConfig, Pages, Protocol, RateLimit, SerialOutput};
use queztl_vmm::confine::Mode;

use crate::topology::{self, NumaArg, PinArg};
use crate::values::{self, NetArg};

pub const RUN_KEYS: &str = "\
Keys, when standard input is a terminal (it is put into raw mode, so Ctrl-C goes to the guest):
  Ctrl-A x       stop the virtual machine
  Ctrl-A Ctrl-A  send one Ctrl-A to the guest (Ctrl-A a as well)
  Ctrl-A h       list these keys

Examples:
  queztl-hv run
  queztl-hv run --kernel vmlinuz --initrd initrd.img --disk root.img --append 'console=ttyS0 root=/dev/vda' --ram 2GB";

pub const SIZES: &str = "RAM, at most 512G [default: 512M, or that of the NUMA nodes]: a number and a unit K, M, G or T; MB and MiB mean the same, 1024 KiB";

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Go on from this snapshot instead of booting; taken by `queztl-hv control PATH snapshot DIR`
    ///
    /// The machine is the one of the snapshot. --disk, --net, --vsock and --pin, where given, take the place of all its
    /// own of that kind, which may have moved; --balloon, --accel, --serial that of its own.
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = [
            "kernel", "initrd", "append", "rng", "memory_hotplug", "vcpus", "ram", "memory", "numa", "console", "debug_exit",
            "protocol", "boot_timer",
        ]
    )]
    pub restore: Option<PathBuf>,

    /// Kernel: ELF vmlinux, bzImage or Multiboot 1 [default: the one built by `queztl-hv kernel build`]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk, or a module for a Multiboot kernel (repeatable) [default, without --kernel: the one built here]
    #[arg(long, value_name = "FILE")]
    pub initrd: Vec<PathBuf>,

    /// Kernel command line [default with --kernel: its console; without --kernel it is appended to our own]
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    pub append: Option<String>,

    /// Disk from an image or block device, in this order /dev/vda, /dev/vdb, … (repeatable)
    ///
    /// A file is a raw image unless it is called *.qcow2 or format= says so. A qcow2 image may build on files in its own
    /// folder; backing=any allows others. bps=SIZE and iops=N limit the bytes and requests a second; bps-burst=SIZE and
    /// iops-burst=N say how much at once after a rest, a tenth of a second's worth if not given. A comma in FILE is
    /// written twice.
    #[arg(long = "disk", value_name = "FILE[,ro][,format=…][,backing=…][,serial=ID][,bps=SIZE][,iops=N]",
          value_parser = values::disk)]
    pub disks: Vec<DiskConfig>,

    /// Network device: none, user (through passt, no privilege needed) or a TAP interface (repeatable) [default: none]
    ///
    /// Limits for frames to the guest: rx-bps=SIZE (bytes a second) and rx-pps=N (frames a second), for those from it tx-bps
    /// and tx-pps; bursts as for --disk, for example rx-bps-burst=SIZE.
    #[arg(long = "net", value_name = "none|user|tap=NAME[,rx-bps=SIZE][,tx-bps=SIZE]", value_parser = values::net)]
    pub nets: Vec<NetArg>,

    /// Limit of the entropy device: bps=SIZE (bytes a second) and iops=N (requests a second)
    #[arg(long, value_name = "bps=SIZE", value_parser = values::rate_limit)]
    pub rng: Option<RateLimit>,

    /// Memory that the guest is asked to give back from the start; `queztl-hv control` changes it later
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = values::size)]
    pub balloon: u64,

    /// Memory that can be added while the guest runs, by `queztl-hv control PATH memory SIZE`
    #[arg(long, value_name = "MAX", default_value = "0", value_parser = values::size)]
    pub memory_hotplug: u64,

    /// Unix socket through which `queztl-hv control` reaches the running virtual machine
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// virtio socket device: guest port P is reached by PATH ("CONNECT P"), the guest reaches PATH_P
    #[arg(long, value_name = "PATH")]
    pub vsock: Option<PathBuf>,

    /// Number of vCPUs, at most 256
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value = "1", value_parser = values::vcpus)]
    pub vcpus: u32,

    #[arg(long, value_name = "SIZE", value_parser = values::ram, help = SIZES)]
    pub ram: Option<u64>,

    /// The host pages that RAM is made of: 2M takes them from the host's reserved pool, thp makes them as possible
    #[arg(long, value_name = "hugepages=2M|thp|none", default_value = "hugepages=none", value_parser = topology::memory)]
    pub memory: Pages,

    /// A NUMA node of the guest (repeatable); LIST is like 0-1 or [0,2-3]
    ///
    /// All vCPUs and all RAM are in a node then. host-node takes the node's RAM from that node of the host.
    #[arg(
        long,
        value_name = "cpus=LIST,ram=SIZE[,node=N][,host-node=N][,distances=[NODE@N,…]]",
        value_parser = topology::numa
    )]
    pub numa: Vec<NumaArg>,

    /// Keep vCPUs on CPUs of the host: each vCPU on one, in order, or sets of vCPUs on sets of CPUs, such as 0-1=[2,4]
    #[arg(long = "pin", value_name = "CPUS|VCPUS=CPUS[,…]", value_parser = topology::pin)]
    pub pins: Vec<PinArg>,

    /// What executes the guest: auto takes what runs Linux fastest here (see `queztl-hv doctor`)
    ///
    /// soft,clock=instructions counts instructions instead of time, so that the same guest runs the same way every
    /// time. soft,translator=off interprets all code; translator=eager translates all that can be, at its first run.
    #[arg(long, value_name = "auto|kvm|soft[,clock=…][,translator=…]", default_value = "auto", value_parser = values::accel)]
    pub accel: AccelChoice,

    /// Which of the guest's consoles has the terminal [default: the last console= of --append; else virtio for our own
    /// kernel and serial for others]
    #[arg(long, value_enum, value_name = "serial|virtio|none", hide_possible_values = true)]
    pub console: Option<ConsoleArg>,

    /// Where the output of the guest's first serial port leads [default: stdio]
    #[arg(long, value_name = "stdio|file=PATH|none", value_parser = values::serial)]
    pub serial: Option<SerialOutput>,

    /// I/O port whose writes end the virtual machine: v gives exit status (v << 1) | 1
    #[arg(long, value_name = "PORT", value_parser = values::port)]
    pub debug_exit: Option<u16>,

    /// Stop the virtual machine after this time (exit status 10)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = values::seconds)]
    pub timeout: Option<std::time::Duration>,

    /// How the kernel is entered, if not as its file suggests
    #[arg(long, value_enum, default_value_t)]
    pub protocol: ProtocolArg,

    /// What becomes of system calls that are not on a thread's list: on ends the process (exit status 14), log has the
    /// kernel note them, off allows them
    #[arg(long, value_enum, default_value_t)]
    pub seccomp: SeccompArg,

    /// Print on standard error how long it took from the start of this process to the guest's first user process
    #[arg(long)]
    pub boot_timer: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConsoleArg {
    /// The first serial port, ttyS0; knows no size
    Serial,
    /// The virtio console, hvc0, which follows the terminal's size
    Virtio,
    /// None: keys stay with the host
    None,
}

impl From<ConsoleArg> for ConsoleChoice {
    fn from(arg: ConsoleArg) -> ConsoleChoice {
        match arg {
            ConsoleArg::Serial => ConsoleChoice::Serial,
            ConsoleArg::Virtio => ConsoleChoice::Virtio,
            ConsoleArg::None => ConsoleChoice::None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ProtocolArg {
    /// As the kernel's file suggests
    #[default]
    Auto,
    /// Linux's own protocol, in 64-bit mode where the kernel can
    Linux,
    /// PVH, in 32-bit protected mode
    Pvh,
    /// Multiboot 1, in 32-bit protected mode
    Multiboot,
}

impl From<ProtocolArg> for Protocol {
    fn from(arg: ProtocolArg) -> Protocol {
        match arg {
            ProtocolArg::Auto => Protocol::Auto,
            ProtocolArg::Linux => Protocol::Linux,
            ProtocolArg::Pvh => Protocol::Pvh,
            ProtocolArg::Multiboot => Protocol::Multiboot,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum SeccompArg {
    /// They end the process
    #[default]
    On,
    /// They are carried out, and the kernel's audit log names them
    Log,
    /// There are no lists
    Off,
}

impl From<SeccompArg> for Mode {
    fn from(arg: SeccompArg) -> Mode {
        match arg {
            SeccompArg::On => Mode::On,
            SeccompArg::Log => Mode::Log,
            SeccompArg::Off => Mode::Off,
        }
    }
}
