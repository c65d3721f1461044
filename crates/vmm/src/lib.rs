//! One virtual machine: accelerators, boot, devices.

pub mod accel;
pub mod acpi;
pub mod affinity;
pub mod board;
pub mod boot;
pub mod bus;
pub mod clock;
pub mod config;
pub mod confine;
pub mod control;
pub mod devices;
pub mod irq;
pub mod irqchip;
pub mod kvmclock;
pub mod layout;
pub mod machine;
pub mod migration;
pub mod mirror;
pub mod numa;
pub mod process;
pub mod protection;
pub mod snapshot;
pub mod timers;
