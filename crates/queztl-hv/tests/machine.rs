//! How runs end and where input and output go: guests of a few instructions on the software CPU.

mod common;

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::payload::{Guest, SLEEP, echo, out, then_sleep};
use common::{one_line, send};

#[test]
fn the_debug_exit_port_gives_the_status() {
    Guest::new(&then_sleep(out(0xf4, 0x21))).args(&["--debug-exit", "0xf4"]).ends_with(0x43, None);
    Guest::new(&then_sleep(out(0xf4, 0))).args(&["--debug-exit", "0xf4"]).ends_with(1, None);
}

#[test]
fn a_guest_that_sleeps_runs_into_the_timeout() {
    let start = Instant::now();
    Guest::new(&SLEEP).args(&["--timeout", "0.3"]).ends_with(10, Some("--timeout"));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_guest_that_spins_runs_into_the_timeout() {
    Guest::new(&[0xeb, 0xfe]).args(&["--timeout", "0.3"]).ends_with(10, Some("--timeout"));
}

#[test]
fn a_triple_fault_is_told() {
    Guest::new(&[0x0f, 0x0b]).args(&["--timeout", "10"]).ends_with(8, Some("triple fault"));
}

#[test]
fn a_guest_panic_is_told() {
    Guest::new(&then_sleep(out(0x505, 1))).args(&["--timeout", "10"]).ends_with(6, Some("panicked"));
}

#[test]
fn serial_output_goes_where_it_is_told() {
    let hello = || {
        let mut code = out(0x3f8, b'h');
        code.extend(out(0x3f8, b'i'));
        code.extend(out(0xf4, 0));
        then_sleep(code)
    };
    let mut on_stdout = Guest::new(&hello()).args(&["--debug-exit", "0xf4"]);
    assert_eq!(on_stdout.command.output().unwrap().stdout, b"hi");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let serial = format!("file={}", path.display());
    Guest::new(&hello()).args(&["--debug-exit", "0xf4", "--serial", &serial]).ends_with(1, None);
    assert_eq!(std::fs::read(path).unwrap(), b"hi");

    let mut nowhere = Guest::new(&hello()).args(&["--debug-exit", "0xf4", "--serial", "none"]);
    assert_eq!(nowhere.command.output().unwrap().stdout, b"");
}

#[test]
fn input_comes_from_a_pipe_whose_end_does_not_end_the_machine() {
    let mut guest = Guest::new(&echo()).args(&["--debug-exit", "0xf4", "--timeout", "20"]);
    let mut child = guest.command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let text = "abc".repeat(1000);
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let mut echoed = vec![0; text.len()];
    child.stdout.as_mut().unwrap().read_exact(&mut echoed).unwrap();
    assert_eq!(String::from_utf8(echoed).unwrap(), "bcd".repeat(1000));
    assert!(child.try_wait().unwrap().is_none(), "the machine goes on after the end of input");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn signals_stop_the_machine() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let mut guest = Guest::new(&then_sleep(out(0x3f8, b'!')));
        let mut child = guest.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(12), "signal {signal}");
        assert_eq!(one_line(&output), "queztl-hv: stopped");
    }
}

/// The CPUs that thread `name` of a process may use, as the kernel lists them.
fn allowed_cpus(child: &Child, name: &str) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let paths = tasks.map(|task| task.unwrap().path());
    let is_named =
        |path: &std::path::PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
    let thread = paths.into_iter().find(is_named).expect("the thread runs");
    let status = std::fs::read_to_string(thread.join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    line.trim().to_owned()
}

#[test]
fn a_pinned_vcpu_stays_on_its_cpu() {
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned();
    let cpu = own.split([',', '-']).next_back().unwrap().to_owned();
    let mut guest = Guest::new(&then_sleep(out(0x3f8, b'!'))).args(&["--pin", &format!("0={cpu}")]);
    let mut child = guest.command.stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let (pinned, main) = (allowed_cpus(&child, "vcpu-0"), allowed_cpus(&child, "queztl-hv"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((pinned, main), (cpu, own));
}

/// KiB of the program's own code and data that its process has mapped.
fn mapped_program_kib(process: u32) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{process}/smaps")).unwrap();
    let (mut ours, mut sum) = (false, 0);
    for line in smaps.lines() {
        match line.strip_prefix("Rss:") {
            Some(rest) if ours => sum += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap(),
            None if line.contains('-') => ours = line.ends_with("/queztl-hv"),
            _ => {}
        }
    }
    sum
}

#[test]
fn what_only_the_start_needed_is_given_back() {
    let mut guest = Guest::new(&then_sleep(out(0x3f8, b'!'))).args(&["--timeout", "60"]);
    let mut child = guest.command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();

    let before = mapped_program_kib(child.id());
    let given_back = (0..400).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        mapped_program_kib(child.id()) < before / 2
    });

    send(&child, libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(12));
    assert!(given_back, "{before} KiB stayed");
}
