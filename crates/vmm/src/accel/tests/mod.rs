//! What every accelerator promises, on every one that this host has.

mod bindings;
mod dirty;
mod many;
mod pause;
mod rings;
mod state;
