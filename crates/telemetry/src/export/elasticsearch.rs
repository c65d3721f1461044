//! Elasticsearch's `_bulk`: two lines for each record, in the names of the Elastic Common Schema where it has one.

use serde_json::{Map, Value, json};

use super::Record;
use crate::delivery::Reply;
use crate::delivery::queue::Protocol;

pub(super) struct Bulk {
    host: String,
    index: String,
}

impl Bulk {
    pub(super) fn new(host: &str, index: &str) -> Bulk {
        Bulk { host: host.to_owned(), index: index.to_owned() }
    }

    fn document(&self, record: &Record) -> Value {
        let at = jiff::Timestamp::from_nanosecond(record.at_ns.into()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        // Fields of messages are kept apart: their names must not meet those of the schema.
        let fields: Map<String, Value> =
            record.fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        json!({
            "@timestamp": at.to_string(),
            "message": record.message,
            "log": { "level": record.level.name().to_ascii_lowercase(), "logger": record.target },
            "event": { "kind": "event", "dataset": if record.is_audit() { "queztl.audit" } else { "queztl.log" } },
            "service": { "name": "queztl", "version": env!("CARGO_PKG_VERSION") },
            "host": { "name": self.host },
            "queztl": fields,
        })
    }
}

impl Protocol<Record> for Bulk {
    const CONTENT_TYPE: &'static str = "application/x-ndjson";

    fn body(&self, batch: &[Record]) -> Vec<u8> {
        // `create` is what data streams take, and indices too.
        let action = json!({ "create": { "_index": self.index } }).to_string();
        let mut body = String::new();
        for record in batch {
            for line in [&action, &self.document(record).to_string()] {
                body.push_str(line);
                body.push('\n');
            }
        }
        body.into_bytes()
    }

    /// The answer is good as a whole; each record has a status of its own, in their order.
    fn left(&self, batch: Vec<Record>, reply: &Reply) -> (Vec<Record>, usize) {
        let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let items = match answer["items"].as_array() {
            Some(items) if answer["errors"] == true => items.as_slice(),
            _ => return (Vec::new(), 0),
        };
        let (mut again, mut refused) = (Vec::new(), 0);
        for (record, item) in batch.into_iter().zip(items) {
            match item["create"]["status"].as_u64() {
                Some(429 | 500..) => again.push(record),
                Some(300..) => refused += 1,
                _ => {}
            }
        }
        (again, refused)
    }
}
