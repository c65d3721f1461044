//! OTLP and Elasticsearch.

use queztl_telemetry::export::{self, Exporter};
use queztl_telemetry::{ExportConfig, LogTarget, TargetConfig};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tracing_subscriber::layer::SubscriberExt;

use crate::server::{Server, Taken, eventually};

/// The exporter is one for the process.
static ONE: Mutex<()> = Mutex::const_new(());

fn target(server: &Server, log: bool) -> LogTarget {
    let target = TargetConfig { url: server.url(), headers: Default::default(), ca: None };
    LogTarget { target, log, audit: true, index: "queztl-audit".into() }
}

/// Says two things, one of them for the audit.
fn speak() {
    tracing::subscriber::with_default(tracing_subscriber::registry().with(export::layer()), || {
        tracing::warn!(target: "queztl_control::store", vm = "v1", count = 3, ratio = 0.5, ok = true, "the disk is full");
        tracing::info!(target: "queztl::audit", caller = %"token t", status = 202, took_us = u64::MAX, "asked");
        tracing::debug!("nobody asked");
        tracing::info!(target: "hyper::proto", "what would make more of itself");
    });
}

fn attributes(record: &Value) -> Value {
    let all = record["attributes"].as_array().unwrap().iter();
    all.map(|one| (one["key"].as_str().unwrap().to_owned(), one["value"].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[tokio::test]
async fn an_otlp_collector_gets_the_log_and_the_audit() {
    let _one = ONE.lock().await;
    let mut server = Server::start(&[]).await;
    let exporter =
        Exporter::start(&ExportConfig { otlp: vec![target(&server, true)], ..Default::default() }, "host-1").unwrap();

    speak();
    let taken = server.next().await;

    assert_eq!(
        (taken.path.as_str(), taken.headers["content-type"].to_str().unwrap()),
        ("/v1/logs", "application/json")
    );
    let logs = &taken.json()["resourceLogs"][0];
    let resource = attributes(&logs["resource"]);
    assert_eq!(resource["service.name"], json!({"stringValue": "queztl"}));
    assert_eq!(resource["host.name"], json!({"stringValue": "host-1"}));
    let records = logs["scopeLogs"][0]["logRecords"].as_array().unwrap();
    assert_eq!(records.len(), 2);
    assert_eq!(records[0]["body"], json!({"stringValue": "the disk is full"}));
    assert_eq!((&records[0]["severityNumber"], &records[0]["severityText"]), (&json!(13), &json!("WARN")));
    assert!(records[0]["timeUnixNano"].as_str().unwrap().parse::<u64>().unwrap() > 1_500_000_000_000_000_000);
    let fields = attributes(&records[0]);
    assert_eq!(fields["log.kind"], json!({"stringValue": "log"}));
    assert_eq!(fields["vm"], json!({"stringValue": "v1"}));
    assert_eq!(fields["count"], json!({"intValue": "3"}));
    assert_eq!((&fields["ratio"], &fields["ok"]), (&json!({"doubleValue": 0.5}), &json!({"boolValue": true})));
    let audit = attributes(&records[1]);
    assert_eq!(audit["log.kind"], json!({"stringValue": "audit"}));
    assert_eq!(audit["caller"], json!({"stringValue": "token t"}));
    assert_eq!(audit["took_us"], json!({"stringValue": u64::MAX.to_string()}));
    eventually("both are counted", || exporter.figures()[0].sent == 2).await;
}

/// The lines of a `_bulk` request: actions and documents.
fn bulk(taken: &Taken) -> Vec<(Value, Value)> {
    assert_eq!(taken.path, "/_bulk");
    assert_eq!(taken.headers["content-type"], "application/x-ndjson");
    let text = std::str::from_utf8(&taken.body).unwrap();
    assert!(text.ends_with('\n'));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

#[tokio::test]
async fn elasticsearch_gets_what_it_is_to_have_in_its_bulk_form() {
    let _one = ONE.lock().await;
    let mut server = Server::start(&[]).await;
    let config = ExportConfig { elasticsearch: vec![target(&server, false)], ..Default::default() };
    let _exporter = Exporter::start(&config, "host-1").unwrap();

    speak();
    let records = bulk(&server.next().await);

    assert_eq!(records.len(), 1, "the audit alone is wanted: {records:?}");
    let (action, document) = &records[0];
    assert_eq!(action, &json!({"create": {"_index": "queztl-audit"}}));
    assert!(document["@timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!((&document["message"], &document["log"]["level"]), (&json!("asked"), &json!("info")));
    assert_eq!(document["event"]["dataset"], "queztl.audit");
    assert_eq!(document["queztl"], json!({"caller": "token t", "status": 202, "took_us": u64::MAX}));
}

#[tokio::test]
async fn of_a_bulk_request_only_what_may_be_taken_later_is_sent_again() {
    let _one = ONE.lock().await;
    let partly =
        json!({"errors": true, "items": [{"create": {"status": 429}}, {"create": {"status": 400}}]}).to_string();
    let mut server = Server::start(&[(200, &partly)]).await;
    let config = ExportConfig { elasticsearch: vec![target(&server, true)], ..Default::default() };
    let exporter = Exporter::start(&config, "host-1").unwrap();

    speak();
    let first = bulk(&server.next().await);
    let second = bulk(&server.next().await);

    assert_eq!((first.len(), second.len()), (2, 1));
    assert_eq!(second[0], first[0]);
    eventually("the rest is sent", || exporter.figures()[0].sent == 1).await;
    assert_eq!((exporter.figures()[0].dropped, exporter.figures()[0].retries), (1, 1));
}

#[tokio::test]
async fn nothing_is_sent_once_the_exporter_is_gone() {
    let _one = ONE.lock().await;
    let mut server = Server::start(&[]).await;
    drop(Exporter::start(&ExportConfig { otlp: vec![target(&server, true)], ..Default::default() }, "host").unwrap());
    let kept =
        Exporter::start(&ExportConfig { otlp: vec![target(&server, false)], ..Default::default() }, "kept").unwrap();

    speak();
    let taken = server.next().await.json();

    let records = taken["resourceLogs"][0]["scopeLogs"][0]["logRecords"].as_array().unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(attributes(&taken["resourceLogs"][0]["resource"])["host.name"], json!({"stringValue": "kept"}));
    eventually("it is counted", || kept.figures()[0].sent == 1).await;
}
