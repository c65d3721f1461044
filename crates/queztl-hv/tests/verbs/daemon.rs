//! The daemon comes and goes, and the machines stay.

use std::process::Stdio;

use crate::home::{Home, eventually, kill};

#[test]
fn of_many_first_commands_one_starts_the_daemon() {
    let home = Home::new();
    assert_eq!(home.output(&["daemon", "status"]).status.code(), Some(4));

    let start = || home.command(&["list", "-o", "json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let commands: Vec<_> = (0..10).map(|_| start()).collect();
    for command in commands {
        let output = command.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"[]\n"[..]), "{output:?}");
    }

    assert_eq!(home.daemons(), [home.pid(&["daemon", "status"])]);
}

#[test]
fn machines_outlive_daemons() {
    let home = Home::new();
    home.spawn_idle("one");
    let machine = home.pid(&["info", "one"]);

    // Ended properly.
    home.says(&["daemon", "stop"]);
    eventually("the daemon ends", || home.daemons().is_empty());
    assert_eq!((home.pid(&["info", "one"]), home.state("one")), (machine, "running".into()));

    // Replaced.
    let before = home.pid(&["daemon", "status"]);
    home.says(&["daemon", "restart"]);
    assert_ne!(home.pid(&["daemon", "status"]), before);
    assert_eq!(home.pid(&["info", "one"]), machine);

    // Killed: its socket stays, and is replaced.
    kill(home.pid(&["daemon", "status"]));
    eventually("the daemon ends", || home.daemons().is_empty());
    assert_eq!((home.pid(&["info", "one"]), home.state("one")), (machine, "running".into()));

    // A machine that ends meanwhile is not taken for a running one.
    home.says(&["daemon", "stop"]);
    kill(machine);
    eventually("the daemon sees it", || home.state("one") == "crashed");
}

#[test]
fn an_address_that_nobody_answers_at_is_told_and_nothing_is_started() {
    let home = Home::new();
    let socket = format!("unix:{}", home.path().join("nobody.sock").display());

    let output = home.output(&["list", "--address", &socket]);

    assert_eq!(output.status.code(), Some(4));
    assert!(crate::common::one_line(&output).contains("nobody.sock"));
    assert!(home.daemons().is_empty());
}

#[test]
fn tokens_are_shown_once_and_go() {
    let home = Home::new();

    let secret = home.says(&["token", "create", "laptop", "--scope", "read", "--expires", "1h"]);

    assert!(secret.trim().len() >= 32, "{secret}");
    assert!(home.says(&["token", "list"]).contains("laptop"));
    assert!(!home.says(&["token", "list", "-o", "json"]).contains(secret.trim()));
    home.says(&["token", "delete", "laptop"]);
    assert_eq!(home.says(&["token", "list", "-o", "name"]), "");
}
