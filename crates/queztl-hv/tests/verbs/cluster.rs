//! Daemons that are nodes of one cluster: by the commands that a person gives.

use std::time::Duration;

use crate::home::{Home, eventually, kill};

/// On any port of this host.
const LISTEN: [&str; 2] = ["--listen", "127.0.0.1:0"];

fn init(home: &Home, name: &str) {
    let said = home.says(&[&["node", "init", "--name", name], &LISTEN[..]].concat());
    assert!(said.starts_with(&format!("{name} at 127.0.0.1:")), "{said}");
}

fn token(home: &Home) -> String {
    home.says(&["node", "token"]).trim().to_owned()
}

fn join(home: &Home, token: &str, name: &str) {
    home.says(&[&["node", "join", token, "--name", name], &LISTEN[..]].concat());
}

/// The names and states of the nodes, as one of them sees them.
fn nodes(home: &Home) -> Vec<(String, String)> {
    let list = home.json(&["node", "list"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(|node| (text(&node["name"]), text(&node["state"]))).collect()
}

fn are_ready(home: &Home, names: &[&str]) {
    eventually("the nodes are ready", || {
        let wanted: Vec<(String, String)> = names.iter().map(|name| ((*name).into(), "ready".into())).collect();
        nodes(home) == wanted
    });
}

#[test]
fn machines_move_between_nodes_by_name_and_a_node_that_is_drained_is_empty() {
    let (a, b) = (Home::new(), Home::new());
    init(&a, "a");
    join(&b, &token(&a), "b");
    are_ready(&a, &["a", "b"]);
    are_ready(&b, &["a", "b"]);
    a.spawn_idle("one");

    let nowhere = a.refuses(&["migrate", "one", "--to", "c"]);
    assert!(nowhere.contains("there is no node \"c\"") && nowhere.contains("node list"), "{nowhere}");
    let itself = a.refuses(&["migrate", "one", "--to", "a"]);
    assert!(itself.contains("this node itself"), "{itself}");
    a.says(&["migrate", "one", "--to", "b"]);
    assert_eq!((a.says(&["list", "-o", "name"]), b.state("one")), (String::new(), "running".into()));

    let busy = b.refuses(&["node", "leave"]);
    assert!(busy.contains("machines are here: one"), "{busy}");
    // Told by another node.
    assert_eq!(a.says(&["node", "drain", "b"]), "one is at a now\n");
    assert_eq!((a.state("one"), b.says(&["list", "-o", "name"])), ("running".into(), String::new()));
    let drained = b.refuses(&["clone", "one"]);
    assert!(drained.contains("takes no new machines"), "{drained}");
    b.says(&["node", "ready"]);

    b.says(&["node", "leave"]);
    are_ready(&a, &["a"]);
    assert_eq!(nodes(&b), []);
    let alone = b.refuses(&["migrate", "one", "--to", "a"]);
    assert!(alone.contains("in no cluster") || alone.contains("no virtual machine"), "{alone}");
}

#[test]
fn a_machine_is_protected_by_nodes_that_the_cluster_chooses() {
    let (a, b) = (Home::new(), Home::new());
    init(&a, "a");
    join(&b, &token(&a), "b");
    are_ready(&a, &["a", "b"]);
    a.spawn_idle("one");

    let unsafe_register = a.refuses(&["protect", "one"]);
    assert!(unsafe_register.contains("at a alone") && unsafe_register.contains("--register"), "{unsafe_register}");
    let register = format!("file:{}", a.path().join("register").display());
    let too_few = a.refuses(&["protect", "one", "--backups", "2", "--register", &register]);
    assert!(too_few.contains("1 are ready"), "{too_few}");
    a.says(&["protect", "one", "--backups", "1", "--register", &register]);
    let told = a.json(&["protection", "one"]);
    assert_eq!(told["backups"][0]["to"], "b", "{told}");
    let copies = b.refuses(&["node", "leave"]);
    assert!(copies.contains("copies of other nodes' machines are kept here: one"), "{copies}");

    // The machine and its daemon die: b goes on.
    let machine = a.pid(&["info", "one"]);
    a.daemons().into_iter().for_each(kill);
    kill(machine);
    eventually("the next daemon answers", || a.output(&["list"]).status.success());
    eventually("the copy goes on", || b.state("one") == "running");
    // The old owner forgets it, and keeps the copy from now on: nobody has to say so.
    eventually("the copy is protected", || {
        let told = b.output(&["protection", "one", "-o", "json"]).stdout;
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap_or_default();
        told["state"] == "protected" && told["backups"][0]["to"] == "a"
    });
    assert_eq!(a.state("one"), "starting");
}

/// Whenever the daemon that joins is killed: it is a node afterwards, or can become one with the same token.
#[test]
fn a_daemon_that_is_killed_while_it_joins_is_a_node_or_none() {
    let (a, b) = (Home::new(), Home::new());
    init(&a, "a");
    let token = token(&a);
    b.says(&["list"]);
    for round in 0..5u64 {
        let mut joining = b.command(&[&["node", "join", &token, "--name", "b"], &LISTEN[..]].concat());
        let mut joining =
            joining.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(5 + 12 * round));
        b.daemons().into_iter().for_each(kill);
        joining.wait().unwrap();
        // Until it is gone, the one that was killed may still be met.
        eventually("the next daemon answers", || b.output(&["list"]).status.success());
        if nodes(&b).iter().any(|(name, _)| name == "b") || b.path().join("cluster").exists() {
            break;
        }
    }
    if !b.path().join("cluster").exists() {
        join(&b, &token, "b");
    }
    are_ready(&a, &["a", "b"]);
    are_ready(&b, &["a", "b"]);
}
