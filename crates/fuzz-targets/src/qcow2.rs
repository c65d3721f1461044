//! qcow2 images: header, tables and what they lead to; opened, checked, read, and written to.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use queztl_storage::{
    Backing, Buffer, Disk, DiskQueue, Operation, Qcow2Config, Qcow2Image, Request, SECTOR_SIZE, image,
};

use crate::bytes::Bytes;

/// Requests at most, and the bytes that each may cover.
const REQUESTS: u8 = 8;
const MEMORY_BYTES: usize = 8 << 10;
/// What the host would give a file at most: an image may say that its clusters lie anywhere.
const CHECK_BYTES: u64 = 16 << 20;

/// The first byte tells how many requests come and whether the image is read-only, then come the requests, nine bytes
/// each; the rest is the image.
pub fn image(data: &[u8]) {
    let mut bytes = Bytes(data);
    let choice = bytes.u8();
    let requests: Vec<(u8, u64)> = (0..choice % (REQUESTS + 1)).map(|_| (bytes.u8(), bytes.u64())).collect();
    let fd = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a memory file");
    let mut file = File::from(fd);
    file.write_all(bytes.0).expect("room in memory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    check(&path, &file);
    // Nothing of the host is opened because an image says so.
    let config =
        Qcow2Config { path: path.clone(), read_only: choice & 0x80 != 0, backing: Backing::None, in_order: true };
    match Qcow2Image::open(&config) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(disk) => use_disk(&disk, &requests),
    }
    check(&path, &file);
}

fn check(path: &Path, file: &File) {
    if file.metadata().is_ok_and(|metadata| metadata.len() <= CHECK_BYTES)
        && let Err(error) = image::check(path)
    {
        assert!(!error.to_string().is_empty());
    }
}

fn use_disk(disk: &Qcow2Image, requests: &[(u8, u64)]) {
    let sectors = disk.topology().size_bytes / SECTOR_SIZE;
    assert!(sectors > 0);
    let Ok(mut queue) = disk.open_queue(4) else { return };
    let mut memory = vec![0x5a; MEMORY_BYTES];
    for (kind, place) in requests {
        let offset_bytes = place % sectors * SECTOR_SIZE;
        let length_bytes = (u64::from(kind >> 4) + 1) * SECTOR_SIZE;
        let operation = match kind % 6 {
            0 | 1 => Operation::Read,
            2 => Operation::Write { durable: kind & 8 != 0 },
            3 => Operation::WriteZeroes { unmap: kind & 8 != 0 },
            4 => Operation::Discard,
            _ => Operation::Flush,
        };
        let buffers = match operation {
            Operation::Read | Operation::Write { .. } => vec![Buffer::new(memory.as_mut_ptr(), length_bytes as usize)],
            _ => Vec::new(),
        };
        run(queue.as_mut(), Request { token: 7, operation, offset_bytes, length_bytes, buffers });
        let extent = disk.extent(offset_bytes);
        assert!(extent.is_err() || extent.is_ok_and(|extent| extent.length_bytes <= sectors * SECTOR_SIZE));
    }
}

/// Carries out a request, whose memory the caller keeps; it may fail, but it must end.
fn run(queue: &mut dyn DiskQueue, request: Request) {
    // SAFETY: the memory lives until the queue has nothing in flight any more, which is waited for here.
    unsafe { queue.submit(request) };
    let _ = queue.kick();
    queue.drain();
    let completion = queue.completed().expect("a request that has ended");
    assert_eq!(completion.token, 7);
    assert!(queue.completed().is_none());
}
