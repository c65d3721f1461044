//! What all requests share, and the way each of them takes.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use queztl_api::Code;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use utoipa_axum::router::OpenApiRouter;

use super::answer::{Answer, Failure, shown};
use super::config::Limits;
use super::dashboard::{self, Dashboard};
use super::gate::{self, Caller};
use super::guest::kept::Kept;
use super::idempotency::{self, Keys};
use super::openapi::{self, Scopes};
use super::routes;
use super::sessions::{Counted, Counts};
use crate::Service;

/// The state of all handlers.
#[derive(Debug, Clone)]
pub struct App(Arc<Shared>);

struct Shared {
    service: Arc<dyn Service>,
    limits: Limits,
    scopes: Scopes,
    description: Bytes,
    keys: Keys,
    sessions: Arc<Counts<String>>,
    guest_tasks: Arc<Semaphore>,
    kept: Arc<Kept>,
    dashboard: Arc<Dashboard>,
    stopping: watch::Receiver<bool>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl App {
    pub fn service(&self) -> &dyn Service {
        self.0.service.as_ref()
    }

    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub fn scopes(&self) -> &Scopes {
        &self.0.scopes
    }

    /// The OpenAPI document.
    pub fn description(&self) -> Bytes {
        self.0.description.clone()
    }

    pub fn keys(&self) -> &Keys {
        &self.0.keys
    }

    pub fn dashboard(&self) -> &Dashboard {
        &self.0.dashboard
    }

    /// A place for something that lasts.
    ///
    /// # Errors
    /// [`Code::Busy`].
    pub fn session(&self, caller: &Caller) -> Answer<Counted<String>> {
        let place = self.0.sessions.enter(caller.client());
        place.ok_or_else(|| Failure::new(Code::Busy, "too many streams are open: close some of them first"))
    }

    /// A place for work in a guest.
    ///
    /// # Errors
    /// [`Code::Busy`].
    pub fn guest_task(&self) -> Answer<OwnedSemaphorePermit> {
        let place = self.0.guest_tasks.clone().try_acquire_owned();
        place.map_err(|_| Failure::new(Code::Busy, "too many commands and copies run in guests: try again later"))
    }

    /// Commands that outlive their client's connection.
    pub fn kept(&self) -> &Arc<Kept> {
        &self.0.kept
    }

    /// Waits until the daemon ends.
    pub async fn stopping(&self) {
        let mut stopping = self.0.stopping.clone();
        // A sender that is gone has nothing left to serve.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }
}

/// All routes in front of a service; `stopping` ends what lasts.
pub fn router(
    service: Arc<dyn Service>,
    limits: Limits,
    dashboard: Arc<Dashboard>,
    stopping: watch::Receiver<bool>,
) -> Router {
    // Two kinds of routes: those that answer soon, and those whose client says how long it waits.
    let (quick, mut document) = OpenApiRouter::new().merge(routes::quick()).split_for_parts();
    let (patient, more) = OpenApiRouter::new().merge(routes::patient()).split_for_parts();
    document.merge(more);
    let scopes = openapi::complete(&mut document);
    let app = App(Arc::new(Shared {
        service,
        scopes,
        description: openapi::text(&document).into(),
        keys: Keys::default(),
        sessions: Counts::new(limits.sessions, limits.sessions_per_client),
        guest_tasks: Arc::new(Semaphore::new(limits.guest_tasks)),
        kept: Arc::default(),
        dashboard,
        stopping,
        limits,
    }));
    let quick = quick.route_layer(from_fn_with_state(app.clone(), deadline));
    quick
        .merge(patient)
        .route(dashboard::SESSION, post(dashboard::login).get(dashboard::look).delete(dashboard::end))
        .fallback(nowhere)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(app.clone(), idempotency::once))
        .layer(from_fn_with_state(app.clone(), gate::enter))
        .with_state(app)
}

async fn deadline(State(app): State<App>, request: Request, next: Next) -> Response {
    let limit: Duration = app.limits().request_time;
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            Failure::new(Code::Timeout, format!("no answer within {limit:?}: the daemon is overloaded")).into_response()
        }
    }
}

async fn nowhere(request: Request) -> Response {
    if gate::is_page(&request)
        && let Some(page) = dashboard::page(&request)
    {
        return page;
    }
    let path = shown(request.uri().path());
    Failure::new(Code::NotFound, format!("there is no path {path:?}: /v1/openapi.json lists those there are"))
        .into_response()
}

async fn no_method(request: Request) -> Failure {
    let (method, path) = (request.method(), shown(request.uri().path()));
    Failure::new(Code::Method, format!("{path:?} does not know {}", shown(method.as_str())))
}
