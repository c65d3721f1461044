//! What every store of registers promises.

use queztl_distributed_ram::Register;

use super::{Entry, EtcdStore, FileStore, Store};

/// Of one store, seen by two daemons.
fn conforms(one: &dyn Store, other: &dyn Store) {
    let first = Entry::new(Register::new(0), 1000);
    assert_eq!(one.read("group").unwrap(), None);
    assert!(!one.swap("group", Some(&first), &first.next(Register::new(0))).unwrap(), "there is nothing to change");
    assert!(one.swap("group", None, &first).unwrap());
    assert!(!other.swap("group", None, &first).unwrap(), "it is there already");
    assert_eq!(other.read("group").unwrap().as_ref(), Some(&first));
    assert_eq!(other.read("another").unwrap(), None);

    let renewed = first.next(first.register.clone());
    assert!(one.swap("group", Some(&first), &renewed).unwrap());
    assert!(!other.swap("group", Some(&first), &first.next(Register::new(7))).unwrap(), "a late claim");
    assert_eq!(other.read("group").unwrap(), Some(renewed));
    counts_each_change_once(one, other);
}

/// Many change the value at once; nobody's change is lost.
fn counts_each_change_once(one: &dyn Store, other: &dyn Store) {
    let start = Entry::new(Register::new(0), 1000);
    assert!(one.swap("count", None, &start).unwrap());
    let add = |store: &dyn Store| {
        for _ in 0..50 {
            loop {
                let before = store.read("count").unwrap().unwrap();
                if store.swap("count", Some(&before), &before.next(before.register.clone())).unwrap() {
                    break;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for store in [one, other, one, other] {
            scope.spawn(move || add(store));
        }
    });
    assert_eq!(one.read("count").unwrap().unwrap().renewal, 200);
}

#[test]
fn files_conform() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made when it is needed");
    conforms(&FileStore::new(&path), &FileStore::new(&path));
}

#[test]
fn a_file_that_is_something_else_is_no_register() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("group.json"), "{\"term\":1}").unwrap();
    let store = FileStore::new(folder.path());
    assert!(store.read("group").unwrap_err().to_string().contains("something else"));
    assert!(store.swap("group", None, &Entry::new(Register::new(0), 1000)).is_err());
}

#[test]
fn etcd_conforms() {
    let Some(etcd) = crate::etcd::fixture::Server::start() else { return };
    // One that is not there does no harm.
    let one = EtcdStore::new(&format!("127.0.0.1:1,{}", etcd.address)).unwrap();
    let other = EtcdStore::new(&etcd.address).unwrap();
    conforms(&one, &other);
}

#[test]
fn an_etcd_that_is_not_there_is_no_empty_register() {
    let nobody = EtcdStore::new("127.0.0.1:1").unwrap();
    assert!(nobody.read("group").is_err());
    assert!(nobody.swap("group", None, &Entry::new(Register::new(0), 1000)).is_err());
    for address in ["", "host", "host:port", ":1", "ho/st:1", "host:1,"] {
        assert!(EtcdStore::new(address).is_none(), "{address}");
    }
}

#[test]
fn a_number_belongs_to_one_node_for_ever() {
    let mut entry = Entry::new(Register::new(0), 1000);
    assert_eq!(entry.take_numbers(2), [1, 2]);
    entry.register = entry.register.protect(0, 1, [1, 2].into(), 1).unwrap().claim(2).unwrap().take_over(2, 2).unwrap();

    let mut after = entry.next(entry.register.clone());

    assert_eq!((after.renewal, after.take_numbers(1), after.take_numbers(0)), (1, vec![3], vec![]));
    // One that was written before numbers were counted.
    after.next_node = 0;
    assert_eq!(after.take_numbers(1), [3]);
}
