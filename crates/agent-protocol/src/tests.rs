use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn decode(mut bytes: &[u8]) -> Result<Vec<Message>, Error> {
    let mut decoder = Decoder::default();
    let mut messages = Vec::new();
    loop {
        while let Some(message) = decoder.next_message()? {
            messages.push(message);
        }
        if decoder.read_from(&mut bytes).expect("there is room after all messages are taken") == 0 {
            return Ok(messages);
        }
    }
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, &mut out).unwrap();
    out
}

fn text(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(1..=255u8, 0..most)
}

fn some_text(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(1..=255u8, 1..most)
}

fn time() -> impl Strategy<Value = Time> {
    (any::<i64>(), 0..1_000_000_000u32).prop_map(|(seconds, nanoseconds)| Time { seconds, nanoseconds })
}

fn exec() -> impl Strategy<Value = Message> {
    let size = (any::<u16>(), any::<u16>()).prop_map(|(rows, columns)| Size { rows, columns });
    let env = vec("[A-Z]{1,8}=[ -~]{0,20}".prop_map(String::into_bytes), 0..5);
    (vec(some_text(40), 1..9), env, text(99), text(20), any::<bool>(), proptest::option::of(size)).prop_map(
        |(argv, env, cwd, user, stdin, terminal)| Message::Exec(Exec { argv, env, cwd, user, stdin, terminal }),
    )
}

fn entry() -> impl Strategy<Value = Message> {
    let path = "([a-z]{1,9}(/[a-z.]{3,9}){0,5})?".prop_map(|text| RelativePath::new(text.as_bytes()));
    let path = path.prop_filter_map("a path", Result::ok);
    let kind = prop_oneof![
        Just(EntryKind::Directory),
        any::<u64>().prop_map(|size| EntryKind::File { size }),
        some_text(50).prop_map(|target| EntryKind::Link { target }),
    ];
    (path, 0..=0o7777u16, time(), kind)
        .prop_map(|(path, mode, modified, kind)| Message::Entry(Entry { path, mode, modified, kind }))
}

fn message() -> impl Strategy<Value = Message> {
    let name = "[a-z0-9.-]{1,64}".prop_map(String::into_bytes);
    let identity =
        (proptest::option::of(name), proptest::option::of(time()), proptest::option::of(vec(any::<u8>(), 64)))
            .prop_map(|(host_name, clock, entropy)| Message::Identity(Identity { host_name, clock, entropy }));
    prop_oneof![
        any::<(u16, u16, u64)>().prop_map(|(min, max, features)| Message::Hello { min, max, features }),
        (any::<(u16, u64)>(), text(40)).prop_map(|((version, features), agent)| Message::Welcome {
            version,
            features,
            agent
        }),
        any::<u64>().prop_map(|cookie| Message::Ping { cookie }),
        any::<u64>().prop_map(|cookie| Message::Pong { cookie }),
        exec(),
        any::<u32>().prop_map(|pid| Message::Started { pid }),
        (1..=64u8).prop_map(|number| Message::Signal { number }),
        any::<(u16, u16)>().prop_map(|(rows, columns)| Message::Resize(Size { rows, columns })),
        any::<u8>().prop_map(|status| Message::Exited(Exit::Status(status))),
        (1..=64u8).prop_map(|signal| Message::Exited(Exit::Signal(signal))),
        (0..=3u8, vec(any::<u8>(), 1..3000)).prop_map(|(stream, bytes)| Message::Data { stream, bytes }),
        (0..=3u8).prop_map(|stream| Message::End { stream }),
        (0..=3u8, 1..=u32::MAX).prop_map(|(stream, bytes)| Message::Credit { stream, bytes }),
        (some_text(99), text(99)).prop_map(|(path, name)| Message::Put { path, name }),
        some_text(99).prop_map(|path| Message::Get { path }),
        entry(),
        identity,
        (any::<bool>(), any::<u32>()).prop_map(|(reboot, grace_ms)| Message::Shutdown {
            how: if reboot { Shutdown::Reboot } else { Shutdown::PowerOff },
            grace_ms
        }),
        any::<[u64; 3]>().prop_map(|[entries, bytes, skipped]| Message::Done(Summary { entries, bytes, skipped })),
        text(99).prop_map(|text| Message::Error(Fault { code: FaultCode::File, text })),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_to_the_same(messages in vec(message(), 0..8)) {
        let bytes: Vec<u8> = messages.iter().flat_map(encoded).collect();
        prop_assert_eq!(decode(&bytes).unwrap(), messages);
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..2000)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn random_payloads_of_every_kind_never_panic(kind in 0..0x60u8, payload in vec(prop_oneof![0..8u8, any::<u8>()], 0..300)) {
        let mut bytes = (payload.len() as u32).to_le_bytes().to_vec();
        bytes.push(kind);
        bytes.extend(payload);
        if let Ok(messages) = decode(&bytes) {
            // What was accepted has one form only.
            prop_assert_eq!(messages.iter().flat_map(encoded).collect::<Vec<u8>>(), bytes);
        }
    }

    #[test]
    fn a_damaged_message_never_panics(message in message(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let mut bytes = encoded(&message);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = decode(&bytes);
    }

    #[test]
    fn a_cut_message_is_none(message in message(), at in any::<prop::sample::Index>()) {
        let bytes = encoded(&message);
        prop_assert_eq!(decode(&bytes[..at.index(bytes.len())]).unwrap(), vec![]);
    }

    #[test]
    fn no_path_leaves_the_tree(bytes in vec(prop_oneof![Just(b'/'), Just(b'.'), Just(b'a')], 0..12)) {
        let Ok(path) = RelativePath::new(&bytes) else { return Ok(()) };
        prop_assert!(path.parts().all(|part| part != ".." && part != "." && !part.is_empty()));
        prop_assert!(!bytes.starts_with(b"/"));
    }
}

#[test]
fn a_frame_that_claims_too_much_is_refused_before_it_arrives() {
    let mut bytes = (MAX_PAYLOAD_BYTES as u32 + 1).to_le_bytes().to_vec();
    bytes.push(0x20);
    assert_eq!(decode(&bytes), Err(Error::FrameTooLarge(MAX_PAYLOAD_BYTES + 1)));
}

#[test]
fn the_largest_data_fits_and_larger_does_not() {
    let largest = Message::Data { stream: stream::STDOUT, bytes: vec![7; MAX_DATA_BYTES] };
    let larger = Message::Data { stream: stream::STDOUT, bytes: vec![7; MAX_DATA_BYTES + 1] };
    assert_eq!(decode(&encoded(&largest)), Ok(vec![largest]));
    assert_eq!(decode(&encoded(&larger)), Err(Error::Invalid("data")));
}

#[test]
fn a_command_beyond_a_frame_is_not_encoded() {
    let exec = Exec { argv: vec![vec![b'x'; MAX_PAYLOAD_BYTES]], ..Exec::default() };
    let mut out = vec![1, 2];
    assert!(matches!(encode(&Message::Exec(exec), &mut out), Err(Error::FrameTooLarge(_))));
    assert_eq!(out, [1, 2]);
}

#[test]
fn a_hello_of_another_protocol_is_refused() {
    let mut bytes = encoded(&Message::Hello { min: 1, max: 1, features: 0 });
    bytes[HEADER_BYTES] = b'X';
    assert_eq!(decode(&bytes), Err(Error::Invalid("magic")));
}

#[test]
fn paths_that_leave_the_tree_are_refused() {
    for path in ["/", "/etc", "..", "a/../b", "a/..", "./a", "a//b", "a/", "a\0b"] {
        assert!(RelativePath::new(path.as_bytes()).is_err(), "{path:?}");
    }
    let root = RelativePath::default();
    assert!(root.child(b"..").is_err() && root.child(b"a/b").is_err() && root.child(b"").is_err());
    assert_eq!(root.child(b"a").unwrap().child(b"b").unwrap().as_bytes(), b"a/b");
    assert!(RelativePath::new(&b"a/".repeat(128)[..255]).is_ok());
    assert!(RelativePath::new(&b"a/".repeat(129)[..257]).is_err());
}

#[test]
fn a_window_bounds_both_sides() {
    let (mut window, mut allowance) = (Window::default(), Allowance::default());
    window.spend(WINDOW_BYTES as usize);
    assert_eq!(window.available(), 0);
    assert_eq!(allowance.receive(WINDOW_BYTES as usize), Ok(()));
    assert_eq!(allowance.receive(1), Err(Overrun));
    allowance.give(10);
    assert_eq!(window.credit(10), Ok(()));
    assert_eq!(allowance.receive(10), Ok(()));
    assert_eq!(window.credit(WINDOW_BYTES), Err(Overrun));
    assert_eq!(window.credit(u32::MAX), Err(Overrun));
}
