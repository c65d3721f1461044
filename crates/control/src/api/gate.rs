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
use queztl_api::{Code, PREFIX, Scope, Token};

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
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub peer: Peer,
    /// Its token, over TCP.
    pub token: Option<Token>,
    pub scope: Scope,
}

impl Caller {
    /// What tells this client from others: its user or its token.
    pub fn client(&self) -> String {
        match (&self.peer, &self.token) {
            (_, Some(token)) => format!("token {}", token.name),
            (Peer::Local { uid, .. }, None) => format!("uid {uid}"),
            (Peer::Remote { address } | Peer::Loopback { address }, None) => format!("address {address}"),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Peer::Local { uid, gid, pid } => write!(formatter, "uid {uid} gid {gid} pid {pid}"),
            Peer::Remote { address } | Peer::Loopback { address } => {
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
    /// What it asks for is anybody's.
    Nothing,
}

async fn identify(app: &App, peer: Peer, shown: Shown) -> Result<Entered, Failure> {
    let secret = match shown {
        Shown::Nothing => return Ok(Entered::Anybody),
        Shown::User => return Ok(Entered::As(Caller { peer, token: None, scope: Scope::Admin })),
        Shown::Secret(secret) if secret.len() > MAX_SECRET_BYTES => return Err(missing_token()),
        Shown::Secret(secret) => secret,
    };
    let token = app.service().authenticate(&secret).await?;
    let scope = token.scope;
    Ok(Entered::As(Caller { peer, token: Some(token), scope }))
}

fn credentials(peer: Peer, request: &Request) -> Result<Shown, Failure> {
    if let Peer::Local { .. } = peer {
        return Ok(Shown::User);
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
    let local = matches!(request.extensions().get::<Peer>(), None | Some(Peer::Local { .. }));
    looks && !local && !is_api(request) && request.uri().path() != dashboard::SESSION
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
