//! Kernels: ELF, bzImage with its compressed payload, Multiboot, PVH notes; and initial RAM disks.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use queztl_guest_memory::GuestRam;
use queztl_vmm::boot::{self, BootConfig, Protocol};

use crate::bytes::Bytes;

const RAM_BYTES: u64 = 32 << 20;

/// A file in memory with a path, which lasts as long as the file is open.
struct Scratch {
    _file: File,
    path: PathBuf,
}

impl Scratch {
    fn with(content: &[u8]) -> Scratch {
        let fd = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a memory file");
        let mut file = File::from(fd);
        file.write_all(content).and_then(|()| file.seek(SeekFrom::Start(0))).expect("room in memory");
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Scratch { _file: file, path }
    }
}

/// The first byte chooses the protocol and whether there is an initial RAM disk; the rest is the kernel.
pub fn load(data: &[u8]) {
    let mut bytes = Bytes(data);
    let choice = bytes.u8();
    let protocol = [Protocol::Auto, Protocol::Linux, Protocol::Pvh, Protocol::Multiboot][usize::from(choice & 3)];
    let kernel = Scratch::with(bytes.0);
    let disk = (choice & 4 != 0).then(|| Scratch::with(&data[..data.len() / 2]));
    let initrd: Vec<PathBuf> = disk.iter().map(|scratch| scratch.path.clone()).collect();
    let ram = GuestRam::new(RAM_BYTES).expect("memory for a guest");
    let config = BootConfig {
        kernel: &kernel.path,
        initrd: &initrd,
        cmdline: "console=ttyS0",
        rsdp: Some(0xe_0000),
        protocol,
        rng_seed: Some([7; 32]),
    };
    let result = boot::load(&config, ram.memory());
    // Every refusal must be a sentence.
    if let Err(error) = result {
        assert!(!error.to_string().is_empty());
    }
}
