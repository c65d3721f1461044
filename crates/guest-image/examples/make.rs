//! Makes a kernel of the given profile (default: minimal) and the small root file system, or a stock distribution, and
//! prints where they are.
//!
//! `cargo run -p queztl-guest-image --example make -- minimal|rt|full|debian|installer`

use queztl_guest_image::debian::{DebianImage, StockSystem, debian_installer};
use queztl_guest_image::{KernelBuild, Profile, Store, Terminal, default_rootfs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let what = std::env::args().nth(1).unwrap_or_else(|| Profile::Minimal.to_string());
    let mut progress = Terminal::new();
    match what.as_str() {
        "debian" => show(&DebianImage::default().build(&Store::open()?, &mut progress)?),
        "installer" => show(&debian_installer(&Store::open()?, &mut progress)?),
        profile => {
            let kernel = KernelBuild::new(profile.parse()?).run(&mut progress)?;
            let rootfs = default_rootfs(&mut progress)?;
            println!("{} ({} bytes, {})", kernel.vmlinux.display(), kernel.info.bytes, kernel.info.release);
            println!("{}", rootfs.initramfs.display());
        }
    }
    Ok(())
}

fn show(system: &StockSystem) {
    println!("--kernel {} --initrd {}", system.kernel.display(), system.initrd.display());
    if let Some(disk) = &system.disk {
        println!("--disk {}", disk.display());
    }
    println!("--append '{}'", system.append);
}
