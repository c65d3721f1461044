//! Connections: how many, whose, and how long they may take.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::Bound;
use super::timed::Timed;
use crate::api::config::Limits;
use crate::api::gate::Peer;
use crate::api::sessions::Counts;

/// When the process has no file descriptors left, connecting again at once would only burn time.
const BREATH: Duration = Duration::from_millis(50);

/// Who a connection counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Origin {
    User(u32),
    Address(IpAddr),
}

impl From<Peer> for Origin {
    fn from(peer: Peer) -> Origin {
        match peer {
            Peer::Local { uid, .. } => Origin::User(uid),
            Peer::Remote { address }
            | Peer::Loopback { address }
            | Peer::Node { address, .. }
            | Peer::Stranger { address } => Origin::Address(address),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Takes connections until `stopping`; then waits for those there are.
pub async fn accept(bound: Bound, router: Router, limits: Arc<Limits>, mut stopping: watch::Receiver<bool>) {
    let counts = Counts::new(limits.connections, limits.connections_per_peer);
    let each = stopping.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = bound.accept() => match accepted {
                // Whoever has too many is hung up on: a queue would only hide it.
                Ok((stream, peer)) => if let Some(place) = counts.enter(Origin::from(peer)) {
                    let (router, limits, acceptor) = (router.clone(), limits.clone(), bound.acceptor());
                    let stopping = each.clone();
                    connections.spawn(async move {
                        let stream = Timed::new(stream, limits.write_time);
                        match acceptor {
                            None => serve(stream, peer, router, &limits, stopping).await,
                            Some(acceptor) => {
                                let greeted = tokio::time::timeout(limits.handshake_time, acceptor.accept(stream)).await;
                                if let Ok(Ok(stream)) = greeted {
                                    let peer = with_certificate(peer, stream.get_ref().1.peer_certificates());
                                    serve(stream, peer, router, &limits, stopping).await;
                                }
                            }
                        }
                        drop(place);
                    });
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(BREATH).await;
                }
            },
            // Those that have ended are forgotten.
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stopping) => break,
        }
    }
    drop(bound);
    while connections.join_next().await.is_some() {}
}

impl Bound {
    async fn accept(&self) -> std::io::Result<(Box<dyn Stream>, Peer)> {
        match self {
            Bound::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                let credentials = stream.peer_cred()?;
                let pid = credentials.pid().unwrap_or(0);
                let peer = Peer::Local { uid: credentials.uid(), gid: credentials.gid(), pid };
                Ok((Box::new(stream), peer))
            }
            Bound::Tls { listener, .. } => {
                let (stream, address) = listener.accept().await?;
                // Small answers must not wait for each other; where it fails they only do.
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), Peer::Remote { address: address.ip().to_canonical() }))
            }
            Bound::Nodes { listener, .. } => {
                let (stream, address) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), Peer::Stranger { address: address.ip().to_canonical() }))
            }
            Bound::Loopback { listener } => {
                let (stream, address) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), Peer::Loopback { address: address.ip() }))
            }
        }
    }

    fn acceptor(&self) -> Option<tokio_rustls::TlsAcceptor> {
        match self {
            Bound::Unix { .. } | Bound::Loopback { .. } => None,
            Bound::Tls { acceptor, .. } | Bound::Nodes { acceptor, .. } => Some(acceptor.clone()),
        }
    }
}

/// Somebody on the nodes' port who has shown a certificate; TLS has seen that the authority has signed it.
fn with_certificate(peer: Peer, certificates: Option<&[CertificateDer<'_>]>) -> Peer {
    match (peer, certificates.and_then(<[_]>::first)) {
        (Peer::Stranger { address }, Some(certificate)) => {
            Peer::Node { address, certificate: *blake3::hash(certificate).as_bytes() }
        }
        _ => peer,
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Peer,
    router: Router,
    limits: &Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        router.clone().oneshot(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_headers(limits.headers)
        .max_header_size(limits.header_bytes)
        .max_buf_size(limits.header_bytes.max(64 << 10));
    let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // How a connection ends is its client's business.
        _ = connection.as_mut() => return,
        () = stopped(&mut stopping) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // A sender that is gone has stopped too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
