//! A card between the test driver and a back end on a socket pair, and on a TAP device of a namespace of its own.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use queztl_network::{HEADER_BYTES, MAX_FRAME_BYTES, Received, Tap};

use super::*;
use crate::devices::virtio::limit::{Rate, RateLimit};
use crate::devices::virtio::testing::{Driver, Part};

/// Frames, headers included, as datagrams.
struct Wire {
    socket: UnixDatagram,
    guest: Arc<Mutex<Offloads>>,
}

impl Backend for Wire {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }
    fn set_guest_offloads(&mut self, guest: Offloads) -> io::Result<()> {
        *lock(&self.guest) = guest;
        Ok(())
    }
    fn mtu(&self) -> Option<u16> {
        Some(9000)
    }
    fn event(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Received> {
        match self.socket.recv(frame) {
            Ok(0) => Ok(Received::Closed),
            Ok(count) => Ok(Received::Frame(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(error) => Err(error),
        }
    }
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }
}

const FEATURES: u64 = F_MAC | F_STATUS | F_MRG_RXBUF;

struct Setup {
    driver: Driver,
    peer: UnixDatagram,
    guest: Arc<Mutex<Offloads>>,
    limiters: [Arc<Limiter>; 2],
}

/// A card without limits, and its limiters.
fn card(backend: Box<dyn Backend>) -> (Arc<Net>, [Arc<Limiter>; 2]) {
    let limiters = [(); 2].map(|()| Limiter::new(RateLimit::default()));
    let [receive_limiter, transmit_limiter] = limiters.clone();
    let config = NetConfig { backend, mac: Mac([2, 0, 0, 0, 0, 9]), receive_limiter, transmit_limiter };
    (config.build().unwrap(), limiters)
}

fn setup(features: u64) -> Setup {
    let (socket, peer) = UnixDatagram::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    peer.set_read_timeout(Some(crate::devices::virtio::testing::PATIENCE)).unwrap();
    let guest = Arc::new(Mutex::new(Offloads::NONE));
    let backend = Box::new(Wire { socket, guest: guest.clone() });
    let (net, limiters) = card(backend);
    Setup { driver: Driver::ready(net, features), peer, guest, limiters }
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend((0..len).map(|i| seed.wrapping_add(i as u8)));
    frame
}

#[test]
fn frames_of_the_guest_reach_the_back_end_whole() {
    let mut s = setup(FEATURES);
    let sent = frame(1500, 3);
    s.driver.call(1, &[Part::Read(&sent[..12]), Part::Read(&sent[12..100]), Part::Read(&sent[100..])]);
    let mut received = vec![0; MAX_FRAME_BYTES];
    let count = s.peer.recv(&mut received).unwrap();
    assert!(received[..count] == sent);
}

#[test]
fn frames_reach_the_guest_with_the_number_of_buffers() {
    let mut s = setup(FEATURES);
    let sent = s.driver.send(0, &[Part::Write(2000)]);
    s.driver.kick(0);
    s.peer.send(&frame(700, 1)).unwrap();
    assert_eq!(s.driver.wait(0), (sent.head, 712));
    let received = s.driver.read(sent.parts[0], 712);
    assert_eq!(received[10..12], [1, 0]);
    assert!(received[12..] == frame(700, 1)[12..]);
}

#[test]
fn a_long_frame_is_spread_over_several_buffers() {
    let mut s = setup(FEATURES);
    let sent: Vec<_> = (0..5).map(|_| s.driver.send(0, &[Part::Write(1024)])).collect();
    s.driver.kick(0);
    s.peer.send(&frame(4000, 1)).unwrap();
    let used: Vec<_> = (0..4).map(|_| s.driver.wait(0)).collect();
    assert_eq!(used.iter().map(|(_, written)| written).sum::<u32>(), 4012);
    let bytes: Vec<u8> = sent.iter().zip(&used).flat_map(|(s1, u)| s.driver.read(s1.parts[0], u.1 as usize)).collect();
    assert_eq!(bytes[10..12], [4, 0]);
    assert!(bytes[12..] == frame(4000, 1)[12..]);
}

#[test]
fn frames_wait_for_buffers() {
    let mut s = setup(FEATURES);
    for seed in 0..5 {
        s.peer.send(&frame(100, seed)).unwrap();
    }
    for seed in 0..5 {
        let (written, parts) = s.driver.call(0, &[Part::Write(1500)]);
        assert_eq!(written, 112);
        assert_eq!(s.driver.read(parts[0] + 12, 1), [seed]);
    }
}

#[test]
fn a_frame_too_long_for_an_unmergeable_buffer_is_lost_and_the_next_arrives() {
    let mut s = setup(F_MAC);
    let sent = s.driver.send(0, &[Part::Write(200)]);
    s.driver.kick(0);
    s.peer.send(&frame(1000, 1)).unwrap();
    s.peer.send(&frame(50, 2)).unwrap();
    assert_eq!(s.driver.wait(0), (sent.head, 62));
    assert_eq!(s.driver.read(sent.parts[0] + 10, 3), [1, 0, 2]);
}

#[test]
fn offloads_are_what_both_sides_can_do() {
    let s = setup(FEATURES | F_GUEST_CSUM | F_GUEST_TSO4);
    assert_eq!(*lock(&s.guest), Offloads::CHECKSUM | Offloads::TSO4);
}

#[test]
fn what_is_no_frame_is_dropped_and_answered() {
    let mut s = setup(FEATURES);
    s.driver.call(1, &[Part::Read(&[0; 5])]);
    s.driver.call(1, &[Part::Read(&vec![0; MAX_FRAME_BYTES + 1])]);
    s.driver.call(1, &[Part::Write(100)]);
    s.driver.call(1, &[Part::Read(&frame(60, 7))]);
    let mut received = [0; 100];
    assert_eq!(s.peer.recv(&mut received).unwrap(), 72);
}

#[test]
fn a_full_back_end_holds_frames_back_and_loses_none() {
    let mut s = setup(FEATURES);
    for seed in 0..200 {
        s.driver.send(1, &[Part::Read(&frame(1000, seed))]);
    }
    s.driver.kick(1);
    let mut received = [0; 2000];
    for seed in 0..200u8 {
        s.peer.recv(&mut received).unwrap();
        assert_eq!(received[12], seed);
    }
}

#[test]
fn a_back_end_that_is_gone_takes_the_link_down() {
    let mut s = setup(FEATURES);
    assert_eq!(s.driver.config::<2>(6), [1, 0]);
    s.peer.send(&[]).unwrap();
    s.driver.wait_for("link down", |d| (d.config::<2>(6) == [0, 0]).then_some(()));
    s.driver.wait_for("the interrupt", |d| (d.read32(0x60) & 2 != 0).then_some(()));
}

#[test]
fn the_card_works_again_after_a_reset() {
    let mut s = setup(FEATURES);
    for seed in 0..5 {
        s.peer.send(&frame(100, seed)).unwrap();
        let (written, _) = s.driver.call(0, &[Part::Write(1500)]);
        assert_eq!(written, 112);
        s.driver.reset();
        s.driver.start(FEATURES);
    }
}

#[test]
fn the_configuration_tells_address_and_mtu() {
    let s = setup(FEATURES | F_MTU);
    assert_eq!(s.driver.config::<12>(0), [2, 0, 0, 0, 0, 9, 1, 0, 1, 0, 0x28, 0x23]);
}

#[test]
fn a_receive_buffer_without_room_for_a_header_stops_the_device() {
    let mut s = setup(FEATURES);
    s.driver.send(0, &[Part::Write(8)]);
    s.driver.kick(0);
    s.peer.send(&frame(100, 1)).unwrap();
    s.driver.wait_broken();
}

#[test]
fn broken_rings_stop_the_device_until_it_is_reset() {
    setup(FEATURES).driver.every_broken_ring_stops_the_device(1, FEATURES);
}

#[test]
fn broken_rings_for_frames_to_the_guest_stop_the_device_until_it_is_reset() {
    let mut s = setup(FEATURES);
    s.peer.set_nonblocking(true).unwrap();
    let test_runs = Arc::new(());
    let runs = Arc::downgrade(&test_runs);
    let peer = s.peer.try_clone().unwrap();
    std::thread::spawn(move || {
        while runs.strong_count() > 0 {
            // A full socket is as good.
            let _ = peer.send(&frame(100, 1));
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    s.driver.every_broken_ring_stops_the_device(0, FEATURES);
    drop(test_runs);
}

#[test]
fn buffers_over_each_other_and_over_the_rings_do_no_harm() {
    for queue in [0, 1] {
        let (socket, peer) = UnixDatagram::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        for seed in 0..4 {
            peer.send(&frame(100, seed)).unwrap();
        }
        let backend = Box::new(Wire { socket, guest: Arc::new(Mutex::new(Offloads::NONE)) });
        let (net, _) = card(backend);
        Driver::in_lockstep(net).overlapping_buffers_do_no_harm(queue, FEATURES);
    }
}

#[test]
fn a_guest_reaches_the_host_through_a_tap() {
    let test = || {
        // SAFETY: a new network namespace for this thread changes no memory and no open file.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return println!("skipped: no network namespace may be made: {}", io::Error::last_os_error());
        }
        let tap = match Tap::open("tap-vmm") {
            Ok(tap) => tap,
            Err(error) => return println!("skipped: {error}"),
        };
        let status = std::process::Command::new("ip").args(["addr", "add", "10.8.0.1/24", "dev", "tap-vmm"]).status();
        if !status.is_ok_and(|status| status.success()) {
            return println!("skipped: the `ip` command is not installed");
        }
        let (net, _) = card(Box::new(tap));
        let features = FEATURES | F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_HOST_TSO4;
        let mut driver = Driver::ready(net, features);
        let mut request = vec![0; HEADER_BYTES];
        request.extend([0xff; 6]);
        request.extend([2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 8, 0, 2]);
        request.extend([0, 0, 0, 0, 0, 0, 10, 8, 0, 1]);
        driver.call(1, &[Part::Read(&request)]);
        loop {
            let (written, parts) = driver.call(0, &[Part::Write(2000)]);
            let reply = driver.read(parts[0] + HEADER_BYTES as u64, written as usize - HEADER_BYTES);
            if reply[12..14] == [8, 6] && reply[21] == 2 {
                assert_eq!(reply[28..32], [10, 8, 0, 1]);
                break;
            }
        }
    };
    std::thread::spawn(test).join().unwrap();
}

/// A frame of 700 bytes, then nothing.
fn one_frame() -> RateLimit {
    RateLimit { bytes: Some(Rate { per_second: 1, burst: 700 }), requests: None }
}

#[test]
fn frames_beyond_the_receive_limit_wait_in_order() {
    let mut s = setup(FEATURES);
    s.limiters[0].set(one_frame());
    for _ in 0..2 {
        s.driver.send(0, &[Part::Write(2000)]);
    }
    s.driver.kick(0);
    for seed in [1, 2] {
        s.peer.send(&frame(700, seed)).unwrap();
    }
    assert_eq!(s.driver.wait(0).1, 712);
    let limiter = s.limiters[0].clone();
    s.driver.wait_for("throttling", |_| (limiter.waits() > 0).then_some(()));
    assert_eq!(s.driver.poll(0), None);

    s.limiters[0].set(RateLimit::default());
    assert_eq!(s.driver.wait(0).1, 712);
}

#[test]
fn frames_beyond_the_transmit_limit_wait_in_the_ring() {
    let mut s = setup(FEATURES);
    s.limiters[1].set(RateLimit { bytes: None, requests: Some(Rate { per_second: 1, burst: 1 }) });
    for seed in [1, 2] {
        s.driver.send(1, &[Part::Read(&frame(100, seed))]);
    }
    s.driver.kick(1);
    s.driver.wait(1);
    let limiter = s.limiters[1].clone();
    s.driver.wait_for("throttling", |_| (limiter.waits() > 0).then_some(()));
    let mut received = [0; 200];
    assert!(s.peer.recv(&mut received).unwrap() == 112 && received[12] == 1);

    s.limiters[1].set(RateLimit::default());
    s.driver.wait(1);
    assert!(s.peer.recv(&mut received).unwrap() == 112 && received[12] == 2);
}
