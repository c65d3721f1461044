//! A running machine, looked at and changed through its control socket, with our own kernel on the software CPU.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Output, Stdio};
use std::time::{Duration, Instant};

use common::{linux, one_line, output, queztl};
use queztl_vmm::config::{Rate, RateLimit};
use queztl_vmm::control::{Client, Reason, Refusal, Request, RunState, Status, Vcpu};

const PATIENCE: Duration = Duration::from_secs(90);
const MIB: u64 = 1 << 20;

/// A guest with a shell on its serial line.
struct Guest {
    folder: tempfile::TempDir,
    child: Child,
    lines: BufReader<ChildStdout>,
    commands: u32,
}

impl Guest {
    /// Starts our kernel; `None` if none is built here.
    fn start(arguments: &[&str]) -> Option<Guest> {
        let (kernel, initrd) = linux()?;
        let folder = tempfile::tempdir().unwrap();
        let mut command = queztl();
        command.args(["run", "--accel", "soft", "--timeout", "300", "--control"]).arg(folder.path().join("control"));
        command.args(arguments).arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
        command.args(["--append", "console=ttyS0 quiet memory_hotplug.online_policy=auto-movable"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut guest = Guest { folder, child, lines, commands: 0 };
        guest.run("stty -echo");
        Some(guest)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    fn status(&self) -> Status {
        self.client().status().unwrap()
    }

    fn begin(&mut self, script: &str) {
        self.commands += 1;
        // The mark is put together by the guest, so that an echo of the line is not taken for it.
        let line = format!("{script}; echo \"end\"\"-{}\"\n", self.commands);
        self.child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    /// What the guest wrote until the last command was done.
    fn finish(&mut self) -> String {
        let mark = format!("end-{}", self.commands);
        let mut text = String::new();
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "the guest ended early; it wrote: {text}");
            if line.trim_end().ends_with(&mark) {
                return text;
            }
            text.push_str(&line);
        }
    }

    fn run(&mut self, script: &str) -> String {
        self.begin(script);
        self.finish()
    }

    /// A number that a script prints.
    fn number(&mut self, script: &str) -> u64 {
        let text = self.run(script);
        // The prompt comes before it on the same line.
        let mut numbers = text.lines().rev().filter_map(|line| line.split_whitespace().next_back()?.parse().ok());
        numbers.next().unwrap_or_else(|| panic!("no number in {text:?}"))
    }

    /// Waits until the machine's status is as wanted.
    #[track_caller]
    fn wait_for(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let start = Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "{what} never came: {:#?}", status.memory);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn control(guest: &Guest, arguments: &[&str]) -> Output {
    let socket = guest.socket();
    output([&["control", socket.to_str().unwrap()], arguments].concat())
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_where_it_was() {
    let Some(mut guest) = Guest::start(&["--ram", "256M", "--vcpus", "2"]) else { return };
    guest.run("i=0; (while :; do i=$((i+1)); echo $i > /tmp/n; mv /tmp/n /tmp/i; done) & until [ -s /tmp/i ]; do sleep 0.1; done");

    for _ in 0..5 {
        guest.client().command(&Request::Pause {}).unwrap();
        let before = guest.status();
        assert_eq!(before.state, RunState::Paused);
        std::thread::sleep(Duration::from_millis(100));
        let after = guest.status();
        // Parking itself takes some microseconds.
        let grown = |(before, after): (&Vcpu, &Vcpu)| after.cpu_ns - before.cpu_ns;
        assert!(before.vcpus.iter().zip(&after.vcpus).map(grown).all(|ns| ns < 5_000_000), "{before:?}, {after:?}");
        guest.client().command(&Request::Resume {}).unwrap();
    }

    let count = guest.number("cat /tmp/i");
    assert!(guest.number("sleep 1; cat /tmp/i") > count);
}

#[test]
fn a_disk_in_use_loses_nothing_by_pauses() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let content: Vec<u8> = (0..16 * MIB).map(|i| (i / 7 + i / 4096) as u8).collect();
    std::fs::write(&disk, content).unwrap();
    let Some(mut guest) = Guest::start(&["--ram", "128M", "--vcpus", "2", "--disk", disk.to_str().unwrap()]) else {
        return;
    };

    guest.begin("for i in 1 2; do dd if=/dev/vda bs=16k iflag=direct 2>/dev/null | md5sum; done | uniq -c");
    let mut client = guest.client();
    for _ in 0..30 {
        client.command(&Request::Pause {}).unwrap();
        client.command(&Request::Resume {}).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }

    let sums = guest.finish();
    let here = std::process::Command::new("md5sum").arg(&disk).output().unwrap();
    let sum = String::from_utf8(here.stdout).unwrap();
    assert!(sums.contains(&format!("2 {}", &sum[..32])), "{sums} is not {sum}");
}

#[test]
fn stop_ends_a_paused_machine_too_and_the_socket_goes() {
    let Some(mut guest) = Guest::start(&["--ram", "128M"]) else { return };
    assert!(control(&guest, &["pause"]).status.success());
    assert!(control(&guest, &["stop"]).status.success());

    assert_eq!(guest.child.wait().unwrap().code(), Some(12));
    assert!(!guest.socket().exists());
    let gone = control(&guest, &["status"]);
    assert_eq!(gone.status.code(), Some(2));
    assert!(one_line(&gone).contains("--control"));
}

#[test]
fn the_power_button_switches_the_guest_off() {
    let Some(mut guest) = Guest::start(&["--ram", "128M"]) else { return };
    assert!(control(&guest, &["power"]).status.success());
    assert_eq!(guest.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_power_button_of_a_paused_machine_works_once_it_goes_on() {
    let Some(mut guest) = Guest::start(&["--ram", "128M"]) else { return };
    guest.client().command(&Request::Pause {}).unwrap();
    guest.client().command(&Request::PowerButton {}).unwrap();
    assert_eq!(guest.status().state, RunState::Paused);
    guest.client().command(&Request::Resume {}).unwrap();
    assert_eq!(guest.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reset_starts_the_guest_anew() {
    let Some(mut guest) = Guest::start(&["--ram", "128M"]) else { return };
    guest.run("touch /tmp/here");
    assert!(control(&guest, &["reset"]).status.success());
    guest.wait_for("a restart", |status| status.restarts == 1 && status.memory.guest.is_some());
    guest.run("stty -echo");
    assert_eq!(guest.number("ls /tmp | wc -l"), 0);
}

#[test]
fn the_command_line_shows_and_changes_a_machine() {
    let Some(guest) = Guest::start(&["--ram", "128M", "--rng", "bps=1M"]) else { return };
    let text = |output: Output| String::from_utf8(output.stdout).unwrap();

    let status: Status = serde_json::from_str(&text(control(&guest, &["status", "-o", "json"]))).unwrap();
    assert_eq!((status.state, status.pid, status.memory.ram_bytes), (RunState::Running, guest.child.id(), 128 * MIB));
    assert!(status.memory.resident_bytes > 10 * MIB && status.memory.resident_bytes < 128 * MIB);
    assert!(text(control(&guest, &["status"])).contains("running"));

    assert!(control(&guest, &["limit", "rng", "bps=2M,bps-burst=4M"]).status.success());
    let limit = RateLimit { bytes: Some(Rate { per_second: 2 * MIB, burst: 4 * MIB }), requests: None };
    assert_eq!(guest.status().limits.iter().find(|limit| limit.device == "rng").unwrap().limit, limit);
    let wrong = [["limit", "disk0", "none"].as_slice(), &["limit", "net0-up", "none"], &["balloon", "1G"]];
    for wrong in wrong {
        let refused = control(&guest, wrong);
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}");
        one_line(&refused);
    }
}

#[test]
fn memory_that_the_guest_frees_goes_back_to_the_host() {
    let Some(mut guest) = Guest::start(&["--ram", "384M"]) else { return };
    let start = guest.wait_for("the guest's figures", |status| status.memory.guest.is_some());

    guest.run("mount -t tmpfs -o size=200m none /mnt && dd if=/dev/zero of=/mnt/file bs=1M count=160 2>/dev/null");
    let filled = guest.status();
    assert!(filled.memory.resident_bytes > start.memory.resident_bytes + 150 * MIB);
    let free = |status: &Status| status.memory.guest.as_ref().and_then(|guest| guest.free_bytes).unwrap();
    assert!(free(&filled) + 150 * MIB < free(&start));

    guest.run("rm /mnt/file");
    let target = start.memory.resident_bytes + 40 * MIB;
    let freed = guest.wait_for("the host's memory", |status| status.memory.resident_bytes < target);
    println!(
        "resident MiB: {} at first, {} filled, {} reported free",
        start.memory.resident_bytes / MIB,
        filled.memory.resident_bytes / MIB,
        freed.memory.resident_bytes / MIB
    );
}

#[test]
fn the_balloon_takes_memory_and_gives_it_back() {
    let Some(mut guest) = Guest::start(&["--ram", "256M"]) else { return };
    let available = guest.number("awk '/MemAvailable/ { print $2 }' /proc/meminfo");

    assert!(control(&guest, &["balloon", "128M"]).status.success());
    guest.wait_for("a full balloon", |status| status.memory.balloon.actual_bytes == 128 * MIB);
    let less = guest.number("awk '/MemAvailable/ { print $2 }' /proc/meminfo");
    assert!(less + 120 * 1024 < available, "{less} of {available} KiB are left");

    assert!(control(&guest, &["balloon", "0"]).status.success());
    guest.wait_for("an empty balloon", |status| status.memory.balloon.actual_bytes == 0);
    // What the guest is just reporting as free does not count as free for a moment.
    let again = guest.number(
        "for i in $(seq 60); do sleep 0.5; awk -v least=$((AVAILABLE - 8192)) \
         '/MemAvailable/ { a = $2 } END { if (a >= least) { print a; exit } exit 1 }' /proc/meminfo && break; done"
            .replace("AVAILABLE", &available.to_string())
            .as_str(),
    );
    assert!(again + 8 * 1024 >= available, "{again} of {available} KiB are back");
}

#[test]
fn a_disk_keeps_to_its_limit_until_it_is_lifted() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk).unwrap().set_len(64 * MIB).unwrap();
    let option = format!("{},bps=1M,bps-burst=64K", disk.display());
    let Some(mut guest) = Guest::start(&["--ram", "128M", "--disk", &option]) else { return };

    let start = Instant::now();
    guest.run("dd if=/dev/vda of=/dev/null bs=64k count=32 iflag=direct 2>/dev/null");
    // 2 MiB at 1 MiB a second, less what the burst and the last request give.
    assert!(start.elapsed().as_secs_f64() > 1.8);
    assert!(guest.status().limits[0].waits > 0);

    // 60 MiB would take a minute.
    guest.begin("dd if=/dev/vda of=/dev/null bs=1M count=60 skip=2 iflag=direct 2>/dev/null");
    let before = guest.status().limits[0].waits;
    guest.wait_for("throttling", |status| status.limits[0].waits > before);
    guest.client().command(&Request::Limit { device: "disk0".into(), limit: RateLimit::default() }).unwrap();
    guest.finish();
}

#[test]
fn what_was_changed_outlives_a_restart_of_the_guest() {
    let Some(mut guest) = Guest::start(&["--ram", "128M"]) else { return };
    let limit = RateLimit { bytes: Some(Rate { per_second: 1 << 20, burst: 1 << 20 }), requests: None };
    guest.client().command(&Request::Limit { device: "rng".into(), limit }).unwrap();
    guest.client().command(&Request::Balloon { target_bytes: 16 * MIB }).unwrap();

    guest.commands += 1;
    guest.child.stdin.as_mut().unwrap().write_all(b"reboot -f\n").unwrap();
    let again = guest.wait_for("a restart", |status| status.restarts == 1 && status.memory.guest.is_some());
    assert_eq!(again.limits.iter().find(|limit| limit.device == "rng").unwrap().limit, limit);
    guest.wait_for("the balloon", |status| status.memory.balloon.actual_bytes == 16 * MIB);
}

#[test]
fn the_guest_grows_and_shrinks_and_so_does_what_the_host_holds() {
    let Some(mut guest) = Guest::start(&["--ram", "256M", "--memory-hotplug", "512M"]) else { return };
    if guest.number("zcat /proc/config.gz | grep -c ^CONFIG_VIRTIO_MEM=y") == 0 {
        return eprintln!("skipped: the kernel built here has no virtio-mem; build a new one: queztl-hv kernel build");
    }
    let total = |guest: &mut Guest| guest.number("awk '/MemTotal/ { print $2 }' /proc/meminfo") * 1024;
    let plugged = |status: &Status| status.memory.hotplug.as_ref().unwrap().plugged_bytes;
    let at_first = total(&mut guest);

    assert!(control(&guest, &["memory", "256M"]).status.success());
    guest.wait_for("more memory", |status| plugged(status) == 256 * MIB);
    let grown = total(&mut guest);
    assert!(grown >= at_first + 240 * MIB, "{grown} of {at_first} bytes");
    guest.run("mount -t tmpfs -o size=300m none /mnt && dd if=/dev/zero of=/mnt/file bs=1M count=280 2>/dev/null");
    let filled = guest.status().memory.resident_bytes;
    assert!(filled > 280 * MIB);

    guest.run("rm /mnt/file");
    assert!(control(&guest, &["memory", "0"]).status.success());
    let shrunk = guest.wait_for("less memory", |status| plugged(status) == 0);
    assert!(total(&mut guest) <= at_first);
    assert!(shrunk.memory.resident_bytes < 256 * MIB);
    println!("resident MiB: {} filled, {} shrunk", filled / MIB, shrunk.memory.resident_bytes / MIB);

    assert_eq!(control(&guest, &["memory", "1G"]).status.code(), Some(2));
    assert_eq!(control(&guest, &["memory", "1M"]).status.code(), Some(2));
}

#[test]
fn a_machine_without_hot_plug_memory_says_so() {
    let Some(guest) = Guest::start(&["--ram", "128M"]) else { return };
    let refused = guest.client().command(&Request::Memory { requested_bytes: MIB }).unwrap_err();
    let queztl_vmm::control::ClientError::Refused(Refusal { reason, .. }) = refused else { panic!("{refused}") };
    assert_eq!(reason, Reason::Missing);
}
