//! Runs the same work on Queztl and on its peers, on one host, in one run.
//!
//! `queztl-bench` compares speed and cost, `queztl-suites` runs other people's tests. Where Linux runs, both boot the small
//! kernel with an initramfs that holds the programs ([`image`]) on each [`machine`], and read what the serial console
//! shows. Start time and memory are those of a [`monitor`] with a guest of a few instructions ([`payload`]); disks are
//! measured at their [`virtqueue`].

pub mod api;
pub mod block;
pub mod clones;
pub mod cpu;
pub mod handoff;
pub mod hosts;
pub mod image;
pub mod machine;
pub mod monitor;
pub mod overhead;
pub mod payload;
pub mod qhp;
pub mod results;
pub mod ring3;
pub mod snapshots;
pub mod start;
pub mod table;
pub mod virtqueue;

use std::path::PathBuf;

/// The `queztl-hv` built beside the running program.
pub fn queztl_beside_this_program() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name("queztl-hv");
    path.exists().then_some(path)
}
