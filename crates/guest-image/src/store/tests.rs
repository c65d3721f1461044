use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path()).unwrap();
    (directory, store)
}

fn place(variables: &'static [(&'static str, &'static str)], is_root: bool) -> Option<PathBuf> {
    let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value));
    location(find, is_root)
}

#[test]
fn queztl_home_comes_first_then_root_then_xdg_then_home() {
    let all = &[("QUEZTL_HOME", "/q"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")];
    assert_eq!(place(all, true), Some("/q".into()));
    assert_eq!(place(&[("HOME", "/h")], true), Some("/var/lib/queztl".into()));
    assert_eq!(place(&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")], false), Some("/x/queztl".into()));
    assert_eq!(place(&[("HOME", "/h")], false), Some("/h/.local/share/queztl".into()));
    assert_eq!(place(&[], false), None);
}

#[test]
fn an_artefact_is_made_once() {
    let (_directory, store) = store();
    let made = AtomicU32::new(0);
    let make = |path: &Path| {
        made.fetch_add(1, Ordering::Relaxed);
        fs::write(path.join("file"), b"content").map_err(Error::io("write", path))
    };

    let first = store.get_or_make(Kind::Kernels, "k", make).unwrap();
    let second = store.get_or_make(Kind::Kernels, "k", make).unwrap();

    assert_eq!(first, second);
    assert_eq!(made.load(Ordering::Relaxed), 1);
    assert_eq!(fs::read(first.join("file")).unwrap(), b"content");
}

#[test]
fn threads_that_want_the_same_artefact_make_it_once() {
    let (_directory, store) = store();
    let made = AtomicU32::new(0);

    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let make = |_: &Path| {
                    made.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    Ok(())
                };
                store.get_or_make(Kind::Kernels, "k", make).unwrap();
            });
        }
    });

    assert_eq!(made.load(Ordering::Relaxed), 1);
}

#[test]
fn a_failed_build_leaves_nothing_and_can_be_repeated() {
    let (_directory, store) = store();
    let fail = |path: &Path| {
        fs::write(path.join("half"), b"").unwrap();
        Err(Error::NoHome)
    };

    let failed = store.get_or_make(Kind::Kernels, "k", fail);

    assert!(matches!(failed, Err(Error::NoHome)));
    assert!(store.find(Kind::Kernels, "k").is_none());
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    store.get_or_make(Kind::Kernels, "k", |_| Ok(())).unwrap();
}

#[test]
fn leavings_of_a_killed_build_are_swept_but_not_work_in_progress() {
    let (_directory, store) = store();
    fs::create_dir(store.root().join("tmp/kernels-dead")).unwrap();
    fs::create_dir(store.root().join("tmp/kernels-alive")).unwrap();
    let _held = store.lock("kernels-alive").unwrap();

    Store::at(store.root()).unwrap();

    assert!(!store.root().join("tmp/kernels-dead").exists());
    assert!(store.root().join("tmp/kernels-alive").exists());
}
