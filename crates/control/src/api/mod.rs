//! The daemon's API: HTTP/1.1 and WebSockets over a Unix socket, or TCP with TLS.
//!
//! Promises:
//! - whoever may open the Unix socket may do everything; over TCP every request needs a token whose scope covers the route,
//!   as the route's description says ([`openapi`]);
//! - everything that goes wrong is a [`queztl_api::Problem`], also what never reaches a handler;
//! - a request with an `Idempotency-Key` is done once;
//! - no client can hold what others need: sizes, times, connections and sessions are bounded ([`Limits`]), and a client that
//!   does not read is let go;
//! - every request that changes something, or that reaches into a guest, leaves a line in the audit log.
//!
//! ```text
//!  listen/   sockets ──> connections ──> HTTP, each with its peer
//!  dashboard/                    the page for browsers, and their sessions
//!  gate      who is it, may it?  security headers, audit line, panics
//!  idempotency                   seen this key?
//!  routes/   one file for each kind of thing: extract, ask the Service, answer
//!  guest/    commands and files through the guest's agent; threads, since the agent's client waits
//! ```

mod answer;
mod app;
mod config;
mod dashboard;
mod extract;
mod gate;
mod guest;
mod host;
mod idempotency;
mod listen;
mod openapi;
mod openmetrics;
mod page;
mod routes;
mod sessions;
mod socket;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;

pub use config::{Certificate, Limits, Listen, ServeConfig};
pub use listen::{ServeError, Server};
pub use openapi::description;

use crate::Service;

/// Serves the API until `shutdown` is over; then ends what runs within a few seconds.
///
/// # Errors
/// [`ServeError`] when a listener cannot be had.
pub async fn serve(
    service: Arc<dyn Service>,
    config: ServeConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    Server::bind(service, config).await?.run(shutdown).await;
    Ok(())
}
