//! An x86-64 CPU in software that boots unmodified Linux.

pub mod platform;
