//! What executes a guest's instructions.

pub mod probe;
