//! The process that runs a machine is confined: every thread of it, and also when the guest restarts with every device.

mod common;

use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::{guest, linux, queztl};

/// `mov dx, 0x3f8; mov al, '!'; out dx, al; cli; hlt; jmp -3`
const SIGN_AND_SLEEP: [u8; 11] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xfa, 0xf4, 0xeb, 0xfd];

/// A sleeping machine that is killed at the end of the test.
struct Running(Child);

impl Running {
    fn start(folder: &Path, args: &[&str]) -> Running {
        let kernel = guest(folder, &SIGN_AND_SLEEP);
        let mut command = queztl();
        command.args(["run", "--ram", "16M", "--timeout", "60", "--kernel"]).arg(kernel).args(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Running(child)
    }

    /// Each thread with what the kernel says of it: its seccomp mode, and whether it may gain privileges.
    fn threads(&self) -> Vec<(String, bool, bool)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
        let field = |status: &str, name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim().to_string()
        };
        let thread = |status: String| {
            let filtered = field(&status, "Seccomp:") == "2";
            (field(&status, "Name:"), filtered, field(&status, "NoNewPrivs:") == "1")
        };
        statuses.map(thread).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn all_are_confined(machine: &Running, least: usize) {
    // A thread may not have started yet, or have started and not come to it yet.
    for _ in 0..1000 {
        let threads = machine.threads();
        if threads.len() >= least && threads.iter().all(|(_, filtered, no_privileges)| *filtered && *no_privileges) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let threads = machine.threads();
    let loose: Vec<_> = threads.iter().filter(|(_, filtered, no_privileges)| !filtered || !no_privileges).collect();
    assert!(loose.is_empty(), "not confined: {loose:?}");
    assert!(threads.len() >= least, "{threads:?}");
}

#[test]
fn every_thread_of_a_running_machine_is_confined() {
    let folder = tempfile::tempdir().unwrap();
    let machine = Running::start(folder.path(), &["--accel", "soft", "--vcpus", "3"]);

    // Main, launcher, signals, input, timers, output, three vCPUs.
    all_are_confined(&machine, 9);
}

#[test]
fn every_thread_on_kvm_is_confined() {
    if !Path::new("/dev/kvm").exists() {
        return eprintln!("skipped: no /dev/kvm");
    }
    let folder = tempfile::tempdir().unwrap();
    let machine = Running::start(folder.path(), &["--accel", "kvm"]);

    all_are_confined(&machine, 7);
}

#[test]
fn off_confines_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let machine = Running::start(folder.path(), &["--accel", "soft", "--seccomp", "off"]);

    assert!(machine.threads().iter().all(|(_, filtered, _)| !filtered), "{:?}", machine.threads());
}

/// Restarts of Linux with a disk, a socket device, entropy, a balloon and, if passt is there, a network.
#[test]
fn a_restart_with_every_device_stays_within_the_lists() {
    let Some((kernel, initrd)) = linux() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let mut command = queztl();
    command.args(["run", "--accel", "soft", "--ram", "256M", "--vcpus", "2", "--timeout", "15"]);
    command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd).arg("--disk").arg(&disk);
    command.arg("--vsock").arg(folder.path().join("vsock"));
    let with_network = std::process::Command::new("passt").arg("--version").output().is_ok();
    match with_network {
        true => drop(command.args(["--net", "user"])),
        false => eprintln!("skipped: the network; passt is not installed"),
    }
    let script =
        "echo -n x | dd of=/dev/vda conv=fsync; echo link $(cat /sys/class/net/eth0/carrier); echo round; reboot -f";
    command.args(["--append", &format!("console=ttyS0 quiet queztl.run=\"{script}\"")]);

    let output = command.output().unwrap();

    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(10), "{output:?}");
    assert!(text.matches("round").count() >= 2, "{text}");
    if with_network {
        assert!(text.matches("link 1").count() >= 2, "the network outlives a restart: {text}");
    }
}
