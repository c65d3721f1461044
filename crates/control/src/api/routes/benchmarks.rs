//! Measurements that the daemon makes of itself.

use axum::extract::State;
use http::StatusCode;
use queztl_api::{BenchmarkRequest, BenchmarkRun, Operation, Page, PageQuery};

use crate::api::answer::{Accepted, Answer, Json};
use crate::api::app::App;
use crate::api::extract::{Key, Optional, Query, Segments};
use crate::api::page::{Order, by_time, page};

/// Lists the last 200 runs of benchmarks, newest first.
#[utoipa::path(get, path = "/v1/benchmarks", tag = "benchmarks", security(("token" = ["read"])),
    params(PageQuery), responses((status = 200, description = "A part of the list.", body = Page<BenchmarkRun>)))]
pub async fn list_benchmarks(
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Answer<Json<Page<BenchmarkRun>>> {
    let runs = app.service().benchmarks().await?;
    page(runs, &query, Order::Descending, |run| by_time(run.started_at, &run.id)).map(Json)
}

/// Runs benchmarks; the operation's target is the run.
#[utoipa::path(post, path = "/v1/benchmarks", tag = "benchmarks", security(("token" = ["admin"])),
    request_body = Option<BenchmarkRequest>,
    responses((status = 202, description = "They run.", body = Operation)))]
pub async fn run_benchmarks(State(app): State<App>, Optional(request): Optional<BenchmarkRequest>) -> Answer<Accepted> {
    Ok(Accepted(app.service().run_benchmarks(request).await?))
}

/// Tells of a run of benchmarks.
#[utoipa::path(get, path = "/v1/benchmarks/{run}", tag = "benchmarks", security(("token" = ["read"])),
    params(("run" = String, Path, description = "Its identifier.")),
    responses((status = 200, description = "The run.", body = BenchmarkRun)))]
pub async fn get_benchmark(State(app): State<App>, Segments(run): Segments<Key>) -> Answer<Json<BenchmarkRun>> {
    Ok(Json(app.service().benchmark(&run).await?))
}

/// Forgets a run of benchmarks that is over.
#[utoipa::path(delete, path = "/v1/benchmarks/{run}", tag = "benchmarks", security(("token" = ["admin"])),
    params(("run" = String, Path, description = "Its identifier.")),
    responses((status = 204, description = "It is gone.")))]
pub async fn delete_benchmark(State(app): State<App>, Segments(run): Segments<Key>) -> Answer<StatusCode> {
    app.service().delete_benchmark(&run).await?;
    Ok(StatusCode::NO_CONTENT)
}
