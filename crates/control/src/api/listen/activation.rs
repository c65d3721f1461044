//! Sockets that systemd opened (`sd_listen_fds(3)`): numbers from 3 on, told by two variables of the environment.

use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, getsockname, sockopt};
use tokio::net::{TcpListener, UnixListener};

use super::{Bound, ServeError, tls};
use crate::api::config::Certificate;

/// SD_LISTEN_FDS_START.
const FIRST: RawFd = 3;
/// More than anybody configures.
const MOST: RawFd = 64;

/// Takes the sockets that were passed. They are this process's for good: a second call gets none.
pub fn take(certificate: Option<&Certificate>) -> Result<Vec<Bound>, ServeError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name| std::env::var(name).ok();
    let count = count(variable("LISTEN_PID").as_deref(), variable("LISTEN_FDS").as_deref(), std::process::id());
    if count == 0 || TAKEN.swap(true, Ordering::SeqCst) {
        return Err(ServeError::NotActivated);
    }
    (FIRST..FIRST + count).map(|number| socket(number, certificate)).collect()
}

/// How many sockets are meant for this process.
fn count(pid: Option<&str>, count: Option<&str>, own: u32) -> RawFd {
    let meant = pid.and_then(|pid| pid.parse().ok()) == Some(own);
    let count: RawFd = count.and_then(|count| count.parse().ok()).unwrap_or(0);
    if meant { count.clamp(0, MOST) } else { 0 }
}

fn socket(number: RawFd, certificate: Option<&Certificate>) -> Result<Bound, ServeError> {
    let failed = |message: String| ServeError::Activated { number, message };
    let refused = |error: std::io::Error| failed(error.to_string());
    // SAFETY: the service manager opened these numbers for this process alone and says so in its environment; `take` gives
    // each out once. Should one be closed, the calls below say so.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(fd.as_fd(), FdFlags::CLOEXEC).map_err(|error| refused(error.into()))?;
    if !sockopt::socket_acceptconn(&fd).map_err(|error| refused(error.into()))? {
        return Err(failed("it does not listen: use ListenStream=".into()));
    }
    let address = getsockname(&fd).map_err(|error| refused(error.into()))?;
    match address.address_family() {
        AddressFamily::UNIX => {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true).map_err(refused)?;
            let listener = UnixListener::from_std(listener).map_err(refused)?;
            Ok(Bound::Unix { listener, _path: None })
        }
        AddressFamily::INET | AddressFamily::INET6 => {
            let certificate = certificate.ok_or_else(|| failed("TCP needs a certificate: give one".into()))?;
            let listener = std::net::TcpListener::from(fd);
            listener.set_nonblocking(true).map_err(refused)?;
            let address = listener.local_addr().map_err(refused)?;
            let acceptor = tls::acceptor(certificate, &[address.ip()])?;
            let listener = TcpListener::from_std(listener).map_err(refused)?;
            Ok(Bound::Tls { listener, acceptor })
        }
        other => Err(failed(format!("it is of address family {}", other.as_raw()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_that_are_meant_for_this_process_are_taken() {
        assert_eq!(count(Some("7"), Some("2"), 7), 2);
        assert_eq!(count(Some("8"), Some("2"), 7), 0);
        assert_eq!(count(None, Some("2"), 7), 0);
        assert_eq!(count(Some("7"), None, 7), 0);
        assert_eq!(count(Some("7"), Some("-1"), 7), 0);
        assert_eq!(count(Some("7"), Some("100000"), 7), MOST);
    }
}
