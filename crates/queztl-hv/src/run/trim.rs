//! Gives back the memory that only the start of a machine needs, once it runs: what stays is what a running machine uses.
//!
//! Code that reads arguments, kernels and tables lies in the process like the code that runs the guest, and the kernel
//! maps it in pieces of 64 KiB. Dropping those mappings costs a few page faults for what is used again; the pages
//! themselves stay in the host's page cache, which all machines share. Freed heap goes back to the host as well.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io::Read;
use std::ops::Range;

const PAGE_BYTES: u64 = 4096;

/// What can be given back later. Made while files may still be opened; the rest needs `read` and `madvise` alone.
#[derive(Debug)]
pub struct StartUp {
    /// Addresses of read-only program code and data.
    code: Vec<Range<u64>>,
    /// `/proc/self/status`, which tells whether a debugger is attached.
    status: Option<File>,
}

impl StartUp {
    /// Notes where this program's code lies.
    pub fn note() -> StartUp {
        let mut code = Vec::new();
        // SAFETY: the callback fits the signature; its data is `code`, which outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(add_code), (&raw mut code).cast()) };
        StartUp { code, status: File::open("/proc/self/status").ok() }
    }

    /// Drops the code's pages from this process, and free heap. Does nothing while a debugger is attached: its breakpoints
    /// are changes to those very pages.
    pub fn give_back(self) {
        if self.is_traced() {
            return;
        }
        for range in &self.code {
            let bytes = (range.end - range.start) as usize;
            // SAFETY: the range is part of a mapping of a file that is never written through it (no PF_W), so that
            // dropped pages are read from the file again with the same content.
            unsafe { libc::madvise(range.start as *mut c_void, bytes, libc::MADV_DONTNEED) };
        }
        #[cfg(target_env = "gnu")]
        // SAFETY: the call has no conditions.
        unsafe {
            libc::malloc_trim(0)
        };
    }

    /// Whether a debugger holds this process; where the kernel does not tell, one might.
    fn is_traced(&self) -> bool {
        let mut text = String::new();
        let read = self.status.as_ref().is_some_and(|mut status| status.read_to_string(&mut text).is_ok());
        let tracer = text.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        !read || tracer.is_none_or(|tracer| tracer.trim() != "0")
    }
}

/// Called for each loaded object; `data` is a list of ranges to add to.
unsafe extern "C" fn add_code(object: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: `StartUp::note` passes its list, which nobody else uses meanwhile.
    let code = unsafe { &mut *data.cast::<Vec<Range<u64>>>() };
    // SAFETY: the linker passes a valid object.
    let object = unsafe { &*object };
    if object.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: an object has as many program headers as it says, which stay as long as it is loaded.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    let is_code = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(is_code) {
        let start = object.dlpi_addr.wrapping_add(header.p_vaddr);
        let end = start.saturating_add(header.p_memsz);
        let start = start.next_multiple_of(PAGE_BYTES);
        if start < end {
            code.push(start..end);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn work() -> u64 {
        (0..100_u64).map(std::hint::black_box).sum()
    }

    #[test]
    fn the_code_is_found() {
        let here = work as fn() -> u64 as usize as u64;
        assert!(StartUp::note().code.iter().any(|range| range.contains(&here)));
    }

    #[test]
    fn code_runs_after_its_pages_were_given_back() {
        let data = vec![7_u8; 1 << 20];
        StartUp::note().give_back();
        assert_eq!((work(), data.iter().map(|byte| u64::from(*byte)).sum()), (4950, 7 << 20));
    }

    #[test]
    fn without_the_kernels_word_a_debugger_is_assumed() {
        assert!(StartUp { code: Vec::new(), status: None }.is_traced());
    }
}
