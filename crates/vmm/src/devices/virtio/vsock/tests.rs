//! A guest driver on one side, programs with real Unix sockets on the other.

use std::io::{Read, Write};
use std::net::Shutdown;

use super::packet::{HEADER_BYTES, Header, SHUTDOWN_BOTH, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::*;
use crate::devices::virtio::testing::{Driver, PATIENCE, Part, Sent};

const CID: u64 = 3;
const ROOM: u32 = 64 << 10;

struct Guest {
    directory: tempfile::TempDir,
    driver: Driver,
    buffers: Vec<Sent>,
}

fn guest() -> Guest {
    let directory = tempfile::tempdir().unwrap();
    let config = VsockConfig { guest_cid: CID as u32, path: directory.path().join("v") };
    let mut guest = Guest { directory, driver: Driver::ready(config.build().unwrap(), 0), buffers: Vec::new() };
    guest.post_buffers(64);
    guest
}

fn request(op: u16) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: 5000,
        dst_port: 1024,
        kind: TYPE_STREAM,
        op,
        buf_alloc: ROOM,
        ..Header::default()
    }
}

impl Guest {
    fn path(&self) -> PathBuf {
        self.directory.path().join("v")
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.directory.path().join(format!("v_{port}"))).unwrap()
    }

    fn connect_from_host(&self, line: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(line).unwrap();
        stream
    }

    fn post_buffers(&mut self, count: usize) {
        for _ in 0..count {
            let sent = self.driver.send(0, &[Part::Write(HEADER_BYTES as u32), Part::Write(4096)]);
            self.buffers.push(sent);
        }
        self.driver.kick(0);
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let header = Header { len: data.len() as u32, ..header };
        self.driver.call(1, &[Part::Read(&header.to_bytes()), Part::Read(data)]);
    }

    /// Waits for a packet, and gives its buffer to the device again.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let (head, written) = self.driver.wait(0);
        self.take(head, written)
    }

    fn take(&mut self, head: u16, written: u32) -> (Header, Vec<u8>) {
        let index = self.buffers.iter().position(|sent| sent.head == head).unwrap();
        let sent = self.buffers.remove(index);
        let header = self.driver.read(sent.parts[0], HEADER_BYTES);
        let header = Header::from_bytes(header.as_slice().try_into().unwrap());
        let data = self.driver.read(sent.parts[1], header.len as usize);
        assert_eq!(written as usize, HEADER_BYTES + data.len());
        self.post_buffers(1);
        (header, data)
    }

    fn expect(&mut self, op: u16) -> (Header, Vec<u8>) {
        let (header, data) = self.receive();
        assert_eq!(header.op, op, "{header:?}");
        (header, data)
    }

    /// A connection from the guest to a program that listens on port 1024.
    fn connected(&mut self) -> UnixStream {
        let listener = self.listen(1024);
        self.send(request(op::REQUEST), &[]);
        self.expect(op::RESPONSE);
        let (stream, _) = listener.accept().unwrap();
        std::fs::remove_file(self.directory.path().join("v_1024")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 999) as u8).collect()
}

#[test]
fn a_guest_reaches_a_program_of_the_host() {
    let mut guest = guest();
    let listener = guest.listen(1024);
    guest.send(request(op::REQUEST), &[]);
    let (response, _) = guest.expect(op::RESPONSE);
    assert_eq!((response.src_cid, response.dst_cid), (HOST_CID, CID));
    assert_eq!((response.src_port, response.dst_port, response.kind), (1024, 5000, TYPE_STREAM));
    assert_eq!(response.buf_alloc, connection::BUFFER_BYTES);
    let (mut program, _) = listener.accept().unwrap();
    guest.send(request(op::RW), b"from the guest");
    let mut bytes = [0; 14];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    program.write_all(b"from the host").unwrap();
    let (packet, data) = guest.expect(op::RW);
    assert_eq!((data.as_slice(), packet.fwd_cnt), (b"from the host".as_slice(), 14));
}

#[test]
fn a_guest_that_connects_to_nobody_is_refused() {
    let mut guest = guest();
    guest.send(request(op::REQUEST), &[]);
    let (reset, _) = guest.expect(op::RST);
    assert_eq!((reset.src_port, reset.dst_port), (1024, 5000));
}

#[test]
fn a_program_of_the_host_reaches_the_guest() {
    let mut guest = guest();
    let mut program = guest.connect_from_host(b"CONNECT 52\nand at once");
    let (request_packet, _) = guest.expect(op::REQUEST);
    assert_eq!((request_packet.dst_port, request_packet.dst_cid), (52, CID));
    let port = request_packet.src_port;
    let reply = Header { src_port: 52, dst_port: port, ..request(op::RESPONSE) };
    guest.send(reply, &[]);
    let mut line = vec![0; format!("OK {port}\n").len()];
    program.read_exact(&mut line).unwrap();
    assert_eq!(line, format!("OK {port}\n").as_bytes());
    assert_eq!(guest.expect(op::RW).1, b"and at once");
    guest.send(Header { op: op::RW, ..reply }, b"hello");
    let mut bytes = [0; 5];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
fn a_program_that_the_guest_refuses_is_closed() {
    let mut guest = guest();
    let mut program = guest.connect_from_host(b"CONNECT 52\n");
    let (packet, _) = guest.expect(op::REQUEST);
    guest.send(Header { src_port: 52, dst_port: packet.src_port, ..request(op::RST) }, &[]);
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_program_that_says_something_else_is_closed() {
    let guest = guest();
    for line in [b"HELLO\n".as_slice(), b"CONNECT x\n", &[b'C'; 100]] {
        let mut program = guest.connect_from_host(line);
        assert!(matches!(program.read(&mut [0; 8]), Ok(0) | Err(_)));
    }
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut guest = guest();
    let listener = guest.listen(1024);
    guest.send(Header { buf_alloc: 100, ..request(op::REQUEST) }, &[]);
    guest.expect(op::RESPONSE);
    let (mut program, _) = listener.accept().unwrap();
    program.write_all(&pattern(250)).unwrap();
    let (mut received, mut asked) = (Vec::new(), 0);
    while received.len() < 250 {
        match guest.receive() {
            (header, data) if header.op == op::RW => received.extend(data),
            (header, _) => {
                assert_eq!((header.op, received.len() % 100), (op::CREDIT_REQUEST, 0));
                asked += 1;
                let fwd_cnt = received.len() as u32;
                guest.send(Header { buf_alloc: 100, fwd_cnt, ..request(op::CREDIT_UPDATE) }, &[]);
            }
        }
        assert!(received.len() as u32 <= (asked + 1) * 100);
    }
    assert!(received == pattern(250) && asked == 2);
}

#[test]
fn a_long_transfer_from_the_guest_keeps_to_its_credit_and_arrives_whole() {
    let mut guest = guest();
    let mut program = guest.connected();
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; 2 << 20];
        program.read_exact(&mut bytes).unwrap();
        bytes
    });
    let data = pattern(2 << 20);
    let (mut sent, mut forwarded) = (0u32, 0u32);
    while (sent as usize) < data.len() {
        let room = connection::BUFFER_BYTES - (sent - forwarded);
        if room < 4096 {
            forwarded = guest.expect(op::CREDIT_UPDATE).0.fwd_cnt;
            continue;
        }
        guest.send(request(op::RW), &data[sent as usize..][..4096]);
        sent += 4096;
    }
    assert!(reader.join().unwrap() == data);
}

#[test]
fn a_long_transfer_to_the_guest_arrives_whole() {
    let mut guest = guest();
    let mut program = guest.connected();
    let data = pattern(1 << 20);
    let copy = data.clone();
    let writer = std::thread::spawn(move || {
        program.write_all(&copy).unwrap();
        program
    });
    let mut received = Vec::new();
    while received.len() < data.len() {
        let (header, bytes) = guest.receive();
        received.extend(bytes);
        if header.op == op::CREDIT_REQUEST {
            guest.send(Header { fwd_cnt: received.len() as u32, ..request(op::CREDIT_UPDATE) }, &[]);
        }
    }
    assert!(received == data);
    drop(writer.join().unwrap());
}

#[test]
fn a_guest_that_sends_more_than_its_credit_loses_the_connection() {
    let mut guest = guest();
    let _program = guest.connected();
    let piece = pattern(60000);
    for _ in 0..200 {
        guest.send(request(op::RW), &piece);
        if let Some((head, written)) = guest.driver.poll(0) {
            let (header, _) = guest.take(head, written);
            if header.op == op::RST {
                return;
            }
        }
    }
    panic!("the connection took {} bytes that nobody reads", 200 * 60000);
}

#[test]
fn a_program_that_stops_sending_can_still_receive() {
    let mut guest = guest();
    let mut program = guest.connected();
    program.write_all(b"last words").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(op::RW).1, b"last words");
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND);
    guest.send(request(op::RW), b"answer");
    let mut bytes = [0; 6];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"answer");
}

#[test]
fn a_guest_that_stops_sending_can_still_receive() {
    let mut guest = guest();
    let mut program = guest.connected();
    guest.send(request(op::RW), b"question");
    guest.send(Header { flags: SHUTDOWN_SEND, ..request(op::SHUTDOWN) }, &[]);
    let mut bytes = Vec::new();
    program.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"question");
    program.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(op::RW).1, b"answer");
}

#[test]
fn a_guest_that_closes_gets_a_reset_and_the_program_an_end() {
    let mut guest = guest();
    let mut program = guest.connected();
    guest.send(Header { flags: SHUTDOWN_BOTH, ..request(op::SHUTDOWN) }, &[]);
    guest.expect(op::RST);
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    guest.send(request(op::RW), b"too late");
    guest.expect(op::RST);
}

#[test]
fn a_program_that_closes_delivers_its_data_first() {
    let mut guest = guest();
    let mut program = guest.connected();
    program.write_all(&pattern(10000)).unwrap();
    drop(program);
    let mut received = Vec::new();
    let flags = loop {
        match guest.receive() {
            (header, data) if header.op == op::RW => received.extend(data),
            (header, _) if header.op == op::SHUTDOWN && header.flags == SHUTDOWN_BOTH => break header.flags,
            (header, _) => assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_SEND)),
        }
    };
    assert!(received == pattern(10000) && flags == SHUTDOWN_BOTH);
    guest.send(request(op::RST), &[]);
}

#[test]
fn packets_that_break_the_protocol_are_answered_with_a_reset() {
    let mut guest = guest();
    for packet in [request(op::RW), request(op::SHUTDOWN), request(op::CREDIT_REQUEST), request(99)] {
        guest.send(packet, &[]);
        guest.expect(op::RST);
    }
    guest.send(Header { kind: 2, ..request(op::REQUEST) }, &[]);
    assert_eq!(guest.expect(op::RST).0.kind, 2);
    let _program = guest.connected();
    guest.send(request(op::REQUEST), &[]);
    guest.expect(op::RST);
}

#[test]
fn packets_with_foreign_addresses_or_lengths_are_dropped() {
    let mut guest = guest();
    guest.send(Header { src_cid: 9, ..request(op::REQUEST) }, &[]);
    guest.send(Header { dst_cid: 7, ..request(op::REQUEST) }, &[]);
    guest.send(request(op::RST), &[]);
    let lying = Header { len: u32::MAX, ..request(op::RW) };
    guest.driver.call(1, &[Part::Read(&lying.to_bytes()), Part::Read(b"short")]);
    guest.send(Header { src_port: 77, ..request(op::RW) }, &[]);
    assert_eq!(guest.expect(op::RST).0.dst_port, 77);
}

#[test]
fn many_connections_work_side_by_side() {
    let mut guest = guest();
    let listener = guest.listen(1024);
    let mut programs = Vec::new();
    for port in 0..100 {
        guest.send(Header { src_port: port, ..request(op::REQUEST) }, &[]);
        guest.expect(op::RESPONSE);
        programs.push(listener.accept().unwrap().0);
    }
    for (program, port) in programs.iter_mut().zip(0u8..) {
        guest.send(Header { src_port: u32::from(port), ..request(op::RW) }, &[port]);
        program.write_all(&[port, port]).unwrap();
    }
    let mut seen = [false; 100];
    for _ in 0..100 {
        let (header, data) = guest.expect(op::RW);
        assert_eq!(data, [header.dst_port as u8; 2]);
        seen[header.dst_port as usize] = true;
    }
    assert!(seen.iter().all(|seen| *seen));
    for (program, port) in programs.iter_mut().zip(0u8..) {
        let mut byte = [0];
        program.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [port]);
    }
}

#[test]
fn a_guest_that_takes_no_answers_is_held_back_and_goes_on_when_it_does() {
    let directory = tempfile::tempdir().unwrap();
    let config = VsockConfig { guest_cid: CID as u32, path: directory.path().join("v") };
    let driver = Driver::ready(config.build().unwrap(), 0);
    let mut guest = Guest { directory, driver, buffers: Vec::new() };
    // The ring has 256 places, of which the device takes as many chains as it keeps answers for.
    const PLACES: u32 = 256;
    let (mut sent, mut taken) = (0, 0);
    for _ in 0..4 {
        guest.driver.wait_for("room in the ring", |driver| {
            taken += std::iter::from_fn(|| driver.poll(1)).count() as u32;
            (sent - taken + 100 <= PLACES).then_some(())
        });
        for port in 0..100 {
            guest.driver.send(1, &[Part::Read(&Header { src_port: port, ..request(op::RW) }.to_bytes())]);
        }
        sent += 100;
        guest.driver.kick(1);
    }
    guest.post_buffers(64);
    for i in 0..400 {
        assert_eq!(guest.expect(op::RST).0.dst_port, i % 100);
    }
}

#[test]
fn a_reset_ends_all_connections_and_the_device_works_again() {
    let mut guest = guest();
    for _ in 0..5 {
        let mut program = guest.connected();
        guest.driver.reset();
        assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
        guest.buffers.clear();
        guest.driver.start(0);
        guest.post_buffers(64);
    }
}

#[test]
fn the_configuration_tells_the_cid() {
    let guest = guest();
    assert_eq!(u64::from_le_bytes(guest.driver.config(0)), CID);
}

#[test]
fn paths_and_cids_that_cannot_be_used_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let build = |guest_cid, name: &str| VsockConfig { guest_cid, path: directory.path().join(name) }.build();
    assert!(matches!(build(2, "v"), Err(Error::Cid(2))));
    let first = build(3, "v").unwrap();
    assert!(matches!(build(4, "v"), Err(Error::InUse(_))));
    drop(first);
    drop(UnixListener::bind(directory.path().join("stale")).unwrap());
    build(3, "stale").unwrap();
    std::fs::write(directory.path().join("file"), b"").unwrap();
    assert!(matches!(build(3, "file"), Err(Error::NotASocket(_))));
    assert!(matches!(build(3, "no/such/place"), Err(Error::Bind { .. })));
}

#[test]
fn broken_rings_stop_the_device_until_it_is_reset() {
    let directory = tempfile::tempdir().unwrap();
    let config = VsockConfig { guest_cid: 3, path: directory.path().join("v") };
    Driver::new(config.build().unwrap()).every_broken_ring_stops_the_device(1, 0);
}

#[test]
fn broken_rings_for_packets_to_the_guest_stop_the_device_until_it_is_reset() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v");
    let mut driver = Driver::new(VsockConfig { guest_cid: 3, path: path.clone() }.build().unwrap());
    let test_runs = std::sync::Arc::new(());
    let runs = std::sync::Arc::downgrade(&test_runs);
    std::thread::spawn(move || {
        while runs.strong_count() > 0 {
            // Each makes the device ask the guest for a connection. A device under reset refuses them.
            let _ = std::os::unix::net::UnixStream::connect(&path)
                .and_then(|mut stream| std::io::Write::write_all(&mut stream, b"CONNECT 1024\n"));
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    driver.every_broken_ring_stops_the_device(0, 0);
    drop(test_runs);
}

#[test]
fn buffers_over_each_other_and_over_the_rings_do_no_harm() {
    for queue in [0, 1] {
        let directory = tempfile::tempdir().unwrap();
        let config = VsockConfig { guest_cid: 3, path: directory.path().join("v") };
        Driver::in_lockstep(config.build().unwrap()).overlapping_buffers_do_no_harm(queue, 0);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(48))]

    /// Any sequence of packets is survived, and the device still connects afterwards.
    #[test]
    fn random_packets_harm_nothing(
        packets in proptest::collection::vec(
            (0u16..10, 0u32..3, proptest::num::u32::ANY, 0u32..4, proptest::num::u32::ANY, 0usize..200), 1..60),
    ) {
        let mut guest = guest();
        let _listener = guest.listen(1);
        for (op, port, fwd_cnt, flags, buf_alloc, len) in packets {
            let header = Header { dst_port: port, fwd_cnt, flags, buf_alloc, ..request(op) };
            guest.send(header, &vec![1; len]);
            while let Some((head, written)) = guest.driver.poll(0) {
                guest.take(head, written);
            }
        }
        guest.send(Header { src_port: 1, dst_port: 1, ..request(op::REQUEST) }, &[]);
        loop {
            let (header, _) = guest.receive();
            if header.dst_port == 1 {
                proptest::prop_assert_eq!(header.op, op::RESPONSE);
                break;
            }
        }
    }
}

#[test]
fn after_a_restore_programs_of_the_host_wait_until_the_driver_knows_that_its_connections_are_gone() {
    // Arrange: a driver with event buffers, and a machine that goes on elsewhere.
    let mut guest = guest();
    for _ in 0..4 {
        guest.driver.send(2, &[Part::Write(4)]);
    }
    let directory = tempfile::tempdir().unwrap();
    let config = VsockConfig { guest_cid: CID as u32, path: directory.path().join("v") };
    guest.driver = guest.driver.moved_to(config.build().unwrap());
    guest.directory = directory;
    let _program = guest.connect_from_host(b"CONNECT 7\n");

    // Act: the driver sends to a connection that is gone, which is answered though it has not seen the event.
    guest.send(request(op::RW), b"lost");
    guest.expect(op::RST);
    assert!(guest.driver.poll(0).is_none(), "a connection was asked for");
    let (head, written) = guest.driver.wait(2);
    assert_eq!(written, 4);
    guest.driver.offer(2, head);
    guest.driver.kick(2);

    // Assert
    let (asked, _) = guest.expect(op::REQUEST);
    assert_eq!(asked.dst_port, 7);
}
