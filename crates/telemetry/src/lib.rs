//! Alerts, and the way of alerts and logs to those who collect them.
//!
//! Promises:
//! - [`alerts`] is arithmetic: times and measures in, alerts out; whoever feeds it has the clock;
//! - nothing here makes the daemon wait: what cannot be delivered waits in a queue with a bound, and what does not fit is
//!   counted, not kept;
//! - a collector that is away for a while gets what the queue holds once it is back.
//!
//! ```text
//! measures ─> alerts::Engine ─> changes ──> delivery: Alertmanager, webhooks ─┐
//!                                                                             ├─ queue ─ batch ─ HTTP, again if need be
//! tracing ──> export::Layer ──> records ──> export: OTLP, Elasticsearch ──────┘
//! ```

pub mod alerts;
mod config;
mod delivery;
pub mod export;

pub use config::{AlertsConfig, Config, ConfigError, ExportConfig, LogTarget, RuleChange, TargetConfig};
pub use delivery::{DeliveryFigures, Notifier};
