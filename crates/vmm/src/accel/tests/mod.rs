//! What every accelerator promises, on every one that this host has.

mod bindings;
mod dirty;
