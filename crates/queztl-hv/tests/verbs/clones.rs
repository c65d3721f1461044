//! Snapshots and clones: what each machine has in memory and on its disk.

use crate::home::Home;

#[test]
fn snapshots_and_clones_keep_memory_and_disks_apart() {
    let Some(home) = Home::with_linux() else { return };
    let marks = |vm: &str| home.shell(vm, "cat /tmp/mark; head -c 4 /dev/vda; echo; hostname");
    let mark = |vm: &str, text: &str| home.shell(vm, &format!("echo {text} >/tmp/mark; printf {text} >/dev/vda; sync"));
    home.spawn("linux-dev-1", &["--disk", "size=64M"]);
    mark("linux-dev-1", "then");

    assert_eq!(home.says(&["snapshot", "linux-dev-1", "--name", "clean-state"]), "clean-state\n");
    mark("linux-dev-1", "now1");
    let clones = home.says(&["clone", "linux-dev-1", "--count", "3"]);
    assert_eq!(clones, "linux-dev-1-1\nlinux-dev-1-2\nlinux-dev-1-3\n");
    assert_eq!(home.says(&["clone", "linux-dev-1", "--snapshot", "clean-state", "--name", "old"]), "old\n");
    mark("linux-dev-1", "late");
    mark("linux-dev-1-1", "mine");
    assert_eq!(home.says(&["clone", "linux-dev-1-1", "--name", "grandchild"]), "grandchild\n");
    home.says(&["snapshot", "linux-dev-1", "--name", "second", "--incremental"]);

    assert_eq!(marks("linux-dev-1-1"), "mine\nmine\nlinux-dev-1-1\n");
    assert_eq!(marks("linux-dev-1-2"), "now1\nnow1\nlinux-dev-1-2\n");
    assert_eq!(marks("old"), "then\nthen\nold\n");
    assert_eq!(marks("grandchild"), "mine\nmine\ngrandchild\n");
    assert_eq!(marks("linux-dev-1"), "late\nlate\nlinux-dev-1\n");
    assert!(home.says(&["info", "old"]).contains("linux-dev-1 at clean-state"));
    assert_eq!(home.says(&["snapshots", "linux-dev-1", "-o", "name"]), "clean-state\nsecond\n");

    // Back to each, and one that others build on stays.
    home.says(&["restore", "linux-dev-1", "clean-state"]);
    assert_eq!(marks("linux-dev-1"), "then\nthen\nlinux-dev-1\n");
    home.says(&["restore", "linux-dev-1", "second"]);
    assert_eq!(marks("linux-dev-1"), "late\nlate\nlinux-dev-1\n");
    let refused = home.refuses(&["snapshot", "delete", "linux-dev-1", "clean-state"]);
    assert!(refused.contains("\"second\""), "{refused}");

    // A parent may go before its children.
    home.says(&["delete", "--force", "linux-dev-1"]);
    assert_eq!(marks("linux-dev-1-3"), "now1\nnow1\nlinux-dev-1-3\n");
    assert_eq!(marks("old"), "then\nthen\nold\n");
}

#[test]
fn snapshots_with_damaged_memory_are_found() {
    // Arrange: two snapshots that build on each other, and one that stands alone.
    let home = Home::new();
    home.spawn_idle("one");
    for (name, more) in [("first", None), ("second", Some("--incremental")), ("third", None)] {
        home.says(&[&["snapshot", "one", "--name", name][..], more.as_slice()].concat());
    }
    assert_eq!(home.says(&["snapshots", "one", "--check"]), "first: sound\nsecond: sound\nthird: sound\n");
    let id = home.json(&["info", "one"])["id"].as_str().unwrap().to_owned();
    let memory = home.path().join("vms").join(id).join("snapshots/first/memory");
    let mut bytes = std::fs::read(&memory).unwrap();
    let place = bytes.iter().position(|byte| *byte != 0).unwrap();
    bytes[place] ^= 1;
    std::fs::write(&memory, bytes).unwrap();

    let output = home.output(&["snapshots", "one", "--check"]);

    assert_eq!(
        (output.status.code(), String::from_utf8(output.stdout).unwrap()),
        (Some(2), "third: sound\n".to_owned())
    );
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("first/memory") && told.contains("second: ") && told.contains("checksum"), "{told}");
}
