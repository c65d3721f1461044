//! Events.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use queztl_api::{Event, Page};
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use crate::EventStream;
use crate::api::answer::{Answer, Json};
use crate::api::app::App;
use crate::api::extract::Query;
use crate::api::gate::Caller;
use crate::api::page::{limit, whole};
use crate::api::socket::{self, Upgrade};

/// Events under way to a client.
const EVENTS_UNDER_WAY: usize = 128;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct PastQuery {
    /// How many at most; 1,000 if it is not given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Lists the last events, oldest first.
#[utoipa::path(get, path = "/v1/events", tag = "events", security(("token" = ["read"])),
    params(PastQuery), responses((status = 200, description = "The events.", body = Page<Event>)))]
pub async fn list_events(State(app): State<App>, Query(query): Query<PastQuery>) -> Answer<Json<Page<Event>>> {
    Ok(Json(whole(app.service().past_events(limit(query.limit)?).await?)))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct StreamQuery {
    /// The number of the last event that is known; events from now on if it is not given.
    after: Option<u64>,
}

/// Events as they happen: a WebSocket with one `Event` in each text frame. A reader that is too slow gets the event `lost`.
#[utoipa::path(get, path = "/v1/events/stream", tag = "events", security(("token" = ["read"])),
    params(StreamQuery), responses((status = 101, description = "A WebSocket.")))]
pub async fn stream_events(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<StreamQuery>,
    upgrade: Upgrade,
) -> Answer<Response> {
    let place = app.session(&caller)?;
    let events = app.service().events(query.after).await?;
    Ok(upgrade.0.on_upgrade(async move |socket| {
        let (send, receive) = mpsc::channel(EVENTS_UNDER_WAY);
        tokio::select! {
            () = socket::run(&app, socket, receive, socket::Nobody) => {}
            () = forward(events, send) => {}
        }
        drop(place);
    }))
}

/// Sends what happens; never ends, since what it sent last must still be written.
async fn forward(mut events: Box<dyn EventStream>, send: mpsc::Sender<axum::extract::ws::Message>) {
    while let Some(event) = events.next().await {
        if send.send(socket::text(&event)).await.is_err() {
            break;
        }
    }
    drop(send);
    std::future::pending().await
}
