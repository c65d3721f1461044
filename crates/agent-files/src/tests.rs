use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use queztl_agent_protocol::{Entry, EntryKind, Message, RelativePath, Summary, Time};
use tempfile::{TempDir, tempdir};

use super::*;

fn messages(root: &Path) -> (Vec<Message>, Summary) {
    let mut messages = Vec::new();
    let summary = send::<Error>(root, |message| {
        messages.push(message);
        Ok(())
    });
    (messages, summary.unwrap())
}

fn receive(messages: &[Message], destination: &Path, policy: Policy) -> Result<Summary, Error> {
    let mut receiver = Receiver::new(destination, OsStr::new("name"), policy);
    for message in messages {
        match message {
            Message::Entry(entry) => receiver.entry(entry)?,
            Message::Data { bytes, .. } => receiver.data(bytes)?,
            other => panic!("{other:?} is no part of a tree"),
        }
    }
    receiver.finish()
}

fn entry(path: &str, kind: EntryKind) -> Message {
    let path = RelativePath::new(path.as_bytes()).unwrap();
    Message::Entry(Entry { path, mode: 0o755, modified: Time::default(), kind })
}

fn directory(path: &str) -> Message {
    entry(path, EntryKind::Directory)
}

fn link(path: &str, target: &str) -> Message {
    entry(path, EntryKind::Link { target: target.into() })
}

fn file(path: &str, content: &str) -> Vec<Message> {
    let size = content.len() as u64;
    vec![entry(path, EntryKind::File { size }), Message::Data { stream: 3, bytes: content.into() }]
}

fn sample() -> TempDir {
    let folder = tempdir().unwrap();
    let root = folder.path().join("tree");
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    fs::write(root.join("sub/large"), vec![7; 200_000]).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    symlink("sub/large", root.join("link")).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o4640)).unwrap();
    fs::set_permissions(root.join("sub/deep"), fs::Permissions::from_mode(0o500)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_000_000);
    fs::File::options().write(true).open(root.join("sub/large")).unwrap().set_modified(time).unwrap();
    folder
}

#[test]
fn a_tree_arrives_as_it_was() {
    let source = sample();
    let target = tempdir().unwrap();
    let (messages, sent) = messages(&source.path().join("tree"));

    let received = receive(&messages, &target.path().join("copy"), Policy::TRUSTING).unwrap();

    let copy = target.path().join("copy");
    assert_eq!(received, sent);
    assert_eq!(received, Summary { entries: 6, bytes: 200_000, skipped: 0 });
    assert_eq!(fs::read(copy.join("sub/large")).unwrap(), vec![7; 200_000]);
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("sub/large"));
    assert_eq!(fs::metadata(copy.join("empty")).unwrap().mode() & 0o7777, 0o4640);
    assert_eq!(fs::metadata(copy.join("sub/deep")).unwrap().mode() & 0o7777, 0o500);
    let large = fs::metadata(copy.join("sub/large")).unwrap();
    assert_eq!((large.mtime(), large.mtime_nsec()), (1_000_000_000, 123_000_000));
}

#[test]
fn set_user_id_does_not_come_from_a_wary_copy() {
    let source = sample();
    let target = tempdir().unwrap();
    let (messages, _) = messages(&source.path().join("tree"));

    receive(&messages, &target.path().join("copy"), Policy::WARY).unwrap();

    assert_eq!(fs::metadata(target.path().join("copy/empty")).unwrap().mode() & 0o7777, 0o640);
}

#[test]
fn a_directory_takes_the_tree_under_its_name() {
    let target = tempdir().unwrap();
    receive(&file("", "one"), target.path(), Policy::WARY).unwrap();
    assert_eq!(fs::read(target.path().join("name")).unwrap(), b"one");
}

#[test]
fn a_file_replaces_what_had_its_name_and_not_what_that_led_to() {
    let target = tempdir().unwrap();
    let outside = target.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    fs::create_dir(target.path().join("t")).unwrap();
    symlink(&outside, target.path().join("t/name")).unwrap();

    receive(&file("", "new"), &target.path().join("t"), Policy::WARY).unwrap();

    assert_eq!(fs::read(target.path().join("t/name")).unwrap(), b"new");
    assert_eq!(fs::read(&outside).unwrap(), b"untouched");
}

#[test]
fn links_do_not_lead_a_copy_out_of_its_destination() {
    let target = tempdir().unwrap();
    let outside = target.path().join("outside");
    fs::create_dir(&outside).unwrap();
    // A link that is there already, and one that a trusted sender makes.
    fs::create_dir(target.path().join("copy")).unwrap();
    symlink(&outside, target.path().join("copy/old")).unwrap();
    let by_old = [vec![directory("")], file("old/x", "bad")].concat();
    let by_new = [vec![directory(""), link("new", outside.to_str().unwrap())], file("new/x", "bad")].concat();
    let through_directory = [directory(""), directory("old")].into_iter().chain(file("old/x", "bad"));

    let receiver_of = |messages: &[Message]| {
        let mut receiver = Receiver::new(target.path(), OsStr::new("copy"), Policy::TRUSTING);
        messages.iter().try_for_each(|message| match message {
            Message::Entry(entry) => receiver.entry(entry),
            Message::Data { bytes, .. } => receiver.data(bytes),
            _ => Ok(()),
        })
    };
    assert!(matches!(receiver_of(&by_old), Err(Error::Io { .. })));
    assert!(matches!(receiver_of(&by_new), Err(Error::Io { .. })));
    assert!(matches!(receiver_of(&through_directory.collect::<Vec<_>>()), Err(Error::Io { .. })));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn links_that_lead_out_are_left_out() {
    let target = tempdir().unwrap();
    let tree = [
        directory(""),
        directory("a"),
        link("a/up", "../b"),
        link("a/out", "../../b"),
        link("absolute", "/etc/passwd"),
        link("winding", "a/../../x"),
        link("here", "."),
    ];

    let summary = receive(&tree, &target.path().join("copy"), Policy::WARY).unwrap();

    assert_eq!(summary, Summary { entries: 4, bytes: 0, skipped: 3 });
    let copy = target.path().join("copy");
    assert!(copy.join("a/up").is_symlink() && copy.join("here").is_symlink());
    assert!(!copy.join("a/out").is_symlink() && !copy.join("absolute").is_symlink());
    assert!(!copy.join("winding").is_symlink());
}

#[test]
fn a_sender_that_breaks_the_order_is_refused() {
    let size = |size| EntryKind::File { size };
    let cases: [(&str, Vec<Message>); 9] = [
        ("nothing", vec![]),
        ("a link for a root", vec![link("", "sibling")]),
        ("no root", vec![directory("a")]),
        ("two roots", vec![directory(""), directory("")]),
        ("below a file", [file("", "x"), file("a", "y")].concat()),
        ("too little", vec![entry("", size(9)), Message::Data { stream: 3, bytes: vec![1; 8] }]),
        ("too much", vec![entry("", size(9)), Message::Data { stream: 3, bytes: vec![1; 10] }]),
        ("data for no file", vec![directory(""), Message::Data { stream: 3, bytes: vec![1] }]),
        ("entry in a file", vec![directory(""), entry("a", size(9)), directory("b")]),
    ];
    for (name, messages) in cases {
        let target = tempdir().unwrap();
        let result = receive(&messages, &target.path().join("copy"), Policy::WARY);
        assert!(matches!(result, Err(Error::Peer(_))), "{name}: {result:?}");
        assert!(!target.path().join("copy").is_symlink(), "{name}");
        let left = fs::read_dir(target.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count();
        assert_eq!(left, usize::from(name == "below a file"), "{name}: a half file was left");
    }
}

#[test]
fn limits_hold() {
    let target = tempdir().unwrap();
    let few = Policy { max_entries: 2, max_bytes: 10, ..Policy::WARY };
    let many = [directory(""), directory("a"), directory("b")];
    let large = [entry("", EntryKind::File { size: 11 })];
    let sums = [directory(""), entry("a", EntryKind::File { size: u64::MAX })];

    assert!(matches!(receive(&many, &target.path().join("a"), few.clone()), Err(Error::Entries(2))));
    assert!(matches!(receive(&large, &target.path().join("b"), few.clone()), Err(Error::Bytes(10))));
    assert!(matches!(receive(&sums, &target.path().join("c"), few), Err(Error::Bytes(10))));
}

#[test]
fn pipes_and_sockets_are_left_out_and_not_waited_for() {
    let folder = tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());

    let (messages, summary) = messages(folder.path());

    assert_eq!(messages.len(), 1);
    assert_eq!(summary.skipped, 2);
    assert!(matches!(send::<Error>(&pipe, |_| Ok(())), Err(Error::Kind(_))));
}

#[test]
fn a_file_without_a_size_is_read_to_its_end() {
    let (messages, summary) = messages(Path::new("/proc/self/status"));
    assert!(summary.bytes > 100);
    assert!(
        matches!(&messages[0], Message::Entry(Entry { kind: EntryKind::File { size }, .. }) if *size == summary.bytes)
    );
}
