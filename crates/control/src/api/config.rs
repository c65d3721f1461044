//! Where the API listens, and what it grants.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What [`super::serve`] is told.
#[derive(Debug, Clone, Default)]
pub struct ServeConfig {
    pub listeners: Vec<Listen>,
    pub limits: Limits,
    /// The file that remembers where the dashboard listens; without one it is offered over TLS alone.
    pub dashboard: Option<PathBuf>,
}

/// One place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket, of mode 0600; with a group 0660 and that group's (a name of `/etc/group`, or a number).
    Unix { path: PathBuf, group: Option<String> },
    /// TCP with TLS.
    Tls { address: SocketAddr, certificate: Certificate },
    /// The sockets that systemd passed (`LISTEN_FDS`); the TCP ones of them need a certificate.
    Activated { certificate: Option<Certificate> },
}

/// Whom TLS says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificate {
    /// PEM files: the chain, the daemon's own certificate first, and its key.
    Files { certificate: PathBuf, key: PathBuf },
    /// Signed by itself, made at the first start as `certificate.pem` and `key.pem` in this directory and kept. Clients
    /// are given `certificate.pem` as the authority to trust.
    SelfSigned { directory: PathBuf },
}

/// Bounds for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// A request's line and headers together.
    pub header_bytes: usize,
    /// How many headers.
    pub headers: usize,
    /// For a request's headers, and between two requests of a connection.
    pub header_time: Duration,
    /// A body, files of guests excepted.
    pub body_bytes: usize,
    /// For a body to come, files of guests excepted.
    pub body_time: Duration,
    /// For an answer to begin, except where the client itself says how long it waits.
    pub request_time: Duration,
    /// For a client to take something of what waits for it.
    pub write_time: Duration,
    /// For a TLS handshake.
    pub handshake_time: Duration,
    /// Connections at each listener.
    pub connections: usize,
    /// Of these, from one user of the host or one address.
    pub connections_per_peer: usize,
    /// WebSockets and followed logs.
    pub sessions: usize,
    /// Of these, of one client: user of the host, or token.
    pub sessions_per_client: usize,
    /// A WebSocket is asked for a sign of life so often, and let go when it has shown none for three times as long.
    pub ping_interval: Duration,
    /// Commands and copies in guests at one time; each takes a few threads.
    pub guest_tasks: usize,
    /// A file that is copied to or from a guest.
    pub file_bytes: u64,
    /// For a guest's agent to answer at all.
    pub agent_time: Duration,
    /// For what still runs when the daemon ends.
    pub shutdown_time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            header_bytes: 32 << 10,
            headers: 64,
            header_time: Duration::from_secs(15),
            body_bytes: 2 << 20,
            body_time: Duration::from_secs(15),
            request_time: Duration::from_secs(60),
            write_time: Duration::from_secs(60),
            handshake_time: Duration::from_secs(10),
            connections: 512,
            connections_per_peer: 256,
            sessions: 512,
            sessions_per_client: 128,
            ping_interval: Duration::from_secs(20),
            guest_tasks: 128,
            file_bytes: 16 << 30,
            agent_time: Duration::from_secs(15),
            shutdown_time: Duration::from_secs(5),
        }
    }
}
