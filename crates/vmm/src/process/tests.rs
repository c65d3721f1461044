use std::fs;
use std::path::PathBuf;

use super::*;
use crate::config::{MachineConfig, Outcome};

fn config() -> MachineConfig {
    serde_json::from_str(r#"{"kernel":"vmlinux","ram_bytes":67108864}"#).unwrap()
}

fn folder() -> (tempfile::TempDir, Folder) {
    let directory = tempfile::tempdir().unwrap();
    let folder = Folder::new(directory.path());
    (directory, folder)
}

#[test]
fn a_machine_file_comes_back_as_it_was_written() {
    let (_directory, folder) = folder();
    let identity = Some(Identity { generation_id: [0xab; 16], macs: vec!["02:00:00:00:00:01".parse().unwrap()] });
    let starts = [
        Start::Boot,
        Start::Restore { snapshot: "snapshots/a".into(), identity: identity.clone() },
        Start::Fork { state: "/x".into(), memory: vec![7, 9], identity },
    ];
    for start in starts {
        let sandbox = Sandbox { mode: SandboxMode::Required, read: vec!["/images".into()], write: vec!["/w".into()] };
        let file = MachineFile { start, sandbox, seccomp: crate::confine::Mode::Log, ..MachineFile::new(config()) };
        file.write(&folder.machine()).unwrap();
        assert_eq!(MachineFile::read(&folder.machine()).unwrap(), file);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_machine_file_needs_a_version_and_a_machine() {
    let (_directory, folder) = folder();
    let path = folder.machine();
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        MachineFile::read(&path)
    };
    let machine = r#""config":{"kernel":"k","ram_bytes":4194304}"#;
    assert_eq!(read(&format!(r#"{{"version":1,{machine}}}"#)).unwrap().start, Start::Boot);
    assert!(matches!(
        read(&format!(r#"{{"version":2,{machine},"new":1}}"#)),
        Err(FileError::Version { version: 2, .. })
    ));
    for wrong in ["", "{}", r#"{"version":1}"#, &format!(r#"{{"version":1,{machine},"colour":1}}"#)] {
        assert!(matches!(read(wrong), Err(FileError::Content { .. })), "{wrong}");
    }
    let id = |digits: &str| {
        let start = format!(r#""start":{{"restore":{{"snapshot":"s","identity":{{"generation_id":"{digits}"}}}}}}"#);
        read(&format!(r#"{{"version":1,{machine},{start}}}"#)).is_ok()
    };
    assert!(id(&"0f".repeat(16)));
    assert!(!id(&"0f".repeat(15)) && !id(&"xx".repeat(16)));
    assert!(matches!(read(&" ".repeat(2 << 20)), Err(FileError::Size { .. })));
    fs::remove_file(&path).unwrap();
    assert!(matches!(MachineFile::read(&path), Err(FileError::Read { .. })));
}

#[test]
fn one_process_at_a_time_runs_a_machine_and_is_found_by_its_lock() {
    let (_directory, folder) = folder();
    assert_eq!(folder.runner().unwrap(), None);
    let lock = folder.lock().unwrap();
    assert!(matches!(folder.lock(), Err(LockError::Running(_))));
    assert_eq!(folder.runner().unwrap(), Some(lock.process()));
    assert_eq!(lock.process().pid, std::process::id());
    assert!(lock.process().exists());
    assert!(!ProcessId { start_ticks: lock.process().start_ticks + 1, ..lock.process() }.exists());
    drop(lock);
    assert_eq!(folder.runner().unwrap(), None);
    assert!(folder.lock().is_ok());
    assert!(matches!(Folder::new("/nonexistent").lock(), Err(LockError::Io { .. })));
}

#[test]
fn a_machine_can_be_taken_for_a_process_that_is_about_to_be() {
    let (_directory, folder) = folder();
    let taken = folder.reserve().unwrap();
    assert!(matches!(folder.lock(), Err(LockError::Running(_))));
    assert_eq!(folder.runner().unwrap().map(|process| process.pid), Some(0));
    let inherited = taken.try_clone().unwrap();
    drop(taken);

    let lock = folder.lock_inherited(inherited).unwrap();

    assert_eq!(folder.runner().unwrap(), Some(lock.process()));
    let (_elsewhere, other) = self::folder();
    let stranger = other.reserve().unwrap();
    assert!(matches!(folder.lock_inherited(stranger), Err(LockError::Io { .. })));
}

#[test]
fn an_exit_report_is_there_as_a_whole_or_not_at_all() {
    let (_directory, folder) = folder();
    let path = folder.exit();
    assert_eq!(ExitReport::read(&path).unwrap(), None);
    let process = ProcessId::own().unwrap();
    let message = Some("ä".repeat(5000));
    for report in
        [ExitReport::now(Some(Outcome::DebugExit(5)), 11, None, process), ExitReport::now(None, 4, message, process)]
    {
        report.write(&path).unwrap();
        assert_eq!(ExitReport::read(&path).unwrap(), Some(report));
    }
    fs::write(&path, "{\"outcome\":").unwrap();
    assert!(ExitReport::read(&path).is_err());
}

#[test]
fn a_log_keeps_its_last_lines_and_a_bounded_size() {
    let (_directory, folder) = folder();
    let log = LogFile::open(&folder.log()).unwrap();
    let line = |number: u32| format!("{number:0>99}\n").into_bytes();
    let mut long = 0;
    for number in 0..30_000 {
        long += u32::from(log.append(&line(number)).unwrap());
    }
    assert!(long > 0 && log.is_long());
    assert!(fs::metadata(folder.log()).unwrap().len() <= 2 << 20);

    log.shorten().unwrap();
    assert!(!log.append(&line(77_777)).unwrap());

    let kept = fs::read(folder.log()).unwrap();
    assert!(kept.len() <= 300 << 10 && kept.len().is_multiple_of(100) && kept.ends_with(&line(77_777)));
    drop(log);
    fs::write(folder.log(), vec![b'x'; 3 << 20]).unwrap();
    assert!(!LogFile::open(&folder.log()).unwrap().is_long());
}

#[test]
fn everything_lies_in_the_machines_directory() {
    let folder = Folder::new("/vms/a");
    let inside = |path: PathBuf| path.starts_with("/vms/a");
    assert!(inside(folder.machine()) && inside(folder.control()) && inside(folder.console()) && inside(folder.vsock()));
    assert_eq!(Folder::new("").control(), PathBuf::from("control.sock"));
}
