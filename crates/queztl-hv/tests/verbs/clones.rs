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
