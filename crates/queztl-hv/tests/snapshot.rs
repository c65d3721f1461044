//! Snapshots of a running Linux guest, taken through the control socket and run again.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use common::{linux, one_line, output, queztl};

/// A guest with a shell on its serial line.
struct Guest {
    child: Child,
    lines: BufReader<ChildStdout>,
    commands: u32,
}

impl Guest {
    fn start(command: &mut Command) -> Guest {
        command.args(["--timeout", "300"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Guest { child, lines, commands: 0 }
    }

    /// Boots our kernel; `None` if none is built here.
    fn boot(folder: &Path, arguments: &[&str]) -> Option<Guest> {
        let (kernel, initrd) = linux()?;
        let mut command = queztl();
        command.args(["run", "--accel", "soft", "--control"]).arg(folder.join("control")).args(arguments);
        command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd).args(["--append", "console=ttyS0 quiet"]);
        let mut guest = Guest::start(&mut command);
        guest.run("stty -echo");
        Some(guest)
    }

    fn restore(place: &Path, arguments: &[&str]) -> Guest {
        Guest::start(queztl().arg("run").arg("--restore").arg(place).args(arguments))
    }

    /// What the guest wrote until the script was done.
    fn run(&mut self, script: &str) -> String {
        self.commands += 1;
        // The mark is put together by the guest, so that an echo of the line is not taken for it.
        let line = format!("{script}; echo \"end\"\"-{}\"\n", self.commands);
        self.child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
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
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn snapshot(folder: &Path, name: &str) -> PathBuf {
    let place = folder.join(name);
    let taken =
        output([Path::new("control"), &folder.join("control"), Path::new("snapshot"), &place].map(Path::as_os_str));
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    place
}

#[test]
fn a_busy_linux_goes_on_from_each_snapshot_and_from_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut guest) = Guest::boot(folder.path(), &["--ram", "256M", "--vcpus", "2"]) else { return };
    guest.run("(while :; do dd if=/dev/urandom bs=64k count=8 2>/dev/null | md5sum; done) > /tmp/sums & echo begun");
    guest.run("head -c 8000000 /dev/urandom > /tmp/file; md5sum < /tmp/file > /tmp/sum");

    let places = ["one", "two"].map(|name| snapshot(folder.path(), name));
    guest.run("echo other > /tmp/file");

    for place in &places {
        let mut again = Guest::restore(place, &[]);
        let text = again.run("md5sum < /tmp/file | cmp - /tmp/sum && echo same; jobs | grep -c Running; nproc");
        assert!(text.contains("same") && text.contains('2'), "{text}");
        let complaints = again.run("sleep 2; dmesg | grep -iE 'lockup|stall|clocksource.*unstable|BUG|WARN'");
        assert!(!complaints.contains('['), "{complaints}");
    }
    assert!(guest.run("cat /tmp/file").contains("other"));
}

#[test]
fn time_stands_still_in_a_snapshot_and_the_guest_can_be_told_what_it_missed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut guest) = Guest::boot(folder.path(), &["--ram", "128M"]) else { return };
    let seconds = |text: String| -> f64 {
        let word = text.split_whitespace().rev().find_map(|word| word.parse().ok());
        word.unwrap_or_else(|| panic!("no time in {text:?}"))
    };
    let before = seconds(guest.run("cut -d' ' -f1 /proc/uptime"));
    let place = snapshot(folder.path(), "snapshot");
    drop(guest);
    std::thread::sleep(std::time::Duration::from_secs(3));
    let started = std::time::Instant::now();

    let mut again = Guest::restore(&place, &[]);

    let after = seconds(again.run("cut -d' ' -f1 /proc/uptime"));
    let most = before + started.elapsed().as_secs_f64() + 2.5;
    assert!(before <= after && after < most, "{before} s, then {after} s");
    // The battery's clock is the host's, whenever it is read.
    again.run("hwclock -s -u 2>/dev/null || date -u -s @$(date -u +%s)");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let guests = seconds(again.run("cat /sys/class/rtc/rtc0/since_epoch 2>/dev/null || date -u +%s"));
    assert!((now - guests).abs() < 60.0, "{guests} in the guest, {now} here");
}

#[test]
fn what_is_no_snapshot_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let refused = output(["run".as_ref(), "--restore".as_ref(), folder.path().as_os_str()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(one_line(&refused).contains("is no snapshot"));
    let both = output(["run", "--restore", "x", "--vcpus", "2"]);
    assert_eq!(both.status.code(), Some(2));
}
