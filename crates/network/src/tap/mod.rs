//! TAP devices: the guest's card is a port of the host's kernel, which does checksums and segmentation for it.

mod ioctl;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::{Backend, HEADER_BYTES, Offloads, Received};

/// Why a TAP device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{0}` cannot be the name of a TAP device; use 1 to 15 letters, digits, `-`, `_` or `.`")]
    Name(String),
    #[error("/dev/net/tun does not open ({0}); load it with `modprobe tun`, or use the user network")]
    NoTun(io::Error),
    #[error(
        "TAP device {name} may not be used or made by this user; run `sudo ip tuntap add dev {name} mode tap user $USER`"
    )]
    Denied { name: String },
    #[error("TAP device {name} is in use by another program; name another one")]
    Busy { name: String },
    #[error(
        "TAP device {name} is of another kind (several queues, or TUN); make it with `ip tuntap add dev {name} mode tap`"
    )]
    Kind { name: String },
    #[error("TAP device {name} cannot be set up: {source}")]
    Setup { name: String, source: io::Error },
}

/// An attached TAP device. One that did not exist before ends with this value.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    mtu: Option<u16>,
}

impl Tap {
    /// Attaches to the TAP device `name`, or makes it and brings it up.
    pub fn open(name: &str) -> Result<Tap, Error> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 15 || !name.chars().all(allowed) || matches!(name, "." | "..") {
            return Err(Error::Name(name.to_string()));
        }
        let existed = ioctl::interface_exists(name);
        let tun = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let file = tun.map_err(Error::NoTun)?;
        ioctl::attach(&file, name).map_err(|source| attach_error(name, source))?;
        let setup = |source| Error::Setup { name: name.to_string(), source };
        ioctl::set_header_bytes(&file, HEADER_BYTES as i32).map_err(setup)?;
        ioctl::set_offloads(&file, Offloads::NONE).map_err(setup)?;
        if !existed && let Err(error) = ioctl::bring_up(name) {
            tracing::warn!(tap = name, %error, "the new TAP device is down; `ip link set {name} up` brings it up");
        }
        Ok(Tap { file, name: name.to_string(), mtu: ioctl::mtu(name) })
    }

    /// The device's name on the host.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn attach_error(name: &str, source: io::Error) -> Error {
    let name = name.to_string();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::Denied { name },
        Some(libc::EBUSY) => Error::Busy { name },
        Some(libc::EINVAL) => Error::Kind { name },
        _ => Error::Setup { name, source },
    }
}

impl Backend for Tap {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn set_guest_offloads(&mut self, guest: Offloads) -> io::Result<()> {
        ioctl::set_offloads(&self.file, guest)
    }

    fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Received> {
        loop {
            match self.file.read(frame) {
                Ok(0) => return Ok(Received::Closed),
                Ok(count) => return Ok(Received::Frame(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The device was deleted under us.
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Ok(Received::Closed),
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        loop {
            match self.file.write(frame) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
