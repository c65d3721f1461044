//! Time made of instructions: a guest runs the same way every time.

mod common;

use std::path::Path;

use common::{linux, queztl};

/// What differs as soon as anything took a different moment: counters, deadlines to the nanosecond, random numbers, the
/// disk's answers, and the kernel's log with its times.
const LOOK: &str = "cat /proc/interrupts /proc/stat /proc/timer_list /proc/sys/kernel/random/uuid; \
                    md5sum /dev/vda; dd if=/dev/urandom of=/dev/vda bs=4k count=64 conv=fsync 2>/dev/null; \
                    md5sum /dev/vda; date; dmesg";

fn run(kernel: &Path, initrd: &Path, disk: &Path, translator: &str) -> String {
    std::fs::write(disk, vec![0x5a; 1 << 20]).unwrap();
    let mut command = queztl();
    let accel = format!("soft,clock=instructions,translator={translator}");
    command.args(["run", "--accel", &accel, "--timeout", "100"]);
    command.arg("--disk").arg(disk).arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    let output = command.args(["--append", &format!("console=ttyS0 quiet queztl.run=\"{LOOK}\"")]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn instruction_counted_runs_are_identical() {
    compare("on", "on");
}

#[test]
fn interpreted_and_translated_runs_are_identical() {
    compare("off", "on");
}

/// Both engines log a digest of the processor's state every few thousand instructions, from the first on.
#[test]
fn interpreter_and_translator_go_in_lockstep() {
    let Some((kernel, initrd)) = linux() else { return };
    let digests = |translator: &str| -> Vec<String> {
        let mut command = queztl();
        let accel = format!("soft,clock=instructions,translator={translator}");
        command.args(["run", "--accel", &accel, "--timeout", "100"]).env("RUST_LOG", "queztl_soft_cpu::lockstep=trace");
        command.arg("--kernel").arg(&kernel).arg("--initrd").arg(&initrd);
        let script = "cat /proc/cpuinfo; for i in 1 2 3 4 5; do md5sum /bin/busybox; done; dmesg";
        command.args(["--append", &format!("console=ttyS0 quiet queztl.run=\"{script}\"")]);
        let log = String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned();
        log.lines().filter_map(|line| line.find("instructions=").map(|at| line[at..].to_owned())).collect()
    };

    let (interpreted, translated) = (digests("off"), digests("eager"));

    assert!(interpreted.len() > 1000, "the guest ran: {} digests", interpreted.len());
    let parted = interpreted.iter().zip(&translated).position(|(a, b)| a != b);
    let around = parted.map(|at| (&interpreted[at - 1], &interpreted[at], &translated[at]));
    assert_eq!(around, None, "last common state, then the interpreter's and the translator's");
    // The guest goes on for a moment after it has switched the machine off, on a busy host a longer one.
    let after_the_end = interpreted.len().abs_diff(translated.len());
    assert!(after_the_end < interpreted.len() / 20, "{} and {} digests", interpreted.len(), translated.len());
}

fn compare(translator: &str, other: &str) {
    let Some((kernel, initrd)) = linux() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");

    let first = run(&kernel, &initrd, &disk, translator);
    let second = run(&kernel, &initrd, &disk, other);

    assert!(first.contains("/dev/vda") && first.contains("Timer List Version"), "the commands ran: {first}");
    assert_eq!(first.lines().zip(second.lines()).find(|(a, b)| a != b), None);
    assert_eq!(first.len(), second.len());
}
