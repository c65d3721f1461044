//! Alerts over the API, and what the daemon's own figures say.

use queztl_api::{Alert, AlertRule, AlertState, Severity, Timestamp};

use super::*;

fn alert(id: &str, second: i64, state: AlertState) -> Alert {
    let started_at = Timestamp::from_second(second).unwrap();
    Alert {
        id: id.into(),
        rule: AlertRule::HostDisk,
        severity: Severity::Critical,
        state,
        vm: None,
        name: None,
        subject: String::new(),
        message: "4 % of the space are left".into(),
        value: 4.0,
        threshold: 5.0,
        started_at,
        resolved_at: (state == AlertState::Resolved).then_some(started_at),
    }
}

#[tokio::test]
async fn alerts_are_listed_newest_first() {
    let api = Api::new();
    api.service.add_alert(alert("old", 100, AlertState::Resolved));
    api.service.add_alert(alert("new", 200, AlertState::Firing));

    let listed = api.get("/v1/alerts").await.json();

    let ids: Vec<&str> = listed["items"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["new", "old"]);
    assert_eq!(listed["items"][0]["rule"], "host-disk");
}

#[tokio::test]
async fn the_metrics_tell_of_alerts_and_refusals() {
    let api = Api::new();
    api.service.add_alert(alert("new", 200, AlertState::Firing));
    let stranger = Peer::Remote { address: [127, 0, 0, 1].into() };
    api.send(stranger, request(Method::GET, "/v1/vms", None)).await;
    let mut login = request(Method::POST, "/session", Some(json!({"token": "wrong"})));
    login.headers_mut().insert("host", "localhost".parse().unwrap());
    login.headers_mut().insert("origin", "https://localhost".parse().unwrap());
    let login = api.send(stranger, login).await;
    api.send(stranger, request(Method::GET, "/session", None)).await;
    assert_eq!(login.status, StatusCode::UNAUTHORIZED, "{login:?}");

    let text = String::from_utf8(api.get("/metrics").await.body).unwrap();

    assert!(text.contains("queztl_alerts{rule=\"host-disk\"} 1\n"), "{text}");
    assert!(text.contains("queztl_alerts{rule=\"vm-crash\"} 0\n"), "{text}");
    assert!(text.contains("queztl_refused_requests_total 2\n"), "{text}");
}
