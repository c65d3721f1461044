//! A POST with an `Idempotency-Key` is done once, however often it is sent.
//!
//! The first answer that says that something was done (2xx) is kept for a day and given again; the same key with another
//! request is refused. Keys belong to their client. A request that is sent again while the first is still under way waits
//! for it. The work goes on when the client leaves, so that its answer can be kept. Tokens are never kept: their secrets
//! are shown once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, HeaderName, LOCATION};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use queztl_api::{Code, Operation, PREFIX};
use tokio::sync::Mutex as AsyncMutex;

use super::answer::{Answer, Failure};
use super::app::App;
use super::extract::read;
use super::gate::Caller;
use crate::Recorded;

/// The header.
pub const KEY: &str = "idempotency-key";
/// On answers that were given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const MAX_KEY_BYTES: usize = 255;

/// Keys whose first request is under way.
#[derive(Debug, Default)]
pub struct Keys(Mutex<HashMap<String, Weak<AsyncMutex<()>>>>);

impl Keys {
    fn lock(&self, key: &str) -> Arc<AsyncMutex<()>> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = keys.get(key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        keys.insert(key.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// The layer.
pub async fn once(State(app): State<App>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let Some(value) = request.headers().get(KEY) else {
        return next.run(request).await;
    };
    match key(value, &request) {
        // What is begun is finished and recorded also when nobody waits for it any more.
        Ok(key) => match tokio::spawn(keyed(app, key, request, next)).await {
            Ok(answer) => answer.unwrap_or_else(IntoResponse::into_response),
            Err(_) => Failure::new(Code::Internal, "the daemon met a fault: its log says more").into_response(),
        },
        Err(failure) => failure.into_response(),
    }
}

/// The key as it is kept: with its client.
fn key(value: &HeaderValue, request: &Request) -> Answer<String> {
    if ["tokens", "dashboard", "node/token"].iter().any(|last| request.uri().path() == format!("{PREFIX}/{last}")) {
        return Err(Failure::new(Code::Malformed, "this takes no Idempotency-Key: secrets are not kept"));
    }
    let text = value.to_str().ok().filter(|text| !text.is_empty() && text.len() <= MAX_KEY_BYTES);
    let refused = || format!("the Idempotency-Key must be 1 to {MAX_KEY_BYTES} printable ASCII characters");
    let text = text.ok_or_else(|| Failure::new(Code::Malformed, refused()))?;
    let caller = request.extensions().get::<Caller>();
    let caller = caller.ok_or_else(|| Failure::new(Code::Internal, "a request came without its caller"))?;
    Ok(format!("{}/{text}", caller.client()))
}

async fn keyed(app: App, key: String, request: Request, next: Next) -> Answer<Response> {
    let (parts, content) = request.into_parts();
    let content = read(content, &app).await?;
    let mut hash = blake3::Hasher::new();
    for part in [parts.method.as_str(), &parts.uri.to_string()] {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    let hash = *hash.update(&content).finalize().as_bytes();
    let lock = app.keys().lock(&key);
    let _alone = lock.lock().await;
    if let Some(recorded) = app.service().recall(&key).await? {
        if recorded.request != hash {
            let detail = "this Idempotency-Key came with another request before: take a new key for a new request";
            return Err(Failure::new(Code::KeyReused, detail));
        }
        return Ok(again(recorded));
    }
    let response = next.run(Request::from_parts(parts, Body::from(content))).await;
    if !response.status().is_success() {
        return Ok(response);
    }
    let (parts, content) = response.into_parts();
    let content = content.collect().await.map_err(|error| Failure::new(Code::Internal, error.to_string()))?.to_bytes();
    let recorded = Recorded { request: hash, status: parts.status.as_u16(), body: content.to_vec() };
    if let Err(problem) = app.service().record(&key, recorded).await {
        // It is done; that it cannot be told again is no reason to say that it failed.
        tracing::warn!(problem = problem.detail, "an answer could not be kept for its idempotency key");
    }
    Ok(Response::from_parts(parts, Body::from(content)))
}

/// The answer as it was given.
fn again(recorded: Recorded) -> Response {
    let content = Bytes::from(recorded.body);
    let operation = serde_json::from_slice::<Operation>(&content).ok();
    let mut response = Response::new(Body::from(content));
    *response.status_mut() = StatusCode::from_u16(recorded.status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    let location = operation.map(|operation| HeaderValue::from_str(&format!("{PREFIX}/operations/{}", operation.id)));
    if let Some(Ok(location)) = location {
        headers.insert(LOCATION, location);
    }
    response
}
