//! Every request passes here first: who is it, may it, and what is to be kept of it.

use std::fmt;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use queztl_api::{Code, Name, PREFIX, Scope, Token};

use super::answer::{Failure, shown};
use super::app::App;
use super::dashboard;

/// The longest secret that is looked at.
const MAX_SECRET_BYTES: usize = 512;

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A process of this host, as the kernel says (`SO_PEERCRED`).
    Local { uid: u32, gid: u32, pid: i32 },
    /// Somebody over TLS.
    Remote { address: IpAddr },
    /// A browser of this host, without TLS.
    Loopback { address: IpAddr },
    /// Who has a certificate of the cluster's authority, of which this is the blake3, on the nodes' port.
    Node { address: IpAddr, certificate: [u8; 32] },
    /// Who has none there.
    Stranger { address: IpAddr },
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub peer: Peer,
    /// Its token, over TCP.
    pub token: Option<Token>,
    pub scope: Scope,
    /// Its name, if it is a node.
    pub node: Option<Name>,
}

impl Caller {
    /// What tells this client from others: its user or its token.
    pub fn client(&self) -> String {
        match (&self.peer, &self.token, &self.node) {
            (_, Some(token), _) => format!("token {}", token.name),
            (_, None, Some(node)) => format!("node {node}"),
            (Peer::Local { uid, .. }, None, None) => format!("uid {uid}"),
            (
                Peer::Remote { address }
                | Peer::Loopback { address }
                | Peer::Node { address, .. }
                | Peer::Stranger { address },
                None,
                None,
            ) => format!("address {address}"),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Peer::Local { uid, gid, pid } => write!(formatter, "uid {uid} gid {gid} pid {pid}"),
            Peer::Remote { address }
            | Peer::Loopback { address }
            | Peer::Node { address, .. }
            | Peer::Stranger { address } => {
                write!(formatter, "{} from {address}", self.client())
            }
        }
    }
}

/// The outermost layer.
pub async fn enter(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let needed = needed(&app, &request);
    // Without a peer, the request came from nowhere that was checked.
    let peer = request.extensions().get::<Peer>().copied();
    let (method, target) = (request.method().clone(), request.uri().to_string());
    let audited = needed > Scope::Read || (request.uri().path() == dashboard::SESSION && method != Method::GET);
    let asks_for_session = request.uri().path() == dashboard::SESSION && method == Method::GET;
    let shown_by = peer.map(|peer| credentials(peer, &request).map(|shown| (peer, shown)));
    let entered = match shown_by {
        Some(Ok((peer, shown))) => identify(&app, peer, shown).await,
        Some(Err(failure)) => Err(failure),
        None => Err(Failure::new(Code::Internal, "the connection has no peer")),
    };
    let (mut response, who) = match entered {
        Ok(Entered::Anybody) => (run(next, request).await, format!("{peer:?}")),
        Ok(Entered::As(caller)) if caller.scope >= needed => {
            let who = caller.to_string();
            request.extensions_mut().insert(caller);
            (run(next, request).await, who)
        }
        Ok(Entered::As(caller)) => {
            let (has, needs) = (word(caller.scope), word(needed));
            let detail = format!("the token has scope {has:?} and this needs {needs:?}: use another token");
            (Failure::new(Code::Forbidden, detail).into_response(), caller.to_string())
        }
        Err(failure) => (failure.into_response(), format!("{peer:?}")),
    };
    // Logins of browsers are anybody's to try, and are refused by their handler. A page that asks whether it still is logged
    // in has shown nothing wrong.
    if response.status() == StatusCode::UNAUTHORIZED && !asks_for_session {
        app.service().refused();
    }
    if audited {
        let (status, took_us) = (response.status().as_u16(), started.elapsed().as_micros());
        tracing::info!(target: "queztl::audit", caller = who, %method, target = %shown(&target), status, took_us);
    }
    secure(response.headers_mut(), peer);
    response
}

/// The scope that the route's description asks for. What has no route needs to be nobody's business either.
fn needed(app: &App, request: &Request) -> Scope {
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    path.and_then(|path| app.scopes().get(method, path)).unwrap_or(Scope::Read)
}

/// Lets a request through; a handler that panics has failed and nothing else.
async fn run(next: Next, request: Request) -> Response {
    let run = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    run.unwrap_or_else(|_| Failure::new(Code::Internal, "the daemon met a fault: its log says more").into_response())
}

/// How a request is let in.
enum Entered {
    As(Caller),
    /// The page's files and the login are for whoever asks.
    Anybody,
}

/// What a request shows of who made it.
enum Shown {
    /// The kernel's word suffices.
    User,
    Secret(String),
    /// The certificate of a node.
    Certificate,
    /// What it asks for is anybody's.
    Nothing,
}

async fn identify(app: &App, peer: Peer, shown: Shown) -> Result<Entered, Failure> {
    let secret = match shown {
        Shown::Nothing => return Ok(Entered::Anybody),
        Shown::User => return Ok(Entered::As(Caller { peer, token: None, scope: Scope::Admin, node: None })),
        Shown::Certificate => return identify_node(app, peer).await,
        Shown::Secret(secret) if secret.len() > MAX_SECRET_BYTES => return Err(missing_token()),
        Shown::Secret(secret) => secret,
    };
    let token = app.service().authenticate(&secret).await?;
    let scope = token.scope;
    Ok(Entered::As(Caller { peer, token: Some(token), scope, node: None }))
}

/// A node is what the members say that its certificate is. What it may ask for has been looked at.
async fn identify_node(app: &App, peer: Peer) -> Result<Entered, Failure> {
    let Peer::Node { certificate, .. } = peer else { return Err(no_member()) };
    let node = app.service().node_with(certificate).await.ok_or_else(no_member)?;
    Ok(Entered::As(Caller { peer, token: None, scope: Scope::Admin, node: Some(node) }))
}

fn no_member() -> Failure {
    let detail = "the certificate is of no member of this cluster: the node has left it, or was removed";
    Failure::new(Code::Unauthenticated, detail)
}

/// What a node may ask another one for: machines on their way, copies, and how it is. Nothing that a person asks for.
const FOR_NODES: [(Method, &str); 11] = [
    (Method::POST, "/v1/incoming"),
    (Method::DELETE, "/v1/incoming/{vm}"),
    (Method::GET, "/v1/incoming/{vm}/stream"),
    (Method::POST, "/v1/incoming/{vm}/promise"),
    (Method::GET, "/v1/vms/{vm}"),
    (Method::GET, "/v1/node"),
    (Method::POST, "/v1/cluster/agreed"),
    (Method::POST, "/v1/cluster/agree"),
    (Method::POST, "/v1/nodes/{node}/drain"),
    (Method::GET, "/v1/operations/{operation}"),
    (Method::DELETE, "/v1/operations/{operation}"),
];

/// What somebody may ask for on the nodes' port.
fn credentials_of_node(peer: Peer, request: &Request) -> Result<Shown, Failure> {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str).unwrap_or_default();
    let is_node = matches!(peer, Peer::Node { .. });
    match (path, is_node) {
        // The token's secret, and the certificate that was given for it, are looked at by who has given them out.
        ("/v1/cluster/admission", _) | ("/v1/cluster/hello", true) if request.method() == Method::POST => {
            Ok(Shown::Nothing)
        }
        (_, false) => {
            Err(Failure::new(Code::Unauthenticated, "this port is for nodes of the cluster: use another one"))
        }
        (path, true) if FOR_NODES.iter().any(|(method, known)| method == request.method() && *known == path) => {
            Ok(Shown::Certificate)
        }
        (_, true) => Err(Failure::new(Code::Forbidden, "a node may not ask another one for this")),
    }
}

fn credentials(peer: Peer, request: &Request) -> Result<Shown, Failure> {
    match peer {
        Peer::Local { .. } => return Ok(Shown::User),
        Peer::Node { .. } | Peer::Stranger { .. } => return credentials_of_node(peer, request),
        Peer::Remote { .. } | Peer::Loopback { .. } => {}
    }
    if let Peer::Loopback { .. } = peer {
        dashboard::check_host(request.headers())?;
    }
    let is_login = request.uri().path() == dashboard::SESSION && request.method() == Method::POST;
    if is_login || is_page(request) {
        return Ok(Shown::Nothing);
    }
    match dashboard::cookie_token(peer, request.headers()) {
        // A token that was given on purpose counts before the one that a browser sends by itself.
        Some(session) if !request.headers().contains_key(AUTHORIZATION) => {
            dashboard::check_same_origin(request, peer)?;
            Ok(Shown::Secret(session.to_owned()))
        }
        _ => bearer(request.headers()).map(|secret| Shown::Secret(secret.to_owned())),
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Failure> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or_else(missing_token)?;
    let (scheme, secret) = value.split_once(' ').ok_or_else(missing_token)?;
    let secret = secret.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || secret.is_empty() {
        return Err(missing_token());
    }
    Ok(secret)
}

fn missing_token() -> Failure {
    Failure::new(Code::Unauthenticated, "give a token as `Authorization: Bearer …`")
}

/// Whether a path belongs to the API.
fn is_api(request: &Request) -> bool {
    let path = request.uri().path();
    path == PREFIX || path.starts_with("/v1/") || path == "/metrics"
}

/// Whether a request may be for the dashboard, which is there for browsers: over TCP.
pub fn is_page(request: &Request) -> bool {
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    let browsers = matches!(request.extensions().get::<Peer>(), Some(Peer::Remote { .. } | Peer::Loopback { .. }));
    looks && browsers && !is_api(request) && request.uri().path() != dashboard::SESSION
}

fn word(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Operate => "operate",
        Scope::Admin => "admin",
    }
}

/// Answers are for programs: no page may frame, cache, sniff or run them. The dashboard's files say otherwise themselves.
fn secure(headers: &mut HeaderMap, peer: Option<Peer>) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers
        .entry(CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Some(Peer::Remote { .. }) = peer {
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
}
