//! Page faults of this process, handled by it: `userfaultfd`, as far as guest RAM needs it.
//!
//! Source: Linux `Documentation/admin-guide/mm/userfaultfd.rst`, linux/userfaultfd.h.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};

use crate::PAGE_SIZE;

/// `_IO(0xaa, 0)` of `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xaa00;
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01_u32 as libc::Ioctl;
const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02_u32 as libc::Ioctl;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03;

const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
/// `struct uffd_msg`
const MESSAGE_BYTES: usize = 32;
/// Where it has the address of a page fault.
const ADDRESS_AT: usize = 16;
/// Messages that are read at once.
const MESSAGES: usize = 32;

/// `struct uffdio_range`
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`
#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`
#[repr(C)]
struct Copy {
    destination: u64,
    source: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_api`
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// Handles page faults at pages that files in memory do not have yet.
#[derive(Debug)]
pub(crate) struct Userfault(File);

impl Userfault {
    /// Opens the descriptor, which never makes its reader wait.
    ///
    /// # Errors
    /// When this process may not handle the kernel's page faults, too (`CAP_SYS_PTRACE`, `vm.unprivileged_userfaultfd`, or
    /// access to `/dev/userfaultfd`), or the host cannot do it for files in memory.
    pub fn open() -> io::Result<Userfault> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: returns a new descriptor, or none.
        let mut fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) } as i32;
        if fd < 0 {
            let device = File::options().read(true).write(true).open("/dev/userfaultfd")?;
            // SAFETY: as above.
            fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
        }
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else has it.
        let userfault = Userfault(unsafe { File::from_raw_fd(fd) });
        let mut api = Api { api: UFFD_API, features: UFFD_FEATURE_MISSING_SHMEM, ioctls: 0 };
        userfault.call(UFFDIO_API, &mut api)?;
        Ok(userfault)
    }

    /// Readable when [`Userfault::take_faults`] has something.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// From now on, page faults in the range, which maps files in memory, wait for [`Userfault::wake`] where the file has no
    /// page.
    pub fn register(&self, start: *const u8, len: u64) -> io::Result<()> {
        let range = Range { start: start as u64, len };
        self.call(UFFDIO_REGISTER, &mut Register { range, mode: UFFDIO_REGISTER_MODE_MISSING, ioctls: 0 })
    }

    /// No longer; whoever waits goes on.
    pub fn unregister(&self, start: *const u8, len: u64) -> io::Result<()> {
        self.call(UFFDIO_UNREGISTER, &mut Range { start: start as u64, len })?;
        // The kernel wakes before it takes the mapping's lock (Linux fs/userfaultfd.c, from per-VMA locks on): a fault that
        // is under way just then begins to wait afterwards, and nobody else would ever wake it.
        self.wake(start as u64, len)
    }

    /// Whoever waits for a page of the range tries again.
    pub fn wake(&self, start: u64, len: u64) -> io::Result<()> {
        self.call(UFFDIO_WAKE, &mut Range { start, len })
    }

    /// Gives the file that is mapped at `destination`, shared and registered, pages with the contents of those at `source`.
    /// Each page appears in the file as a whole. Pages that are there already stay as they are.
    ///
    /// # Errors
    /// When there is no memory. A part may have been copied, and it may be done again.
    pub fn copy(&self, destination: *const u8, source: *const u8, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let (destination, source) = (destination as u64 + done, source as u64 + done);
            let mut copy = Copy { destination, source, len: len - done, mode: 0, copied: 0 };
            let result = self.call(UFFDIO_COPY, &mut copy);
            let copied = u64::try_from(copy.copied).unwrap_or(0);
            match result {
                Ok(()) => done = len,
                Err(_) if copied > 0 => done += copied,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EEXIST) => done += PAGE_SIZE,
                    Some(libc::EAGAIN | libc::EINTR) => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Calls `f` with the address of each page fault that waits now.
    pub fn take_faults(&self, mut f: impl FnMut(u64)) -> io::Result<()> {
        let mut messages = [0; MESSAGES * MESSAGE_BYTES];
        loop {
            // SAFETY: the kernel writes as many bytes as there is room for, at most.
            let count = unsafe { libc::read(self.0.as_raw_fd(), messages.as_mut_ptr().cast(), messages.len()) };
            if count < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(()),
                    Some(libc::EINTR) => continue,
                    _ => return Err(error),
                }
            }
            let messages = messages[..count as usize].chunks_exact(MESSAGE_BYTES);
            for message in messages.filter(|message| message[0] == UFFD_EVENT_PAGEFAULT) {
                let address = message[ADDRESS_AT..ADDRESS_AT + 8].iter().rev();
                f(address.fold(0, |address, byte| address << 8 | u64::from(*byte)));
            }
            if count as usize != MESSAGES * MESSAGE_BYTES {
                return Ok(());
            }
        }
    }

    fn call<T>(&self, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
        // SAFETY: each request is called with the structure that it is defined with.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request, &raw mut *argument) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
