//! TAP devices in a network namespace of the test's own.

use std::time::{Duration, Instant};

use super::*;
use crate::MAX_FRAME_BYTES;

/// Runs `test` on a thread with a fresh network namespace, or says why not.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        // SAFETY: a new network namespace changes no memory and no open file; it is this thread's alone.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        if result != 0 {
            return println!("skipped: no network namespace may be made: {}", io::Error::last_os_error());
        }
        test();
    };
    std::thread::spawn(run).join().unwrap();
}

fn receive(tap: &mut Tap, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let start = Instant::now();
    let mut frame = vec![0; MAX_FRAME_BYTES];
    loop {
        match tap.receive(&mut frame).unwrap() {
            Received::Frame(count) if wanted(&frame[HEADER_BYTES..count]) => return frame[..count].to_vec(),
            Received::Closed => panic!("closed"),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
        assert!(start.elapsed() < Duration::from_secs(10), "no such frame came");
    }
}

/// An Ethernet frame that asks who has 10.9.0.1, from 10.9.0.2 at 02:00:00:00:00:02.
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 9, 0, 2]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 9, 0, 1]);
    frame
}

#[test]
fn the_host_answers_frames_sent_through_a_new_tap() {
    in_namespace(|| {
        let mut tap = match Tap::open("tap-test") {
            Err(error @ (Error::NoTun(_) | Error::Denied { .. })) => return println!("skipped: {error}"),
            other => other.unwrap(),
        };
        let status = std::process::Command::new("ip").args(["addr", "add", "10.9.0.1/24", "dev", "tap-test"]).status();
        if !status.is_ok_and(|status| status.success()) {
            return println!("skipped: the `ip` command is not installed");
        }
        tap.set_guest_offloads(Offloads::ALL).unwrap();
        tap.send(&arp_request()).unwrap();
        let reply = receive(&mut tap, |frame| frame[12..14] == [8, 6] && frame[21] == 2);
        assert_eq!(reply[HEADER_BYTES..][..6], [2, 0, 0, 0, 0, 2]);
        assert_eq!(reply[HEADER_BYTES..][28..32], [10, 9, 0, 1]);
        assert_eq!(tap.mtu(), Some(1500));
    });
}

#[test]
fn a_tap_that_another_program_has_is_refused() {
    in_namespace(|| {
        let Ok(_first) = Tap::open("tap-test") else { return println!("skipped: no TAP device may be made") };
        assert!(matches!(Tap::open("tap-test"), Err(Error::Busy { .. })));
    });
}

#[test]
fn names_that_no_interface_can_have_are_refused() {
    for name in ["", "a/b", "sixteen-letters-x", ".", "tap %d"] {
        assert!(matches!(Tap::open(name), Err(Error::Name(_))), "{name}");
    }
}
