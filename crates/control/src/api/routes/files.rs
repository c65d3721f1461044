//! Files of guests.

use std::ffi::OsString;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{HeaderValue, StatusCode};
use queztl_api::{Code, Problem};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::answer::{Answer, Failure};
use crate::api::app::App;
use crate::api::extract::{Key, Query, Segments};
use crate::api::guest;

/// Permissions of a file that nothing else is said of.
const USUAL_MODE: u16 = 0o644;
/// The permissions of a file that is read, in octal.
const MODE: HeaderName = HeaderName::from_static("queztl-file-mode");

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ReadQuery {
    /// The file's path in the guest; a relative one begins at root's home.
    #[param(min_length = 1, max_length = 4096)]
    path: String,
}

/// Reads a file of a guest, through its agent.
#[utoipa::path(get, path = "/v1/vms/{vm}/files", tag = "guests", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name."), ReadQuery),
    responses((status = 200, description = "Its bytes. `Queztl-File-Mode` has its permissions in octal.", body = String,
        content_type = "application/octet-stream")))]
pub async fn read_file(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Query(query): Query<ReadQuery>,
) -> Answer<Response> {
    let path = guest_path(query.path)?;
    let endpoints = app.service().endpoints(&vm).await?;
    let (info, body) = guest::read(&app, endpoints.vsock, path).await?;
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, info.size_bytes.into());
    if let Ok(mode) = HeaderValue::from_str(&format!("{:o}", info.mode)) {
        headers.insert(MODE, mode);
    }
    Ok(response)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct WriteQuery {
    /// The file's path in the guest; a relative one begins at root's home.
    #[param(min_length = 1, max_length = 4096)]
    path: String,
    /// Its permissions in octal; 644 if they are not given.
    #[serde(default)]
    #[param(pattern = "^[0-7]{1,4}$")]
    mode: Option<String>,
}

/// Writes a file of a guest, through its agent. It appears complete or not at all.
#[utoipa::path(put, path = "/v1/vms/{vm}/files", tag = "guests", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name."), WriteQuery),
    request_body(content = String, content_type = "application/octet-stream", description = "Its bytes."),
    responses((status = 204, description = "It is there.")))]
pub async fn write_file(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Query(query): Query<WriteQuery>,
    request: Request,
) -> Answer<StatusCode> {
    let path = guest_path(query.path)?;
    let mode = query.mode.as_deref().map_or(Some(USUAL_MODE), octal);
    let mode = mode.ok_or_else(|| Problem::invalid("mode", "it is no permissions in octal, such as 644"))?;
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let endpoints = app.service().endpoints(&vm).await?;
    let body: Body = request.into_body();
    guest::write(&app, endpoints.vsock, path, mode, length, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn guest_path(path: String) -> Answer<OsString> {
    if path.is_empty() || path.len() > 4096 || path.contains('\0') {
        return Err(Failure(Problem::invalid("path", "it must be 1 to 4096 bytes, without a zero byte")));
    }
    if path.ends_with('/') {
        return Err(Failure::new(Code::Invalid, "path: it names a directory: name a file"));
    }
    Ok(path.into())
}

fn octal(text: &str) -> Option<u16> {
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    digits.then(|| u16::from_str_radix(text, 8).ok()).flatten()
}
