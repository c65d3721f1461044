//! Alerts for Alertmanager and for webhooks.
//!
//! Alertmanager forgets an alert that nobody repeats: what fires is told again every minute, with an end that is a few
//! minutes ahead. A webhook is told once that an alert fires and once that it is resolved.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use queztl_api::Alert;
use serde_json::{Value, json};

use super::http::Endpoint;
use super::queue::{Bounds, DeliveryFigures, Protocol, Queue};
use crate::config::AlertsConfig;

/// How often Alertmanager is told what fires.
pub const REPEAT: Duration = Duration::from_secs(60);
/// An alert that is not told again has ended then.
const VALID: SignedDuration = SignedDuration::from_secs(240);

const BOUNDS: Bounds = Bounds { waiting: 4096, batch: 256, linger: Duration::from_millis(200) };

/// Tells of alerts.
#[derive(Debug, Default)]
pub struct Notifier {
    alertmanagers: Vec<Queue<Alert>>,
    webhooks: Vec<Queue<Alert>>,
}

impl Notifier {
    /// To be called in a runtime.
    ///
    /// # Errors
    /// A target cannot be used: a sentence.
    pub fn start(config: &AlertsConfig, host: &str) -> Result<Notifier, String> {
        let mut notifier = Notifier::default();
        for target in &config.alertmanager {
            let endpoint = Endpoint::new(target, "/api/v2/alerts")?;
            let protocol = Alertmanager { host: host.to_owned() };
            notifier.alertmanagers.push(Queue::start("alertmanager", &target.url, endpoint, protocol, BOUNDS));
        }
        for target in &config.webhook {
            let endpoint = Endpoint::new(target, "")?;
            let protocol = Webhook { host: host.to_owned() };
            notifier.webhooks.push(Queue::start("webhook", &target.url, endpoint, protocol, BOUNDS));
        }
        Ok(notifier)
    }

    /// Tells of alerts that began to fire or were resolved.
    pub fn changed(&self, alerts: &[Alert]) {
        for queue in self.alertmanagers.iter().chain(&self.webhooks) {
            alerts.iter().for_each(|alert| queue.push(alert.clone()));
        }
    }

    /// Tells again what fires; to be called every [`Notifier::REPEAT`].
    pub fn repeat(&self, firing: &[Alert]) {
        for queue in &self.alertmanagers {
            firing.iter().for_each(|alert| queue.push(alert.clone()));
        }
    }

    /// How often what fires is told again.
    pub const REPEAT: Duration = REPEAT;

    pub fn figures(&self) -> Vec<DeliveryFigures> {
        self.alertmanagers.iter().chain(&self.webhooks).map(Queue::figures).collect()
    }
}

/// Alertmanager's API, version 2.
struct Alertmanager {
    host: String,
}

impl Protocol<Alert> for Alertmanager {
    const CONTENT_TYPE: &'static str = "application/json";

    fn body(&self, batch: &[Alert]) -> Vec<u8> {
        let alerts: Vec<Value> = batch.iter().map(|alert| alertmanager(alert, &self.host, Timestamp::now())).collect();
        Value::from(alerts).to_string().into_bytes()
    }
}

fn alertmanager(alert: &Alert, host: &str, now: Timestamp) -> Value {
    let ends = alert.resolved_at.unwrap_or_else(|| now.saturating_add(VALID).unwrap_or(Timestamp::MAX));
    let mut labels = json!({
        "alertname": alert.rule.name(),
        "severity": alert.severity.name(),
        "instance": host,
        "job": "queztl",
    });
    // What tells one alert from another, and nothing that changes while it fires.
    for (label, value) in [("vm", &alert.vm), ("name", &alert.name)] {
        if let Some(value) = value {
            labels[label] = value.as_str().into();
        }
    }
    if !alert.subject.is_empty() {
        labels["subject"] = alert.subject.as_str().into();
    }
    json!({
        "labels": labels,
        "annotations": { "summary": alert.message, "value": alert.value.to_string() },
        "startsAt": alert.started_at.to_string(),
        "endsAt": ends.to_string(),
    })
}

/// Our own form: the API's alerts, with where they come from.
struct Webhook {
    host: String,
}

impl Protocol<Alert> for Webhook {
    const CONTENT_TYPE: &'static str = "application/json";

    fn body(&self, batch: &[Alert]) -> Vec<u8> {
        json!({ "version": 1, "host": self.host, "alerts": batch }).to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use queztl_api::{AlertRule, AlertState, Severity};

    use super::*;

    #[test]
    fn alertmanager_hears_that_an_alert_goes_on_or_when_it_ended() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let firing = Alert {
            id: "1".into(),
            rule: AlertRule::DiskLatency,
            severity: Severity::Warning,
            state: AlertState::Firing,
            vm: Some("7".into()),
            name: Some("db".into()),
            subject: "disk0".into(),
            message: "it is slow".into(),
            value: 120.0,
            threshold: 100.0,
            started_at: at(0),
            resolved_at: None,
        };
        let resolved = Alert { state: AlertState::Resolved, resolved_at: Some(at(90)), ..firing.clone() };

        let going_on = alertmanager(&firing, "host", at(100));
        let ended = alertmanager(&resolved, "host", at(100));

        assert_eq!(going_on["labels"], ended["labels"]);
        assert_eq!(
            going_on["labels"],
            json!({"alertname": "disk-latency", "severity": "warning", "instance": "host", "job": "queztl",
                   "vm": "7", "name": "db", "subject": "disk0"})
        );
        assert_eq!(going_on["endsAt"], "1970-01-01T00:05:40Z");
        assert_eq!(ended["endsAt"], "1970-01-01T00:01:30Z");
    }
}
