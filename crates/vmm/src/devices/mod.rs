//! The devices of the machine.

pub mod legacy;
pub mod virtio;
