//! What every accelerator promises, on every one that this host has.

mod bindings;
mod dirty;
mod many;
mod memory;
mod pause;
mod rings;
mod state;
