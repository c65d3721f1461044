//! How runs end, and what happens to the terminal: guests of a few instructions on the software CPU.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{guest, one_line, queztl};
use tempfile::TempDir;

/// `cli; hlt; jmp -3`
const SLEEP: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];

struct Guest {
    /// Holds the kernel's file until the guest has run.
    _folder: TempDir,
    command: Command,
}

impl Guest {
    fn new(code: &[u8]) -> Guest {
        let folder = tempfile::tempdir().unwrap();
        let kernel = guest(folder.path(), code);
        let mut command = queztl();
        command.args(["run", "--accel", "soft", "--ram", "16M", "--kernel"]).arg(kernel);
        Guest { _folder: folder, command }
    }

    fn args(mut self, args: &[&str]) -> Guest {
        self.command.args(args);
        self
    }

    #[track_caller]
    fn ends_with(mut self, status: i32, message: Option<&str>) -> Guest {
        let output = self.command.output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", String::from_utf8_lossy(&output.stderr));
        match message {
            Some(message) => assert!(one_line(&output).contains(message), "{}", one_line(&output)),
            None => assert_eq!(String::from_utf8_lossy(&output.stderr), ""),
        }
        self
    }
}

/// `mov dx, port; mov al, value; out dx, al`
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

fn then_sleep(mut code: Vec<u8>) -> Vec<u8> {
    code.extend(SLEEP);
    code
}

/// Reads the serial port and writes back each byte plus one, until `q`, which ends the run.
fn echo() -> Vec<u8> {
    vec![
        0x66, 0xba, 0xfd, 0x03, // wait: mov dx, 0x3fd
        0xec, 0xa8, 0x01, // in al, dx; test al, 1
        0x74, 0xf7, // jz wait
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0x3c, b'q', // cmp al, 'q'
        0x74, 0x05, // je end
        0xfe, 0xc0, 0xee, // inc al; out dx, al
        0xeb, 0xe9, // jmp wait
        0xe6, 0xf4, // end: out 0xf4, al
        0xf4,
    ]
}

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

fn send(child: &Child, signal: i32) {
    // SAFETY: the process is our child and has not been waited for, so the number is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

/// A terminal with the program on its other side.
struct Terminal {
    master: File,
    slave: OwnedFd,
    child: Child,
    _guest: Guest,
}

impl Terminal {
    fn start(mut guest: Guest) -> Terminal {
        let (mut master, mut slave) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: both numbers are written by the call; name, modes and size are not asked for.
        assert_eq!(unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()) }, 0);
        // SAFETY: the call has just made these descriptors for us.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        guest.command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: setsid and ioctl are async-signal-safe; they make the terminal the child's own.
        unsafe {
            guest.command.pre_exec(|| {
                libc::setsid();
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            })
        };
        let child = guest.command.spawn().unwrap();
        Terminal { master, slave, child, _guest: guest }
    }

    fn is_raw(&self) -> bool {
        // SAFETY: termios is plain data, which the call fills.
        let mut modes: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is a terminal, the pointer is valid.
        assert_eq!(unsafe { libc::tcgetattr(self.slave.as_raw_fd(), &mut modes) }, 0);
        modes.c_lflag & (libc::ICANON | libc::ECHO) == 0
    }

    /// Reads until `text` has appeared.
    fn wait_for(&mut self, text: &str) {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut byte = [0];
            self.master.read_exact(&mut byte).unwrap();
            seen.extend(byte);
        }
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    fn status(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[test]
fn the_terminal_is_raw_while_the_guest_runs_and_restored_by_the_escape_key() {
    let mut terminal = Terminal::start(Guest::new(&then_sleep(out(0x3f8, b'!'))).args(&["--timeout", "30"]));
    terminal.wait_for("!");
    assert!(terminal.is_raw());
    terminal.type_keys(b"\x01x");
    assert_eq!(terminal.status(), Some(12));
    assert!(!terminal.is_raw());
}

#[test]
fn the_terminal_is_restored_after_a_signal_and_after_the_guests_own_end() {
    let mut terminal = Terminal::start(Guest::new(&then_sleep(out(0x3f8, b'!'))).args(&["--timeout", "30"]));
    terminal.wait_for("!");
    send(&terminal.child, libc::SIGTERM);
    assert_eq!(terminal.status(), Some(12));
    assert!(!terminal.is_raw());

    let mut terminal = Terminal::start(Guest::new(&[0x0f, 0x0b]).args(&["--timeout", "30"]));
    terminal.wait_for("triple fault");
    assert_eq!(terminal.status(), Some(8));
    assert!(!terminal.is_raw());
}

#[test]
fn keys_reach_the_guest_and_a_doubled_escape_key_reaches_it_once() {
    let guest = Guest::new(&echo()).args(&["--debug-exit", "0xf4", "--timeout", "30"]);
    let mut terminal = Terminal::start(guest);
    terminal.wait_for("Ctrl-A h helps");
    terminal.type_keys(b"A\x03");
    terminal.wait_for("B\x04");
    terminal.type_keys(b"\x01\x01z");
    terminal.wait_for("\x02{");
    terminal.type_keys(b"q");
    assert_eq!(terminal.status(), Some(i32::from(b'q' << 1 | 1)));
}
