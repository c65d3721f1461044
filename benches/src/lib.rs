//! Runs the same programs on several machines of one host: the host itself, QEMU's software CPU, ours.
//!
//! `queztl-bench` compares speed, `queztl-suites` runs other people's tests. Both boot the small kernel with an initramfs
//! that holds the programs ([`image`]) on each [`machine`], and read what the serial console shows.

pub mod image;
pub mod machine;
pub mod results;
pub mod table;

use std::path::PathBuf;

/// The `queztl-hv` built beside the running program.
pub fn queztl_beside_this_program() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name("queztl-hv");
    path.exists().then_some(path)
}
