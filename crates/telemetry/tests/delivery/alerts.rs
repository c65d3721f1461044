//! Alertmanager and webhooks.

use jiff::Timestamp;
use queztl_api::{Alert, AlertRule, AlertState, Severity};
use queztl_telemetry::{AlertsConfig, Notifier, TargetConfig};
use serde_json::json;

use crate::server::{Server, eventually};

fn target(url: &str) -> TargetConfig {
    let headers = [("authorization".to_owned(), "Bearer secret".to_owned())];
    TargetConfig { url: url.to_owned(), headers: headers.into(), ca: None }
}

fn notifier(alertmanager: Option<&str>, webhook: Option<&str>) -> Notifier {
    let config = AlertsConfig {
        alertmanager: alertmanager.map(target).into_iter().collect(),
        webhook: webhook.map(target).into_iter().collect(),
        ..AlertsConfig::default()
    };
    Notifier::start(&config, "host-1").unwrap()
}

fn crash() -> Alert {
    Alert {
        id: "a1".into(),
        rule: AlertRule::VmCrash,
        severity: Severity::Critical,
        state: AlertState::Firing,
        vm: Some("v1".into()),
        name: Some("web".into()),
        subject: String::new(),
        message: "web has crashed".into(),
        value: 1.0,
        threshold: 1.0,
        started_at: Timestamp::from_second(1_000_000).unwrap(),
        resolved_at: None,
    }
}

#[tokio::test]
async fn alertmanager_gets_alerts_in_its_own_form_and_again_while_they_fire() {
    let mut server = Server::start(&[]).await;
    let notifier = notifier(Some(&server.url()), None);

    notifier.changed(&[crash()]);
    let first = server.next().await;
    notifier.repeat(&[crash()]);
    let again = server.next().await;

    assert_eq!(first.path, "/api/v2/alerts");
    assert_eq!(first.headers["content-type"], "application/json");
    assert_eq!(first.headers["authorization"], "Bearer secret");
    let alert = &first.json()[0];
    assert_eq!(
        alert["labels"],
        json!({"alertname": "vm-crash", "severity": "critical", "instance": "host-1", "job": "queztl",
               "vm": "v1", "name": "web"})
    );
    assert_eq!(alert["annotations"]["summary"], "web has crashed");
    assert_eq!(alert["startsAt"], "1970-01-12T13:46:40Z");
    assert!(alert["endsAt"].as_str().unwrap().parse::<Timestamp>().unwrap() > Timestamp::now());
    assert_eq!(again.json()[0]["labels"], alert["labels"]);
}

#[tokio::test]
async fn a_webhook_gets_changes_alone_below_its_own_path() {
    let mut server = Server::start(&[]).await;
    let notifier = notifier(None, Some(&format!("{}/hooks/queztl", server.url())));

    notifier.repeat(&[crash()]);
    let resolved = Alert { state: AlertState::Resolved, resolved_at: Some(Timestamp::now()), ..crash() };
    notifier.changed(&[resolved]);
    let taken = server.next().await;

    assert_eq!(taken.path, "/hooks/queztl");
    let body = taken.json();
    assert_eq!((&body["version"], &body["host"]), (&json!(1), &json!("host-1")));
    assert_eq!(body["alerts"].as_array().unwrap().len(), 1);
    assert_eq!(body["alerts"][0]["state"], "resolved");
    assert_eq!(body["alerts"][0]["rule"], "vm-crash");
}

#[tokio::test]
async fn a_server_that_fails_is_asked_again_until_it_takes_the_alert() {
    let mut server = Server::start(&[(503, ""), (429, "")]).await;
    let notifier = notifier(None, Some(&server.url()));

    notifier.changed(&[crash()]);
    let bodies = [server.next().await.body, server.next().await.body, server.next().await.body];

    assert!(bodies[0] == bodies[1] && bodies[1] == bodies[2]);
    eventually("the alert is sent", || notifier.figures()[0].sent == 1).await;
    let figures = &notifier.figures()[0];
    assert_eq!((figures.kind, figures.dropped, figures.retries), ("webhook", 0, 2));
}

#[tokio::test]
async fn what_a_server_refuses_for_good_is_counted_and_the_next_is_sent() {
    let mut server = Server::start(&[(400, "")]).await;
    let notifier = notifier(None, Some(&server.url()));

    notifier.changed(&[crash()]);
    server.next().await;
    eventually("the alert is dropped", || notifier.figures()[0].dropped == 1).await;
    notifier.changed(&[crash()]);
    server.next().await;

    eventually("the alert is sent", || notifier.figures()[0].sent == 1).await;
}

#[tokio::test]
async fn a_server_that_is_away_costs_a_bounded_queue() {
    // Nobody listens there once the listener is gone.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let notifier = notifier(None, Some(&format!("http://{address}")));

    notifier.changed(&vec![crash(); 10_000]);

    // None of it has waited; what has no place is counted at once.
    let figures = &notifier.figures()[0];
    assert_eq!(figures.sent, 0);
    assert!((10_000 - 4096 - 256..10_000).contains(&figures.dropped), "{figures:?}");
}
