//! From what is wished of a machine to what its process is told.
//!
//! Every field of a specification is checked here before anything is made, and a problem names it.

use std::path::{Path, PathBuf};

use queztl_api::{CpuLimits, Disk, Limits, Name, Net, NetKind, Problem, RateLimit, VmSpec};
use queztl_vmm::config::{
    AccelChoice, Backing, ConfigError, ConsoleChoice, DiskConfig, Format, Mac, MachineConfig, NetBackend, NetConfig,
    Pages, Pin, Protocol, Rate, RateLimit as DeviceLimit, SerialOutput, SoftClock, SoftOptions, SoftTranslator,
};

/// Bytes of a disk's serial number (Virtio 1.2 §5.2.6).
const SERIAL_BYTES: usize = 20;
/// Bytes of a network interface's name, without the zero behind it.
const INTERFACE_BYTES: usize = 15;
/// The longest text of a specification, bytes.
const MAX_TEXT_BYTES: usize = 4096;
/// Most labels, and most initial RAM disks.
const MAX_ITEMS: usize = 64;
/// The largest disk, bytes: what a file of the usual file systems can have.
const MAX_DISK_BYTES: u64 = 1 << 43;
/// A disk's smallest unit, bytes.
const SECTOR_BYTES: u64 = 512;

/// What our own kernel is told of its consoles: it speaks on the serial line until the other works.
const OWN_CONSOLES: &str = "quiet earlycon=uart8250,io,0x3f8,115200 console=hvc0";
/// Hot-plugged memory goes where it can be taken away again.
const HOTPLUG_WORDS: &str = "memory_hotplug.online_policy=auto-movable";

/// The files that a machine starts from.
#[derive(Debug, Clone)]
pub(crate) struct BootFiles {
    pub kernel: PathBuf,
    pub initrd: Vec<PathBuf>,
    /// The kernel is the one that is built here.
    pub own: bool,
}

/// Where a disk is, for its process.
#[derive(Debug, Clone)]
pub(crate) struct DiskFile {
    pub path: PathBuf,
    pub format: Option<Format>,
    /// The file and all it builds on was made or checked by the manager.
    pub trusted: bool,
    pub read_only: bool,
    pub serial: Option<String>,
}

/// Checks a specification as far as that goes without its files.
pub(crate) fn check(spec: &VmSpec) -> Result<(), Problem> {
    text("spec.cmdline", &spec.cmdline)?;
    let files = spec.kernel.iter().map(|path| ("spec.kernel", path));
    for (field, path) in files.chain(spec.initrd.iter().map(|path| ("spec.initrd", path))) {
        absolute(field, path)?;
    }
    if spec.initrd.len() > MAX_ITEMS {
        return Err(Problem::invalid("spec.initrd", format!("a machine has at most {MAX_ITEMS}")));
    }
    if spec.labels.len() > MAX_ITEMS || spec.labels.iter().any(|(key, value)| key.len() + value.len() > 512) {
        let message = format!("a machine has at most {MAX_ITEMS} labels, of 512 bytes each");
        return Err(Problem::invalid("spec.labels", message));
    }
    spec.disks.iter().enumerate().try_for_each(|(index, disk)| check_disk(index, disk))?;
    if let Some(checkpoints) = &spec.checkpoints
        && (checkpoints.every_seconds == 0 || checkpoints.keep == 0)
    {
        return Err(Problem::invalid("spec.checkpoints", "every_seconds and keep are at least 1"));
    }
    check_limits("spec.limits", &spec.limits, spec)?;
    let boot = BootFiles { kernel: "kernel".into(), initrd: Vec::new(), own: true };
    let disks: Vec<DiskFile> = spec.disks.iter().enumerate().map(|(index, disk)| placeholder(index, disk)).collect();
    let macs = spec.nets.iter().enumerate().map(|(index, net)| mac(index, net)).collect::<Result<Vec<_>, _>>()?;
    let macs: Vec<Mac> = macs.into_iter().map(|mac| mac.unwrap_or(Mac([2; 6]))).collect();
    machine(spec, &boot, &disks, &macs)?.check().map_err(|error| Problem::invalid(field_of(&error), error.to_string()))
}

/// The field of a specification that makes a configuration impossible.
fn field_of(error: &ConfigError) -> String {
    match error {
        ConfigError::Vcpus { .. } => "spec.vcpus".into(),
        ConfigError::Ram { .. } | ConfigError::TooMuchRam { .. } | ConfigError::HugePages { .. } => {
            "spec.ram_bytes".into()
        }
        ConfigError::Hotplug { .. } => "spec.memory_hotplug_bytes".into(),
        ConfigError::DiskTwice { index, .. } => format!("spec.disks[{index}].path"),
        _ => "spec".into(),
    }
}

/// Checks that the files of the host that a specification names are there.
pub(crate) fn check_files(spec: &VmSpec) -> Result<(), Problem> {
    let there = |field: String, path: &PathBuf| match std::fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(Problem::invalid(field, format!("{} cannot be used: {error}", path.display()))),
    };
    spec.kernel.iter().try_for_each(|path| there("spec.kernel".to_owned(), path))?;
    spec.initrd.iter().try_for_each(|path| there("spec.initrd".to_owned(), path))?;
    let disks = spec.disks.iter().enumerate().filter_map(|(index, disk)| Some((index, disk.path.as_ref()?)));
    disks.into_iter().try_for_each(|(index, path)| there(format!("spec.disks[{index}].path"), path))
}

/// Checks limits of a machine with this specification.
pub(crate) fn check_limits(field: &str, limits: &Limits, spec: &VmSpec) -> Result<(), Problem> {
    check_cpu(&format!("{field}.cpu"), &limits.cpu, spec.vcpus)?;
    if limits.balloon_bytes > spec.ram_bytes {
        return Err(Problem::invalid(format!("{field}.balloon_bytes"), "is more than the machine's RAM"));
    }
    if limits.hotplug_bytes > spec.memory_hotplug_bytes {
        let message = "is more than memory_hotplug_bytes, which is what can be added";
        return Err(Problem::invalid(format!("{field}.hotplug_bytes"), message));
    }
    for (device, limit) in &limits.rates {
        let field = format!("{field}.rates.{device}");
        if !device_exists(device, spec) {
            let message = "the machine has no such device: there are disk0, net0-rx, net0-tx, …, and rng";
            return Err(Problem::invalid(field, message));
        }
        let rates = [limit.bytes, limit.requests];
        if rates.iter().flatten().any(|rate| rate.per_second == 0 || rate.burst == 0) {
            return Err(Problem::invalid(field, "per_second and burst are at least 1"));
        }
    }
    Ok(())
}

fn check_cpu(field: &str, cpu: &CpuLimits, vcpus: u32) -> Result<(), Problem> {
    if cpu.weight.is_some_and(|weight| !(1..=10_000).contains(&weight)) {
        return Err(Problem::invalid(format!("{field}.weight"), "is from 1 to 10,000"));
    }
    if cpu.quota_percent.is_some_and(|percent| !(1..=1_000_000).contains(&percent)) {
        return Err(Problem::invalid(format!("{field}.quota_percent"), "is from 1 to 1,000,000"));
    }
    for (index, pin) in cpu.pins.iter().enumerate() {
        let field = format!("{field}.pins[{index}]");
        if pin.vcpu >= vcpus || pin.cpus.is_empty() || pin.cpus.len() > 1024 {
            return Err(Problem::invalid(field, "names a vCPU of the machine and at least one CPU of the host"));
        }
        if cpu.pins[..index].iter().any(|earlier| earlier.vcpu == pin.vcpu) {
            return Err(Problem::invalid(field, "pins a vCPU a second time: give all of its CPUs at once"));
        }
    }
    Ok(())
}

fn device_exists(device: &str, spec: &VmSpec) -> bool {
    let number = |text: &str| text.parse::<usize>().ok();
    match (device.strip_prefix("disk"), device.strip_prefix("net")) {
        (Some(index), _) => number(index).is_some_and(|index| index < spec.disks.len()),
        (_, Some(rest)) => rest
            .strip_suffix("-rx")
            .or(rest.strip_suffix("-tx"))
            .and_then(number)
            .is_some_and(|index| index < spec.nets.len()),
        _ => device == "rng",
    }
}

fn check_disk(index: usize, disk: &Disk) -> Result<(), Problem> {
    let field = |name: &str| format!("spec.disks[{index}].{name}");
    if disk.image.is_some() && disk.path.is_some() {
        return Err(Problem::invalid(field("path"), "a disk has an image or a path, not both"));
    }
    if let Some(path) = &disk.path {
        absolute(&field("path"), path)?;
        if disk.size_bytes.is_some() {
            return Err(Problem::invalid(field("size_bytes"), "a file of the host keeps its size"));
        }
    }
    match disk.size_bytes {
        Some(bytes) if bytes == 0 || bytes % SECTOR_BYTES != 0 || bytes > MAX_DISK_BYTES => {
            let message = format!("is a multiple of {SECTOR_BYTES}, and at most {MAX_DISK_BYTES}");
            return Err(Problem::invalid(field("size_bytes"), message));
        }
        None if disk.image.is_none() && disk.path.is_none() => {
            return Err(Problem::invalid(field("size_bytes"), "an empty disk needs a size"));
        }
        _ => {}
    }
    if disk.read_only && disk.image.is_none() && disk.path.is_none() {
        return Err(Problem::invalid(field("read_only"), "an empty disk that cannot be written is of no use"));
    }
    match &disk.serial {
        Some(serial) if serial.is_empty() || serial.len() > SERIAL_BYTES || !serial.bytes().all(is_printable) => {
            Err(Problem::invalid(field("serial"), format!("has 1 to {SERIAL_BYTES} printable characters")))
        }
        _ => Ok(()),
    }
}

fn is_printable(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte == b' '
}

fn placeholder(index: usize, disk: &Disk) -> DiskFile {
    let path = disk.path.clone().unwrap_or_else(|| format!("disk{index}").into());
    DiskFile { path, format: None, trusted: true, read_only: disk.read_only, serial: None }
}

/// A network device's address, if one is wished.
pub(crate) fn mac(index: usize, net: &Net) -> Result<Option<Mac>, Problem> {
    let parse = |text: &String| text.parse::<Mac>();
    let parsed = net.mac.as_ref().map(parse).transpose();
    parsed.map_err(|error| Problem::invalid(format!("spec.nets[{index}].mac"), error.to_string()))
}

fn absolute(field: &str, path: &Path) -> Result<(), Problem> {
    if !path.is_absolute() || path.as_os_str().len() > MAX_TEXT_BYTES {
        return Err(Problem::invalid(field, format!("{path:?} is no absolute path; the daemon has its own directory")));
    }
    Ok(())
}

fn text(field: &str, text: &str) -> Result<(), Problem> {
    if text.len() > MAX_TEXT_BYTES || text.bytes().any(|byte| byte == 0 || byte == b'\n') {
        return Err(Problem::invalid(field, format!("is one line of at most {MAX_TEXT_BYTES} bytes")));
    }
    Ok(())
}

/// The machine's configuration. Paths may be relative to the machine's directory.
pub(crate) fn machine(
    spec: &VmSpec,
    boot: &BootFiles,
    disks: &[DiskFile],
    macs: &[Mac],
) -> Result<MachineConfig, Problem> {
    let limit = |device: String| spec.limits.rates.get(&device).map(device_limit).unwrap_or_default();
    let (console, cmdline) = consoles(spec, boot.own);
    let disks = disks.iter().enumerate().map(|(index, disk)| DiskConfig {
        path: disk.path.clone(),
        format: disk.format,
        backing: if disk.trusted { Backing::Any } else { Backing::SameFolder },
        read_only: disk.read_only,
        serial: disk.serial.clone(),
        limit: limit(format!("disk{index}")),
    });
    let nets = spec.nets.iter().zip(macs).enumerate().map(|(index, (net, mac))| {
        Ok(NetConfig {
            backend: backend(index, net)?,
            mac: Some(*mac),
            receive_limit: limit(format!("net{index}-rx")),
            transmit_limit: limit(format!("net{index}-tx")),
        })
    });
    Ok(MachineConfig {
        kernel: boot.kernel.clone(),
        initrd: boot.initrd.clone(),
        cmdline,
        disks: disks.collect(),
        nets: nets.collect::<Result<_, Problem>>()?,
        rng_limit: limit("rng".to_owned()),
        balloon_bytes: spec.limits.balloon_bytes,
        hotplug_bytes: spec.memory_hotplug_bytes,
        hotplug_requested_bytes: spec.limits.hotplug_bytes,
        vsock: Some("vsock.sock".into()),
        vcpus: spec.vcpus,
        ram_bytes: spec.ram_bytes,
        pages: pages(&spec.huge_pages)?,
        numa: Vec::new(),
        pins: spec.limits.cpu.pins.iter().map(|pin| Pin { vcpu: pin.vcpu, cpus: pin.cpus.clone() }).collect(),
        protocol: Protocol::Auto,
        accel: accel(&spec.accel)?,
        console,
        serial: SerialOutput::Stdio,
        debug_exit: None,
        boot_timer: false,
    })
}

/// A rate limit, as the process knows it.
pub(crate) fn device_limit(limit: &RateLimit) -> DeviceLimit {
    let rate = |rate: queztl_api::Rate| Rate { per_second: rate.per_second, burst: rate.burst };
    DeviceLimit { bytes: limit.bytes.map(rate), requests: limit.requests.map(rate) }
}

/// Which console people see, and the kernel's command line. A command line that names its console gets that one; else our
/// own kernel gets the virtio console, and others, which may have no driver for it at hand, the serial line.
fn consoles(spec: &VmSpec, own: bool) -> (ConsoleChoice, String) {
    let named = spec.cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix("console=")).next_back();
    let console = match named {
        Some(name) if name.starts_with("hvc") => ConsoleChoice::Virtio,
        Some(_) => ConsoleChoice::Serial,
        None if own => ConsoleChoice::Virtio,
        None => ConsoleChoice::Serial,
    };
    let words = match (own, console) {
        (true, ConsoleChoice::Virtio) => OWN_CONSOLES,
        (true, _) => "quiet console=ttyS0",
        (false, _) if spec.cmdline.is_empty() => "console=ttyS0",
        (false, _) => "",
    };
    let hotplug = if own && spec.memory_hotplug_bytes > 0 { HOTPLUG_WORDS } else { "" };
    let parts: Vec<&str> = [words, hotplug, &spec.cmdline].into_iter().filter(|part| !part.is_empty()).collect();
    (console, parts.join(" "))
}

fn backend(index: usize, net: &Net) -> Result<NetBackend, Problem> {
    let field = || format!("spec.nets[{index}].tap");
    match (net.kind, &net.tap) {
        (NetKind::User, None) => Ok(NetBackend::User),
        (NetKind::User, Some(_)) => Err(Problem::invalid(field(), "belongs to kind `tap`")),
        (NetKind::Tap, None) => Err(Problem::invalid(field(), "names the host's interface for kind `tap`")),
        (NetKind::Tap, Some(name)) => {
            let good = !name.is_empty()
                && name.len() <= INTERFACE_BYTES
                && !matches!(name.as_str(), "." | "..")
                && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
            let message = format!("{name:?} is no interface's name: 1 to {INTERFACE_BYTES} letters, digits, '-', '_'");
            if good { Ok(NetBackend::Tap(name.clone())) } else { Err(Problem::invalid(field(), message)) }
        }
    }
}

fn pages(text: &str) -> Result<Pages, Problem> {
    match text {
        "none" => Ok(Pages::Host),
        "thp" => Ok(Pages::Transparent),
        "2M" => Ok(Pages::Huge2M),
        _ => Err(Problem::invalid("spec.huge_pages", format!("{text:?} is none of none, thp and 2M"))),
    }
}

fn accel(text: &str) -> Result<AccelChoice, Problem> {
    let unknown = || {
        let message = format!("{text:?} is not an accelerator: write auto, kvm, soft or soft,translator=off");
        Problem::invalid("spec.accel", message)
    };
    let mut parts = text.split(',');
    let mut choice = match parts.next() {
        Some("auto") => AccelChoice::Auto,
        Some("kvm") => AccelChoice::Kvm,
        Some("soft") => AccelChoice::Soft(SoftOptions::default()),
        _ => return Err(unknown()),
    };
    for part in parts {
        let AccelChoice::Soft(options) = &mut choice else { return Err(unknown()) };
        match part {
            "clock=real" => options.clock = SoftClock::RealTime,
            "clock=instructions" => options.clock = SoftClock::Instructions,
            "translator=on" => options.translator = SoftTranslator::On,
            "translator=eager" => options.translator = SoftTranslator::Eager,
            "translator=off" => options.translator = SoftTranslator::Off,
            _ => return Err(unknown()),
        }
    }
    Ok(choice)
}

/// The names of the images that a specification's disks build on.
pub(crate) fn images(spec: &VmSpec) -> impl Iterator<Item = &Name> {
    spec.disks.iter().filter_map(|disk| disk.image.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(spec: VmSpec) -> String {
        let problem = check(&spec).unwrap_err();
        problem.fields.first().map(|field| field.field.clone()).unwrap_or_default()
    }

    #[test]
    fn a_problem_names_the_field() {
        let disk = |disk: Disk| VmSpec { disks: vec![disk], ..VmSpec::default() };
        let net = |net: Net| VmSpec { nets: vec![net], ..VmSpec::default() };
        assert_eq!(refused(disk(Disk::default())), "spec.disks[0].size_bytes");
        assert_eq!(refused(disk(Disk { size_bytes: Some(5), ..Disk::default() })), "spec.disks[0].size_bytes");
        assert_eq!(refused(disk(Disk { path: Some("x".into()), ..Disk::default() })), "spec.disks[0].path");
        assert_eq!(refused(net(Net { kind: NetKind::Tap, tap: None, mac: None })), "spec.nets[0].tap");
        let mac = Some("01:00:00:00:00:00".to_owned());
        assert_eq!(refused(net(Net { kind: NetKind::User, tap: None, mac })), "spec.nets[0].mac");
        assert_eq!(refused(VmSpec { accel: "tcg".into(), ..VmSpec::default() }), "spec.accel");
        assert_eq!(refused(VmSpec { kernel: Some("vmlinux".into()), ..VmSpec::default() }), "spec.kernel");
        assert_eq!(refused(VmSpec { vcpus: 0, ..VmSpec::default() }), "spec.vcpus");
        assert_eq!(refused(VmSpec { ram_bytes: 1, ..VmSpec::default() }), "spec.ram_bytes");
        assert_eq!(refused(VmSpec { memory_hotplug_bytes: 1, ..VmSpec::default() }), "spec.memory_hotplug_bytes");
        let limits = Limits { rates: [("disk0".to_owned(), RateLimit::default())].into(), ..Limits::default() };
        assert_eq!(refused(VmSpec { limits, ..VmSpec::default() }), "spec.limits.rates.disk0");
        assert_eq!(check(&VmSpec::default()), Ok(()));
    }

    #[test]
    fn a_kernel_speaks_where_people_look() {
        let spec = |cmdline: &str| VmSpec { cmdline: cmdline.into(), ..VmSpec::default() };
        assert_eq!(consoles(&spec("a=b"), true), (ConsoleChoice::Virtio, format!("{OWN_CONSOLES} a=b")));
        assert_eq!(consoles(&spec(""), false), (ConsoleChoice::Serial, "console=ttyS0".to_owned()));
        assert_eq!(consoles(&spec("console=hvc0"), false), (ConsoleChoice::Virtio, "console=hvc0".to_owned()));
        assert_eq!(consoles(&spec("console=ttyS0"), true).0, ConsoleChoice::Serial);
    }
}
