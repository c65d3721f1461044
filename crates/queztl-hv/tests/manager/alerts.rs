//! What the daemon notices by itself.

use std::time::Instant;

use queztl_api::{Alert, AlertRule, AlertState, EventKind, Severity, VmState};
use queztl_control::{Manager, Service};

use crate::common::*;

/// Waits until the only alert of a rule is in a state.
async fn alert(manager: &Manager, rule: AlertRule, state: AlertState) -> Alert {
    let start = Instant::now();
    loop {
        let mut alerts = manager.alerts().await.unwrap();
        alerts.retain(|alert| alert.rule == rule);
        assert!(alerts.len() <= 1, "{alerts:?}");
        if let Some(alert) = alerts.into_iter().next().filter(|alert| alert.state == state) {
            return alert;
        }
        assert!(start.elapsed() < PATIENCE, "no alert of {rule:?} becomes {state:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_process_is_killed_raises_an_alert_that_outlives_the_daemon_and_ends_with_its_start() {
    let home = Home::new();
    let manager = home.manager().await;
    let vm = spawn(&manager, "web", idle(home.folder.path())).await;

    kill(pid(&vm));
    let fired = alert(&manager, AlertRule::VmCrash, AlertState::Firing).await;
    wait_for_state(&manager, "web", VmState::Crashed).await;
    manager.close().await;
    drop(manager);
    let next = home.manager().await;
    let known = alert(&next, AlertRule::VmCrash, AlertState::Firing).await;
    done(&next, next.start("web").await).await;
    let resolved = alert(&next, AlertRule::VmCrash, AlertState::Resolved).await;

    assert_eq!((fired.vm.as_deref(), fired.name.as_deref()), (Some(vm.id.as_str()), Some("web")));
    assert_eq!(fired.severity, Severity::Critical);
    assert!(fired.message.contains("web has crashed"), "{fired:?}");
    assert!(known.id == fired.id && resolved.id == fired.id);
    let events = next.past_events(100).await.unwrap();
    let count = |wanted: fn(&EventKind) -> bool| events.iter().filter(|event| wanted(&event.kind)).count();
    assert_eq!(count(|kind| matches!(kind, EventKind::AlertFiring { .. })), 1);
    assert_eq!(count(|kind| matches!(kind, EventKind::AlertResolved { .. })), 1);
    next.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_refused_requests_raise_an_alert() {
    let home = Home::new();
    let manager = home.manager().await;

    (0..9).for_each(|_| manager.refused());
    assert_eq!(manager.daemon_figures().await.unwrap().refused, 9);
    (0..9).for_each(|_| manager.refused());
    let alert = alert(&manager, AlertRule::RefusedAccess, AlertState::Firing).await;

    assert_eq!((alert.vm, alert.value), (None, 18.0));
    manager.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_stopped_raises_none() {
    let home = Home::new();
    let manager = home.manager().await;
    spawn(&manager, "one", idle(home.folder.path())).await;
    spawn(&manager, "two", idle(home.folder.path())).await;

    done(&manager, manager.kill("one").await).await;
    kill(pid(&manager.vm("two").await.unwrap()));
    let fired = alert(&manager, AlertRule::VmCrash, AlertState::Firing).await;

    assert_eq!(fired.name.as_deref(), Some("two"));
    manager.close().await;
}
