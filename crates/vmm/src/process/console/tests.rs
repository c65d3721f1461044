use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::history::History;
use super::record::Record;
use super::*;
use crate::process::Folder;

const LONG: Duration = Duration::from_secs(20);

/// Writes down what it is given, unless it is deaf.
#[derive(Default)]
struct Keyboard {
    typed: Mutex<Vec<u8>>,
    size: Mutex<Option<(u16, u16)>>,
    deaf: AtomicBool,
}

impl Guest for Keyboard {
    fn input(&self, bytes: &[u8]) -> usize {
        let taken = if self.deaf.load(Ordering::SeqCst) { 0 } else { bytes.len().min(3) };
        self.typed.lock().unwrap().extend(&bytes[..taken]);
        taken
    }

    fn resize(&self, columns: u16, rows: u16) {
        *self.size.lock().unwrap() = Some((columns, rows));
    }
}

struct Setup {
    _directory: tempfile::TempDir,
    folder: Folder,
    hub: Arc<Hub>,
    guest: Arc<Keyboard>,
    server: Server,
}

fn setup() -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let folder = Folder::new(directory.path());
    let hub = Hub::new().unwrap();
    let guest = Arc::new(Keyboard::default());
    let server = Server::start(&folder, hub.clone(), guest.clone(), None).unwrap();
    Setup { _directory: directory, folder, hub, guest, server }
}

impl Setup {
    fn viewer(&self, mode: Mode) -> Client {
        Client::connect(&self.folder.console(), mode, true).unwrap()
    }
}

#[track_caller]
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "{what} never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a viewer sees until `end` appears, past and present together.
fn see(viewer: &mut Client, end: &str) -> String {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(end) {
        match viewer.message().unwrap() {
            Message::Scrollback(bytes) | Message::Output(bytes) => seen.extend(bytes),
            other => panic!("{other:?} after {}", String::from_utf8_lossy(&seen)),
        }
    }
    String::from_utf8(seen).unwrap()
}

#[test]
fn a_late_viewer_sees_the_past_and_the_present_without_a_gap() {
    let s = setup();
    let talker = {
        let hub = s.hub.clone();
        std::thread::spawn(move || (0..2000).for_each(|number| hub.push(format!("{number}\n").as_bytes())))
    };
    let mut viewers: Vec<Client> = (0..5).map(|_| s.viewer(Mode::Look)).collect();
    talker.join().unwrap();
    s.hub.push(b"end\n");
    let all: String = (0..2000).map(|number| format!("{number}\n")).collect::<String>() + "end\n";
    for viewer in &mut viewers {
        assert_eq!(see(viewer, "end\n"), all);
    }
    drop(s.server);
    assert_eq!(fs::read_to_string(s.folder.console_log()).unwrap(), all);
    assert!(matches!(viewers[0].message().unwrap(), Message::End(why) if why.contains("ended")));
    assert!(!s.folder.console().exists());
}

#[test]
fn a_viewer_without_interest_in_the_past_sees_none() {
    let s = setup();
    s.hub.push(b"past ");
    let mut viewer = Client::connect(&s.folder.console(), Mode::Look, false).unwrap();
    s.hub.push(b"present");
    assert_eq!(see(&mut viewer, "present"), "present");
}

#[test]
fn everybody_who_came_to_type_can_and_the_last_size_holds() {
    let s = setup();
    let viewers = [s.viewer(Mode::Type), s.viewer(Mode::Type)];
    let mut keys: Vec<Keys> = viewers.iter().map(|viewer| viewer.keys().unwrap()).collect();
    keys[0].input(b"first").unwrap();
    wait_until("the first input", || s.guest.typed.lock().unwrap().len() == 5);
    keys[1].input(b"second").unwrap();
    wait_until("the second input", || s.guest.typed.lock().unwrap().len() == 11);
    assert_eq!(*s.guest.typed.lock().unwrap(), b"firstsecond");
    keys[0].resize(80, 25).unwrap();
    wait_until("a size", || *s.guest.size.lock().unwrap() == Some((80, 25)));
}

#[test]
fn a_viewer_that_came_to_look_cannot_type() {
    let s = setup();
    for (input, size) in [(b"rm".as_slice(), None), (b"", Some((1, 1)))] {
        let mut viewer = s.viewer(Mode::Look);
        let mut keys = viewer.keys().unwrap();
        match size {
            None => keys.input(input).unwrap(),
            Some((columns, rows)) => keys.resize(columns, rows).unwrap(),
        }
        assert!(matches!(viewer.message().unwrap(), Message::End(why) if why.contains("may not type")));
    }
    assert!(s.guest.typed.lock().unwrap().is_empty() && s.guest.size.lock().unwrap().is_none());
}

#[test]
fn a_guest_that_takes_no_input_gets_it_later_and_holds_no_viewer_up() {
    let s = setup();
    s.guest.deaf.store(true, Ordering::SeqCst);
    let viewer = s.viewer(Mode::Type);
    viewer.keys().unwrap().input(b"patience").unwrap();
    let mut other = s.viewer(Mode::Look);
    s.hub.push(b"still here");
    assert_eq!(see(&mut other, "here"), "still here");
    s.guest.deaf.store(false, Ordering::SeqCst);
    wait_until("the input", || *s.guest.typed.lock().unwrap() == b"patience");
}

#[test]
fn a_viewer_that_does_not_read_is_let_go_and_nobody_waits_for_it() {
    const ROUNDS: usize = 4096;
    const LINE: [u8; 1024] = [b'x'; 1024];
    let s = setup();
    let mut deaf = s.viewer(Mode::Look);
    let mut other = s.viewer(Mode::Look);
    let read = Arc::new(AtomicUsize::new(0));
    let reader = {
        let read = read.clone();
        std::thread::spawn(move || {
            while read.load(Ordering::SeqCst) < ROUNDS * LINE.len() {
                match other.message().unwrap() {
                    Message::Scrollback(bytes) | Message::Output(bytes) => {
                        read.fetch_add(bytes.len(), Ordering::SeqCst)
                    }
                    other => panic!("{other:?}"),
                };
            }
        })
    };
    // More than the sockets' buffers and the queue hold, and no faster than the other viewer reads.
    for round in 1..=ROUNDS {
        s.hub.push(&LINE);
        wait_until("the output", || read.load(Ordering::SeqCst) + MAX_WAITING_BYTES / 2 >= round * LINE.len());
    }
    reader.join().unwrap();
    let mut seen = 0;
    let end = loop {
        match deaf.message() {
            Ok(Message::Scrollback(bytes) | Message::Output(bytes)) => seen += bytes.len(),
            other => break other,
        }
    };
    assert!(matches!(end, Err(ClientError::Gone)), "{end:?}");
    assert!(seen < ROUNDS * LINE.len());
    // The hub goes on without it.
    s.hub.push(b"the end");
    assert!(see(&mut s.viewer(Mode::Look), "the end").len() <= HISTORY_BYTES);
}

#[test]
fn what_is_no_frame_ends_the_connection_with_a_reason() {
    let s = setup();
    let says = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(s.folder.console()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is as good as an end.
        let _ = stream.read_to_end(&mut answer);
        let mut decoder = Decoder::default();
        decoder.push(&answer);
        match decoder.message() {
            Ok(Some(Message::End(why))) => why,
            other => panic!("{other:?}"),
        }
    };
    assert!(says(&[9, 0, 0, 0, 0]).contains("no frame of kind 9"));
    assert!(says(&[2, 0xff, 0xff, 0xff, 0xff]).contains("too long"));
    assert!(says(&[1, 3, 0, 0, 0, VERSION, 7, 0]).contains("kind 1"));
    assert!(says(&[1, 3, 0, 0, 0, VERSION + 1, 0, 0]).contains("version"));
    assert!(says(&[2, 1, 0, 0, 0, b'x']).contains("hello first"));
    assert!(s.guest.typed.lock().unwrap().is_empty());
}

#[test]
fn too_many_viewers_are_told_so_and_silent_ones_make_room() {
    let s = setup();
    let _silent: Vec<UnixStream> = (0..MAX_VIEWERS).map(|_| UnixStream::connect(s.folder.console()).unwrap()).collect();
    let mut viewers: Vec<Client> = (0..MAX_VIEWERS).map(|_| s.viewer(Mode::Look)).collect();
    let refused = Client::connect(&s.folder.console(), Mode::Look, true).unwrap_err();
    assert!(matches!(&refused, ClientError::Refused(why) if why.contains("try again")), "{refused:?}");
    s.hub.push(b"all of you");
    for viewer in &mut viewers {
        assert_eq!(see(viewer, "you"), "all of you");
    }
}

#[test]
fn the_record_has_two_files_of_bounded_size_and_goes_on_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (path, old_path) = (directory.path().join("log"), directory.path().join("log.1"));
    let open = || Record::open(&path, &old_path, 10).unwrap();
    let content = || [fs::read_to_string(&old_path).unwrap(), fs::read_to_string(&path).unwrap()];
    let mut record = open();
    record.write(b"01234567");
    assert_eq!(content(), ["", "01234567"]);
    let mut record = open();
    record.write(b"89ab");
    assert_eq!(content(), ["0123456789", "ab"]);
    record.write(b"cdefghijklmnopqrstuvw");
    assert_eq!(content(), ["klmnopqrst", "uvw"]);
}

#[test]
fn the_past_begins_with_a_line() {
    let mut history = History::default();
    history.push(b"no end yet");
    assert_eq!(history.lines(), b"no end yet");
    (0..20_000).for_each(|number| history.push(format!("\nline {number}").as_bytes()));
    let lines = String::from_utf8(history.lines()).unwrap();
    assert!(lines.starts_with("line ") && lines.ends_with("\nline 19999"), "{}", &lines[..20]);
    assert!((HISTORY_BYTES - 20..=HISTORY_BYTES).contains(&lines.len()));
    history.push(&[b'x'; 2 * HISTORY_BYTES]);
    assert_eq!(history.lines(), [b'x'; HISTORY_BYTES]);
}

proptest! {
    #[test]
    fn frames_survive_any_cut_of_the_stream(
        input in proptest::collection::vec(any::<u8>(), 1..3000),
        columns in any::<u16>(),
        cuts in proptest::collection::vec(1..700_usize, 1..20),
    ) {
        let requests =
            [Request::hello(Mode::Type, true), Request::Input(input), Request::Resize { columns, rows: 7 }];
        let mut bytes = Vec::new();
        requests.iter().for_each(|request| request.encode(&mut bytes));
        let (mut decoder, mut read, mut rest) = (Decoder::default(), Vec::new(), &bytes[..]);
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            decoder.push(now);
            while let Some(request) = decoder.request().unwrap() {
                read.push(request);
            }
            rest = later;
        }
        prop_assert_eq!(read, requests);
    }

    #[test]
    fn any_bytes_are_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        for _ in 0..=bytes.len() {
            if !matches!(decoder.message(), Ok(Some(_))) {
                break;
            }
        }
        prop_assert!(!matches!(decoder.message(), Ok(Some(_))));
    }
}
