//! The way out: alerts to Alertmanager and webhooks, and whatever else is sent in batches over HTTP.
//!
//! Promises:
//! - handing something over never waits: it is taken, or counted as dropped;
//! - a batch is tried again, with growing pauses, while the other side does not answer, answers with 408, 429 or 5xx; any
//!   other refusal is final and counted;
//! - a target is tried for at most [`queue::GIVE_UP`] for one batch.

mod alerts;
mod http;
pub(crate) mod queue;

pub use alerts::Notifier;
pub(crate) use http::{Endpoint, Reply, check};
pub use queue::DeliveryFigures;
