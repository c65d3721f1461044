//! A machine from a snapshot: the parts are made as for a boot, then each takes its state.
//!
//! The order matters. RAM is there before anything that reads or writes it. The interrupt controllers and the vCPUs with
//! their local APICs come before whatever may raise an interrupt: what devices and timers raise while they are restored is
//! not lost. Device threads wait at the machine's gate until all is in place.

use queztl_guest_memory::{GuestRam, MemoryImage, RamConfig};

use super::Error;
use super::assembly::{Live, new_generation};
use crate::accel::{Vcpu, Vm};
use crate::clock::Clock;
use crate::config::MachineConfig;
use crate::devices::legacy::generation;
use crate::devices::virtio::device_type;
use crate::snapshot::{self, Identity, MachineState, Persist, Snapshot};

/// What a machine is restored from.
pub(super) struct Restoration {
    state: MachineState,
    memory: MemoryImage,
    /// The generation identifier of its own.
    generation: Option<[u8; generation::LEN]>,
}

impl Restoration {
    /// Checks that a machine of this configuration can take the snapshot's state, and gives it its own identity.
    pub fn new(
        snapshot: Snapshot,
        config: &MachineConfig,
        identity: Option<&Identity>,
    ) -> Result<Restoration, snapshot::Error> {
        let Snapshot { mut state, memory } = snapshot;
        state.check_shape(config)?;
        if let Some(identity) = identity {
            set_macs(&mut state, identity)?;
        }
        let generation = identity.map(|identity| identity.generation_id).filter(|id| *id != [0; generation::LEN]);
        Ok(Restoration { state, memory, generation })
    }

    /// RAM as it was; pages are read when they are touched.
    pub fn ram(&self, config: &RamConfig, hotplug_bytes: u64) -> Result<GuestRam, Error> {
        Ok(GuestRam::from_image(config, hotplug_bytes, &self.memory)?)
    }

    /// The guest's time, going on from when it was saved.
    pub fn clock(&self) -> Clock {
        Clock::resumed(self.state.clock.ticks, self.state.clock.hz)
    }
}

fn set_macs(state: &mut MachineState, identity: &Identity) -> Result<(), snapshot::Error> {
    let mut macs = identity.macs.iter().peekable();
    for device in &mut state.devices {
        if let Some(mac) = macs.peek()
            && device.set_mac(mac.0)
        {
            macs.next();
        }
    }
    if macs.next().is_some() { Err(snapshot::Error::Macs(identity.macs.len())) } else { Ok(()) }
}

/// Gives each part of the machine its state; returns the vCPUs.
pub(super) fn parts(saved: &mut Restoration, config: &MachineConfig, live: &Live) -> Result<Vec<Box<dyn Vcpu>>, Error> {
    let state = &saved.state;
    state.check_processor(live.accelerator, live.vm.processor())?;
    check_disks(state, live)?;
    live.board.irqchip().restore(state.controllers.clone()).map_err(snapshot::Error::from)?;
    live.board.kvmclock().restore(state.paravirtual_clock.clone()).map_err(snapshot::Error::from)?;
    let vcpus = vcpus(state, &*live.vm)?;
    live.legacy.restore(state.legacy.clone()).map_err(snapshot::Error::from)?;
    // Whoever goes on from a snapshot is a copy, even if it is the only one so far.
    if let Some(id) = saved.generation.or_else(|| new_generation(config)) {
        live.generation.change(id).map_err(|error| Error::Device(error.to_string()))?;
    }
    devices(state, live)?;
    // The host's present wishes, of which the guest hears when it runs.
    live.balloon.set_target_bytes(config.balloon_bytes);
    if let Some(mem) = &live.mem {
        mem.set_requested_bytes(config.hotplug_requested_bytes);
    }
    Ok(vcpus)
}

fn vcpus(state: &MachineState, vm: &dyn Vm) -> Result<Vec<Box<dyn Vcpu>>, Error> {
    let mut vcpus = (0..).zip(&state.vcpus).map(|(id, _)| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
    let refused = |vcpu: usize, reason: &dyn std::fmt::Display| {
        Error::Snapshot(snapshot::Error::Vcpu { vcpu, reason: reason.to_string() })
    };
    for (id, (vcpu, saved)) in vcpus.iter_mut().zip(&state.vcpus).enumerate() {
        vm.check_state(&saved.registers).map_err(|error| refused(id, &error))?;
        vcpu.try_set_state(&saved.registers).map_err(|error| refused(id, &error))?;
    }
    // One local APIC's timer may interrupt another vCPU: all registers come first.
    for (id, (vcpu, saved)) in vcpus.iter_mut().zip(&state.vcpus).enumerate() {
        vcpu.set_local_apic(&saved.local_apic).map_err(|error| refused(id, &error))?;
    }
    Ok(vcpus)
}

/// Disks may have moved, but not changed their size.
fn check_disks(state: &MachineState, live: &Live) -> Result<(), snapshot::Error> {
    let sizes = state.disk_sectors.iter().copied().zip(disk_sectors(live));
    match sizes.enumerate().find(|(_, (then, now))| then != now) {
        Some((index, (then, now))) => Err(snapshot::Error::DiskSize { index, then, now }),
        None => Ok(()),
    }
}

/// The sizes of the disks in sectors.
pub(super) fn disk_sectors(live: &Live) -> Vec<u64> {
    let disks = live.transports.iter().map(|transport| transport.device());
    let disks = disks.filter(|device| device.device_type() == device_type::BLOCK);
    disks
        .map(|device| {
            // capacity, Virtio 1.2 §5.2.4.
            let mut sectors = [0; 8];
            device.read_config(0, &mut sectors);
            u64::from_le_bytes(sectors)
        })
        .collect()
}

/// Device threads stay at the gate until the last device has its state.
fn devices(state: &MachineState, live: &Live) -> Result<(), snapshot::Error> {
    if state.devices.len() != live.transports.len() {
        return Err(snapshot::Error::OtherShape("it has other devices"));
    }
    live.gate.hold();
    let restored = live
        .transports
        .iter()
        .zip(&state.devices)
        .try_for_each(|(transport, saved)| Ok(transport.restore(saved.clone())?));
    live.gate.open();
    restored
}
