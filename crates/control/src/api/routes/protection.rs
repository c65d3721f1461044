//! Machines that survive their host.

use axum::extract::State;
use http::StatusCode;
use queztl_api::{ProtectRequest, Protection};

use crate::api::answer::{Answer, Json};
use crate::api::app::App;
use crate::api::extract::{Key, Segments};

/// How a machine is protected.
#[utoipa::path(get, path = "/v1/vms/{vm}/protection", tag = "machines", security(("token" = ["read"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    responses((status = 200, description = "Its protection.", body = Protection)))]
pub async fn get_protection(State(app): State<App>, Segments(vm): Segments<Key>) -> Answer<Json<Protection>> {
    Ok(Json(app.service().protection(&vm).await?))
}

/// Begins to copy a running machine to other daemons, so that one of them goes on when this one is gone.
#[utoipa::path(post, path = "/v1/vms/{vm}/protection", tag = "machines", security(("token" = ["admin"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    request_body = ProtectRequest,
    responses((status = 200, description = "Copies are being made.", body = Protection)))]
pub async fn protect_vm(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Json(request): Json<ProtectRequest>,
) -> Answer<Json<Protection>> {
    Ok(Json(app.service().protect(&vm, request).await?))
}

/// Ends a machine's protection. It goes on.
#[utoipa::path(delete, path = "/v1/vms/{vm}/protection", tag = "machines", security(("token" = ["admin"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    responses((status = 204, description = "It is on its own.")))]
pub async fn unprotect_vm(State(app): State<App>, Segments(vm): Segments<Key>) -> Answer<StatusCode> {
    app.service().unprotect(&vm).await?;
    Ok(StatusCode::NO_CONTENT)
}
