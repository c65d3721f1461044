//! The agent's listening socket (vsock(7)).

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const BACKLOG: libc::c_int = 128;

/// Listens on a port, for every address that the guest has.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    let socket = owned(socket)?;
    // SAFETY: the structure consists of numbers, for which zero is a value.
    let mut address: libc::sockaddr_vm = unsafe { zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: the address lives during the call and has this length.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// The next connection; `None` for one that does not come from the host.
///
/// Programs of the guest can reach the port too where the kernel has the loopback transport. The agent is root, so it
/// must not listen to them; the address of a peer comes from the kernel and cannot be forged.
pub fn accept(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: as in `listen`.
    let mut address: libc::sockaddr_vm = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: the address lives during the call, and `length` tells how long it is.
    let stream =
        unsafe { libc::accept4(listener.as_raw_fd(), (&raw mut address).cast(), &raw mut length, libc::SOCK_CLOEXEC) };
    let stream = owned(stream)?;
    Ok((address.svm_cid == libc::VMADDR_CID_HOST).then_some(stream))
}

fn owned(descriptor: libc::c_int) -> io::Result<OwnedFd> {
    check(descriptor)?;
    // SAFETY: the call that gave this descriptor succeeded, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
