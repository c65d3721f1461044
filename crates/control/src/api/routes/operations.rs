//! Operations.

use std::time::Duration;

use axum::extract::State;
use queztl_api::{Operation, Page, PageQuery, Problem};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::answer::{Answer, Json};
use crate::api::app::App;
use crate::api::extract::{Key, Query, Segments};
use crate::api::page::{Order, by_time, page};

/// How long somebody waits who does not say.
const USUAL_WAIT_SECONDS: u32 = 30;
/// How long anybody may wait with one request.
const MAX_WAIT_SECONDS: u32 = 600;

/// Lists the operations that run and those of the last day, newest first.
#[utoipa::path(get, path = "/v1/operations", tag = "operations", security(("token" = ["read"])),
    params(PageQuery), responses((status = 200, description = "A part of the list.", body = Page<Operation>)))]
pub async fn list_operations(State(app): State<App>, Query(query): Query<PageQuery>) -> Answer<Json<Page<Operation>>> {
    let operations = app.service().operations().await?;
    page(operations, &query, Order::Descending, |one| by_time(one.created_at, &one.id)).map(Json)
}

/// Tells of an operation.
#[utoipa::path(get, path = "/v1/operations/{operation}", tag = "operations", security(("token" = ["read"])),
    params(("operation" = String, Path, description = "Its identifier.")),
    responses((status = 200, description = "The operation.", body = Operation)))]
pub async fn get_operation(State(app): State<App>, Segments(id): Segments<Key>) -> Answer<Json<Operation>> {
    Ok(Json(app.service().operation(&id).await?))
}

/// Cancels an operation.
#[utoipa::path(delete, path = "/v1/operations/{operation}", tag = "operations", security(("token" = ["operate"])),
    params(("operation" = String, Path, description = "Its identifier.")),
    responses((status = 200, description = "The operation as it is now.", body = Operation)))]
pub async fn cancel_operation(State(app): State<App>, Segments(id): Segments<Key>) -> Answer<Json<Operation>> {
    Ok(Json(app.service().cancel_operation(&id).await?))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct WaitQuery {
    /// How long to wait at most; 30 if it is not given.
    #[param(minimum = 0, maximum = 600)]
    timeout_seconds: Option<u32>,
}

/// Waits until an operation is over, or the time is.
#[utoipa::path(get, path = "/v1/operations/{operation}/wait", tag = "operations", security(("token" = ["read"])),
    params(("operation" = String, Path, description = "Its identifier."), WaitQuery),
    responses((status = 200, description = "The operation, over or as it is.", body = Operation)))]
pub async fn wait_operation(
    State(app): State<App>,
    Segments(id): Segments<Key>,
    Query(query): Query<WaitQuery>,
) -> Answer<Json<Operation>> {
    let seconds = query.timeout_seconds.unwrap_or(USUAL_WAIT_SECONDS);
    if seconds > MAX_WAIT_SECONDS {
        let message = format!("{seconds} is more than {MAX_WAIT_SECONDS}: wait several times");
        return Err(Problem::invalid("timeout_seconds", message).into());
    }
    let limit = Duration::from_secs(seconds.into());
    tokio::select! {
        operation = app.service().wait_operation(&id, limit) => Ok(Json(operation?)),
        // Whoever waits is told how far it is before the daemon ends.
        () = app.stopping() => Ok(Json(app.service().operation(&id).await?)),
    }
}
