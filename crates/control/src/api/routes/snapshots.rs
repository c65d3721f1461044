//! Snapshots and clones.

use axum::extract::State;
use queztl_api::{CloneRequest, Name, Operation, Page, PageQuery, Problem, Snapshot, SnapshotRequest};

use crate::api::answer::{Accepted, Answer, Json};
use crate::api::app::App;
use crate::api::extract::{Key, Nothing, Optional, Query, Segments};
use crate::api::page::{Order, by_time, page};

/// Lists a machine's snapshots, oldest first.
#[utoipa::path(get, path = "/v1/vms/{vm}/snapshots", tag = "snapshots", security(("token" = ["read"])),
    params(("vm" = String, Path, description = "Its identifier or name."), PageQuery),
    responses((status = 200, description = "A part of the list.", body = Page<Snapshot>)))]
pub async fn list_snapshots(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<Snapshot>>> {
    let snapshots = app.service().snapshots(&vm).await?;
    let key = |snapshot: &Snapshot| by_time(snapshot.created_at, snapshot.name.as_str());
    page(snapshots, &query, Order::Ascending, key).map(Json)
}

/// Takes a snapshot: memory, devices and disks at one point in time.
#[utoipa::path(post, path = "/v1/vms/{vm}/snapshots", tag = "snapshots", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    request_body = Option<SnapshotRequest>,
    responses((status = 202, description = "It is being taken.", body = Operation)))]
pub async fn take_snapshot(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Optional(request): Optional<SnapshotRequest>,
) -> Answer<Accepted> {
    Ok(Accepted(app.service().snapshot(&vm, request).await?))
}

/// Tells of a snapshot.
#[utoipa::path(get, path = "/v1/vms/{vm}/snapshots/{snapshot}", tag = "snapshots", security(("token" = ["read"])),
    params(("vm" = String, Path, description = "Its identifier or name."),
        ("snapshot" = Name, Path, description = "The snapshot's name.")),
    responses((status = 200, description = "The snapshot.", body = Snapshot)))]
pub async fn get_snapshot(
    State(app): State<App>,
    Segments((vm, name)): Segments<(Key, Name)>,
) -> Answer<Json<Snapshot>> {
    let snapshots = app.service().snapshots(&vm).await?;
    let snapshot = snapshots.into_iter().find(|snapshot| snapshot.name == name);
    Ok(Json(snapshot.ok_or_else(|| Problem::not_found("snapshot", name.as_str()))?))
}

/// Deletes a snapshot.
#[utoipa::path(delete, path = "/v1/vms/{vm}/snapshots/{snapshot}", tag = "snapshots",
    security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name."),
        ("snapshot" = Name, Path, description = "The snapshot's name.")),
    responses((status = 202, description = "It is being deleted.", body = Operation)))]
pub async fn delete_snapshot(State(app): State<App>, Segments((vm, name)): Segments<(Key, Name)>) -> Answer<Accepted> {
    Ok(Accepted(app.service().delete_snapshot(&vm, &name).await?))
}

/// Puts a machine back to where it was; it runs afterwards.
#[utoipa::path(post, path = "/v1/vms/{vm}/snapshots/{snapshot}/restore", tag = "snapshots",
    security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name."),
        ("snapshot" = Name, Path, description = "The snapshot's name.")),
    responses((status = 202, description = "It is being put back.", body = Operation)))]
pub async fn restore_snapshot(
    State(app): State<App>,
    Segments((vm, name)): Segments<(Key, Name)>,
    _: Nothing,
) -> Answer<Accepted> {
    Ok(Accepted(app.service().restore(&vm, &name).await?))
}

/// Makes clones of a machine, from a snapshot or as it runs now.
#[utoipa::path(post, path = "/v1/vms/{vm}/clones", tag = "snapshots", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    request_body = Option<CloneRequest>,
    responses((status = 202, description = "They are being made.", body = Operation)))]
pub async fn clone_vm(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Optional(request): Optional<CloneRequest>,
) -> Answer<Accepted> {
    if !(1..=1000).contains(&request.count) {
        return Err(Problem::invalid("count", format!("{} is not from 1 to 1000", request.count)).into());
    }
    Ok(Accepted(app.service().clone_vm(&vm, request).await?))
}
