//! The life of a machine, and what is inside it.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::home::Home;

#[test]
fn a_machine_lives_from_spawn_to_delete() {
    let home = Home::new();

    home.spawn_idle("one");
    let kernel = home.idle_kernel();
    home.says(&["create", "two", "--ram", "16M", "--label", "tier=db", "--kernel", kernel.to_str().unwrap()]);
    assert_eq!(home.says(&["list", "-o", "name"]), "one\ntwo\n");
    assert_eq!(home.says(&["list", "-o", "name", "-l", "tier=db"]), "two\n");
    assert_eq!(home.says(&["list", "-o", "name", "-s", "running"]), "one\n");
    assert!(home.says(&["list", "-l", "tier=none"]).starts_with("no machine fits"));
    assert_eq!((home.state("one"), home.state("two")), ("running".into(), "created".into()));

    home.says(&["pause", "one"]);
    assert_eq!(home.state("one"), "paused");
    home.says(&["resume", "one"]);
    home.says(&["set", "one", "--name", "first", "--label", "tier=web"]);
    assert_eq!(home.json(&["info", "first"])["spec"]["labels"]["tier"], "web");
    home.says(&["start", "two"]);
    home.says(&["kill", "first", "two"]);
    assert_eq!(home.says(&["list", "-o", "name", "-s", "stopped"]), "first\ntwo\n");
    home.says(&["delete", "first", "two"]);

    assert_eq!(home.says(&["list", "-o", "name"]), "");
    assert_eq!(fs::read_dir(home.path().join("vms")).unwrap().count(), 0, "something is left of the machines");
    let events = home.says(&["events", "-n", "1000"]);
    assert!(events.contains("virtual machine one was made") && events.contains("first was deleted"), "{events}");
}

#[test]
fn commands_and_files_go_into_a_guest_by_its_name() {
    let Some(home) = Home::with_linux() else { return };
    home.spawn("web", &["--vcpus", "2"]);

    // Commands: output, status, input.
    assert_eq!(home.shell("web", "hostname; nproc"), "web\n2\n");
    assert_eq!(home.output(&["exec", "web", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(home.output(&["exec", "web", "--", "no-such-program"]).status.code(), Some(127));
    let mut cat = home.command(&["exec", "web", "--", "cat"]);
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    cat.stdin.take().unwrap().write_all(b"through the guest").unwrap();
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"through the guest");

    // Files.
    let tree = home.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "contents").unwrap();
    home.says(&["copy", tree.to_str().unwrap(), "web:/tmp"]);
    assert_eq!(home.shell("web", "cat /tmp/tree/file"), "contents");
    let back = home.path().join("back");
    home.says(&["copy", "web:/tmp/tree", back.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(back.join("file")).unwrap(), "contents");

    // A guest that is asked to, stops; and is told from one that is not there.
    home.says(&["stop", "web", "--grace", "100"]);
    let ended = &home.json(&["info", "web"])["ended"];
    assert!(ended["message"].as_str().unwrap().contains("switched itself off"), "{ended}");
    let refused = home.output(&["exec", "web", "--", "true"]);
    assert_eq!(refused.status.code(), Some(125));
    assert!(crate::common::one_line(&refused).contains("queztl-hv start web"));
    assert!(home.says(&["logs", "web"]).contains("BusyBox"));
}
