//! Alerts: what a person should look at.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that is, or was, not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Alert {
    /// Its identifier; it is another one when the same thing happens again.
    pub id: String,
    /// What was looked for.
    pub rule: AlertRule,
    /// How bad it is.
    pub severity: Severity,
    /// Whether it still is so.
    pub state: AlertState,
    /// The machine it is about: its identifier.
    pub vm: Option<String>,
    /// That machine's name.
    pub name: Option<String>,
    /// Which part of it: a disk, or the figure that is unusual; empty where there is but one.
    pub subject: String,
    /// A sentence.
    pub message: String,
    /// What was measured last while it was so.
    pub value: f64,
    /// From where on it counts.
    pub threshold: f64,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// Until when.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub resolved_at: Option<Timestamp>,
}

/// What the daemon looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AlertRule {
    /// A machine crashed: times within the rule's window.
    VmCrash,
    /// Memory of the host that is left: percent.
    HostMemory,
    /// Space of the file system of the daemon's home that is left: percent.
    HostDisk,
    /// Processors of the host that are busy: percent of all.
    HostCpu,
    /// How long requests of a machine's disk take: milliseconds.
    DiskLatency,
    /// What a machine's vCPUs wanted to run and did not: percent of one processor.
    Steal,
    /// How far a machine's backup is behind: seconds.
    ReplicationLag,
    /// Requests with a wrong token or none: times within the rule's window.
    RefusedAccess,
    /// A machine's figure is not what it usually is: robust z-score.
    Anomaly,
}

impl AlertRule {
    pub const ALL: [AlertRule; 9] = [
        AlertRule::VmCrash,
        AlertRule::HostMemory,
        AlertRule::HostDisk,
        AlertRule::HostCpu,
        AlertRule::DiskLatency,
        AlertRule::Steal,
        AlertRule::ReplicationLag,
        AlertRule::RefusedAccess,
        AlertRule::Anomaly,
    ];

    /// As the API and the configuration call it.
    pub fn name(self) -> &'static str {
        match self {
            AlertRule::VmCrash => "vm-crash",
            AlertRule::HostMemory => "host-memory",
            AlertRule::HostDisk => "host-disk",
            AlertRule::HostCpu => "host-cpu",
            AlertRule::DiskLatency => "disk-latency",
            AlertRule::Steal => "steal",
            AlertRule::ReplicationLag => "replication-lag",
            AlertRule::RefusedAccess => "refused-access",
            AlertRule::Anomaly => "anomaly",
        }
    }
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// To be looked at today.
    Warning,
    /// To be looked at now.
    Critical,
}

impl Severity {
    /// As the API calls it.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// Whether something still is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AlertState {
    /// It is.
    Firing,
    /// It was.
    Resolved,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_called_the_same_everywhere() {
        for rule in AlertRule::ALL {
            assert_eq!(serde_json::to_value(rule).unwrap(), rule.name());
        }
        assert_eq!(serde_json::to_value(Severity::Critical).unwrap(), Severity::Critical.name());
    }
}
