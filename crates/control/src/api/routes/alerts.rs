//! Alerts.

use axum::extract::State;
use queztl_api::{Alert, Page, PageQuery};

use crate::api::answer::{Answer, Json};
use crate::api::app::App;
use crate::api::extract::Query;
use crate::api::page::{Order, by_time, page};

/// Lists the alerts that fire and the last 1,000 that were resolved, newest first.
#[utoipa::path(get, path = "/v1/alerts", tag = "alerts", security(("token" = ["read"])),
    params(PageQuery), responses((status = 200, description = "A part of the list.", body = Page<Alert>)))]
pub async fn list_alerts(State(app): State<App>, Query(query): Query<PageQuery>) -> Answer<Json<Page<Alert>>> {
    let alerts = app.service().alerts().await?;
    page(alerts, &query, Order::Descending, |alert| by_time(alert.started_at, &alert.id)).map(Json)
}
