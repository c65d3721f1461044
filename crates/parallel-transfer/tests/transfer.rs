//! Rounds over real sockets, and what a bad peer can do.

use std::io::{Cursor, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock};

use proptest::prelude::*;
use queztl_parallel_transfer::{Error, MAX_CHUNK_BYTES, Piece, Receiver, Sender};

const BYTES: usize = 4 << 20;

fn pairs(count: usize) -> (Vec<UnixStream>, Vec<UnixStream>) {
    (0..count).map(|_| UnixStream::pair().unwrap()).unzip()
}

/// Data of which half can be compressed.
fn data() -> Vec<u8> {
    let mut seed = 1u32;
    let mut noise = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    };
    (0..BYTES).map(|place| if place % 8192 < 4096 { noise() } else { (place / 65536) as u8 }).collect()
}

#[test]
fn rounds_over_several_connections_make_the_same_data() {
    let (ours, theirs) = pairs(3);
    let mut all = data();
    let copy = Mutex::new(vec![9; BYTES]);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut receiver = Receiver::new(theirs, BYTES as u64);
            let first = receiver.round(1, &copy).unwrap();
            (first, receiver.round(2, &copy).unwrap())
        });
        let mut sender = Sender::new(ours);
        let first = sender.round(1, |sink| sink.put(0, Piece::Data(&all))).unwrap();
        all[5000..5100].fill(0xee);
        all[100_000..200_000].fill(0);
        let second = sender.round(2, |sink| {
            sink.put(5000, Piece::Data(&all[5000..5100]))?;
            sink.put(100_000, Piece::Zero(100_000))
        });
        let received = receiving.join().unwrap();
        assert_eq!((received.0.data_bytes, received.0.chunks), (BYTES as u64, (BYTES / MAX_CHUNK_BYTES) as u64));
        assert!(first.wire_bytes < first.data_bytes * 3 / 4, "{first:?}");
        assert_eq!((received.1.data_bytes, second.unwrap().chunks), (100, 2));
    });
    assert!(*copy.lock().unwrap() == all);
}

#[test]
fn connections_that_break_end_the_round_on_both_sides() {
    let (ours, theirs) = pairs(2);
    drop(theirs);
    let all = data();
    let sent = Sender::new(ours).round(1, |sink| sink.put(0, Piece::Data(&all)));
    // Each breaks in a thread of its own.
    assert!(matches!(sent, Err(Error::Connection { .. })), "{sent:?}");
}

#[test]
fn one_connection_that_breaks_ends_the_round_on_both_sides() {
    let (ours, mut theirs) = pairs(2);
    drop(theirs.pop());
    let all = data();
    let copy = Mutex::new(vec![0; BYTES]);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| Receiver::new(theirs, BYTES as u64).round(1, &copy));
        let sent = Sender::new(ours).round(1, |sink| sink.put(0, Piece::Data(&all)));
        assert!(matches!(sent, Err(Error::Connection { connection: 1, .. })), "{sent:?}");
        assert!(receiving.join().unwrap().is_err());
    });
}

fn wire() -> Vec<u8> {
    static WIRE: OnceLock<Vec<u8>> = OnceLock::new();
    WIRE.get_or_init(make_wire).clone()
}

fn make_wire() -> Vec<u8> {
    let mut sender = Sender::new(vec![Vec::new()]);
    let all = data();
    sender
        .round(4, |sink| {
            sink.put(0, Piece::Data(&all[..10_000]))?;
            sink.put(65_536, Piece::Data(&[7; 4096]))?;
            sink.put(20_000, Piece::Zero(30_000))
        })
        .unwrap();
    sender.into_endpoints().remove(0)
}

#[test]
fn what_is_of_another_round_or_outside_is_refused() {
    let refused = |round, bytes| {
        let copy = Mutex::new(vec![0; BYTES]);
        Receiver::new(vec![Cursor::new(wire())], bytes).round(round, &copy).unwrap_err()
    };
    assert!(matches!(refused(5, BYTES as u64), Error::Malformed { .. }));
    assert!(matches!(refused(4, 50_000), Error::Malformed { .. }));
    let copy = Mutex::new(vec![0; 60_000]);
    let target = Receiver::new(vec![Cursor::new(wire())], BYTES as u64).round(4, &copy);
    assert!(matches!(target, Err(Error::Target(_))));
}

#[test]
fn a_chunk_that_is_missing_is_noticed() {
    let whole = wire();
    // The second chunk is the compressed page: header, and a payload of the length that it says.
    let first = 40 + u32::from_le_bytes(whole[32..36].try_into().unwrap()) as usize;
    let second = 40 + u32::from_le_bytes(whole[first + 32..first + 36].try_into().unwrap()) as usize;
    let without: Vec<u8> = [&whole[..first], &whole[first + second..]].concat();
    let copy = Mutex::new(vec![0; BYTES]);
    let result = Receiver::new(vec![Cursor::new(without)], BYTES as u64).round(4, &copy);
    assert!(matches!(result, Err(Error::Malformed { reason: "chunks are missing", .. })), "{result:?}");
}

proptest! {
    /// Any damage is noticed, and nothing panics.
    #[test]
    fn damage_is_noticed(place in 0usize..12_000, bit in 0u8..8, cut: bool) {
        let mut bytes = wire();
        let place = place % bytes.len();
        if cut { bytes.truncate(place) } else { bytes[place] ^= 1 << bit }
        let copy = Mutex::new(vec![0; 70_000]);
        prop_assert!(Receiver::new(vec![Cursor::new(bytes)], 70_000).round(4, &copy).is_err());
    }

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..400), magic: bool) {
        let mut bytes = Vec::new();
        if magic {
            bytes.write_all(b"QPT1").unwrap();
        }
        bytes.extend(noise);
        let copy = Mutex::new(vec![0; 4096]);
        prop_assert!(Receiver::new(vec![Cursor::new(bytes)], 4096).round(1, &copy).is_err());
    }
}
