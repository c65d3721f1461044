//! What a fuzzer calls: one function for each part that reads bytes of a guest, a file or a peer.
//!
//! Each takes any bytes and promises to return, soon and without a panic, whatever they are. `fuzz/` gives these functions
//! to libFuzzer (`make fuzz`); the tests here call them with the seeds and with random bytes, on every toolchain.

mod boot;
mod bytes;
mod cpu;
mod devices;
mod disks;
mod frames;
mod handshake;
mod migration;
mod qcow2;
mod qhp;
pub mod seeds;
mod states;

/// A target: its name and what it calls.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 10] = [
    ("boot", boot::load),
    ("cpu", cpu::execute),
    ("devices", devices::drive),
    ("disks", disks::change),
    ("frames", frames::receive),
    ("handshake", handshake::connect),
    ("migration", migration::examine),
    ("qcow2", qcow2::image),
    ("qhp", qhp::talk),
    ("states", states::restore),
];

/// Calls the target `name`.
///
/// # Panics
/// When there is no such target, or the target finds a defect.
pub fn call(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("a target's name").1(data);
}
