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
use http::{HeaderMap, HeaderValue, Method};
use queztl_api::{Code, Scope};

use super::answer::{Failure, shown};
use super::app::App;

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A process of this host, as the kernel says (`SO_PEERCRED`).
    Local { uid: u32, gid: u32, pid: i32 },
    /// Somebody over TLS.
    Remote { address: IpAddr },
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub peer: Peer,
    /// The beginning of the hash of its token, over TCP.
    token: Option<String>,
    pub scope: Scope,
}

impl Caller {
    /// What tells this client from others: its user or its token.
    pub fn client(&self) -> String {
        match (&self.peer, &self.token) {
            (_, Some(token)) => format!("token {token}"),
            (Peer::Local { uid, .. }, None) => format!("uid {uid}"),
            (Peer::Remote { address }, None) => format!("address {address}"),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Peer::Local { uid, gid, pid } => write!(formatter, "uid {uid} gid {gid} pid {pid}"),
            Peer::Remote { address } => write!(formatter, "{} from {address}", self.client()),
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
    let caller = match peer {
        Some(peer) => identify(&app, peer, request.headers()).await,
        None => Err(Failure::new(Code::Internal, "the connection has no peer")),
    };
    let (mut response, who) = match caller {
        Ok(caller) if caller.scope >= needed => {
            let who = caller.to_string();
            request.extensions_mut().insert(caller);
            let run = AssertUnwindSafe(next.run(request)).catch_unwind().await;
            let panicked =
                |_| Failure::new(Code::Internal, "the daemon met a fault: its log says more").into_response();
            (run.unwrap_or_else(panicked), who)
        }
        Ok(caller) => {
            let (has, needs) = (word(caller.scope), word(needed));
            let detail = format!("the token has scope {has:?} and this needs {needs:?}: use another token");
            (Failure::new(Code::Forbidden, detail).into_response(), caller.to_string())
        }
        Err(failure) => (failure.into_response(), format!("{peer:?}")),
    };
    if needed > Scope::Read {
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

async fn identify(app: &App, peer: Peer, headers: &HeaderMap) -> Result<Caller, Failure> {
    if let Peer::Local { .. } = peer {
        return Ok(Caller { peer, token: None, scope: Scope::Admin });
    }
    let missing = || Failure::new(Code::Unauthenticated, "give a token as `Authorization: Bearer …`");
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or_else(missing)?;
    let (scheme, secret) = value.split_once(' ').ok_or_else(missing)?;
    let secret = secret.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || secret.is_empty() || secret.len() > 512 {
        return Err(missing());
    }
    let scope = app.service().authenticate(secret).await?;
    let hash = blake3::hash(secret.as_bytes()).to_hex();
    Ok(Caller { peer, token: hash.get(..16).map(str::to_owned), scope })
}

fn word(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Operate => "operate",
        Scope::Admin => "admin",
    }
}

/// Answers are for programs: no page may frame, cache, sniff or run them.
fn secure(headers: &mut HeaderMap, peer: Option<Peer>) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox"),
    );
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Some(Peer::Remote { .. }) = peer {
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
}
