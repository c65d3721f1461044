//! The devices of the machine.

pub mod legacy;
pub mod output;
pub mod virtio;
