//! Machines.

use axum::extract::State;
use queztl_api::{CreateVm, Operation, Page, PageQuery, StopRequest, UpdateVm, Vm};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::answer::{Accepted, Answer, Json};
use crate::api::app::App;
use crate::api::extract::{Key, Nothing, Optional, Query, Segments};
use crate::api::page::{Order, page};

/// Lists the machines, by name.
#[utoipa::path(get, path = "/v1/vms", tag = "machines", security(("token" = ["read"])),
    params(PageQuery), responses((status = 200, description = "A part of the list.", body = Page<Vm>)))]
pub async fn list_vms(State(app): State<App>, Query(query): Query<PageQuery>) -> Answer<Json<Page<Vm>>> {
    let vms = app.service().vms().await?;
    page(vms, &query, Order::Ascending, |vm| format!("{} {}", vm.name, vm.id)).map(Json)
}

/// Makes a machine.
#[utoipa::path(post, path = "/v1/vms", tag = "machines", security(("token" = ["admin"])),
    request_body = CreateVm, responses((status = 202, description = "It is being made.", body = Operation)))]
pub async fn create_vm(State(app): State<App>, Json(request): Json<CreateVm>) -> Answer<Accepted> {
    Ok(Accepted(app.service().create(request).await?))
}

/// Tells of a machine.
#[utoipa::path(get, path = "/v1/vms/{vm}", tag = "machines", security(("token" = ["read"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    responses((status = 200, description = "The machine.", body = Vm)))]
pub async fn get_vm(State(app): State<App>, Segments(vm): Segments<Key>) -> Answer<Json<Vm>> {
    Ok(Json(app.service().vm(&vm).await?))
}

/// Changes a machine. What is left out stays; limits take effect at once.
#[utoipa::path(patch, path = "/v1/vms/{vm}", tag = "machines", security(("token" = ["admin"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    request_body = UpdateVm, responses((status = 200, description = "The machine as it is now.", body = Vm)))]
pub async fn update_vm(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Json(request): Json<UpdateVm>,
) -> Answer<Json<Vm>> {
    Ok(Json(app.service().update(&vm, request).await?))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct DeleteQuery {
    /// Also if it runs: it is killed first.
    #[param(required = false)]
    force: bool,
}

/// Deletes a machine, with its disks and snapshots.
#[utoipa::path(delete, path = "/v1/vms/{vm}", tag = "machines", security(("token" = ["admin"])),
    params(("vm" = String, Path, description = "Its identifier or name."), DeleteQuery),
    responses((status = 202, description = "It is being deleted.", body = Operation)))]
pub async fn delete_vm(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Query(query): Query<DeleteQuery>,
) -> Answer<Accepted> {
    Ok(Accepted(app.service().delete(&vm, query.force).await?))
}

/// Starts a machine.
#[utoipa::path(post, path = "/v1/vms/{vm}/start", tag = "machines", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    responses((status = 202, description = "It is being started.", body = Operation)))]
pub async fn start_vm(State(app): State<App>, Segments(vm): Segments<Key>, _: Nothing) -> Answer<Accepted> {
    Ok(Accepted(app.service().start(&vm).await?))
}

/// Stops a machine: the guest is asked, and after its grace it is switched off.
#[utoipa::path(post, path = "/v1/vms/{vm}/stop", tag = "machines", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    request_body = Option<StopRequest>,
    responses((status = 202, description = "It is being stopped.", body = Operation)))]
pub async fn stop_vm(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Optional(request): Optional<StopRequest>,
) -> Answer<Accepted> {
    Ok(Accepted(app.service().stop(&vm, request).await?))
}

/// Ends a machine at once.
#[utoipa::path(post, path = "/v1/vms/{vm}/kill", tag = "machines", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    responses((status = 202, description = "It is being ended.", body = Operation)))]
pub async fn kill_vm(State(app): State<App>, Segments(vm): Segments<Key>, _: Nothing) -> Answer<Accepted> {
    Ok(Accepted(app.service().kill(&vm).await?))
}

/// Makes a machine stand still.
#[utoipa::path(post, path = "/v1/vms/{vm}/pause", tag = "machines", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    responses((status = 202, description = "It is being paused.", body = Operation)))]
pub async fn pause_vm(State(app): State<App>, Segments(vm): Segments<Key>, _: Nothing) -> Answer<Accepted> {
    Ok(Accepted(app.service().pause(&vm).await?))
}

/// Lets a paused machine go on.
#[utoipa::path(post, path = "/v1/vms/{vm}/resume", tag = "machines", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    responses((status = 202, description = "It goes on.", body = Operation)))]
pub async fn resume_vm(State(app): State<App>, Segments(vm): Segments<Key>, _: Nothing) -> Answer<Accepted> {
    Ok(Accepted(app.service().resume(&vm).await?))
}

/// Stops a machine as `stop` does, and starts it again.
#[utoipa::path(post, path = "/v1/vms/{vm}/reboot", tag = "machines", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    request_body = Option<StopRequest>,
    responses((status = 202, description = "It is being restarted.", body = Operation)))]
pub async fn reboot_vm(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Optional(request): Optional<StopRequest>,
) -> Answer<Accepted> {
    Ok(Accepted(app.service().reboot(&vm, request).await?))
}
