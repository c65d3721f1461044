//! The body of a state file: everything a machine is, but for its memory and its disks' contents.

use queztl_soft_cpu::State;
use queztl_soft_cpu::cpuid::CpuidResult;
use serde::{Deserialize, Serialize};

use super::Error;
use super::memory::{MAX_BASES, is_plain_name};
use crate::clock::RESUMABLE_HZ;
use crate::config::{AccelChoice, ConsoleChoice, MachineConfig, SoftClock, SoftOptions};
use crate::devices::legacy::SavedLegacy;
use crate::devices::virtio::mmio::SavedTransport;
use crate::irqchip::{LapicState, SavedIrqChip};
use crate::kvmclock;

/// A machine as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// What it was made from, with what had been changed since.
    pub config: MachineConfig,
    /// The accelerator's name.
    pub accelerator: String,
    /// What CPUID told the guest.
    pub processor: Vec<ProcessorLeaf>,
    pub clock: ClockState,
    pub vcpus: Vec<VcpuState>,
    pub controllers: SavedIrqChip,
    pub legacy: SavedLegacy,
    pub paravirtual_clock: kvmclock::State,
    /// virtio devices by their windows.
    pub devices: Vec<SavedTransport>,
    /// Sizes of the disks in sectors of 512 bytes, in their order.
    pub disk_sectors: Vec<u64>,
    /// Snapshots whose memory this one builds on, by the names of their directories beside its own, the newest first.
    pub bases: Vec<String>,
}

/// One vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    pub registers: State,
    pub local_apic: LapicState,
}

/// The guest's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockState {
    /// [`crate::clock::Clock::tsc`].
    pub ticks: u64,
    /// What the guest takes the counter's frequency for.
    pub hz: u64,
    /// The host's wall clock, nanoseconds since 1970-01-01 UTC.
    pub wall_clock_ns: u64,
}

/// One answer of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessorLeaf {
    leaf: u32,
    subleaf: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
}

impl From<((u32, u32), CpuidResult)> for ProcessorLeaf {
    fn from(((leaf, subleaf), result): ((u32, u32), CpuidResult)) -> ProcessorLeaf {
        let CpuidResult { eax, ebx, ecx, edx } = result;
        ProcessorLeaf { leaf, subleaf, eax, ebx, ecx, edx }
    }
}

/// Counters beyond this are no machine's: centuries at any frequency.
const MOST_TICKS: u64 = 1 << 62;

impl MachineState {
    /// Refuses what no machine could have saved, as far as it shows here; each part checks its own state besides.
    pub fn check(&self) -> Result<(), Error> {
        let rules = [
            (self.config.check().is_ok(), "its configuration is of no machine"),
            (self.vcpus.len() == self.config.vcpus as usize, "the number of vCPUs differs from its configuration's"),
            (RESUMABLE_HZ.contains(&self.clock.hz), "its counter's frequency is of no processor"),
            (self.clock.ticks < MOST_TICKS, "its counter is at no machine's time"),
            (self.disk_sectors.len() == self.config.disks.len(), "the number of disks differs"),
            (self.bases.iter().all(|name| is_plain_name(name)), "it builds on something elsewhere"),
            (self.bases.len() <= MAX_BASES, "it builds on too many others"),
            (!is_counted(&self.config), "its time is made of instructions"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(Error::Impossible(what)),
            None => Ok(()),
        }
    }

    /// Whether a machine of this configuration can go on from the state; says what must be otherwise.
    pub fn check_shape(&self, config: &MachineConfig) -> Result<(), Error> {
        let saved = &self.config;
        let virtio = |config: &MachineConfig| config.console == ConsoleChoice::Virtio;
        let nodes = |config: &MachineConfig| -> Vec<_> {
            config.numa.iter().map(|node| (node.vcpus.clone(), node.ram_bytes, node.distances.clone())).collect()
        };
        let numbers = [
            ("vCPUs", u64::from(saved.vcpus), u64::from(config.vcpus)),
            ("bytes of RAM", saved.ram_bytes, config.ram_bytes),
            ("bytes of memory to hot-plug", saved.hotplug_bytes, config.hotplug_bytes),
            ("disks", saved.disks.len() as u64, config.disks.len() as u64),
            ("network devices", saved.nets.len() as u64, config.nets.len() as u64),
            ("socket devices", u64::from(saved.vsock.is_some()), u64::from(config.vsock.is_some())),
            ("virtio consoles", u64::from(virtio(saved)), u64::from(virtio(config))),
        ];
        if let Some((what, then, now)) = numbers.into_iter().find(|(_, then, now)| then != now) {
            return Err(Error::Shape { what, then, now });
        }
        let others = [
            (nodes(saved) == nodes(config), "its NUMA nodes are others"),
            (saved.debug_exit == config.debug_exit, "its debug exit port is another"),
            (!is_counted(config), "time made of instructions cannot begin in the middle"),
        ];
        match others.iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(Error::OtherShape(what)),
            None => Ok(()),
        }
    }

    /// Whether this processor is what the guest believes to run on.
    pub fn check_processor(&self, accelerator: &str, leaves: Vec<((u32, u32), CpuidResult)>) -> Result<(), Error> {
        let leaves: Vec<ProcessorLeaf> = leaves.into_iter().map(Into::into).collect();
        if leaves == self.processor {
            return Ok(());
        }
        let differs = self.processor.iter().find(|leaf| !leaves.contains(leaf)).or(leaves.first());
        let (leaf, subleaf) = differs.map_or((0, 0), |leaf| (leaf.leaf, leaf.subleaf));
        let (then, now) = (self.accelerator.clone(), accelerator.to_owned());
        Err(Error::Processor { then, now, leaf, subleaf })
    }
}

/// Whether a machine's time is made of instructions.
pub(crate) fn is_counted(config: &MachineConfig) -> bool {
    matches!(config.accel, AccelChoice::Soft(SoftOptions { clock: SoftClock::Instructions, .. }))
}
