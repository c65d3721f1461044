//! What a machine is made of and how its run can end: plain values, read by the command line and later by the API.
//!
//! A configuration is a wish; [`crate::machine`] checks it against the host and says which wish cannot be granted. It has
//! one form as JSON: fields by their names here, choices in kebab-case, sizes in bytes; what has a default may be left
//! out, and what is not known is refused.

use std::path::PathBuf;

use queztl_guest_memory::HUGE_PAGE_SIZE;
pub use queztl_guest_memory::Pages;
pub use queztl_network::Mac;
pub use queztl_storage::{Backing, Format};
use serde::{Deserialize, Serialize};

pub use crate::affinity::Pin;
use crate::affinity::{self, PinError};
pub use crate::boot::Protocol;
pub use crate::devices::virtio::limit::{Rate, RateLimit};
use crate::devices::virtio::mem::BLOCK_BYTES;
pub use crate::numa::NumaNode;
use crate::numa::{self, NumaError};

/// Most vCPUs a machine can have. The last, number 255, is reached in x2APIC mode only: in the older mode its identifier is
/// the broadcast.
pub const MAX_VCPUS: u32 = crate::irqchip::MAX_VCPUS;

/// Least RAM a machine can have, in bytes: room below the kernel's usual address for the boot structures.
pub const MIN_RAM_BYTES: u64 = 2 << 20;

/// Most RAM a machine can have, in bytes. It need not be there: RAM takes memory of the host once the guest touches it.
pub const MAX_RAM_BYTES: u64 = 512 << 30;

/// One virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// ELF, bzImage or Multiboot kernel.
    pub kernel: PathBuf,
    /// Initial RAM disks (Linux: concatenated) or modules (Multiboot), in this order.
    #[serde(default)]
    pub initrd: Vec<PathBuf>,
    /// The kernel's command line, without the parts the machine adds itself.
    #[serde(default)]
    pub cmdline: String,
    /// virtio block devices, in this order.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// virtio network devices, in this order.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// What the entropy device gives at most.
    #[serde(default)]
    pub rng_limit: RateLimit,
    /// What the guest is asked to give up to the balloon, in bytes.
    #[serde(default)]
    pub balloon_bytes: u64,
    /// How much memory can be hot-plugged above the RAM, in bytes, a multiple of 2 MiB; zero for none.
    #[serde(default)]
    pub hotplug_bytes: u64,
    /// How much of it the guest is asked to use.
    #[serde(default)]
    pub hotplug_requested_bytes: u64,
    /// Host side of the virtio socket device: the path that guest ports are reached by.
    #[serde(default)]
    pub vsock: Option<PathBuf>,
    /// Number of vCPUs, `1..=`[`MAX_VCPUS`].
    #[serde(default = "one")]
    pub vcpus: u32,
    /// RAM in bytes, from [`MIN_RAM_BYTES`] to [`MAX_RAM_BYTES`], a multiple of 4096.
    pub ram_bytes: u64,
    /// The host pages that RAM is made of.
    #[serde(default)]
    pub pages: Pages,
    /// NUMA nodes, which then make up all of the RAM and have all of the vCPUs; none for a machine without NUMA.
    #[serde(default)]
    pub numa: Vec<NumaNode>,
    /// vCPUs that stay on some of the host's CPUs; the others run anywhere.
    #[serde(default)]
    pub pins: Vec<Pin>,
    /// How the kernel is entered.
    #[serde(default)]
    pub protocol: Protocol,
    /// What executes the guest.
    #[serde(default)]
    pub accel: AccelChoice,
    /// Which of the guest's consoles the terminal's input and size are for.
    #[serde(default)]
    pub console: ConsoleChoice,
    /// Where the first serial port leads.
    #[serde(default)]
    pub serial: SerialOutput,
    /// An I/O port whose writes end the run as [`Outcome::DebugExit`].
    #[serde(default)]
    pub debug_exit: Option<u16>,
    /// Report when the guest's first user process starts.
    #[serde(default)]
    pub boot_timer: bool,
}

fn one() -> u32 {
    1
}

impl MachineConfig {
    /// Checks what can be checked without making anything.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus { vcpus: self.vcpus });
        }
        if self.ram_bytes < MIN_RAM_BYTES || !self.ram_bytes.is_multiple_of(queztl_guest_memory::PAGE_SIZE) {
            return Err(ConfigError::Ram { bytes: self.ram_bytes });
        }
        if self.ram_bytes > MAX_RAM_BYTES {
            return Err(ConfigError::TooMuchRam { bytes: self.ram_bytes });
        }
        if self.pages == Pages::Huge2M && !self.ram_bytes.is_multiple_of(HUGE_PAGE_SIZE) {
            return Err(ConfigError::HugePages { bytes: self.ram_bytes });
        }
        numa::check(&self.numa, self.vcpus, self.ram_bytes)?;
        affinity::check(&self.pins, self.vcpus)?;
        if !self.hotplug_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(ConfigError::Hotplug { bytes: self.hotplug_bytes });
        }
        let all_bytes = self.ram_bytes.saturating_add(self.hotplug_bytes);
        if all_bytes > MAX_RAM_BYTES {
            return Err(ConfigError::TooMuchRam { bytes: all_bytes });
        }
        let asked = self.disks.len() + self.nets.len() + usize::from(self.vsock.is_some());
        if asked > MAX_DEVICES {
            return Err(ConfigError::Devices { asked });
        }
        let writable = self.disks.iter().filter(|disk| !disk.read_only);
        for (index, disk) in writable.enumerate() {
            if self.disks.iter().filter(|other| other.path == disk.path).count() > 1 {
                return Err(ConfigError::DiskTwice { index, path: disk.path.clone() });
            }
        }
        Ok(())
    }

    /// What the user should know about this machine on this host, a sentence each: it will run, but perhaps not as
    /// wished.
    pub fn warnings(&self) -> Vec<String> {
        let ram = host_ram_bytes().and_then(|host_bytes| self.warn_of_ram(host_bytes));
        let setting = std::fs::read_to_string(SHARED_HUGE_PAGES).unwrap_or_default();
        ram.into_iter().chain(self.warn_of_pages(&setting)).collect()
    }

    /// `setting` is the host's choice among all, as the kernel shows it: the one in brackets holds.
    fn warn_of_pages(&self, setting: &str) -> Option<String> {
        let off = setting.contains("[never]") || setting.contains("[deny]");
        (self.pages == Pages::Transparent && off).then(|| {
            format!(
                "this host makes no transparent huge pages for guest RAM, which stays in pages of 4 KiB: as root, echo \
                 advise > {SHARED_HUGE_PAGES}"
            )
        })
    }

    fn warn_of_ram(&self, host_bytes: u64) -> Option<String> {
        (self.ram_bytes > host_bytes).then(|| {
            format!(
                "{} MiB of RAM are more than this host has with its swap space, {} MiB: the machine runs as long as its \
                 guest uses no more than is free",
                self.ram_bytes >> 20,
                host_bytes >> 20
            )
        })
    }
}

/// Disks, network devices and the socket device a machine can have; the rest of the lines serve the devices that every
/// machine has.
pub const MAX_DEVICES: usize = crate::layout::VIRTIO_MAX_DEVICES as usize - 8;

/// Why no machine can be as it is wished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("a virtual machine has 1 to {MAX_VCPUS} vCPUs, not {vcpus}")]
    Vcpus { vcpus: u32 },
    #[error(
        "{bytes} bytes of RAM cannot be: a virtual machine has at least {} MiB, in whole 4 KiB pages",
        MIN_RAM_BYTES >> 20
    )]
    Ram { bytes: u64 },
    #[error("{} GiB of RAM are too much: a virtual machine has at most {} GiB", bytes >> 30, MAX_RAM_BYTES >> 30)]
    TooMuchRam { bytes: u64 },
    #[error("{bytes} bytes of RAM are no whole number of huge pages: give a multiple of 2 MiB")]
    HugePages { bytes: u64 },
    #[error(transparent)]
    Numa(#[from] NumaError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error("{bytes} bytes of memory to hot-plug cannot be: give whole blocks of {} MiB", BLOCK_BYTES >> 20)]
    Hotplug { bytes: u64 },
    #[error("{asked} devices are too many: a virtual machine has room for {MAX_DEVICES}")]
    Devices { asked: usize },
    #[error("disk {index}, {path:?}, is given twice, once for writing: give it once, or read-only each time")]
    DiskTwice { index: usize, path: PathBuf },
}

/// Where the host's administrator says whether shared memory, which guest RAM is, may have transparent huge pages.
const SHARED_HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// RAM and swap space of the host in bytes, if it tells.
fn host_ram_bytes() -> Option<u64> {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit);
    let bytes = (info.totalram as u64).checked_add(info.totalswap as u64)?.checked_mul(unit)?;
    (bytes > 0).then_some(bytes)
}

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Image or block device.
    pub path: PathBuf,
    /// How the disk lies in the file, if that is said.
    #[serde(default)]
    pub format: Option<Format>,
    /// Which backing files a qcow2 image may lead to.
    #[serde(default)]
    pub backing: Backing,
    /// The guest cannot write, and other readers may share the file.
    #[serde(default)]
    pub read_only: bool,
    /// The disk's serial number as the guest reads it, at most 20 bytes (Virtio 1.2 §5.2.6).
    #[serde(default)]
    pub serial: Option<String>,
    /// What the guest may do to the disk.
    #[serde(default)]
    pub limit: RateLimit,
}

/// A network device of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Its other end.
    pub backend: NetBackend,
    /// The card's address; if none is given, one that no other process of this host makes.
    #[serde(default)]
    pub mac: Option<Mac>,
    /// What may come to the guest, and what may leave it.
    #[serde(default)]
    pub receive_limit: RateLimit,
    #[serde(default)]
    pub transmit_limit: RateLimit,
}

impl NetConfig {
    /// A device without limits.
    pub fn new(backend: NetBackend) -> NetConfig {
        NetConfig { backend, mac: None, receive_limit: RateLimit::default(), transmit_limit: RateLimit::default() }
    }
}

/// A network device's other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetBackend {
    /// The host's network through user-mode address translation (passt); needs no privilege.
    User,
    /// A TAP interface of the host by its name; made if it does not exist.
    Tap(String),
}

/// What executes the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccelChoice {
    /// The accelerator on which Linux will run fastest on this host.
    #[default]
    Auto,
    /// The host's KVM.
    Kvm,
    /// The software CPU.
    Soft(SoftOptions),
}

/// How the software CPU behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoftOptions {
    /// What the guest's time is made of.
    pub clock: SoftClock,
    /// Which code becomes host code instead of being interpreted.
    pub translator: SoftTranslator,
}

/// Which code becomes host code instead of being interpreted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SoftTranslator {
    /// None.
    Off,
    /// What runs often.
    #[default]
    On,
    /// All that can, as soon as it runs: slower, for tests.
    Eager,
}

/// What the guest's time is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SoftClock {
    /// The host's clock.
    #[default]
    RealTime,
    /// The number of executed instructions: the same guest runs the same way every time.
    Instructions,
}

/// Which of the guest's consoles has the terminal: its input through the machine's handle, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleChoice {
    /// The first serial port. Its output goes where [`MachineConfig::serial`] says.
    #[default]
    Serial,
    /// A virtio console, whose output goes to standard output. It alone knows the terminal's size.
    Virtio,
    /// None; input goes nowhere.
    None,
}

/// Where the first serial port leads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SerialOutput {
    /// Standard output.
    #[default]
    Stdio,
    /// A file, created or truncated.
    File(PathBuf),
    /// Nowhere.
    None,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
    /// It goes on in another process, which it was brought to.
    Moved,
    /// It came from another process before its memory had, and that process is gone for good.
    SourceLost,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> MachineConfig {
        MachineConfig {
            kernel: "vmlinux".into(),
            initrd: Vec::new(),
            cmdline: String::new(),
            disks: Vec::new(),
            nets: Vec::new(),
            rng_limit: RateLimit::default(),
            balloon_bytes: 0,
            hotplug_bytes: 0,
            hotplug_requested_bytes: 0,
            vsock: None,
            vcpus: 1,
            ram_bytes: 64 << 20,
            pages: Pages::Host,
            numa: Vec::new(),
            pins: Vec::new(),
            accel: AccelChoice::Auto,
            console: ConsoleChoice::Serial,
            serial: SerialOutput::Stdio,
            protocol: Protocol::Auto,
            debug_exit: None,
            boot_timer: false,
        }
    }

    fn disk(path: &str, read_only: bool) -> DiskConfig {
        DiskConfig { path: path.into(), read_only, ..DiskConfig::default() }
    }

    /// One of everything, none of it as by default.
    fn odd() -> MachineConfig {
        let limit =
            RateLimit { bytes: Some(Rate::per_second(1 << 20)), requests: Some(Rate { per_second: 9, burst: 3 }) };
        let disk = DiskConfig {
            path: "disks/a b".into(),
            format: Some(Format::Qcow2),
            backing: Backing::Any,
            read_only: true,
            serial: Some("s1".into()),
            limit,
        };
        let mac = Some(Mac([2, 0, 0, 0, 0, 9]));
        let backend = NetBackend::Tap("t0".into());
        let tap = NetConfig { backend, mac, receive_limit: limit, transmit_limit: limit };
        let soft = SoftOptions { clock: SoftClock::Instructions, translator: SoftTranslator::Eager };
        MachineConfig {
            kernel: "vmlinux".into(),
            initrd: vec!["one".into(), "two".into()],
            cmdline: "quiet \"x\"".into(),
            disks: vec![disk],
            nets: vec![tap, NetConfig::new(NetBackend::User)],
            rng_limit: limit,
            balloon_bytes: 4096,
            hotplug_bytes: 4 << 20,
            hotplug_requested_bytes: 2 << 20,
            vsock: Some("vsock.sock".into()),
            vcpus: 3,
            ram_bytes: u64::MAX,
            pages: Pages::Huge2M,
            numa: vec![NumaNode { vcpus: vec![0, 2], ram_bytes: 7, host_node: Some(1), distances: vec![(1, 20)] }],
            pins: vec![Pin { vcpu: 0, cpus: vec![1, 3] }],
            protocol: Protocol::Pvh,
            accel: AccelChoice::Soft(soft),
            console: ConsoleChoice::Virtio,
            serial: SerialOutput::File("log".into()),
            debug_exit: Some(0xf4),
            boot_timer: true,
        }
    }

    #[test]
    fn a_machine_comes_back_from_json_as_it_was() {
        for machine in [machine(), odd()] {
            let text = serde_json::to_string(&machine).unwrap();
            assert_eq!(serde_json::from_str::<MachineConfig>(&text).unwrap(), machine, "{text}");
        }
    }

    #[test]
    fn what_has_a_default_may_be_left_out_and_what_is_not_known_is_refused() {
        let read = |text: &str| serde_json::from_str::<MachineConfig>(text);
        let text = format!(r#"{{"kernel":"vmlinux","ram_bytes":{}}}"#, 64 << 20);
        assert_eq!(read(&text).unwrap(), machine());
        assert!(read(r#"{"kernel":"vmlinux"}"#).unwrap_err().to_string().contains("ram_bytes"));
        for (field, value) in [
            ("colour", "1"),
            ("disks", r#"[{"path":"a","colour":1}]"#),
            ("nets", r#"[{"backend":"user","colour":1}]"#),
            ("numa", r#"[{"colour":1}]"#),
            ("pins", r#"[{"vcpu":0,"cpus":[0],"colour":1}]"#),
            ("accel", r#"{"soft":{"colour":1}}"#),
            ("pages", r#""colour""#),
        ] {
            let text = format!(r#"{{"kernel":"vmlinux","ram_bytes":1,"{field}":{value}}}"#);
            assert!(read(&text).unwrap_err().to_string().contains("colour"), "{text}");
        }
    }

    #[test]
    fn a_modest_machine_passes() {
        assert_eq!(machine().check(), Ok(()));
    }

    #[test]
    fn ram_beyond_the_host_is_warned_of_with_both_figures() {
        let machine = MachineConfig { ram_bytes: 512 << 30, ..machine() };
        assert_eq!(machine.check(), Ok(()));
        assert_eq!(machine.warn_of_ram(512 << 30), None);
        let warning = machine.warn_of_ram(1 << 30).unwrap();
        assert!(warning.contains("524288 MiB") && warning.contains("1024 MiB"), "{warning}");
    }

    #[test]
    fn huge_pages_the_host_does_not_make_are_warned_of() {
        let machine = MachineConfig { pages: Pages::Transparent, ..machine() };
        assert!(machine.warn_of_pages("always advise [never] force").unwrap().contains("echo advise"));
        assert_eq!(machine.warn_of_pages("always [advise] never force"), None);
    }

    #[test]
    fn reserved_huge_pages_are_whole() {
        let bytes = (64 << 20) + 4096;
        let machine = MachineConfig { pages: Pages::Huge2M, ram_bytes: bytes, ..machine() };
        assert_eq!(machine.check(), Err(ConfigError::HugePages { bytes }));
    }

    #[test]
    fn ram_beyond_the_most_is_refused() {
        let bytes = MAX_RAM_BYTES + 4096;
        assert_eq!(MachineConfig { ram_bytes: bytes, ..machine() }.check(), Err(ConfigError::TooMuchRam { bytes }));
    }

    #[test]
    fn impossible_numbers_are_refused() {
        for vcpus in [0, 257] {
            assert_eq!(MachineConfig { vcpus, ..machine() }.check(), Err(ConfigError::Vcpus { vcpus }));
        }
        let hotplug = |hotplug_bytes| MachineConfig { hotplug_bytes, ..machine() }.check();
        assert_eq!(hotplug(4096), Err(ConfigError::Hotplug { bytes: 4096 }));
        assert!(matches!(hotplug(MAX_RAM_BYTES), Err(ConfigError::TooMuchRam { .. })));
        assert_eq!(hotplug(64 << 20), Ok(()));
        for bytes in [0, 4096, (64 << 20) + 1] {
            assert_eq!(MachineConfig { ram_bytes: bytes, ..machine() }.check(), Err(ConfigError::Ram { bytes }));
        }
        let nets = vec![NetConfig::new(NetBackend::User); MAX_DEVICES + 1];
        assert!(matches!(MachineConfig { nets, ..machine() }.check(), Err(ConfigError::Devices { .. })));
    }

    #[test]
    fn a_disk_can_be_given_twice_only_for_reading() {
        let twice = |first, second| MachineConfig { disks: vec![disk("a", first), disk("a", second)], ..machine() };
        assert_eq!(twice(true, true).check(), Ok(()));
        assert!(matches!(twice(true, false).check(), Err(ConfigError::DiskTwice { .. })));
    }
}
