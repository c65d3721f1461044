//! OTLP over HTTP, as JSON: 64-bit numbers are strings there, names are in camel case.

use serde_json::{Value, json};

use super::{Level, Record};
use crate::delivery::queue::Protocol;

pub(super) struct Otlp {
    resource: Value,
}

impl Otlp {
    pub(super) fn new(host: &str) -> Otlp {
        let attributes =
            [("service.name", "queztl"), ("service.version", env!("CARGO_PKG_VERSION")), ("host.name", host)];
        let attributes = attributes.map(|(key, value)| attribute(key, &value.into()));
        Otlp { resource: json!({ "attributes": attributes }) }
    }
}

impl Protocol<Record> for Otlp {
    const CONTENT_TYPE: &'static str = "application/json";

    fn body(&self, batch: &[Record]) -> Vec<u8> {
        let records: Vec<Value> = batch.iter().map(log_record).collect();
        let scope = json!({ "name": "queztl", "version": env!("CARGO_PKG_VERSION") });
        let logs = json!([{ "resource": self.resource, "scopeLogs": [{ "scope": scope, "logRecords": records }] }]);
        json!({ "resourceLogs": logs }).to_string().into_bytes()
    }

    fn left(&self, _: Vec<Record>, reply: &crate::delivery::Reply) -> (Vec<Record>, usize) {
        // A good answer may tell of records that were refused, which are not to be sent again.
        let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let refused = &answer["partialSuccess"]["rejectedLogRecords"];
        let refused = refused.as_u64().or_else(|| refused.as_str()?.parse().ok()).unwrap_or(0);
        (Vec::new(), usize::try_from(refused).unwrap_or(usize::MAX))
    }
}

fn log_record(record: &Record) -> Value {
    // Data model of logs, "Field: SeverityNumber".
    let severity = match record.level {
        Level::Info => 9,
        Level::Warn => 13,
        Level::Error => 17,
    };
    let kind = if record.is_audit() { "audit" } else { "log" };
    let own = [("log.kind", kind.into()), ("code.namespace", Value::from(record.target.as_str()))];
    let own = own.iter().map(|(key, value)| attribute(key, value));
    let fields = record.fields.iter().map(|(key, value)| attribute(key, value));
    json!({
        "timeUnixNano": record.at_ns.to_string(),
        "observedTimeUnixNano": record.at_ns.to_string(),
        "severityNumber": severity,
        "severityText": record.level.name(),
        "body": { "stringValue": record.message },
        "attributes": own.chain(fields).collect::<Vec<_>>(),
    })
}

fn attribute(key: &str, value: &Value) -> Value {
    let value = match value {
        Value::Bool(value) => json!({ "boolValue": value }),
        Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
        // A number beyond 63 bits does not fit into `intValue`.
        Value::Number(number) if number.as_i64().is_some() => json!({ "intValue": number.to_string() }),
        Value::String(text) => json!({ "stringValue": text }),
        other => json!({ "stringValue": other.to_string() }),
    };
    json!({ "key": key, "value": value })
}
