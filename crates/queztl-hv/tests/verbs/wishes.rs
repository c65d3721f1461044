//! Wishes that cannot be granted: one line that says what to do, status 2, and nothing made.

use crate::home::Home;

#[test]
fn wrong_names_values_and_states_are_told() {
    let home = Home::new();
    home.spawn_idle("one");
    let cases: &[(&[&str], &str)] = &[
        (&["spawn", "../evil"], "is no name"),
        (&["spawn", "one"], "already"),
        (&["spawn", "x", "--image", "missing"], "queztl-hv image list"),
        (&["spawn", "x", "--disk", "/no/such/disk"], "/no/such/disk"),
        (&["spawn", "x", "--kernel", "/no/such/kernel"], "/no/such/kernel"),
        (&["spawn", "x", "--ram", "1T"], "512 GiB"),
        (&["spawn"], "queztl-hv spawn --help"),
        (&["info", "missing"], "queztl-hv list"),
        (&["delete", "../x"], "is no name"),
        (&["delete", "one"], "runs"),
        (&["start", "one"], "runs already"),
        (&["resume", "one"], "runs already"),
        (&["restore", "one", "missing"], "no snapshot"),
        (&["limits", "one", "--rate", "disk7=bps=1M"], "no such device"),
        (&["limits", "one", "--pin", "0=4000"], "4000"),
        (&["operations", "wait", "missing"], "no operation"),
        (&["image", "import", "x", "/no/such/file"], "/no/such/file"),
        (&["list", "--state", "asleep"], "running"),
        (&["list", "--address", "nowhere"], "unix:/path"),
        (&["copy", "a", "b"], "VM:"),
    ];
    for (words, wanted) in cases {
        let line = home.refuses(words);
        assert!(line.contains(wanted), "{words:?}: {line}");
    }
    home.says(&["kill", "one"]);
    for (words, wanted) in [
        (&["console", "one"][..], "queztl-hv start one"),
        (&["copy", "one:/x", "."], "queztl-hv start one"),
        (&["snapshot", "one"], "start it first"),
        (&["clone", "one"], "start it first"),
        (&["stop", "one"], "start it first"),
    ] {
        let line = home.refuses(words);
        assert!(line.contains(wanted), "{words:?}: {line}");
    }

    assert_eq!(home.says(&["list", "-o", "name"]), "one\n");
}
