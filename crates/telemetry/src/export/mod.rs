//! The daemon's log and audit for OTLP and Elasticsearch.
//!
//! [`Layer`] sits beside the one that writes the log, hears every message from `info` on, and copies it for each target that
//! wants it, and for those who look ([`recent`]). Messages of the libraries that carry the copies away are left out, or each copy would make the next.
//!
//! Sources: OpenTelemetry protocol 1.5 (`ExportLogsServiceRequest` as JSON), Elasticsearch 8 `_bulk`.

mod elasticsearch;
mod layer;
mod otlp;
pub mod recent;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

pub use layer::{Layer, layer};

use crate::config::{ExportConfig, LogTarget};
use crate::delivery::queue::{Bounds, Protocol, Queue};
use crate::delivery::{DeliveryFigures, Endpoint};

/// The target of messages that say who has changed what.
const AUDIT: &str = "queztl::audit";

const BOUNDS: Bounds = Bounds { waiting: 8192, batch: 512, linger: Duration::from_secs(1) };

/// How bad a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Info => "INFO",
            Level::Warn => "WARN",
            Level::Error => "ERROR",
        }
    }
}

/// A message of the log.
#[derive(Debug, Clone, PartialEq)]
struct Record {
    /// Nanoseconds since 1970.
    at_ns: u64,
    level: Level,
    /// Which part of the program says it.
    target: String,
    message: String,
    fields: BTreeMap<&'static str, Value>,
}

impl Record {
    fn is_audit(&self) -> bool {
        self.target == AUDIT
    }
}

/// A target with what it wants.
#[derive(Debug)]
struct Subscriber {
    log: bool,
    audit: bool,
    queue: Queue<Record>,
}

impl Subscriber {
    fn wants(&self, record: &Record) -> bool {
        if record.is_audit() { self.audit } else { self.log }
    }
}

/// Where the log goes; it goes there until this is dropped.
#[derive(Debug, Default)]
pub struct Exporter {
    subscribers: std::sync::Arc<Vec<Subscriber>>,
}

impl Exporter {
    /// Sends from now on what the [`Layer`] hears; another exporter's targets are replaced. To be called in a runtime.
    ///
    /// # Errors
    /// A target cannot be used: a sentence.
    pub fn start(config: &ExportConfig, host: &str) -> Result<Exporter, String> {
        let mut subscribers = Vec::new();
        for target in &config.otlp {
            subscribers.push(subscribe("otlp", target, "/v1/logs", otlp::Otlp::new(host))?);
        }
        for target in &config.elasticsearch {
            let protocol = elasticsearch::Bulk::new(host, &target.index);
            subscribers.push(subscribe("elasticsearch", target, "/_bulk", protocol)?);
        }
        let subscribers = std::sync::Arc::new(subscribers);
        layer::publish_to(&subscribers);
        Ok(Exporter { subscribers })
    }

    pub fn figures(&self) -> Vec<DeliveryFigures> {
        self.subscribers.iter().map(|subscriber| subscriber.queue.figures()).collect()
    }
}

fn subscribe(
    kind: &'static str,
    config: &LogTarget,
    path: &str,
    protocol: impl Protocol<Record>,
) -> Result<Subscriber, String> {
    let endpoint = Endpoint::new(&config.target, path)?;
    let queue = Queue::start(kind, &config.target.url, endpoint, protocol, BOUNDS);
    Ok(Subscriber { log: config.log, audit: config.audit, queue })
}
