use proptest::prelude::*;

use super::*;
use crate::frame::HEADER_BYTES;
use crate::hello::VERSION;

fn hello() -> Hello {
    Hello {
        min: VERSION,
        max: VERSION,
        features: Features::ALL,
        max_payload: 1 << 16,
        stream_window: 1000,
        connection_window: 2500,
        max_streams: 3,
        nonce: [0; 31],
        keyed: false,
    }
}

fn sessions() -> (Session, Session) {
    (Session::new(Side::Client, hello(), hello()), Session::new(Side::Server, hello(), hello()))
}

fn open(from: &mut Session, to: &mut Session, data: &[u8], flags: u8) -> (u32, Result<Event, ProtocolError>) {
    let stream = from.open().unwrap();
    let header = from.data(stream, &[&7_u32.to_le_bytes(), data], flags | OPEN, Priority::High).unwrap();
    let payload = [&7_u32.to_le_bytes(), data].concat();
    (stream, to.receive(&header, &payload))
}

fn send(from: &mut Session, to: &mut Session, stream: u32, data: &[u8], flags: u8) -> Result<Event, ProtocolError> {
    let header = from.data(stream, &[data], flags, Priority::Normal).unwrap();
    to.receive(&header, data)
}

#[test]
fn a_call_opens_answers_and_leaves_nothing_behind() {
    let (mut client, mut server) = sessions();
    let (stream, opened) = open(&mut client, &mut server, b"ask", END);
    let wanted = Event::Opened { stream: 1, service: 7, one_way: false, priority: Priority::High, skip: 4, end: true };
    assert_eq!(opened, Ok(wanted));
    assert_eq!(send(&mut server, &mut client, stream, b"answer", END), Ok(Event::Data { stream, end: true }));
    assert!(client.streams.is_empty() && server.streams.is_empty());
}

#[test]
fn a_one_way_message_is_over_with_its_end() {
    let (mut client, mut server) = sessions();
    let (_, opened) = open(&mut client, &mut server, b"tell", END | ONE_WAY);
    assert!(matches!(opened, Ok(Event::Opened { one_way: true, end: true, .. })));
    assert!(client.streams.is_empty() && server.streams.is_empty());
}

#[test]
fn windows_bound_what_is_sent_until_more_is_granted() {
    let (mut client, mut server) = sessions();
    let (stream, _) = open(&mut client, &mut server, &[0; 496], 0);
    assert_eq!(client.room(stream), Some(500));
    assert!(client.data(stream, &[&[0; 501]], 0, Priority::Bulk).is_none());
    assert!(server.taken(stream, 499).is_empty(), "not worth a frame");
    let grants = server.taken(stream, 1);
    let [(header, payload)] = &grants[..] else { panic!("{grants:?}") };
    assert_eq!(client.receive(header, payload), Ok(Event::Granted { stream }));
    assert_eq!(client.room(stream), Some(1000));
}

#[test]
fn a_peer_that_sends_more_than_it_may_is_caught() {
    let (mut client, mut server) = sessions();
    let (stream, _) = open(&mut client, &mut server, &[0; 900], 0);
    let header = Header { length: 200, kind: Kind::Data, flags: 0, priority: Priority::Bulk, stream, checksum: 0 };
    assert_eq!(server.receive(&header, &[0; 200]), Err(ProtocolError::Window(stream)));
}

#[test]
fn streams_of_a_peer_are_bounded_and_their_numbers_rise() {
    let (mut client, mut server) = sessions();
    for _ in 0..3 {
        open(&mut client, &mut server, b"", 0).1.unwrap();
    }
    assert_eq!(client.may_open(), Some(false));
    let opening =
        |stream| Header { length: 4, kind: Kind::Data, flags: OPEN, priority: Priority::Bulk, stream, checksum: 0 };
    assert_eq!(server.receive(&opening(7), &[0; 4]), Err(ProtocolError::StreamCount));
    assert_eq!(server.receive(&opening(5), &[0; 4]), Err(ProtocolError::StreamNumber(5)));
    assert_eq!(server.receive(&opening(8), &[0; 4]), Err(ProtocolError::StreamNumber(8)));
}

#[test]
fn what_arrives_for_a_stream_that_was_given_up_is_dropped() {
    let (mut client, mut server) = sessions();
    let (stream, _) = open(&mut client, &mut server, b"", 0);
    let late = client.data(stream, &[b"late"], 0, Priority::Normal).unwrap();
    let (header, payload) = server.reset(stream, 16, "enough").unwrap();
    assert_eq!(server.receive(&late, b"late"), Ok(Event::Dropped { bytes: 4 }));
    let told = Event::Reset { stream, code: 16, message: "enough".into() };
    assert_eq!(client.receive(&header, &payload), Ok(told));
    assert_eq!(client.room(stream), None);
}

#[test]
fn data_after_the_end_breaks_the_protocol() {
    let (mut client, mut server) = sessions();
    let (stream, _) = open(&mut client, &mut server, b"", END);
    let header = Header { length: 0, kind: Kind::Data, flags: 0, priority: Priority::Bulk, stream, checksum: 0 };
    assert_eq!(server.receive(&header, &[]), Err(ProtocolError::AfterEnd(stream)));
}

proptest! {
    /// Whatever a peer sends, a session stays within what it granted.
    #[test]
    fn no_peer_exceeds_its_grants(
        frames in proptest::collection::vec((any::<[u8; HEADER_BYTES]>(), 0..8_u32, 1..7_u8, 0..600_u32), 0..100),
    ) {
        let (_, mut server) = sessions();
        let (mut kept, mut broken) = (0_u64, false);
        for (mut bytes, stream, kind, length) in frames {
            bytes[..4].copy_from_slice(&length.to_le_bytes());
            bytes[4] = kind;
            (bytes[6], bytes[7]) = (bytes[6] % 4, 0);
            bytes[8..12].copy_from_slice(&stream.to_le_bytes());
            let Ok(header) = Header::decode(&bytes, 1 << 16) else { continue };
            match server.receive(&header, &vec![0; length as usize]) {
                Ok(Event::Opened { .. } | Event::Data { .. }) => kept += u64::from(length),
                Ok(_) => {}
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        prop_assert!(broken || kept <= 2500);
        prop_assert!(server.streams.len() <= 3);
    }
}
