//! Sockets to listen on, and the server behind them.

mod activation;
mod connection;
mod timed;
mod tls;
mod unix;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::app::router;
use super::config::{Limits, Listen, ServeConfig};
use super::dashboard::Dashboard;
use crate::{NodePort, Service};

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("cannot listen on {path:?}: {source}")]
    Unix { path: PathBuf, source: io::Error },
    #[error("somebody answers on {0:?} already: is another daemon running? End it, or choose another socket")]
    Taken(PathBuf),
    #[error("there is no group {0:?} in /etc/group: give a group that exists, or its number")]
    NoGroup(String),
    #[error("cannot use the certificate or key {path:?}: {message}")]
    Certificate { path: PathBuf, message: String },
    #[error("the certificate and its key do not go together: {0}")]
    Tls(String),
    #[error("no sockets were passed by systemd: is there a .socket unit, and does it start this service?")]
    NotActivated,
    #[error("the socket number {number} that systemd passed cannot be used: {message}")]
    Activated { number: i32, message: String },
    #[error("there is nowhere to listen: name a socket")]
    Nowhere,
}

/// A listening socket.
enum Bound {
    Unix {
        listener: UnixListener,
        _path: Option<unix::SocketFile>,
    },
    Tls {
        listener: TcpListener,
        acceptor: TlsAcceptor,
    },
    /// For nodes of the cluster.
    Nodes {
        listener: TcpListener,
        acceptor: TlsAcceptor,
    },
    /// For browsers of this host.
    Loopback {
        listener: TcpListener,
    },
}

/// The API, listening but not answering yet: whoever connects now waits.
pub struct Server {
    bound: Vec<Bound>,
    router: Router,
    limits: Limits,
    dashboard: Arc<Dashboard>,
    opened: mpsc::UnboundedReceiver<TcpListener>,
    nodes: Option<watch::Receiver<Option<NodePort>>>,
    stop: watch::Sender<bool>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Server").field("tcp", &self.tcp_addresses()).finish_non_exhaustive()
    }
}

impl Server {
    /// Takes all listeners, or none.
    ///
    /// # Errors
    /// [`ServeError`] for the first that cannot be had.
    pub async fn bind(service: Arc<dyn Service>, config: ServeConfig) -> Result<Server, ServeError> {
        let mut bound = Vec::new();
        for listen in config.listeners {
            match listen {
                Listen::Unix { path, group } => {
                    let (listener, file) = unix::bind(&path, group.as_deref())?;
                    bound.push(Bound::Unix { listener, _path: Some(file) });
                }
                Listen::Tls { address, certificate } => {
                    let acceptor = tls::acceptor(&certificate, &[address.ip()])?;
                    let listener = TcpListener::bind(address).await;
                    let listener = listener.map_err(|source| ServeError::Tcp { address, source })?;
                    bound.push(Bound::Tls { listener, acceptor });
                }
                Listen::Activated { certificate } => bound.extend(activation::take(certificate.as_ref())?),
            }
        }
        if bound.is_empty() {
            return Err(ServeError::Nowhere);
        }
        let (stop, stopping) = watch::channel(false);
        let (dashboard, opened) = Dashboard::new(config.dashboard);
        let dashboard = Arc::new(dashboard);
        let nodes = service.node_port();
        let router = router(service, config.limits.clone(), dashboard.clone(), stopping);
        Ok(Server { bound, router, limits: config.limits, dashboard, opened, nodes, stop })
    }

    /// The TCP addresses it listens on; tells the port where any was asked for.
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.bound.iter().filter_map(|bound| match bound {
            Bound::Tls { listener, .. } => listener.local_addr().ok(),
            Bound::Unix { .. } | Bound::Loopback { .. } | Bound::Nodes { .. } => None,
        });
        addresses.collect()
    }

    /// Answers until `shutdown` is over. Then nobody new is taken, streams are closed, and requests under way get
    /// [`Limits::shutdown_time`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Server { bound, router, limits, dashboard, mut opened, mut nodes, stop } = self;
        dashboard.reopen();
        let limits = Arc::new(limits);
        let mut listeners = JoinSet::new();
        let listen = |bound| connection::accept(bound, router.clone(), limits.clone(), stop.subscribe());
        let mut node_door = NodeDoor::default();
        if let Some(nodes) = &mut nodes {
            nodes.mark_changed();
        }
        for bound in bound {
            listeners.spawn(listen(bound));
        }
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = shutdown.as_mut() => break,
                Some(listener) = opened.recv() => {
                    listeners.spawn(listen(Bound::Loopback { listener }));
                }
                port = changed(&mut nodes) => {
                    if let Some((bound, stopping)) = node_door.change(port) {
                        listeners.spawn(connection::accept(bound, router.clone(), limits.clone(), stopping));
                    }
                }
                // Those that have ended are forgotten.
                Some(_) = listeners.join_next() => {}
            }
        }
        node_door.close();
        stop.send_replace(true);
        let ended = async { while listeners.join_next().await.is_some() {} };
        // What has not ended by then is cut off.
        let _ = tokio::time::timeout(limits.shutdown_time, ended).await;
    }
}

/// The nodes' port, which opens when the daemon joins a cluster and closes when it leaves.
#[derive(Default)]
struct NodeDoor(Option<watch::Sender<bool>>);

impl NodeDoor {
    /// Closes what was open; gives what is open now, and what ends it.
    fn change(&mut self, port: Option<NodePort>) -> Option<(Bound, watch::Receiver<bool>)> {
        self.close();
        let port = port?;
        let listener = port.listener.try_clone().and_then(TcpListener::from_std);
        let listener = listener.inspect_err(|error| tracing::error!(%error, "the nodes' port cannot be served"));
        let (stop, stopping) = watch::channel(false);
        self.0 = Some(stop);
        Some((Bound::Nodes { listener: listener.ok()?, acceptor: TlsAcceptor::from(port.config) }, stopping))
    }

    fn close(&mut self) {
        if let Some(stop) = self.0.take() {
            stop.send_replace(true);
        }
    }
}

/// Where nodes are to be greeted, when that has changed.
async fn changed(nodes: &mut Option<watch::Receiver<Option<NodePort>>>) -> Option<NodePort> {
    if let Some(receiver) = nodes {
        if receiver.changed().await.is_ok() {
            return receiver.borrow_and_update().clone();
        }
        // The service is gone; its port is too.
        *nodes = None;
    }
    std::future::pending().await
}
