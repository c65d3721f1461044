//! What the daemon runs on.

use std::sync::OnceLock;

use queztl_api::{AcceleratorInfo, HostInfo, Info};
use queztl_vmm::accel::probe::KvmSupport;

/// The daemon and its host. The first call takes some milliseconds for the accelerators.
pub fn info() -> Info {
    static ACCELERATORS: OnceLock<Vec<AcceleratorInfo>> = OnceLock::new();
    Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        host: host(),
        accelerators: ACCELERATORS.get_or_init(accelerators).clone(),
    }
}

fn host() -> HostInfo {
    let names = rustix::system::uname();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    HostInfo {
        name: names.nodename().to_string_lossy().into_owned(),
        kernel: names.release().to_string_lossy().into_owned(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_bytes: kibibytes(&memory, "MemTotal:"),
        memory_available_bytes: kibibytes(&memory, "MemAvailable:"),
    }
}

/// A line of /proc/meminfo, in bytes.
fn kibibytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

fn accelerators() -> Vec<AcceleratorInfo> {
    let soft = |detail: &str| AcceleratorInfo { name: "soft".into(), usable: true, detail: detail.into() };
    let kvm = |usable, detail: String| AcceleratorInfo { name: "kvm".into(), usable, detail };
    match KvmSupport::probe() {
        KvmSupport::Hardware { .. } => vec![
            kvm(true, "guests run natively, with the host's hardware virtualization".into()),
            soft("a CPU in software; slower than KVM here"),
        ],
        KvmSupport::EmulatedRing0 { .. } => vec![
            soft("a CPU in software; faster than KVM here, whose guest kernels are emulated"),
            kvm(false, "the host emulates guest kernels and cannot run their user land".into()),
        ],
        KvmSupport::Missing(why) => vec![soft("a CPU in software"), kvm(false, why.to_string())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_described() {
        let info = info();

        assert!(info.host.cpus >= 1);
        assert!(info.host.memory_bytes >= info.host.memory_available_bytes);
        assert!(info.host.memory_available_bytes > 0);
        assert!(info.accelerators.iter().any(|one| one.name == "soft" && one.usable));
    }
}
