//! Where this host's daemon keeps its things, and where it listens.
//!
//! | home | socket |
//! |---|---|
//! | `/var/lib/queztl` (root's) | `/run/queztl/daemon.sock` |
//! | any other | `daemon.sock` in it |

use std::path::{Path, PathBuf};

use queztl_guest_image::Store;

use crate::report::{Failure, chain};

/// The home of root's daemon.
const SYSTEM_HOME: &str = "/var/lib/queztl";
const SYSTEM_SOCKET: &str = "/run/queztl/daemon.sock";

/// The longest path that a Unix socket can have (`sockaddr_un`, less the final zero).
const MAX_SOCKET_PATH: usize = 107;

/// The places of one daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub home: PathBuf,
    pub socket: PathBuf,
}

impl Place {
    /// This user's.
    ///
    /// # Errors
    /// There is no home, it cannot be used, or its path is too long for a socket.
    pub fn find() -> Result<Place, Failure> {
        let store = Store::open().map_err(|error| Failure::host(chain(&error)))?;
        Place::of(store.root())
    }

    fn of(home: &Path) -> Result<Place, Failure> {
        // The daemon runs elsewhere than the commands that start it.
        let home =
            std::path::absolute(home).map_err(|error| Failure::host(format!("QUEZTL_HOME is no path: {error}")))?;
        let socket = match home == Path::new(SYSTEM_HOME) {
            true => SYSTEM_SOCKET.into(),
            false => home.join("daemon.sock"),
        };
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(Failure::usage(format!(
                "{} is too long for a socket: choose a QUEZTL_HOME with a shorter path",
                socket.display()
            )));
        }
        Ok(Place { home, socket })
    }

    /// What the daemon says when it was not started by hand.
    pub fn log(&self) -> PathBuf {
        self.home.join("daemon.log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_daemon_listens_in_run_and_others_at_home() {
        assert_eq!(Place::of(Path::new("/var/lib/queztl")).unwrap().socket, Path::new("/run/queztl/daemon.sock"));
        assert_eq!(Place::of(Path::new("/home/a/q")).unwrap().socket, Path::new("/home/a/q/daemon.sock"));
        assert!(Place::of(Path::new(&format!("/{}", "x".repeat(120)))).is_err());
    }
}
