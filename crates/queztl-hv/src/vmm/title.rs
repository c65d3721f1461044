//! What process lists call this process.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// prctl(2), `PR_SET_MM_MAP`.
#[repr(C)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: *mut u64,
    auxv_size: u32,
    exe_fd: i32,
}

/// Shows the process as one that was started for the machine in `directory`. Where the kernel cannot be told, it is listed
/// under the arguments of the process that it began as.
pub fn set(directory: &Path) {
    let Some(map) = arguments(directory).and_then(present) else { return };
    // SAFETY: the map is the process's own, but for the arguments, which stay where they are for as long as the process.
    let told = unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const map, size_of::<MemoryMap>(), 0) };
    if told != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "process lists do not name the machine");
    }
}

/// The arguments that a process of its own would have, one after the other.
fn arguments(directory: &Path) -> Option<&'static [u8]> {
    let program = std::env::args_os().next()?;
    let mut bytes = Vec::new();
    for part in [program.as_bytes(), b"vmm", directory.as_os_str().as_bytes()] {
        bytes.extend(CString::new(part).ok()?.as_bytes_with_nul());
    }
    Some(Vec::leak(bytes))
}

/// The process as it is (proc(5), `stat`), with other arguments.
fn present(arguments: &[u8]) -> Option<MemoryMap> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<u64> =
        stat.rsplit(')').next()?.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect();
    // The first of them is the third of all.
    let field = |number: usize| fields.get(number - 3).copied();
    // SAFETY: an increment of nothing only asks.
    let brk = unsafe { libc::sbrk(0) } as u64;
    Some(MemoryMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk,
        start_stack: field(28)?,
        arg_start: arguments.as_ptr() as u64,
        arg_end: arguments.as_ptr() as u64 + arguments.len() as u64,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: std::ptr::null_mut(),
        auxv_size: 0,
        exe_fd: -1,
    })
}
