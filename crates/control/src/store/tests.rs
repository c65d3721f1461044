use proptest::prelude::*;
use queztl_api::{Code, EventKind, Name, Problem};

use super::*;
use crate::images::ImageRecord;

fn record(size_bytes: u64) -> ImageRecord {
    let name: Name = "one".parse().unwrap();
    let created_at = Timestamp::now();
    ImageRecord { name, format: queztl_api::ImageFormat::Raw, size_bytes, backing: None, created_at }
}

fn event(change: &mut Change<'_>) -> std::result::Result<(), Problem> {
    Ok(change.event(EventKind::DaemonStarted, "begun")?)
}

#[test]
fn a_change_is_there_as_a_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();

    let failed = store.write(|change| {
        change.put(IMAGES, "one", &record(1))?;
        event(change)?;
        Err::<(), _>(Problem::new(Code::State, "no"))
    });

    assert_eq!(failed.unwrap_err().code, Code::State);
    assert!(store.get(IMAGES, "one").unwrap().is_none());
    assert!(store.last_events(10).unwrap().is_empty());
    assert_eq!(*store.watch_events().borrow(), 0);
}

#[test]
fn what_was_written_is_there_after_the_store_was_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store
        .write(|change| {
            change.put(IMAGES, "one", &record(7))?;
            event(change)?;
            event(change)
        })
        .unwrap();
    drop(store);

    let store = Store::open(folder.path()).unwrap();

    assert_eq!(store.get(IMAGES, "one").unwrap().unwrap().size_bytes, 7);
    store.write(event).unwrap();
    let numbers: Vec<u64> = store.last_events(10).unwrap().iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, [1, 2, 3]);
}

/// A copy of the file at any moment is what a daemon that was killed then has left.
#[test]
fn a_store_whose_daemon_was_killed_has_all_that_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let store = Store::open(&home).unwrap();
    let copies: Vec<_> = (0..20u64)
        .map(|round| {
            store
                .write(|change| {
                    change.put(IMAGES, "one", &record(round))?;
                    event(change)
                })
                .unwrap();
            let copy = folder.path().join(format!("copy{round}"));
            std::fs::create_dir(&copy).unwrap();
            std::fs::copy(home.join("manager.redb"), copy.join("manager.redb")).unwrap();
            (round, copy)
        })
        .collect();

    for (round, copy) in copies {
        let store = Store::open(&copy).unwrap();
        assert_eq!(store.get(IMAGES, "one").unwrap().unwrap().size_bytes, round);
        assert_eq!(store.last_events(100).unwrap().len() as u64, round + 1);
    }
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let database = store.database.write().unwrap().take().unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("schema", SCHEMA + 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    drop(store);
    let before = std::fs::read(folder.path().join("manager.redb")).unwrap();

    let refused = Store::open(folder.path()).unwrap_err();

    assert!(matches!(refused, StoreError::Newer { found, .. } if found == SCHEMA + 1), "{refused}");
    assert_eq!(std::fs::read(folder.path().join("manager.redb")).unwrap().len(), before.len());
}

#[test]
fn what_is_no_store_is_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("manager.redb"), vec![b'x'; 100_000]).unwrap();

    let refused = Store::open(folder.path()).unwrap_err();

    assert!(matches!(refused, StoreError::Open { .. }), "{refused}");
}

#[test]
fn a_second_daemon_is_told_who_has_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();

    let refused = Store::open(folder.path()).unwrap_err();

    assert!(matches!(&refused, StoreError::InUse { pid, .. } if *pid == std::process::id().to_string()), "{refused}");
    drop(store);
    Store::open(folder.path()).unwrap();
}

#[test]
fn only_so_many_events_are_kept_and_they_have_no_gaps() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.write(|change| (0..MAX_EVENTS + 5).try_for_each(|_| event(change))).unwrap();

    let first = store.events_from(0).unwrap();

    assert_eq!((first[0].sequence, first.len()), (6, EVENT_BATCH));
    assert!(first.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1));
    assert_eq!(store.last_events(3).unwrap().last().unwrap().sequence, MAX_EVENTS + 5);
}

#[test]
fn a_history_is_forgotten_after_its_time_and_with_its_machine() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let point = |vm: &str, at| (vm.to_owned(), at, vec![at as u8]);
    store.add_history(&[point("a", 1), point("b", 1), point("a", 2), point("a", 3)], 2).unwrap();

    let times = |vm: &str, from, to| -> Vec<i64> {
        store.history(vm, from, to).unwrap().into_iter().map(|(at, _)| at).collect()
    };
    assert_eq!((times("a", 0, 9), times("a", 3, 3), times("a", 9, 0)), (vec![2, 3], vec![3], vec![]));
    store.write(|change| Ok(change.forget_history("a")?)).unwrap();
    assert_eq!((times("a", 0, 9), times("b", 0, 9)), (vec![], vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A damaged file is refused, or read; it is never a reason to end.
    #[test]
    fn a_damaged_file_does_no_more_harm_than_an_error(place in 0usize..200_000, value: u8) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.write(|change| Ok(change.put(IMAGES, "one", &record(7))?)).unwrap();
        drop(store);
        let path = folder.path().join("manager.redb");
        let mut bytes = std::fs::read(&path).unwrap();
        let place = place % bytes.len();
        bytes[place] = value;
        std::fs::write(&path, bytes).unwrap();
        let opened = std::panic::catch_unwind(|| Store::open(folder.path()).map(|store| store.list(IMAGES).map(drop)));
        prop_assert!(opened.is_ok(), "a panic for byte {place}");
    }
}
