//! The daemon itself.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use queztl_api::{Code, Info};

use crate::api::answer::{Answer, Failure, Json};
use crate::api::app::App;
use crate::api::host;

/// Tells of the daemon and its host.
#[utoipa::path(get, path = "/v1/info", tag = "daemon", security(("token" = ["read"])),
    responses((status = 200, description = "The daemon and its host.", body = Info)))]
pub async fn info() -> Answer<Json<Info>> {
    // The first call measures what the host's KVM is worth.
    let info = tokio::task::spawn_blocking(host::info).await;
    info.map(Json).map_err(|_| Failure::new(Code::Internal, "the host could not be looked at"))
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "daemon", security(("token" = ["read"])),
    responses((status = 200, description = "OpenAPI 3.1.", body = Object, content_type = "application/json")))]
pub async fn openapi(State(app): State<App>) -> Response {
    let mut response = Response::new(Body::from(app.description()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
