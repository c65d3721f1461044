//! The listener for browsers of this host: plain HTTP on the loopback interface, opened when it is first asked for.
//!
//! Plain, since a browser trusts no certificate that the daemon signs itself and would teach its user to click warnings
//! away, while what crosses the loopback interface can be read only by who may read this process as well.
//!
//! The page has a host name of its own, such as `queztl-5f3a91c2.localhost`, which browsers take for this host without
//! asking anybody (RFC 6761 §6.3). Cookies know names but no ports: were the page at `127.0.0.1`, every other server of
//! this host that the browser visits would be sent its session. Name and port are kept, so that an open page finds the next
//! daemon where it found this one.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use queztl_api::{Code, Problem};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::vms::naming::random_bytes;

/// Where the page is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    name: String,
    port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "http://{}.localhost:{}", self.name, self.port)
    }
}

/// The door, open or not.
#[derive(Debug)]
pub struct Door {
    file: PathBuf,
    open: Mutex<Option<Address>>,
    listeners: mpsc::UnboundedSender<TcpListener>,
}

impl Door {
    pub fn new(file: PathBuf, listeners: mpsc::UnboundedSender<TcpListener>) -> Door {
        Door { file, open: Mutex::default(), listeners }
    }

    /// Opens where it was open last; a port that another has taken meanwhile is told and left to the next login.
    pub fn reopen(&self) {
        let Some(kept) = read(&self.file) else { return };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match self.listen(kept.port) {
            Ok(_) => *open = Some(kept),
            Err(error) => tracing::warn!(%error, port = kept.port, "the dashboard's port cannot be had again"),
        }
    }

    /// Opens if it is not open yet.
    ///
    /// # Errors
    /// [`Code::Host`] if no port can be had, or the address cannot be kept.
    pub fn open(&self) -> Result<Address, Problem> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = open.as_ref() {
            return Ok(address.clone());
        }
        let name = match read(&self.file) {
            Some(kept) => kept.name,
            None => format!("queztl-{}", hex::encode(random_bytes::<4>()?)),
        };
        let failed =
            |error: std::io::Error| Problem::new(Code::Host, format!("the dashboard cannot be opened: {error}"));
        let address = Address { name, port: self.listen(0).map_err(failed)? };
        write(&self.file, &address).map_err(failed)?;
        tracing::info!(%address, "the dashboard is open");
        Ok(open.insert(address).clone())
    }

    /// Listens on a port, or any; gives the port.
    fn listen(&self, port: u16) -> std::io::Result<u16> {
        let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        // A server that has gone needs no listeners.
        let _ = self.listeners.send(TcpListener::from_std(listener)?);
        Ok(port)
    }
}

/// What is kept; a file that cannot be read is made anew.
fn read(file: &Path) -> Option<Address> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

fn write(file: &Path, address: &Address) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    fs::write(&beside, serde_json::to_vec(address)?)?;
    fs::rename(beside, file)
}
