//! The ear of the log.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata};
use tracing_subscriber::layer::Context;

use super::{Level, Record, Subscriber, recent};

/// The longest text of a message or field that is kept, bytes.
const MAX_TEXT: usize = 8 << 10;
/// Most fields of a message.
const MAX_FIELDS: usize = 64;
/// What carries the copies away does not speak in them.
const SILENT: [&str; 6] = ["hyper", "rustls", "tokio_rustls", "queztl_telemetry", "h2", "mio"];

/// The targets of now. The layer is made before anybody knows them, since it is part of the log itself.
static SUBSCRIBERS: RwLock<Weak<Vec<Subscriber>>> = RwLock::new(Weak::new());

pub(super) fn publish_to(subscribers: &Arc<Vec<Subscriber>>) {
    *SUBSCRIBERS.write().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(subscribers);
}

/// Hears the log for the [`super::Exporter`].
#[derive(Debug, Clone, Copy)]
pub struct Layer;

/// The layer, to be put beside the one that writes the log, with a filter that lets `info` pass.
pub fn layer() -> Layer {
    Layer
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Layer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(record) = record(event) else { return };
        recent::keep(&record);
        let subscribers = SUBSCRIBERS.read().unwrap_or_else(PoisonError::into_inner).upgrade();
        let Some(subscribers) = subscribers else { return };
        for subscriber in subscribers.iter().filter(|subscriber| subscriber.wants(&record)) {
            subscriber.queue.push(record.clone());
        }
    }
}

/// Whether messages of this kind are copied, and how bad they are.
fn level(metadata: &Metadata<'_>) -> Option<Level> {
    let first = metadata.target().split("::").next().unwrap_or_default();
    if SILENT.contains(&first) {
        return None;
    }
    match *metadata.level() {
        tracing::Level::ERROR => Some(Level::Error),
        tracing::Level::WARN => Some(Level::Warn),
        tracing::Level::INFO => Some(Level::Info),
        _ => None,
    }
}

fn record(event: &Event<'_>) -> Option<Record> {
    let level = level(event.metadata())?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut fields = Fields::default();
    event.record(&mut fields);
    Some(Record {
        at_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        level,
        target: event.metadata().target().to_owned(),
        message: fields.message,
        fields: fields.others,
    })
}

#[derive(Default)]
struct Fields {
    message: String,
    others: BTreeMap<&'static str, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        if self.others.len() < MAX_FIELDS {
            self.others.insert(field.name(), value);
        }
    }

    fn text(&mut self, field: &Field, mut text: String) {
        let end = (0..=MAX_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, text.into());
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}
