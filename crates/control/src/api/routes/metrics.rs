//! Figures.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use queztl_api::{Code, Page, Problem, Sample, Timestamp, VmMetrics};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::answer::{Answer, Failure, Json};
use crate::api::app::App;
use crate::api::extract::{Key, Query, Segments};
use crate::api::openmetrics;
use crate::api::page::whole;

/// The figures of all machines that run.
#[utoipa::path(get, path = "/v1/metrics", tag = "metrics", security(("token" = ["read"])),
    responses((status = 200, description = "All of them.", body = Page<VmMetrics>)))]
pub async fn list_metrics(State(app): State<App>) -> Answer<Json<Page<VmMetrics>>> {
    Ok(Json(whole(app.service().metrics().await?)))
}

/// The figures of a machine.
#[utoipa::path(get, path = "/v1/vms/{vm}/metrics", tag = "metrics", security(("token" = ["read"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    responses((status = 200, description = "Its figures now.", body = VmMetrics)))]
pub async fn vm_metrics(State(app): State<App>, Segments(vm): Segments<Key>) -> Answer<Json<VmMetrics>> {
    Ok(Json(app.service().vm_metrics(&vm).await?))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryQuery {
    /// The beginning; an hour before the end if it is not given.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// The end; now if it is not given.
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<Timestamp>,
}

/// A machine's figures over time, at most 2,000 points.
#[utoipa::path(get, path = "/v1/vms/{vm}/history", tag = "metrics", security(("token" = ["read"])),
    params(("vm" = String, Path, description = "Its identifier or name."), HistoryQuery),
    responses((status = 200, description = "The points, oldest first.", body = Page<Sample>)))]
pub async fn vm_history(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Query(query): Query<HistoryQuery>,
) -> Answer<Json<Page<Sample>>> {
    let to = query.to.unwrap_or_else(Timestamp::now);
    let hour = std::time::Duration::from_secs(3600);
    let from = query.from.unwrap_or_else(|| to.checked_sub(hour).unwrap_or(Timestamp::MIN));
    if from > to {
        return Err(Problem::invalid("from", "it is after `to`").into());
    }
    Ok(Json(whole(app.service().history(&vm, from, to).await?)))
}

/// The figures of all machines as OpenMetrics text, for Prometheus and its like.
#[utoipa::path(get, path = "/metrics", tag = "metrics", security(("token" = ["read"])),
    responses((status = 200, description = "The figures.", body = String,
        content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8")))]
pub async fn open_metrics(State(app): State<App>) -> Answer<Response> {
    let metrics = app.service().metrics().await?;
    let vms = app.service().vms().await?;
    let daemon = app.service().daemon_figures().await?;
    let text = openmetrics::text(metrics, &vms, daemon);
    let text = text.map_err(|_| Failure::new(Code::Internal, "the figures cannot be written"))?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(openmetrics::MEDIA_TYPE));
    Ok(response)
}
