//! What the daemon has to say, and who has changed what.

use axum::extract::State;
use queztl_api::{LogRecord, Page, PageQuery};

use crate::api::answer::{Answer, Json};
use crate::api::app::App;
use crate::api::extract::Query;
use crate::api::page::{Order, page};

/// Lists the last 2,000 messages of the daemon's log, newest first.
#[utoipa::path(get, path = "/v1/log", tag = "daemon", security(("token" = ["read"])),
    params(PageQuery), responses((status = 200, description = "A part of the list.", body = Page<LogRecord>)))]
pub async fn list_log(State(app): State<App>, Query(query): Query<PageQuery>) -> Answer<Json<Page<LogRecord>>> {
    page(app.service().log().await?, &query, Order::Descending, key).map(Json)
}

/// Lists the last 2,000 lines of the audit, newest first: who has changed what, or has reached into a guest.
#[utoipa::path(get, path = "/v1/audit", tag = "daemon", security(("token" = ["admin"])),
    params(PageQuery), responses((status = 200, description = "A part of the list.", body = Page<LogRecord>)))]
pub async fn list_audit(State(app): State<App>, Query(query): Query<PageQuery>) -> Answer<Json<Page<LogRecord>>> {
    page(app.service().audit().await?, &query, Order::Descending, key).map(Json)
}

fn key(record: &LogRecord) -> String {
    format!("{:020}", record.number)
}
