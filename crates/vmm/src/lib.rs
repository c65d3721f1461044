//! One virtual machine: accelerators, boot, devices.

pub mod bus;
pub mod irq;
pub mod layout;
