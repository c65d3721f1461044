//! The terminal: raw while a guest runs, as before afterwards, and its size is the guest's.

mod common;

use common::payload::{Guest, echo, out, then_sleep};
use common::terminal::Terminal;
use common::{linux, queztl, send};

/// A guest with a terminal; the guest holds files that the program needs.
fn start(guest: &mut Guest) -> Terminal {
    Terminal::start(&mut guest.command, 80, 24)
}

/// A guest that shows `!` and sleeps.
fn waiting(args: &[&str]) -> (Guest, Terminal) {
    let mut guest = Guest::new(&then_sleep(out(0x3f8, b'!'))).args(args);
    let mut terminal = start(&mut guest);
    terminal.wait_for("!");
    assert!(terminal.is_raw());
    (guest, terminal)
}

#[test]
fn the_escape_key_stops_the_machine_and_the_terminal_is_restored() {
    let (_guest, mut terminal) = waiting(&["--timeout", "30"]);

    terminal.type_keys(b"\x01x");

    assert_eq!(terminal.status(), Some(12));
    assert!(!terminal.is_raw());
}

#[test]
fn the_terminal_is_restored_after_a_signal() {
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
        let (_guest, mut terminal) = waiting(&["--timeout", "30"]);

        send(&terminal.child, signal);

        assert_eq!(terminal.status(), Some(12));
        assert!(!terminal.is_raw(), "signal {signal}");
    }
}

#[test]
fn the_terminal_is_restored_and_a_line_printed_when_a_forbidden_call_ends_the_process() {
    let (_guest, mut terminal) = waiting(&["--timeout", "30"]);

    // The signal by which the kernel tells of such a call.
    send(&terminal.child, libc::SIGSYS);

    terminal.wait_for("somebody sent SIGSYS");
    assert_eq!(terminal.status(), Some(14));
    assert!(!terminal.is_raw());
}

#[test]
fn the_terminal_is_restored_after_the_timeout() {
    let (_guest, mut terminal) = waiting(&["--timeout", "1"]);

    assert_eq!(terminal.status(), Some(10));
    assert!(!terminal.is_raw());
}

#[test]
fn the_terminal_is_restored_after_the_guests_own_end() {
    // `mov dx, 0x604; mov ax, 0x3400; out dx, ax`: ACPI soft-off.
    let power_off = then_sleep(vec![0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef]);
    let triple_fault = vec![0x0f, 0x0b];
    for (code, status) in [(power_off, 0), (then_sleep(out(0xf4, 7)), 15), (triple_fault, 8)] {
        let mut guest = Guest::new(&code).args(&["--debug-exit", "0xf4", "--timeout", "30"]);
        let mut terminal = start(&mut guest);

        assert_eq!(terminal.status(), Some(status));
        assert!(!terminal.is_raw(), "status {status}");
    }
}

#[test]
fn keys_reach_the_guest_and_a_doubled_escape_key_reaches_it_once() {
    let mut guest = Guest::new(&echo()).args(&["--debug-exit", "0xf4", "--timeout", "30"]);
    let mut terminal = start(&mut guest);
    terminal.wait_for("Ctrl-A h helps");

    terminal.type_keys(b"A\x03");
    terminal.wait_for("B\x04");
    terminal.type_keys(b"\x01\x01z");
    terminal.wait_for("\x02{");
    terminal.type_keys(b"q");

    assert_eq!(terminal.status(), Some(i32::from(b'q' << 1 | 1)));
}

#[test]
fn without_a_console_the_terminal_is_left_alone() {
    let guest = Guest::new(&then_sleep(out(0x3f8, b'!')));
    let mut guest = guest.args(&["--console", "none", "--serial", "stdio", "--timeout", "30"]);
    let mut terminal = start(&mut guest);

    terminal.wait_for("!");

    assert!(!terminal.is_raw());
}

/// Our kernel on a terminal of 100 columns and 30 rows, with `script` as its one command.
fn boot(words: &str, script: &str) -> Option<Terminal> {
    let (kernel, initrd) = linux()?;
    let mut command = queztl();
    command.args(["run", "--accel", "soft", "--ram", "256M", "--timeout", "100"]);
    command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    command.args(["--append", &format!("quiet {words} queztl.net=off queztl.run=\"{script}\"")]);
    Some(Terminal::start(&mut command, 100, 30))
}

#[test]
fn the_guest_has_the_terminals_size_and_follows_it() {
    let script = "stty size; trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.1; done";
    let Some(mut terminal) = boot("console=hvc0", script) else { return };
    let shown = terminal.wait_for("ready");
    assert!(shown.contains("30 100"), "{shown}");

    terminal.resize(120, 40);

    terminal.wait_for("40 120");
    assert_eq!(terminal.status(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn keys_reach_the_shell_on_the_virtio_console() {
    let Some(mut terminal) = boot("console=hvc0", "tty; read word; echo got $word") else { return };
    terminal.wait_for("/dev/hvc0");

    terminal.type_keys(b"plough\r");

    terminal.wait_for("got plough");
    assert_eq!(terminal.status(), Some(0));
}

#[test]
fn nothing_is_shown_twice_and_early_messages_and_panics_are_seen() {
    let early = "loglevel=7 earlycon=uart8250,io,0x3f8 console=hvc0";
    let Some(mut terminal) = boot(early, "echo c > /proc/sysrq-trigger") else { return };

    let shown = terminal.wait_for("Kernel panic - not syncing: sysrq triggered crash");

    for once in ["Linux version", "Run /init as init process"] {
        assert_eq!(shown.matches(once).count(), 1, "{once} in {shown}");
    }
    assert_eq!(terminal.status(), Some(6));
}
