//! What is looked for and who is told, as the file `daemon.toml` says.
//!
//! Everything has a default: without a file all rules are on and nobody is told outside of the daemon. What the file does not
//! know is a mistake that is named, not ignored.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use queztl_api::{AlertRule, Severity};
use serde::Deserialize;

use crate::alerts::{Rule, Rules};

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path:?} cannot be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path:?} is not understood: {message}; docs/operations.md says what it may hold")]
    Content { path: PathBuf, message: String },
}

/// The file as a whole.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub alerts: AlertsConfig,
    pub export: ExportConfig,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlertsConfig {
    pub enabled: bool,
    /// What is to be different from [`Rules::default`].
    pub rules: BTreeMap<AlertRule, RuleChange>,
    pub alertmanager: Vec<TargetConfig>,
    pub webhook: Vec<TargetConfig>,
}

impl Default for AlertsConfig {
    fn default() -> AlertsConfig {
        AlertsConfig { enabled: true, rules: BTreeMap::new(), alertmanager: Vec::new(), webhook: Vec::new() }
    }
}

/// What is different in one rule.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleChange {
    pub enabled: Option<bool>,
    pub severity: Option<Severity>,
    pub threshold: Option<f64>,
    pub hold_seconds: Option<u32>,
    pub resolve_seconds: Option<u32>,
    pub window_seconds: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportConfig {
    pub otlp: Vec<LogTarget>,
    pub elasticsearch: Vec<LogTarget>,
}

/// A server that takes requests.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetConfig {
    /// `http://host:port/path` or `https://…`.
    pub url: String,
    /// Sent with each request; may hold secrets.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// PEM file of the authority to trust; else the host's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

impl fmt::Debug for TargetConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.headers.keys().collect();
        formatter.debug_struct("TargetConfig").field("url", &self.url).field("headers", &names).finish_non_exhaustive()
    }
}

/// A server that takes logs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "LogTargetFields")]
pub struct LogTarget {
    pub target: TargetConfig,
    /// The daemon's messages.
    pub log: bool,
    /// Who has changed what.
    pub audit: bool,
    /// Elasticsearch's index or data stream.
    pub index: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogTargetFields {
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    ca: Option<PathBuf>,
    #[serde(default = "yes")]
    log: bool,
    #[serde(default = "yes")]
    audit: bool,
    #[serde(default = "index")]
    index: String,
}

impl From<LogTargetFields> for LogTarget {
    fn from(fields: LogTargetFields) -> LogTarget {
        let LogTargetFields { url, headers, ca, log, audit, index } = fields;
        LogTarget { target: TargetConfig { url, headers, ca }, log, audit, index }
    }
}

fn yes() -> bool {
    true
}

fn index() -> String {
    "queztl".to_owned()
}

impl Config {
    /// What a file says.
    ///
    /// # Errors
    /// It cannot be read, or holds something that is not known or makes no sense.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        Config::parse(&text).map_err(|message| ConfigError::Content { path: path.to_path_buf(), message })
    }

    /// As [`Config::read`], and the defaults if there is no such file.
    ///
    /// # Errors
    /// Those of [`Config::read`].
    pub fn read_if_there(path: &Path) -> Result<Config, ConfigError> {
        match Config::read(path) {
            Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(Config::default())
            }
            read => read,
        }
    }

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string().trim().replace('\n', " "))?;
        for (rule, change) in &config.alerts.rules {
            if change.threshold.is_some_and(|threshold| !threshold.is_finite() || threshold < 0.0) {
                return Err(format!("the threshold of {:?} is no number that could be reached", rule.name()));
            }
        }
        for target in config.targets() {
            crate::delivery::check(target)?;
        }
        Ok(config)
    }

    fn targets(&self) -> impl Iterator<Item = &TargetConfig> {
        let logs = self.export.otlp.iter().chain(&self.export.elasticsearch).map(|log| &log.target);
        self.alerts.alertmanager.iter().chain(&self.alerts.webhook).chain(logs)
    }

    /// The rules, with what the file changes.
    pub fn rules(&self) -> Rules {
        let mut rules = Rules::default();
        for rule in AlertRule::ALL {
            let change = self.alerts.rules.get(&rule).cloned().unwrap_or_default();
            let rule = rules.get_mut(rule);
            let RuleChange { enabled, severity, threshold, hold_seconds, resolve_seconds, window_seconds } = change;
            *rule = Rule {
                enabled: self.alerts.enabled && enabled.unwrap_or(rule.enabled),
                severity: severity.unwrap_or(rule.severity),
                threshold: threshold.unwrap_or(rule.threshold),
                hold_seconds: hold_seconds.unwrap_or(rule.hold_seconds),
                resolve_seconds: resolve_seconds.unwrap_or(rule.resolve_seconds),
                window_seconds: window_seconds.unwrap_or(rule.window_seconds),
                ..*rule
            };
        }
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        [alerts.rules.host-memory]
        threshold = 10
        severity = "warning"

        [alerts.rules.anomaly]
        enabled = false

        [[alerts.alertmanager]]
        url = "http://127.0.0.1:9093"

        [[alerts.webhook]]
        url = "https://example.org/hook"
        headers = { authorization = "Bearer secret" }

        [[export.otlp]]
        url = "http://127.0.0.1:4318"

        [[export.elasticsearch]]
        url = "http://127.0.0.1:9200"
        index = "audit"
        log = false
    "#;

    #[test]
    fn a_file_changes_what_it_names() {
        let config = Config::parse(WHOLE).unwrap();
        let rules = config.rules();

        assert_eq!(rules.get(AlertRule::HostMemory).threshold, 10.0);
        assert_eq!(rules.get(AlertRule::HostMemory).severity, Severity::Warning);
        assert_eq!(
            rules.get(AlertRule::HostMemory).hold_seconds,
            Rules::default().get(AlertRule::HostMemory).hold_seconds
        );
        assert!(!rules.get(AlertRule::Anomaly).enabled);
        assert!(rules.get(AlertRule::VmCrash).enabled);
        let logs = &config.export.elasticsearch[0];
        assert_eq!((logs.index.as_str(), logs.log, logs.audit), ("audit", false, true));
    }

    #[test]
    fn no_file_means_all_rules() {
        let config = Config::read_if_there(Path::new("/nonexistent/daemon.toml")).unwrap();
        assert!(AlertRule::ALL.iter().all(|rule| config.rules().get(*rule).enabled));
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |text: &str| Config::parse(text).unwrap_err();
        assert!(wrong("[alerts.rules.host-memroy]\nthreshold = 1").contains("host-memroy"));
        assert!(wrong("[alerts]\nenable = true").contains("enable"));
        assert!(wrong("[alerts.rules.steal]\nthreshold = nan").contains("steal"));
        assert!(wrong("[[alerts.webhook]]\nurl = \"ftp://x\"").contains("ftp://x"));
        assert!(wrong("[[alerts.webhook]]\nurl = \"http://x\"\nheaders = { \"a b\" = \"c\" }").contains("a b"));
        assert!(wrong("[[export.otlp]]\nurl = \"http://x\"\nca = 1").contains("ca"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = Config::parse(WHOLE).unwrap();
        assert!(!format!("{config:?}").contains("secret"));
    }
}
