//! System calls that devices like to have.

use std::io;

use super::memory::owned;
use super::{Finding, first_line};

/// Asynchronous disk I/O.
pub fn io_uring() -> Finding {
    // struct io_uring_params is 120 bytes, all zero for the defaults.
    let mut params = [0u64; 15];
    // SAFETY: the second argument points to zeroed parameters of the size that the call writes.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, &raw mut params) };
    let without = "disks work without it, by a thread each, slower";
    match owned(fd as i32) {
        Ok(_) => Finding::good("io_uring", "usable for disks"),
        Err(error) => {
            Finding::limited("io_uring", format!("not usable: {error}"), format!("{}; {without}", mend(&error)))
        }
    }
}

fn mend(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "use a host kernel from Linux 5.1 on, or a container profile that permits it",
        _ if first_line("/proc/sys/kernel/io_uring_disabled").is_some_and(|value| value != "0") => {
            "as root: sysctl kernel.io_uring_disabled=0"
        }
        _ => "allow it in the container's seccomp profile",
    }
}
