//! Makes a kernel of the given profile (default: minimal) and the small root file system, and prints where they are.
//!
//! `cargo run -p queztl-guest-image --example make -- full`

use queztl_guest_image::{KernelBuild, Profile, Terminal, default_rootfs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let profile = std::env::args().nth(1).map_or(Ok(Profile::Minimal), |name| name.parse())?;
    let mut progress = Terminal::new();
    let kernel = KernelBuild::new(profile).run(&mut progress)?;
    let rootfs = default_rootfs(&mut progress)?;
    println!("{} ({} bytes, {})", kernel.vmlinux.display(), kernel.info.bytes, kernel.info.release);
    println!("{}", rootfs.initramfs.display());
    Ok(())
}
