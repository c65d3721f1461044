//! The rules and their defaults.

use queztl_api::{AlertRule, Severity};

/// On which side of the threshold it is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// At the threshold and above.
    Above,
    /// At the threshold and below.
    Below,
}

/// When a measure is worth an alert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    pub enabled: bool,
    pub severity: Severity,
    pub beyond: Beyond,
    /// In the unit that [`AlertRule`] names.
    pub threshold: f64,
    /// Beyond the threshold for so long before it fires.
    pub hold_seconds: u32,
    /// Not beyond it for so long before it is resolved.
    pub resolve_seconds: u32,
    /// Over which time things that happen are counted, for rules that count.
    pub window_seconds: u32,
}

impl Rule {
    /// Whether a value is beyond the threshold.
    pub fn holds(&self, value: f64) -> bool {
        match self.beyond {
            Beyond::Above => value >= self.threshold,
            Beyond::Below => value <= self.threshold,
        }
    }

    fn new(severity: Severity, beyond: Beyond, threshold: f64, hold_seconds: u32, resolve_seconds: u32) -> Rule {
        Rule { enabled: true, severity, beyond, threshold, hold_seconds, resolve_seconds, window_seconds: 300 }
    }
}

/// All rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules([Rule; AlertRule::ALL.len()]);

impl Rules {
    pub fn get(&self, rule: AlertRule) -> &Rule {
        &self.0[rule as usize]
    }

    pub fn get_mut(&mut self, rule: AlertRule) -> &mut Rule {
        &mut self.0[rule as usize]
    }
}

impl Default for Rules {
    fn default() -> Rules {
        use Beyond::{Above, Below};
        use Severity::{Critical, Info, Warning};
        Rules(AlertRule::ALL.map(|rule| match rule {
            // A machine that is started again at once has crashed all the same: it counts for the window.
            AlertRule::VmCrash => Rule::new(Critical, Above, 1.0, 0, 0),
            AlertRule::HostMemory => Rule::new(Critical, Below, 5.0, 60, 60),
            AlertRule::HostDisk => Rule::new(Critical, Below, 5.0, 60, 60),
            AlertRule::HostCpu => Rule::new(Warning, Above, 95.0, 300, 60),
            AlertRule::DiskLatency => Rule::new(Warning, Above, 100.0, 60, 60),
            AlertRule::Steal => Rule::new(Warning, Above, 50.0, 120, 60),
            AlertRule::ReplicationLag => Rule::new(Critical, Above, 5.0, 10, 30),
            AlertRule::RefusedAccess => Rule { window_seconds: 60, ..Rule::new(Warning, Above, 10.0, 0, 60) },
            AlertRule::Anomaly => Rule::new(Info, Above, 8.0, 60, 120),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_found_under_its_own_name() {
        for rule in AlertRule::ALL {
            assert_eq!(AlertRule::ALL[rule as usize], rule);
        }
        let rules = Rules::default();
        assert!(rules.get(AlertRule::HostMemory).holds(5.0) && !rules.get(AlertRule::HostMemory).holds(5.1));
        assert!(rules.get(AlertRule::HostCpu).holds(95.0) && !rules.get(AlertRule::HostCpu).holds(94.9));
    }
}
