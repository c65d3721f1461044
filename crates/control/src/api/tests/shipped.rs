//! What is shipped for Prometheus and Grafana speaks of figures that there are.

use std::collections::BTreeSet;

use super::*;

/// The metrics that a text names: words that begin with our prefix.
fn named(text: &str) -> BTreeSet<String> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_of_name(c)).filter(|word| word.starts_with("queztl_")).map(str::to_owned).collect()
}

/// The metrics that the exposition has, with or without samples.
fn exposed(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let endings: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        names.extend(endings.iter().map(|ending| format!("{name}{ending}")));
    }
    names
}

async fn exposition() -> BTreeSet<String> {
    let api = Api::new();
    api.running("one").await;
    exposed(&String::from_utf8(api.get("/metrics").await.body).unwrap())
}

fn shipped(path: &str) -> String {
    let path = format!("{}/../../dist/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[tokio::test]
async fn the_rules_for_prometheus_name_figures_that_there_are() {
    let named = named(&shipped("prometheus/queztl.rules.yml"));
    assert!(named.len() >= 10, "{named:?}");
    let missing: Vec<_> = named.difference(&exposition().await).cloned().collect();
    assert_eq!(missing, [""; 0]);
}

#[tokio::test]
async fn the_dashboard_for_grafana_names_figures_that_there_are() {
    let text = shipped("grafana/queztl.json");
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() >= 10);
    let missing: Vec<_> = named(&text).difference(&exposition().await).cloned().collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn the_configuration_that_is_shipped_is_understood() {
    let path = format!("{}/../../dist/queztl/daemon.toml", env!("CARGO_MANIFEST_DIR"));
    let config = queztl_telemetry::Config::read(path.as_ref()).unwrap();
    assert!(!config.rules().get(queztl_api::AlertRule::Anomaly).enabled);
    // What is commented out is right, too.
    let whole = std::fs::read_to_string(&path).unwrap().replace("# [[", "[[").replace("\n# ", "\n");
    let all = whole.lines().filter(|line| line.starts_with('[') || line.contains(" = ")).collect::<Vec<_>>().join("\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), all).unwrap();
    let config = queztl_telemetry::Config::read(file.path()).unwrap();
    assert_eq!((config.alerts.alertmanager.len(), config.export.elasticsearch.len()), (1, 1));
}
