//! Machines that survive their host.

use axum::extract::State;
use queztl_api::{Operation, ProtectRequest, Protection};

use crate::api::answer::{Accepted, Answer, Json};
use crate::api::app::App;
use crate::api::extract::{Key, Segments};

/// How a machine is protected.
#[utoipa::path(get, path = "/v1/vms/{vm}/protection", tag = "machines", security(("token" = ["read"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    responses((status = 200, description = "Its protection.", body = Protection)))]
pub async fn get_protection(State(app): State<App>, Segments(vm): Segments<Key>) -> Answer<Json<Protection>> {
    Ok(Json(app.service().protection(&vm).await?))
}

/// Copies a running machine to other daemons, so that one of them goes on when this one is gone. The operation ends when the first
/// copies are whole; its result is a `Protection`.
#[utoipa::path(post, path = "/v1/vms/{vm}/protection", tag = "machines", security(("token" = ["admin"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    request_body = ProtectRequest,
    responses((status = 202, description = "Copies are being made. Cancelled, it is undone.", body = Operation)))]
pub async fn protect_vm(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Json(request): Json<ProtectRequest>,
) -> Answer<Accepted> {
    Ok(Accepted(app.service().protect(&vm, request).await?))
}

/// Ends a machine's protection. It goes on.
#[utoipa::path(delete, path = "/v1/vms/{vm}/protection", tag = "machines", security(("token" = ["admin"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    responses((status = 202, description = "It is being ended.", body = Operation)))]
pub async fn unprotect_vm(State(app): State<App>, Segments(vm): Segments<Key>) -> Answer<Accepted> {
    Ok(Accepted(app.service().unprotect(&vm).await?))
}
