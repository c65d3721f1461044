//! The API over a service in memory: most tests ask the router itself, some a server behind its sockets.

mod agents;
mod alerts;
mod bounds;
mod dashboard;
mod document;
mod generated;
mod guests;
mod requests;
mod rights;
mod shipped;
mod streams;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use queztl_api::Problem;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};
use tower::ServiceExt;

use super::answer::PROBLEM;
use super::app::router;
use super::dashboard::Dashboard;
use super::gate::Peer;
use super::{Limits, Listen, ServeConfig, Server};
use crate::memory::MemoryService;

const LOCAL: Peer = Peer::Local { uid: 1000, gid: 1000, pid: 1 };

/// The routes without a server.
struct Api {
    service: Arc<MemoryService>,
    router: Router,
    _stop: watch::Sender<bool>,
    _opened: mpsc::UnboundedReceiver<tokio::net::TcpListener>,
}

/// What came back.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The problem, which must be a whole one.
    fn problem(&self) -> Problem {
        assert_eq!(self.headers["content-type"], PROBLEM, "{self:?}");
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status.as_u16());
        assert!(!problem.detail.is_empty() && !problem.detail.contains('\n'), "{problem:?}");
        problem
    }
}

impl Api {
    fn new() -> Api {
        Api::with(MemoryService::default(), Limits::default())
    }

    /// With a door for browsers.
    fn opened_at(file: &Path) -> Api {
        Api::over(MemoryService::default(), Limits::default(), Some(file.to_owned()))
    }

    fn with(service: MemoryService, limits: Limits) -> Api {
        Api::over(service, limits, None)
    }

    fn over(service: MemoryService, limits: Limits, door: Option<PathBuf>) -> Api {
        let service = Arc::new(service);
        let (stop, stopping) = watch::channel(false);
        let (dashboard, opened) = Dashboard::new(door);
        let router = router(service.clone(), limits, Arc::new(dashboard), stopping);
        Api { service, router, _stop: stop, _opened: opened }
    }

    async fn send(&self, peer: Peer, mut request: Request) -> Reply {
        request.extensions_mut().insert(peer);
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Reply {
        self.send(LOCAL, request(method, path, body)).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.call(Method::GET, path, None).await
    }

    async fn post(&self, path: &str, body: Value) -> Reply {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Makes a machine that runs.
    async fn running(&self, name: &str) {
        let reply = self.post("/v1/vms", json!({"name": name, "start": true})).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
    }
}

fn request(method: Method, path: &str, body: Option<Value>) -> Request {
    let mut request = Request::builder().method(method).uri(path);
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    request.body(body.map_or_else(Body::empty, |body| Body::from(body.to_string()))).unwrap()
}

/// A server on sockets in a directory of its own.
struct Daemon {
    directory: tempfile::TempDir,
    service: Arc<MemoryService>,
    tcp: Vec<std::net::SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<()>>,
}

impl Daemon {
    /// On a Unix socket.
    async fn start(limits: Limits) -> Daemon {
        Daemon::on(limits, |directory| vec![Listen::Unix { path: directory.join("daemon.sock"), group: None }]).await
    }

    async fn on(limits: Limits, listeners: impl FnOnce(&Path) -> Vec<Listen>) -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        let service = Arc::new(MemoryService::new(directory.path().to_owned()));
        let config = ServeConfig {
            listeners: listeners(directory.path()),
            limits,
            dashboard: Some(directory.path().join("dashboard.json")),
        };
        let server = Server::bind(service.clone(), config).await.unwrap();
        let tcp = server.tcp_addresses();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Daemon { directory, service, tcp, stop: Some(stop), running: Some(running) }
    }

    async fn connect(&self) -> tokio::net::UnixStream {
        tokio::net::UnixStream::connect(self.directory.path().join("daemon.sock")).await.unwrap()
    }

    /// A WebSocket.
    async fn socket(&self, path: &str) -> Result<WebSocketStream<tokio::net::UnixStream>, tungstenite::Error> {
        let handshake = client_async(format!("ws://localhost{path}"), self.connect().await);
        soon(handshake).await.map(|(socket, _)| socket)
    }

    /// Makes a machine that runs.
    async fn running(&self, name: &str) {
        let request = serde_json::from_value(json!({"name": name, "start": true})).unwrap();
        crate::Service::create(self.service.as_ref(), request).await.unwrap();
    }

    async fn stop(&mut self) {
        drop(self.stop.take());
        self.running.take().unwrap().await.unwrap();
    }
}

/// What must come, and does not within a time in which anything would: a test that hangs says less than one that fails.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it did not come")
}

/// The status with which a WebSocket was refused.
fn refused(error: tungstenite::Error) -> StatusCode {
    match error {
        tungstenite::Error::Http(response) => response.status(),
        other => panic!("{other}"),
    }
}
