//! What the tests of several modules need.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::image::{CreateConfig, Parent, create};
use crate::{Backing, Buffer, Completion, DiskQueue, Format, Operation, Qcow2Config, Request};

/// A request over `memory` in buffers of a page.
pub fn request(operation: Operation, offset: u64, memory: &mut [u8]) -> Request {
    let buffers = memory.chunks_mut(4096).map(|chunk| Buffer::new(chunk.as_mut_ptr(), chunk.len())).collect();
    Request { token: 1, operation, offset_bytes: offset, length_bytes: 0, buffers }
}

/// A request over a range.
pub fn range(operation: Operation, offset_bytes: u64, length_bytes: u64) -> Request {
    Request { token: 1, operation, offset_bytes, length_bytes, buffers: Vec::new() }
}

/// Waits for the next completion.
pub fn next(queue: &mut dyn DiskQueue) -> Completion {
    queue.kick().unwrap();
    let start = Instant::now();
    loop {
        if let Some(completion) = queue.completed() {
            return completion;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "the request never ends");
        std::thread::yield_now();
    }
}

/// Carries out one request.
pub fn run(queue: &mut dyn DiskQueue, request: Request) -> io::Result<()> {
    // SAFETY: the tests keep their memory until this returns, and it returns after the completion.
    unsafe { queue.submit(request) };
    next(queue).result
}

/// Numbers that look random and are the same each time (xorshift).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % bound
    }
}

/// A new image in `folder`.
pub fn qcow2(folder: &Path, name: &str, size_bytes: u64, parent: Option<(&Path, Format)>) -> PathBuf {
    let path = folder.join(name);
    let parent = parent.map(|(path, format)| Parent { path: path.to_path_buf(), format });
    create(&CreateConfig { path: path.clone(), format: Format::Qcow2, size_bytes: Some(size_bytes), parent }).unwrap();
    path
}

pub fn config(path: &Path) -> Qcow2Config {
    Qcow2Config { path: path.to_path_buf(), read_only: false, backing: Backing::SameFolder, in_order: false }
}

/// Runs qemu-img, whose word on the format counts; `None`, and a word about it, where it is not installed.
pub fn qemu_img(arguments: &[&str]) -> Option<String> {
    match Command::new("qemu-img").args(arguments).output() {
        Ok(output) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert!(
                output.status.success(),
                "qemu-img {arguments:?}: {}{}",
                text(&output.stdout),
                text(&output.stderr)
            );
            Some(text(&output.stdout))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("skipped: qemu-img is not installed");
            None
        }
        Err(error) => panic!("qemu-img: {error}"),
    }
}
