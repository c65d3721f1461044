//! The cache of thunks and the memory they run from.
//!
//! Code lives in one memory file mapped twice: writable through one view, executable through the other, so that no
//! mapping is ever both. Bytes that a thunk was given never change; the file's pages come into being as they are used.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iced_x86::Instruction;

use super::compile::{self, Draft};
use super::thunk::{Direct, Thunk};
use crate::op::Handler;

/// Space for code, bytes: several hundred thousand instruction forms. A guest that uses more gets #UD for new ones; it
/// takes a program that generates forms on purpose.
const CAPACITY: usize = 64 << 20;
/// Thunks start at multiples of this.
const ALIGN: usize = 32;

/// The thunks of one machine, shared by its CPUs.
pub(crate) struct NativePool {
    inner: Mutex<Inner>,
}

struct Inner {
    /// By normalised instruction; `None` for those that no thunk can do.
    thunks: HashMap<Instruction, Option<Box<Thunk>>>,
    code: Code,
}

impl NativePool {
    /// An empty pool.
    ///
    /// # Errors
    /// The host refuses a memory file or an executable mapping of it.
    pub fn new() -> io::Result<NativePool> {
        let code = Code::new(CAPACITY)?;
        Ok(NativePool { inner: Mutex::new(Inner { thunks: HashMap::new(), code }) })
    }

    /// The thunk for `instruction`, made if there is none; `None` if it is privileged, a branch, a string or stack
    /// instruction, or one that the host cannot run.
    pub fn compile(&self, instruction: &Instruction) -> Option<&Thunk> {
        let key = compile::normalise(instruction)?;
        let mut inner = self.lock();
        let Inner { thunks, code } = &mut *inner;
        if !thunks.contains_key(&key) {
            // A full map stops growing with the code: forms without code are bounded by the same count.
            if thunks.len() >= CAPACITY / ALIGN {
                return None;
            }
            let thunk = compile::draft(&key).and_then(|draft| code.place(draft));
            thunks.insert(key, thunk.map(Box::new));
        }
        let thunk: *const Thunk = &**thunks.get(&key)?.as_ref()?;
        // SAFETY: boxes in the map are neither replaced nor removed, so the thunk lives as long as the pool.
        Some(unsafe { &*thunk })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The two views of the code file.
struct Code {
    writable: *mut u8,
    executable: *const u8,
    capacity: usize,
    used: usize,
    _file: File,
}

// SAFETY: the views belong to this value alone; the writable one is only used through `&mut self`.
unsafe impl Send for Code {}

impl Code {
    fn new(capacity: usize) -> io::Result<Code> {
        let file = memory_file(c"queztl-thunks")?;
        file.set_len(capacity as u64)?;
        let executable = map(&file, capacity, libc::PROT_READ | libc::PROT_EXEC)?;
        let writable = match map(&file, capacity, libc::PROT_READ | libc::PROT_WRITE) {
            Ok(view) => view,
            Err(error) => {
                // SAFETY: mapped above, not in use.
                unsafe { libc::munmap(executable.cast(), capacity) };
                return Err(error);
            }
        };
        Ok(Code { writable, executable, capacity, used: 0, _file: file })
    }

    /// Puts the draft's code into the executable view; `None` if the space is used up.
    fn place(&mut self, draft: Draft) -> Option<Thunk> {
        let Draft { code, any_address, inner, mut thunk } = draft;
        if code.is_empty() {
            return Some(thunk);
        }
        let end = self.used.checked_add(code.len())?.next_multiple_of(ALIGN);
        if end > self.capacity {
            return None;
        }
        // SAFETY: the bytes from `used` to `end` lie within both views and belong to no thunk yet.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(self.used), code.len());
            let start = self.executable.add(self.used);
            thunk.entry = start.add(inner);
            // A register bit index moves the operand, which only Rust knows how to follow.
            thunk.direct = thunk.bit_index.is_none().then(|| Direct {
                based: std::mem::transmute::<*const u8, Handler>(start),
                any: std::mem::transmute::<*const u8, Handler>(start.add(any_address)),
            });
        }
        self.used = end;
        Some(thunk)
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: both views were mapped by `new` with this length; thunks end with the pool.
        unsafe {
            libc::munmap(self.writable.cast(), self.capacity);
            libc::munmap(self.executable.cast_mut().cast(), self.capacity);
        }
    }
}

fn memory_file(name: &CStr) -> io::Result<File> {
    // Kernels before 6.3 do not know MFD_EXEC.
    const MFD_EXEC: libc::c_uint = 0x10;
    for flags in [libc::MFD_CLOEXEC | MFD_EXEC, libc::MFD_CLOEXEC] {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        if fd >= 0 {
            // SAFETY: a fresh descriptor that nobody else owns.
            return Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Err(io::Error::last_os_error())
}

fn map(file: &File, len: usize, protection: libc::c_int) -> io::Result<*mut u8> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address.cast()) }
}
