//! The processor, and what will execute guests on it.

use queztl_vmm::accel::probe::{KvmSupport, MissingKvm};

use super::{Finding, first_line};

/// Features that make guests faster or are needed for it, by their names in /proc/cpuinfo.
const FEATURES: [&str; 14] = [
    "vmx",
    "svm",
    "ept",
    "npt",
    "constant_tsc",
    "nonstop_tsc",
    "tsc_scale",
    "avx",
    "avx2",
    "avx512f",
    "bmi2",
    "aes",
    "sha_ni",
    "hypervisor",
];

/// Model and features.
pub fn processor() -> Finding {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = field(&info, "model name").unwrap_or("unknown x86-64 processor");
    let flags = flags(&info);
    let has = |name: &&&str| flags.contains(&**name);
    let features: Vec<&str> = FEATURES.iter().filter(has).copied().collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let found = format!("{model}, {threads} hardware threads; {}", features.join(" "));
    match flags.contains(&"constant_tsc") || flags.contains(&"nonstop_tsc") || flags.contains(&"tsc_reliable") {
        true => Finding::good("processor", found),
        false => Finding::limited(
            "processor",
            format!("{found}; its time-stamp counter may change speed"),
            "none on this processor; guests keep time by the paravirtual clock",
        ),
    }
}

/// KVM's kind with the measured reason, and the consequence.
pub fn accelerator() -> Finding {
    let support = KvmSupport::probe();
    let found = format!("{support}; {}", consequence(&support));
    match &support {
        KvmSupport::Hardware { .. } => Finding::good("accelerator", found),
        KvmSupport::EmulatedRing0 { .. } => Finding::limited(
            "accelerator",
            found,
            "none from inside this machine; its operator can enable nested virtualization, or use a physical host",
        ),
        KvmSupport::Missing(missing) => Finding::limited("accelerator", found, mend(missing)),
    }
}

fn consequence(support: &KvmSupport) -> &'static str {
    match support {
        KvmSupport::Hardware { .. } => "guests run natively, which --accel auto takes",
        KvmSupport::EmulatedRing0 { .. } => "Linux runs faster on the software CPU, which --accel auto takes",
        KvmSupport::Missing(_) => "guests run on the software CPU",
    }
}

fn mend(missing: &MissingKvm) -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = flags(&info);
    let module = if flags.contains(&"svm") { "kvm_amd" } else { "kvm_intel" };
    let capable = flags.contains(&"svm") || flags.contains(&"vmx");
    match missing {
        MissingKvm::NoDevice if capable => format!("as root: modprobe {module}"),
        MissingKvm::NoDevice if flags.contains(&"hypervisor") => {
            "ask the operator of this machine for nested virtualization".to_owned()
        }
        MissingKvm::NoDevice => "switch virtualization on in the firmware's set-up, if the processor has it".to_owned(),
        MissingKvm::Denied(_) => {
            "as root: usermod -aG kvm USER, then log in again; in a container, pass /dev/kvm in".to_owned()
        }
        MissingKvm::Version(_) => "use a host kernel of this century (Linux 2.6.22 or later)".to_owned(),
        MissingKvm::Broken { .. } | MissingKvm::Unexpected(_) => {
            let kernel = first_line("/proc/sys/kernel/osrelease").unwrap_or_default();
            format!("look at the host kernel's messages (dmesg) and update the host kernel {kernel}")
        }
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let line = info.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

fn flags(info: &str) -> Vec<&str> {
    field(info, "flags").unwrap_or_default().split_whitespace().collect()
}
