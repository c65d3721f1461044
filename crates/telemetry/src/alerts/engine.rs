//! The state of all alerts.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use queztl_api::{Alert, AlertRule, AlertState};

use super::Rules;

/// Most things that are kept an eye on at a time: what is beyond its threshold when there are so many is not taken in.
const MAX_TRACKED: usize = 10_000;

/// What a measure is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Target {
    /// The machine's identifier; none for the host.
    pub vm: Option<String>,
    /// Which part of it; empty where there is but one.
    pub subject: String,
}

/// Something that was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    pub rule: AlertRule,
    pub target: Target,
    /// The machine's name.
    pub name: Option<String>,
    /// In the unit that the rule has.
    pub value: f64,
    /// A sentence that says what it means when it is beyond the threshold.
    pub message: String,
}

type Key = (AlertRule, Target);

#[derive(Debug, Clone)]
enum Phase {
    Pending { since: Timestamp },
    Firing { alert: Alert, clear_since: Option<Timestamp> },
}

/// The state of all alerts: a function of what it was told, without a clock.
#[derive(Debug, Clone)]
pub struct Engine {
    rules: Rules,
    phases: BTreeMap<Key, Phase>,
}

impl Engine {
    /// Goes on from alerts that fired when the daemon ended.
    pub fn new(rules: Rules, firing: impl IntoIterator<Item = Alert>) -> Engine {
        let firing = firing.into_iter().filter(|alert| alert.state == AlertState::Firing).map(|alert| {
            let target = Target { vm: alert.vm.clone(), subject: alert.subject.clone() };
            ((alert.rule, target), Phase::Firing { alert, clear_since: None })
        });
        Engine { rules, phases: firing.take(MAX_TRACKED).collect() }
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Those that fire.
    pub fn firing(&self) -> Vec<Alert> {
        let alert = |phase: &Phase| match phase {
            Phase::Firing { alert, .. } => Some(alert.clone()),
            Phase::Pending { .. } => None,
        };
        self.phases.values().filter_map(alert).collect()
    }

    /// Takes in everything that was measured at one time; gives the alerts that began to fire or were resolved by it. Of two
    /// measures of the same thing the later counts.
    pub fn observe(&mut self, at: Timestamp, measures: Vec<Measure>) -> Vec<Alert> {
        let mut changed = Vec::new();
        let mut beyond = BTreeSet::new();
        for measure in measures {
            let rule = *self.rules.get(measure.rule);
            if rule.enabled && rule.holds(measure.value) {
                let key = (measure.rule, measure.target.clone());
                changed.extend(self.is_beyond(at, measure));
                beyond.insert(key);
            }
        }
        let others: Vec<Key> = self.phases.keys().filter(|key| !beyond.contains(key)).cloned().collect();
        changed.extend(others.iter().filter_map(|key| self.is_not_beyond(at, key)));
        changed
    }

    fn is_beyond(&mut self, at: Timestamp, measure: Measure) -> Option<Alert> {
        let key = (measure.rule, measure.target.clone());
        let rule = *self.rules.get(measure.rule);
        let is_full = self.phases.len() >= MAX_TRACKED;
        let since = match self.phases.get_mut(&key) {
            Some(Phase::Firing { alert, clear_since }) => {
                *clear_since = None;
                alert.value = measure.value;
                alert.message = measure.message;
                return None;
            }
            Some(Phase::Pending { since }) => *since,
            None if is_full => return None,
            None => at,
        };
        if !is_over(since, at, rule.hold_seconds) {
            self.phases.insert(key, Phase::Pending { since });
            return None;
        }
        let Measure { rule: looked_for, target, name, value, message } = measure;
        let alert = Alert {
            id: uuid::Uuid::now_v7().simple().to_string(),
            rule: looked_for,
            severity: rule.severity,
            state: AlertState::Firing,
            vm: target.vm,
            name,
            subject: target.subject,
            message,
            value,
            threshold: rule.threshold,
            started_at: since,
            resolved_at: None,
        };
        self.phases.insert(key, Phase::Firing { alert: alert.clone(), clear_since: None });
        Some(alert)
    }

    fn is_not_beyond(&mut self, at: Timestamp, key: &Key) -> Option<Alert> {
        let resolve_seconds = self.rules.get(key.0).resolve_seconds;
        if let Phase::Firing { clear_since, .. } = self.phases.get_mut(key)?
            && !is_over(*clear_since.get_or_insert(at), at, resolve_seconds)
        {
            return None;
        }
        match self.phases.remove(key)? {
            Phase::Pending { .. } => None,
            Phase::Firing { alert, clear_since } => {
                Some(Alert { state: AlertState::Resolved, resolved_at: clear_since, ..alert })
            }
        }
    }
}

/// Whether so many seconds have passed. A clock that was set back begins anew at nothing, not at years.
fn is_over(since: Timestamp, at: Timestamp, seconds: u32) -> bool {
    at.duration_since(since) >= SignedDuration::from_secs(seconds.into())
}

#[cfg(test)]
mod tests {
    use queztl_api::Severity;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn measure(rule: AlertRule, vm: &str, value: f64) -> Measure {
        let target = Target { vm: Some(vm.into()), subject: String::new() };
        Measure { rule, target, name: None, value, message: format!("it is {value}") }
    }

    /// Rules whose steal fires above 50 after 20 s and is resolved after 10 s.
    fn engine() -> Engine {
        let mut rules = Rules::default();
        let steal = rules.get_mut(AlertRule::Steal);
        (steal.threshold, steal.hold_seconds, steal.resolve_seconds) = (50.0, 20, 10);
        Engine::new(rules, [])
    }

    fn steal(value: f64) -> Vec<Measure> {
        vec![measure(AlertRule::Steal, "one", value)]
    }

    #[test]
    fn an_alert_fires_after_its_hold_time_and_is_resolved_after_its_resolve_time() {
        let mut engine = engine();

        assert_eq!(engine.observe(at(0), steal(60.0)), []);
        assert_eq!(engine.observe(at(19), steal(70.0)), []);
        let fired = engine.observe(at(20), steal(80.0));
        assert_eq!(engine.observe(at(30), steal(90.0)), []);
        assert_eq!(engine.observe(at(40), steal(10.0)), []);
        assert_eq!(engine.firing().len(), 1);
        let resolved = engine.observe(at(50), steal(10.0));

        assert_eq!((fired[0].state, fired[0].started_at, fired[0].value), (AlertState::Firing, at(0), 80.0));
        assert_eq!(fired[0].severity, Severity::Warning);
        assert_eq!(resolved[0].id, fired[0].id);
        assert_eq!((resolved[0].state, resolved[0].resolved_at), (AlertState::Resolved, Some(at(40))));
        assert_eq!((resolved[0].value, resolved[0].message.as_str()), (90.0, "it is 90"));
        assert_eq!(engine.firing(), []);
    }

    #[test]
    fn a_break_in_the_hold_time_begins_it_anew() {
        let mut engine = engine();
        engine.observe(at(0), steal(60.0));
        engine.observe(at(10), steal(10.0));
        assert_eq!(engine.observe(at(20), steal(60.0)), []);
        assert_eq!(engine.observe(at(40), steal(60.0)).len(), 1);
    }

    #[test]
    fn a_measure_that_flutters_gives_one_alert() {
        let mut engine = engine();
        let mut changes = Vec::new();
        for second in 0..400 {
            let fluttering = if second >= 30 && second % 7 == 0 { 10.0 } else { 60.0 };
            changes.extend(engine.observe(at(second), steal(fluttering)));
        }
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].state, AlertState::Firing);
    }

    #[test]
    fn machines_and_parts_of_them_have_alerts_of_their_own() {
        let mut engine = engine();
        let both = || vec![measure(AlertRule::Steal, "one", 60.0), measure(AlertRule::Steal, "two", 60.0)];
        engine.observe(at(0), both());
        assert_eq!(engine.observe(at(20), both()).len(), 2);
        engine.observe(at(21), steal(60.0));
        let resolved = engine.observe(at(31), steal(60.0));
        assert_eq!(resolved.len(), 1);
        assert_eq!(resolved[0].vm.as_deref(), Some("two"));
    }

    #[test]
    fn what_is_no_longer_measured_is_resolved() {
        let mut engine = engine();
        engine.observe(at(0), steal(60.0));
        engine.observe(at(20), steal(60.0));
        assert_eq!(engine.observe(at(21), Vec::new()), []);
        assert_eq!(engine.observe(at(31), Vec::new())[0].state, AlertState::Resolved);
    }

    #[test]
    fn without_hold_time_the_first_measure_fires_and_is_resolved_at_once() {
        let mut engine = Engine::new(Rules::default(), []);
        let crash = |value| vec![measure(AlertRule::VmCrash, "one", value)];
        assert_eq!(engine.observe(at(0), crash(1.0)).len(), 1);
        assert_eq!(engine.observe(at(0), crash(2.0)), []);
        assert_eq!(engine.observe(at(1), crash(0.0))[0].state, AlertState::Resolved);
    }

    #[test]
    fn a_rule_that_is_off_says_nothing() {
        let mut rules = Rules::default();
        rules.get_mut(AlertRule::VmCrash).enabled = false;
        let mut engine = Engine::new(rules, []);
        assert_eq!(engine.observe(at(0), vec![measure(AlertRule::VmCrash, "one", 1.0)]), []);
    }

    #[test]
    fn the_next_daemon_goes_on_with_what_fired() {
        let mut before = engine();
        before.observe(at(0), steal(60.0));
        let fired = before.observe(at(20), steal(60.0));

        let mut after = Engine::new(before.rules().clone(), fired.clone());
        assert_eq!(after.observe(at(30), steal(60.0)), []);
        assert_eq!(after.firing()[0].id, fired[0].id);
    }

    #[test]
    fn a_clock_that_is_set_back_fires_nothing() {
        let mut engine = engine();
        engine.observe(at(1000), steal(60.0));
        assert_eq!(engine.observe(at(0), steal(60.0)), []);
        assert_eq!(engine.observe(at(1020), steal(60.0)).len(), 1);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut engine = engine();
        let many = (0..2 * MAX_TRACKED).map(|number| measure(AlertRule::VmCrash, &number.to_string(), 1.0)).collect();
        assert_eq!(engine.observe(at(0), many).len(), MAX_TRACKED);
        assert_eq!(engine.observe(at(1), Vec::new()).len(), MAX_TRACKED);
        assert_eq!(engine.firing(), []);
    }
}
