//! The way into the dashboard.

use axum::Extension;
use axum::extract::State;
use queztl_api::{DashboardLogin, DashboardRequest};

use crate::api::answer::{Answer, Created};
use crate::api::app::App;
use crate::api::extract::Optional;
use crate::api::gate::Caller;

/// Opens the dashboard on the host's loopback interface and makes a login for one browser.
#[utoipa::path(post, path = "/v1/dashboard", tag = "daemon", security(("token" = ["admin"])),
    request_body = Option<DashboardRequest>,
    responses((status = 201, description = "The address to open.", body = DashboardLogin)))]
pub async fn open_dashboard(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Optional(request): Optional<DashboardRequest>,
) -> Answer<Created<DashboardLogin>> {
    let scope = request.scope.unwrap_or(caller.scope).min(caller.scope);
    Ok(Created(app.dashboard().invite(scope)?))
}
