//! What guests' networks need.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;

use super::{Finding, has_program};

/// TAP interfaces, for `--net tap=NAME`.
pub fn tap() -> Finding {
    let device = match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Finding::limited("tap", "/dev/net/tun may not be opened", "as root: chmod 666 /dev/net/tun");
        }
        Err(error) => {
            let mend = "as root: modprobe tun; in a container, pass /dev/net/tun in; --net user needs none";
            return Finding::limited("tap", format!("/dev/net/tun cannot be opened: {error}"), mend);
        }
    };
    match make_interface(&device) {
        Ok(()) => Finding::good("tap", "interfaces can be made"),
        Err(error) => Finding::limited(
            "tap",
            format!("no interface can be made: {error}"),
            "as root: ip tuntap add dev tap0 mode tap user USER, then --net tap=tap0; --net user needs none",
        ),
    }
}

/// Makes an interface that vanishes when `device` is closed.
fn make_interface(device: &File) -> io::Result<()> {
    /// struct ifreq: a name, here a pattern, then a union of which only flags are used.
    #[repr(C)]
    struct InterfaceRequest {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    let mut request = InterfaceRequest { name: *b"qzprobe%d\0\0\0\0\0\0\0", flags: 0, rest: [0; 22] };
    request.flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    // SAFETY: the request has the layout and size of struct ifreq.
    match unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// passt, for `--net user`.
pub fn passt() -> Finding {
    if !has_program("passt") {
        let mend = "as root: apt-get install passt; without it there is no --net user";
        return Finding::limited("user network", "passt is not installed", mend);
    }
    let output = Command::new("passt").arg("--version").output();
    let version = output.ok().and_then(|o| String::from_utf8(o.stdout).ok()).unwrap_or_default();
    let version = version.lines().next().unwrap_or_default().to_owned();
    Finding::good("user network", if version.is_empty() { "passt is installed".to_owned() } else { version })
}
