//! Threads under their lists: a forbidden call ends the process and is reported, for every kind of thread; an allowed
//! one is carried out; a confined vCPU starts devices through the launcher.
//!
//! A filter cannot be taken off again, so each case runs in a process of its own: this program, started anew with the
//! case in an environment variable.

use std::process::{Command, Output};

use queztl_vmm::confine::{self, Kind, Mode, Report};

const CASE: &str = "QUEZTL_TEST_CONFINE";
const STATUS: u8 = 14;
const REPORT: Report = Report { program: "confine-test", status: STATUS, before: || () };
/// The exit status of a case that came to its end.
const SURVIVED: i32 = 3;

/// Runs `case` in a process of its own.
fn run(mode: &str, case: &str, kind: Kind) -> Output {
    let program = std::env::current_exe().unwrap();
    let case = format!("{mode} {case} {}", Kind::ALL.iter().position(|other| *other == kind).unwrap());
    Command::new(program).args(["--exact", "child", "--nocapture"]).env(CASE, case).output().unwrap()
}

/// Not a test of its own: the process that [`run`] starts.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let [mode, case, kind] = case.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let mode = match mode {
        "on" => Mode::On,
        "log" => Mode::Log,
        _ => Mode::Off,
    };
    let kind = Kind::ALL[kind.parse::<usize>().unwrap()];
    confine::start(mode, REPORT).unwrap();
    let thread = std::thread::spawn({
        let case = case.to_string();
        move || {
            confine::enter(kind);
            act(&case);
        }
    });
    thread.join().unwrap();
    std::process::exit(SURVIVED);
}

fn act(case: &str) {
    match case {
        "ptrace" => call(libc::SYS_ptrace, [libc::PTRACE_PEEKDATA.into(), 0, 0, 0]),
        "execve" => call(libc::SYS_execve, [c"/nonexistent".as_ptr() as i64, 0, 0, 0]),
        "open" => call(libc::SYS_openat, [libc::AT_FDCWD.into(), c"/dev/null".as_ptr() as i64, 0, 0]),
        "internet" => call(libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0]),
        "write-and-execute" => {
            let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            call(libc::SYS_mmap, [0, 4096, protection.into(), (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).into()])
        }
        "make-executable" => call(libc::SYS_mprotect, [0x1000, 4096, (libc::PROT_READ | libc::PROT_EXEC).into(), 0]),
        "signal-others" => call(libc::SYS_tgkill, [1, 1, 0, 0]),
        "fork" => call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0]),
        "ring" => call(libc::SYS_io_uring_setup, [0, 0, 0, 0]),
        "push-input" => call(libc::SYS_ioctl, [0, libc::TIOCSTI as i64, 0, 0]),
        "ordinary" => ordinary(),
        "launch" => assert_eq!(confine::on_launcher(|| std::thread::spawn(|| 7).join().unwrap()), 7),
        other => panic!("there is no case {other}"),
    }
}

fn call(number: i64, [a, b, c, d]: [i64; 4]) {
    // SAFETY: these arguments make every call fail or change nothing that this process uses; most do not get so far.
    unsafe { libc::syscall(number, a, b, c, d, -1, 0) };
}

/// What every thread does: memory, locks, time, log lines, randomness.
fn ordinary() {
    let big: Vec<u8> = vec![1; 8 << 20];
    let map: std::collections::HashMap<u8, usize> = [(big[5], big.len())].into();
    assert_eq!(map[&1], 8 << 20);
    std::thread::sleep(std::time::Duration::from_millis(1));
    std::thread::yield_now();
    assert!(std::time::Instant::now().elapsed() < std::time::Duration::from_secs(60));
    eprintln!("an ordinary line");
}

#[track_caller]
fn ends_reported(case: &str, kind: Kind, call: &str) {
    let output = run("on", case, kind);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(STATUS.into()), "{kind:?} {case}: {said}");
    let line = said.lines().last().unwrap_or_default();
    assert!(line.starts_with("confine-test: the "), "{line}");
    assert!(line.contains(kind.name()) && line.contains(call), "{kind:?} {case}: {line}");
}

#[test]
fn a_forbidden_call_ends_every_kind_of_thread_and_is_reported() {
    for kind in Kind::ALL {
        ends_reported("ptrace", kind, "ptrace (101)");
    }
}

#[test]
fn no_thread_starts_programs_or_opens_connections() {
    for kind in Kind::ALL {
        ends_reported("execve", kind, "execve (59)");
        ends_reported("internet", kind, "socket (41)");
    }
}

#[test]
fn only_the_threads_of_the_machine_and_of_snapshots_open_files() {
    for kind in Kind::ALL {
        match kind {
            Kind::Machine | Kind::Snapshot => assert_eq!(run("on", "open", kind).status.code(), Some(SURVIVED)),
            _ => ends_reported("open", kind, "openat (257)"),
        }
    }
}

#[test]
fn no_thread_has_memory_that_is_writable_and_executable() {
    for kind in [Kind::Machine, Kind::VcpuSoft, Kind::VcpuKvm, Kind::Block] {
        ends_reported("write-and-execute", kind, "mmap (9)");
        ends_reported("make-executable", kind, "mprotect (10)");
    }
}

#[test]
fn arguments_count() {
    ends_reported("signal-others", Kind::VcpuKvm, "tgkill (234)");
    ends_reported("fork", Kind::Machine, "clone (56)");
    ends_reported("fork", Kind::Launcher, "clone (56)");
    ends_reported("push-input", Kind::Signals, "ioctl (16)");
    ends_reported("ring", Kind::Block, "io_uring_setup (425)");
}

#[test]
fn ordinary_work_is_allowed_everywhere() {
    for kind in Kind::ALL {
        let output = run("on", "ordinary", kind);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(SURVIVED), "{kind:?}: {said}");
        assert!(said.contains("an ordinary line"), "{said}");
    }
}

#[test]
fn vcpus_have_threads_started_by_the_launcher() {
    for kind in [Kind::VcpuSoft, Kind::VcpuKvm] {
        let output = run("on", "launch", kind);
        assert_eq!(output.status.code(), Some(SURVIVED), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn log_and_off_go_on() {
    for mode in ["log", "off"] {
        assert_eq!(run(mode, "internet", Kind::VcpuSoft).status.code(), Some(SURVIVED), "{mode}");
    }
}

/// Records of the audit log about this test program's calls of `socket`; `None` where the host does not show them.
fn records() -> Option<usize> {
    let logged = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_logged").ok()?;
    let output = std::process::Command::new("dmesg").output().ok().filter(|output| output.status.success())?;
    let program = std::env::current_exe().ok()?.display().to_string();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let shown = logged.split_whitespace().any(|action| action == "log") && text.contains("audit: ");
    let is_ours = |line: &&str| line.contains("type=1326") && line.contains(" syscall=41 ") && line.contains(&program);
    shown.then(|| text.lines().filter(is_ours).count())
}

#[test]
fn what_log_lets_pass_is_in_the_audit_log() {
    let Some(before) = records() else {
        return println!("skipped: the kernel's audit log is not shown by dmesg here");
    };
    run("log", "internet", Kind::VcpuSoft);
    let is_there = || records().is_some_and(|now| now > before);
    let found = (0..200).any(|_| {
        is_there() || {
            std::thread::sleep(std::time::Duration::from_millis(10));
            false
        }
    });
    assert!(found, "no record of the call");
}
