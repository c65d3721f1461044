//! The KVM accelerator as a user meets it: guests of `guest/tests` on the host's KVM, and what is said where there is
//! none. Hosts that emulate ring 0 run the topics whose instructions and ring changes they get right, others all.

mod common;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{guest, one_line, queztl};
use queztl_system_tests::{BuildError, Guest, Machine};
use queztl_vmm::accel::probe::KvmSupport;

const LIMIT: Duration = Duration::from_secs(240);

/// The host's KVM, or a line about why there is none.
fn kvm() -> Option<KvmSupport> {
    match KvmSupport::probe() {
        KvmSupport::Missing(reason) => {
            println!("skipped: {reason}");
            None
        }
        support => Some(support),
    }
}

fn holds(topic: &'static str, vcpus: u32, on_emulated_ring_0: bool) {
    let Some(support) = kvm() else { return };
    if !support.is_native() && !on_emulated_ring_0 {
        return println!("skipped: {support}");
    }
    let image = match (Guest { topic, vcpus }).build(Path::new(env!("CARGO_TARGET_TMPDIR"))) {
        Ok(image) => image,
        Err(missing @ BuildError::MissingTool(_)) => return println!("skipped: {missing}"),
        Err(error) => panic!("{error}"),
    };
    let machine = Machine::Queztl { program: env!("CARGO_BIN_EXE_queztl-hv").into(), accel: "kvm".into() };
    let report = machine.run(&image, vcpus, LIMIT).unwrap_or_else(|error| panic!("{error}"));
    println!("{topic}: {} cases hold", report.passed);
    report.verdict().unwrap_or_else(|failures| panic!("{topic}: {failures}"));
}

macro_rules! guests {
    ($($topic:ident: $vcpus:expr, $emulated:expr;)*) => {
        $(#[test]
        fn $topic() {
            holds(stringify!($topic), $vcpus, $emulated);
        })*
    };
}

guests! {
    tlb: 1, true;
    selfmod: 1, true;
    pic: 1, true;
    legacy: 1, true;
    smp: 4, true;
    paging: 1, false;
    exceptions: 1, false;
    syscalls: 1, false;
    iret: 1, false;
    shadows: 1, false;
    apic: 1, false;
    string: 1, false;
    compat: 1, false;
    fpu: 1, false;
    crossmod: 2, false;
    atomics: 4, false;
}

/// `mov dx, port; mov al, value; out dx, al`
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

fn run(code: &[u8], args: &[&str]) -> Option<std::process::Output> {
    kvm()?;
    let folder = tempfile::tempdir().unwrap();
    let kernel = guest(folder.path(), code);
    let mut command = queztl();
    command.args(["run", "--accel", "kvm", "--ram", "16M", "--kernel"]).arg(kernel).args(args);
    Some(command.output().unwrap())
}

#[test]
fn serial_output_and_the_debug_exit_work() {
    let code = [out(0x3f8, b'h'), out(0x3f8, b'i'), out(0xf4, 0x21), vec![0xf4]].concat();
    let Some(output) = run(&code, &["--debug-exit", "0xf4"]) else { return };
    assert_eq!((output.status.code(), output.stdout), (Some(0x43), b"hi".to_vec()));
}

#[test]
fn a_triple_fault_is_told() {
    let Some(output) = run(&[0x0f, 0x0b], &["--timeout", "10"]) else { return };
    assert_eq!(output.status.code(), Some(8));
    assert!(one_line(&output).contains("triple fault"));
}

#[test]
fn sleeping_and_spinning_guests_run_into_the_timeout() {
    for code in [&[0xfa, 0xf4, 0xeb, 0xfd][..], &[0xeb, 0xfe]] {
        let Some(output) = run(code, &["--timeout", "0.2"]) else { return };
        assert_eq!(output.status.code(), Some(10));
    }
}

/// Runs `queztl-hv run --accel kvm` by a command that takes the device away; gives the message.
fn refusal(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).env_remove("RUST_LOG").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    one_line(&output)
}

const RUN: [&str; 5] = ["run", "--accel", "kvm", "--kernel", "/dev/null"];

#[test]
fn without_the_device_a_sentence_says_so() {
    let in_namespace = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_queztl-hv")]);
        command
    };
    let hide = "mount -t tmpfs none /dev";
    if !in_namespace(hide).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return println!("skipped: this process cannot make a mount namespace");
    }
    let mut command = in_namespace(&format!("{hide} && exec \"$0\" \"$@\""));
    command.args(RUN);
    let message = refusal(command);
    assert!(message.contains("/dev/kvm does not exist") && message.contains("--accel soft"), "{message}");
}

#[test]
fn without_permission_a_sentence_says_so() {
    const NOBODY: u32 = 65534;
    let closed = |path: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).is_ok_and(|device| device.permissions().mode() & 0o007 == 0)
    };
    if !closed("/dev/kvm") || !rustix::process::geteuid().is_root() {
        return println!("skipped: the device is open to everybody, or this process cannot become nobody");
    }
    // The build directory may be closed to others.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("queztl-hv");
    std::fs::copy(env!("CARGO_BIN_EXE_queztl-hv"), &program).unwrap();
    std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new(program);
    command.args(RUN).uid(NOBODY).gid(NOBODY);
    let message = refusal(command);
    assert!(message.contains("/dev/kvm cannot be opened") && message.contains("--accel soft"), "{message}");
}
