//! Memory for generated code: one memory file mapped twice, writable through one view and executable through the other,
//! so that no mapping is ever both. Host pages come into being as they are used.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const PAGE_BYTES: usize = 4096;

/// The two views of a code file.
pub(crate) struct CodeSpace {
    writable: *mut u8,
    executable: *const u8,
    capacity: usize,
    used: usize,
    _file: File,
}

// SAFETY: the views belong to this value alone; the writable one is only used through `&mut self`.
unsafe impl Send for CodeSpace {}

impl CodeSpace {
    /// Space for `capacity` bytes.
    ///
    /// # Errors
    /// The host refuses a memory file or an executable mapping of it.
    pub fn new(name: &CStr, capacity: usize) -> io::Result<CodeSpace> {
        let file = memory_file(name)?;
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
        Ok(CodeSpace { writable, executable, capacity, used: 0, _file: file })
    }

    /// Where the next piece of code will lie.
    pub fn next(&self) -> *const u8 {
        // SAFETY: `used` never exceeds the mapping.
        unsafe { self.executable.add(self.used) }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Copies `code` to [`CodeSpace::next`], and starts what follows at a multiple of `align`; `None` if the space is
    /// used up.
    pub fn place(&mut self, code: &[u8], align: usize) -> Option<*const u8> {
        let end = self.used.checked_add(code.len())?.next_multiple_of(align);
        if end > self.capacity {
            return None;
        }
        let start = self.next();
        // SAFETY: the bytes from `used` to `end` lie within both views and belong to nobody yet.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(self.used), code.len()) };
        self.used = end;
        Some(start)
    }

    /// Replaces the 32-bit displacement of a jump at executable address `at` so that it leads to `target`. Only by the
    /// thread that runs the code.
    pub fn set_displacement(&mut self, at: *const u8, target: *const u8) {
        let offset = (at as usize).wrapping_sub(self.executable as usize);
        assert!(offset <= self.used.saturating_sub(4), "a patch outside the code space");
        let distance = (target as i64).wrapping_sub(at as i64 + 4) as i32;
        // SAFETY: the four bytes lie within the writable view.
        unsafe { self.writable.add(offset).cast::<i32>().write_unaligned(distance) };
    }

    /// Forgets all code after the first `kept` bytes. None of it may be running.
    pub fn truncate(&mut self, kept: usize) {
        self.used = self.used.min(kept);
    }

    /// Gives the memory behind the code back to the host.
    pub fn release_unused(&mut self) {
        let start = self.used.next_multiple_of(PAGE_BYTES);
        if let Some(bytes @ 1..) = self.capacity.checked_sub(start) {
            // SAFETY: the range lies within the writable view, and no code in it is used. Without success it stays.
            unsafe { libc::madvise(self.writable.add(start).cast(), bytes, libc::MADV_REMOVE) };
        }
    }
}

impl Drop for CodeSpace {
    fn drop(&mut self) {
        // SAFETY: both views were mapped by `new` with this length; the code ends with its space.
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
