//! The page's files.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName,
    IF_NONE_MATCH, VARY,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use queztl_dashboard::{File, INDEX};

/// What is told where the page should be.
pub const MISSING: &str = "this program was built without the dashboard, which needs Node.js 20 and npm: install them, run \
     `make build` and restart the daemon. The API and all commands work without it";

/// Scripts, fonts, pictures and connections of this daemon alone. Styles may be inline: components and the terminal set
/// colours and sizes so, and styles run nothing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// The file that a browser asks for; every address of the page itself is its first file. Nothing for what is no page's.
pub fn page(request: &Request) -> Option<Response> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return None;
    }
    let name = request.uri().path().trim_start_matches('/');
    let is_file = name.rsplit('/').next().is_some_and(|last| last.contains('.')) || name.starts_with("assets/");
    let accepted = request.headers().get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let found = if is_file { queztl_dashboard::find(name, accepted) } else { queztl_dashboard::find(INDEX, accepted) };
    match found {
        Some(file) => Some(answer(file, request.headers())),
        None if is_file => None,
        None => Some(missing()),
    }
}

fn answer(file: File, asked: &HeaderMap) -> Response {
    let tag = format!("\"{}\"", hex::encode(file.hash.get(..16).unwrap_or_default()));
    let known = asked.get(IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == tag.as_bytes());
    let mut response = Response::new(if known { Body::empty() } else { Body::from(file.bytes.into_owned()) });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.media_type));
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if let Some(coding) = file.coding.name() {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
    }
    if let Ok(tag) = HeaderValue::try_from(tag) {
        headers.insert(ETAG, tag);
    }
    let keep = if file.immutable { "public, max-age=31536000, immutable" } else { "no-cache" };
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(keep));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    response
}

fn missing() -> Response {
    let mut response = Response::new(Body::from(format!("{MISSING}\n")));
    *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
