//! Consoles and tables on a terminal.

use crate::common::terminal::Terminal;
use crate::home::{Home, eventually};

#[test]
fn a_console_has_keys_history_viewers_and_a_way_out() {
    let Some(home) = Home::with_linux() else { return };
    home.spawn("web", &[]);

    let mut console = Terminal::start(&mut home.command(&["console", "web"]), 91, 33);
    console.wait_for("queztl:/root# ");
    assert!(console.is_raw());
    console.type_keys(b"stty size; echo first-$((40+2))\r");
    let seen = console.wait_for("first-42");
    assert!(seen.contains("33 91"), "{seen}");

    // One who comes later sees what was there, and what the other types.
    let mut viewer = Terminal::start(&mut home.command(&["console", "--read-only", "web"]), 80, 24);
    viewer.wait_for("first-42");
    console.type_keys(b"echo second-$((40+2))\r");
    viewer.wait_for("second-42");
    console.wait_for("second-42");

    // Ctrl-C is the guest's; Ctrl-A d is ours.
    console.type_keys(b"echo beg''un; sleep 1000\r");
    console.wait_for("begun");
    console.type_keys(b"\x03");
    console.wait_for("queztl:/root# ");
    console.type_keys(b"\x01d");
    console.wait_for("detached");
    assert_eq!(console.status(), Some(0));
    assert!(!console.is_raw());
    assert_eq!(home.state("web"), "running");

    // The end of the machine is the end of its viewers.
    home.says(&["kill", "web"]);
    viewer.wait_for("the console is closed");
    assert_eq!(viewer.status(), Some(0));
}

#[test]
fn a_command_has_a_terminal_of_this_ones_size() {
    let Some(home) = Home::with_linux() else { return };
    home.spawn("web", &[]);

    let mut shell = Terminal::start(&mut home.command(&["exec", "--wait", "100", "--tty", "web", "--", "sh"]), 77, 22);
    shell.wait_for("# ");
    shell.type_keys(b"stty size\r");
    shell.wait_for("22 77");
    shell.resize(66, 11);
    eventually("the new size", || {
        shell.type_keys(b"stty size; echo do''ne\r");
        shell.wait_for("done").contains("11 66")
    });
    shell.type_keys(b"echo beg''un; sleep 1000\r");
    shell.wait_for("begun");
    shell.type_keys(b"\x03");
    shell.wait_for("# ");
    shell.type_keys(b"exit 5\r");

    assert_eq!(shell.status(), Some(5));
}

#[test]
fn top_shows_machines_until_it_is_left() {
    let home = Home::new();
    home.spawn_idle("sleeper");

    let mut top = Terminal::start(&mut home.command(&["top", "-d", "0.2"]), 100, 20);
    top.wait_for("sleeper");
    assert!(top.is_raw());
    top.type_keys(b"q");
    assert_eq!(top.status(), Some(0));
    assert!(!top.is_raw());

    let tables = home.says(&["top", "-n", "2", "-d", "0.1"]);
    assert_eq!(tables.matches("sleeper").count(), 2, "{tables}");
}

#[test]
fn ctrl_c_leaves_the_work_to_the_daemon() {
    // Arrange: a guest that does not listen.
    let home = Home::new();
    home.spawn_idle("deaf");
    let mut stop = Terminal::start(&mut home.command(&["stop", "deaf", "--grace", "100"]), 120, 20);
    eventually("the machine is being stopped", || home.state("deaf") == "stopping");

    // Act: each as soon as it is heard.
    stop.type_keys(b"\x03");
    let told = stop.wait_for("leaves it alone");
    stop.type_keys(b"\x03");
    stop.wait_for("operations wait");

    // Assert
    assert!(told.contains("queztl-hv operations cancel"), "{told}");
    assert_eq!(stop.status(), Some(12));
    let operations = home.json(&["operations"]);
    let stops = operations.as_array().unwrap().iter().find(|operation| operation["kind"] == "stop").unwrap();
    assert_eq!(stops["state"], "running");
    home.says(&["kill", "deaf"]);
    home.says(&["operations", "wait", stops["id"].as_str().unwrap()]);
}
