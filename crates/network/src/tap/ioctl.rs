//! The requests of `linux/if_tun.h` and netdevice(7) that a TAP device needs.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use rustix::net::{AddressFamily, SocketType, socket};

use crate::Offloads;

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;
const TUN_F_TSO_ECN: libc::c_ulong = 8;

/// A request that names an interface. `name` is shorter than `IFNAMSIZ`, so a zero byte follows it.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: an all-zero `ifreq` is a valid value: integers, bytes and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn call(fd: RawFd, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: all requests passed here read and write one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(fd, number, &raw mut *request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ties the open `/dev/net/tun` to the interface.
pub(super) fn attach(tun: &File, name: &str) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    call(tun.as_raw_fd(), TUNSETIFF, &mut request)
}

/// Sets the size of the header in front of each frame.
pub(super) fn set_header_bytes(tun: &File, bytes: i32) -> io::Result<()> {
    // SAFETY: the request reads one int.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) })
}

/// Says what the reader of the device does itself.
pub(super) fn set_offloads(tun: &File, offloads: Offloads) -> io::Result<()> {
    let flag = |offload, flag| if offloads.contains(offload) { flag } else { 0 };
    let mut flags = flag(Offloads::CHECKSUM, TUN_F_CSUM);
    // The kernel refuses segmentation without checksums.
    if flags != 0 {
        flags |= flag(Offloads::TSO4, TUN_F_TSO4) | flag(Offloads::TSO6, TUN_F_TSO6);
    }
    if flags & (TUN_F_TSO4 | TUN_F_TSO6) != 0 {
        flags |= flag(Offloads::ECN, TUN_F_TSO_ECN);
    }
    // SAFETY: the request takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETOFFLOAD, flags) })
}

pub(super) fn interface_exists(name: &str) -> bool {
    with_socket(|fd| call(fd, libc::SIOCGIFINDEX as libc::Ioctl, &mut request(name))).is_ok()
}

/// The interface's largest packet in bytes.
pub(super) fn mtu(name: &str) -> Option<u16> {
    let mut request = request(name);
    with_socket(|fd| call(fd, libc::SIOCGIFMTU as libc::Ioctl, &mut request)).ok()?;
    // SAFETY: a successful SIOCGIFMTU has written this member.
    u16::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
}

/// Sets IFF_UP.
pub(super) fn bring_up(name: &str) -> io::Result<()> {
    let mut request = request(name);
    with_socket(|fd| {
        call(fd, libc::SIOCGIFFLAGS as libc::Ioctl, &mut request)?;
        // SAFETY: a successful SIOCGIFFLAGS has written this member.
        unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
        call(fd, libc::SIOCSIFFLAGS as libc::Ioctl, &mut request)
    })
}

fn with_socket(run: impl FnOnce(RawFd) -> io::Result<()>) -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    run(socket.as_raw_fd())
}
