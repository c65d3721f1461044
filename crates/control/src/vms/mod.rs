//! Machines: what is written down of them, what they are, and what can be done with them.
//!
//! A machine is a record in the store (what is wished), a directory, and a process while it runs. What it *is* its process
//! says: the record never claims that a machine runs.

mod commands;
pub(crate) mod config;
pub(crate) mod create;
mod delete;
pub(crate) mod lifecycle;
mod machine;
pub(crate) mod naming;
mod record;
mod start;
mod stop;
mod update;

pub(crate) use create::make_folder;
pub(crate) use machine::{Claim, Live, Machine, is_crash};
pub(crate) use record::{DiskRecord, DiskSource, VmRecord, Wish};
pub(crate) use start::{changed, identity};
