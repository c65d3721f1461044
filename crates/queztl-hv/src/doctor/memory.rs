//! Memory: how much, in which pages, and whether faults can be served from user space.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::{Finding, first_line};

/// Below this no guest is worth starting: a minimal Linux and this program.
const LEAST_BYTES: u64 = 96 << 20;
/// Below this only small guests fit.
const COMFORTABLE_BYTES: u64 = 1 << 30;

/// RAM that is available to this process.
pub fn ram() -> Finding {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo(&info, "MemTotal").unwrap_or(0);
    let free = meminfo(&info, "MemAvailable").unwrap_or(total);
    let limit = first_line("/sys/fs/cgroup/memory.max").and_then(|line| line.parse().ok()).unwrap_or(u64::MAX);
    let available = free.min(limit);
    let limited =
        if limit < total { format!(" (limited to {} by a control group)", mib(limit)) } else { String::new() };
    let found = format!("{} available of {}{limited}", mib(available), mib(total));
    let mend = "end other programs, add memory or raise the control group's memory.max";
    match available {
        0..LEAST_BYTES => Finding::fatal("memory", found, mend),
        LEAST_BYTES..COMFORTABLE_BYTES => Finding::limited("memory", found, mend),
        _ => Finding::good("memory", found),
    }
}

/// Explicit and transparent huge pages.
pub fn huge_pages() -> Finding {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let count = |name| meminfo_number(&info, name).unwrap_or(0);
    let (total, free, kib) = (count("HugePages_Total"), count("HugePages_Free"), count("Hugepagesize"));
    let shmem = first_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    let transparent = shmem.split(['[', ']']).nth(1).unwrap_or("not supported").to_owned();
    let found = format!(
        "{free} of {total} reserved pages of {} MiB free; transparent for shared memory: {transparent}",
        kib / 1024
    );
    if free > 0 || matches!(transparent.as_str(), "always" | "within_size" | "advise") {
        return Finding::good("huge pages", found);
    }
    let mend = match transparent.as_str() {
        "not supported" => {
            "as root: sysctl vm.nr_hugepages=512 (1 GiB); guests run without, a little slower".to_owned()
        }
        _ => "as root: echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled; guests run without, a little \
              slower"
            .to_owned(),
    };
    Finding::limited("huge pages", found, mend)
}

/// The host's NUMA nodes, which `--numa …,host-node=N` names.
pub fn nodes() -> Finding {
    let present = first_line("/sys/devices/system/node/has_memory");
    let found = match present.as_deref() {
        None => "one, without a number: this host's kernel knows no NUMA".to_owned(),
        Some(nodes) => format!("memory on {nodes}"),
    };
    Finding::good("NUMA nodes", found)
}

/// Faults of guest memory served from user space: needed for lazy restore, post-copy migration and live forks.
pub fn userfaultfd() -> Finding {
    let without = "guests run, but without lazy restore, post-copy migration and live fork";
    match open_userfaultfd() {
        Ok((fd, how)) => match features(&fd) {
            Ok(features) if features & WANTED_FEATURES == WANTED_FEATURES => Finding::good(
                "userfaultfd",
                format!("usable {how}: missing pages and write protection of shared memory"),
            ),
            Ok(features) => Finding::limited(
                "userfaultfd",
                format!("usable {how}, but without write protection of shared memory (features {features:#x})"),
                format!("use a host kernel from Linux 5.19 on; {without}"),
            ),
            Err(error) => Finding::limited("userfaultfd", format!("does not answer: {error}"), without),
        },
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Finding::limited(
            "userfaultfd",
            "not in this host's kernel",
            format!("use a host kernel with CONFIG_USERFAULTFD; {without}"),
        ),
        Err(error) => Finding::limited(
            "userfaultfd",
            format!("not permitted: {error}"),
            format!("as root: sysctl vm.unprivileged_userfaultfd=1, or give access to /dev/userfaultfd; {without}"),
        ),
    }
}

/// `UFFD_FEATURE_MISSING_SHMEM` and `UFFD_FEATURE_WP_HUGETLBFS_SHMEM` (linux/userfaultfd.h).
const WANTED_FEATURES: u64 = 1 << 5 | 1 << 12;
/// `USERFAULTFD_IOC_NEW`.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
/// `UFFDIO_API`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `UFFD_API`.
const UFFD_API: u64 = 0xaa;

fn open_userfaultfd() -> io::Result<(OwnedFd, &'static str)> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the system call takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    match owned(fd as RawFd) {
        Ok(fd) => Ok((fd, "by its system call")),
        Err(refused) => {
            let Ok(device) = File::options().read(true).write(true).open("/dev/userfaultfd") else {
                return Err(refused);
            };
            // SAFETY: the request takes flags only.
            let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
            owned(fd).map(|fd| (fd, "through /dev/userfaultfd"))
        }
    }
}

fn features(fd: &OwnedFd) -> io::Result<u64> {
    let mut api = [UFFD_API, 0, 0];
    // SAFETY: `api` has the layout of struct uffdio_api: three 64-bit numbers.
    match unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &mut api) } {
        0 => Ok(api[1]),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor that a system call has just returned, or its error.
pub fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn meminfo(info: &str, name: &str) -> Option<u64> {
    meminfo_number(info, name).map(|kib| kib * 1024)
}

fn meminfo_number(info: &str, name: &str) -> Option<u64> {
    let line = info.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_figures_are_read_with_their_unit() {
        let info = "MemTotal:       24683520 kB\nMemFree: 12 kB\nHugePages_Total:       3\n";
        assert_eq!(meminfo(info, "MemTotal"), Some(24_683_520 * 1024));
        assert_eq!(meminfo_number(info, "HugePages_Total"), Some(3));
        assert_eq!(meminfo(info, "Mem"), None);
    }
}
