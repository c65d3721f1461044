//! Alerts: what the daemon looks for by itself, every ten seconds and whenever a machine has ended.
//!
//! ```text
//! machines, samples, host, refusals ─> measures ─> Engine ─> changes ─┬─> store, with their events
//!                                                                     └─> Alertmanager, webhooks
//! ```
//! Alerts that fire are in the store, so that the next daemon goes on with them and tells of their end.

mod host;
mod measures;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use queztl_api::{Alert, AlertState, EventKind, Problem, Timestamp};
use queztl_telemetry::Notifier;
use queztl_telemetry::alerts::Engine;
use queztl_telemetry::export::Exporter;
use tokio::sync::Notify;

use crate::manager::Core;
use crate::service::{DaemonFigures, HostFigures};
use crate::store::{ALERTS, Change, Store};
use host::Processors;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// Resolved alerts that are kept.
const MAX_RESOLVED: usize = 1000;
/// Refusals whose times are kept; more than any threshold makes sense for.
const MAX_REFUSALS: usize = 10_000;

/// What the daemon knows of its alerts.
#[derive(Debug)]
pub(crate) struct Alerts {
    engine: Mutex<Engine>,
    notifier: Notifier,
    exporter: Exporter,
    processors: Mutex<Processors>,
    /// When requests were refused, oldest first.
    refusals: Mutex<VecDeque<Timestamp>>,
    refused: AtomicU64,
    wake: Notify,
}

impl Alerts {
    /// Goes on with what fired when the daemon before ended.
    pub(crate) fn open(config: &queztl_telemetry::Config, store: &Store) -> Result<Alerts, String> {
        let known = store.list(ALERTS).map_err(|error| error.to_string())?;
        let names = rustix::system::uname();
        let host = names.nodename().to_string_lossy();
        Ok(Alerts {
            engine: Mutex::new(Engine::new(config.rules(), known.into_iter().map(|(_, alert)| alert))),
            notifier: Notifier::start(&config.alerts, &host)?,
            exporter: Exporter::start(&config.export, &host)?,
            processors: Mutex::default(),
            refusals: Mutex::default(),
            refused: AtomicU64::new(0),
            wake: Notify::new(),
        })
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note that a request was refused for who made it.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() == MAX_REFUSALS {
            refusals.pop_front();
        }
        refusals.push_back(Timestamp::now());
    }

    /// Something has happened that is worth a look at once.
    pub(crate) fn look_soon(&self) {
        self.wake.notify_one();
    }
}

impl Core {
    /// Looks from now on.
    pub(crate) fn start_alerts(self: &Arc<Self>) {
        let core = self.clone();
        self.runtime.spawn(async move {
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut told = tokio::time::Instant::now();
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = core.alerts.wake.notified() => {}
                    () = core.closed() => return,
                }
                let work = core.clone();
                // A panic in one round is logged by its thread; the next round goes on.
                let _ = tokio::task::spawn_blocking(move || work.look()).await;
                if told.elapsed() >= Notifier::REPEAT {
                    told = tokio::time::Instant::now();
                    core.alerts.notifier.repeat(&core.alerts.engine().firing());
                }
            }
        });
    }

    fn look(&self) {
        let measures = self.measures();
        let changed = self.alerts.engine().observe(Timestamp::now(), measures);
        if changed.is_empty() {
            return;
        }
        for alert in &changed {
            let (rule, vm) = (alert.rule.name(), alert.name.as_deref().unwrap_or_default());
            match alert.state {
                AlertState::Firing => tracing::warn!(rule, vm, alert = alert.id, "alert: {}", alert.message),
                AlertState::Resolved => tracing::info!(rule, vm, alert = alert.id, "resolved: {}", alert.message),
            }
        }
        if let Err(problem) = self.store.write(|change| changed.iter().try_for_each(|alert| note(change, alert))) {
            // They are told all the same: a full disk is itself such an alert.
            tracing::error!(%problem, "alerts cannot be noted");
        }
        self.alerts.notifier.changed(&changed);
    }

    /// Those that fire with what they measure now, and the last that were resolved.
    pub(crate) fn all_alerts(&self) -> Result<Vec<Alert>, Problem> {
        let firing = self.alerts.engine().firing();
        let past = self.store.list(ALERTS)?.into_iter().map(|(_, alert)| alert);
        // One that was resolved while the store was read is in neither, and will be there at the next look.
        Ok(past.filter(|alert| alert.state == AlertState::Resolved).chain(firing).collect())
    }

    pub(crate) fn daemon_figures(&self) -> DaemonFigures {
        let mut deliveries = self.alerts.notifier.figures();
        deliveries.extend(self.alerts.exporter.figures());
        DaemonFigures {
            alerts: self.alerts.engine().firing(),
            refused: self.alerts.refused.load(Ordering::Relaxed),
            deliveries,
            host: self.host_figures(),
        }
    }

    fn host_figures(&self) -> HostFigures {
        host::figures(&self.config.home)
    }
}

/// Puts an alert into the store, and tells of it.
fn note(change: &mut Change<'_>, alert: &Alert) -> Result<(), Problem> {
    change.put(ALERTS, &alert.id, alert)?;
    let (id, rule) = (alert.id.clone(), alert.rule);
    match alert.state {
        AlertState::Firing => {
            change.event(EventKind::AlertFiring { alert: id, rule }, alert.message.clone())?;
        }
        AlertState::Resolved => {
            change.event(EventKind::AlertResolved { alert: id, rule }, format!("it is over: {}", alert.message))?;
            forget_old(change)?;
        }
    }
    Ok(())
}

/// Keys grow with time: the first are the oldest.
fn forget_old(change: &mut Change<'_>) -> Result<(), Problem> {
    if change.count(ALERTS)? <= MAX_RESOLVED {
        return Ok(());
    }
    let mut resolved = change.list_with(ALERTS, "")?;
    resolved.retain(|(_, alert)| alert.state == AlertState::Resolved);
    let old = resolved.len().saturating_sub(MAX_RESOLVED);
    for (id, _) in resolved.into_iter().take(old) {
        change.remove(ALERTS, &id)?;
    }
    Ok(())
}
