//! A real agent on the other side of a pair of sockets, and a hostile one.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use queztl_agent_protocol::{Decoder, Entry, EntryKind, MAX_DATA_BYTES, Message, RelativePath, encode, stream};
use queztl_guest_agent::{Machine, serve};

use super::*;

/// Notes what the agent would do to its guest.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn add(&self, text: String) -> std::io::Result<()> {
        self.0.lock().unwrap().push(text);
        Ok(())
    }
}

impl Machine for &'static Notes {
    fn set_host_name(&self, name: &[u8]) -> std::io::Result<()> {
        self.add(format!("host name {}", String::from_utf8_lossy(name)))
    }

    fn set_clock(&self, time: Time) -> std::io::Result<()> {
        self.add(format!("clock {}", time.seconds))
    }

    fn add_entropy(&self, entropy: &[u8]) -> std::io::Result<()> {
        self.add(format!("entropy {}", entropy.len()))
    }

    fn shut_down(&self, how: Shutdown, grace: Duration) -> std::io::Result<()> {
        self.add(format!("shut down {how:?} {grace:?}"))
    }
}

const LIMIT: Duration = Duration::from_secs(60);

fn agent_with(notes: &'static Notes) -> Agent {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || serve(OwnedFd::from(theirs), &notes));
    Agent::new(ours, LIMIT).unwrap()
}

fn agent() -> Agent {
    agent_with(Box::leak(Box::default()))
}

fn words(words: &[&str]) -> Exec {
    let argv = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    Exec { argv, cwd: b"/".to_vec(), ..Exec::default() }
}

fn shell(script: &str) -> Exec {
    words(&["sh", "-c", script])
}

/// A pipe's read end with a thread that fills the other.
fn input(bytes: Vec<u8>) -> OwnedFd {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    std::thread::spawn(move || fs::File::from(write).write_all(&bytes));
    read
}

/// Bytes without a short period.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn output_errors_and_status_come_apart() {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let io = Io { stdout: Some(&mut out), stderr: Some(&mut err), ..Io::default() };

    let exit = agent().exec(&shell("echo to out; echo to err >&2; exit 7"), io).unwrap();

    assert_eq!((exit, out.as_slice(), err.as_slice()), (Exit::Status(7), &b"to out\n"[..], &b"to err\n"[..]));
}

#[test]
fn more_than_all_buffers_goes_through_both_ways() {
    let sent = noise(5_000_000);
    let stdin = input(sent.clone());
    let mut out = Vec::new();
    let io = Io { stdin: Some(stdin.as_fd()), stdout: Some(&mut out), ..Io::default() };

    let exit = agent().exec(&words(&["cat"]), io).unwrap();

    assert_eq!(exit, Exit::Status(0));
    assert!(out == sent, "{} bytes came back", out.len());
}

#[test]
fn a_command_that_reads_nothing_does_not_stop_the_session() {
    let stdin = input(noise(3_000_000));
    let io = Io { stdin: Some(stdin.as_fd()), ..Io::default() };
    assert_eq!(agent().exec(&shell("exec <&-; sleep 0.1; exit 3"), io).unwrap(), Exit::Status(3));
}

#[test]
fn one_session_runs_many_commands() {
    let mut agent = agent();
    for status in [0, 1, 255] {
        assert_eq!(agent.exec(&shell(&format!("exit {status}")), Io::default()).unwrap(), Exit::Status(status));
    }
    assert!(agent.ping().is_ok());
}

#[test]
fn environment_directory_and_missing_things() {
    let mut agent = agent();
    let mut out = Vec::new();
    let exec = Exec { env: vec![b"GREETING=a=b".to_vec()], cwd: b"/tmp".to_vec(), ..shell("echo $GREETING; pwd") };
    agent.exec(&exec, Io::output(&mut out)).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "a=b\n/tmp\n");

    let cases = [
        (words(&["/no/such/program"]), FaultCode::NoProgram),
        (words(&["/etc/passwd"]), FaultCode::CannotExecute),
        (Exec { cwd: b"/no/such".to_vec(), ..words(&["true"]) }, FaultCode::NoDirectory),
        (Exec { user: b"nobody-at-all".to_vec(), ..words(&["true"]) }, FaultCode::NoUser),
    ];
    for (exec, code) in cases {
        let error = agent.exec(&exec, Io::default()).unwrap_err();
        assert_eq!(error.fault(), Some(code), "{error}");
    }
}

#[test]
fn a_signal_ends_the_command_and_is_told() {
    let mut started = |controller: Controller| controller.signal(15).unwrap();
    let io = Io { started: Some(&mut started), ..Io::default() };
    assert_eq!(agent().exec(&words(&["sleep", "1000"]), io).unwrap(), Exit::Signal(15));
}

#[test]
fn a_terminal_has_a_size_and_follows_its_changes() {
    let stdin = input(b"go\n".to_vec());
    let mut out = Vec::new();
    let mut started = |controller: Controller| controller.resize(Size { rows: 33, columns: 44 }).unwrap();
    let io = Io { stdin: Some(stdin.as_fd()), stdout: Some(&mut out), started: Some(&mut started), ..Io::default() };
    let script = "tty; stty size; until [ \"$(stty size)\" = '33 44' ]; do sleep 0.01; done; read x; echo $x";
    let exec = Exec { terminal: Some(Size { rows: 11, columns: 22 }), ..shell(script) };

    let exit = agent().exec(&exec, io).unwrap();

    let text = String::from_utf8_lossy(&out).into_owned();
    assert_eq!(exit, Exit::Status(0), "{text}");
    assert!(text.contains("/dev/pts/") && text.ends_with("go\r\n"), "{text}");
    // The change may come before the first look.
    assert!(text.contains("11 22\r\n") || text.contains("33 44\r\n"), "{text}");
}

#[test]
fn all_output_of_a_terminal_arrives_before_its_end() {
    for _ in 0..10 {
        let mut out = Vec::new();
        let exec = Exec { terminal: Some(Size { rows: 5, columns: 5 }), ..shell("seq 1 2000") };
        agent().exec(&exec, Io::output(&mut out)).unwrap();
        assert!(out.ends_with(b"\r\n2000\r\n"), "{} bytes", out.len());
    }
}

#[test]
fn background_programs_do_not_keep_a_command_from_ending() {
    let mut out = Vec::new();
    let exit = agent().exec(&shell("sleep 30 & echo $!"), Io::output(&mut out)).unwrap();
    let pid: i32 = String::from_utf8(out).unwrap().trim().parse().unwrap();
    assert_eq!(exit, Exit::Status(0));
    // SAFETY: the number is that of a program which the test started and which still runs.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "it was ended with the command");
}

#[test]
fn the_command_dies_with_its_session() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let notes: &'static Notes = Box::leak(Box::default());
    let server = std::thread::spawn(move || serve(OwnedFd::from(theirs), &notes));
    let mut agent = Agent::new(ours, LIMIT).unwrap();
    agent.link.sender.send(&Message::Exec(words(&["sleep", "1000"]))).unwrap();
    let Message::Started { pid } = agent.link.receive().unwrap() else { panic!("the command did not start") };
    assert!(Path::new(&format!("/proc/{pid}")).exists());

    drop(agent);

    server.join().unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

/// Takes a little, then nothing until it is told to, then everything.
struct SlowReader {
    go_on: mpsc::Receiver<()>,
    waited: bool,
    total: u64,
}

impl Write for SlowReader {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if !self.waited {
            self.waited = true;
            self.go_on.recv().map_err(std::io::Error::other)?;
        }
        self.total += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slow_reader_stops_the_writer_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("written");
    let (go_on, receiver) = mpsc::channel();
    let mut slow = SlowReader { go_on: receiver, waited: false, total: 0 };
    // Standard error goes on while standard output stands still; it lets that go on in the end.
    struct Release(mpsc::Sender<()>, std::path::PathBuf, bool);
    impl Write for Release {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.2 = !self.1.exists();
            self.0.send(()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut release = Release(go_on, mark.clone(), false);
    let script = format!("(head -c 3000000 /dev/zero; touch {}) & sleep 0.3; echo now >&2; wait", mark.display());
    let io = Io { stdout: Some(&mut slow), stderr: Some(&mut release), ..Io::default() };

    let exit = agent().exec(&shell(&script), io).unwrap();

    assert_eq!(exit, Exit::Status(0));
    assert!(release.2, "3 MB were written although nobody read them");
    assert_eq!(slow.total, 3_000_000);
    assert!(mark.exists());
}

#[test]
fn a_writer_that_fails_ends_the_command() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let result = agent().exec(&words(&["yes"]), Io::output(&mut Full));
    assert!(matches!(result, Err(Error::Output(_))), "{result:?}");
}

#[test]
fn trees_go_in_and_come_out() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("tree/sub")).unwrap();
    fs::write(at("tree/sub/data"), noise(700_000)).unwrap();
    let mut agent = agent();

    let put = agent.put(&at("tree"), at("guest").as_os_str()).unwrap();
    let got = agent.get(at("guest").as_os_str(), &at("back"), Policy::WARY).unwrap();

    assert_eq!((put.entries, put.bytes, got), (3, 700_000, put));
    assert!(fs::read(at("back/sub/data")).unwrap() == noise(700_000));
    // Into a directory: under its own name.
    agent.put(&at("tree/sub/data"), at("guest").as_os_str()).unwrap();
    assert!(at("guest/data").exists());
}

#[test]
fn what_cannot_be_copied_is_told_and_the_session_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("large");
    fs::write(&large, noise(3_000_000)).unwrap();
    let mut agent = agent();

    let no_place = agent.put(&large, "/no/such/folder/x".as_ref()).unwrap_err();
    assert_eq!(no_place.fault(), Some(FaultCode::File), "{no_place}");
    let no_source = agent.put("/no/such".as_ref(), "/tmp/x".as_ref()).unwrap_err();
    assert!(matches!(no_source, Error::Files(_)), "{no_source}");
    let not_there = agent.get("/no/such".as_ref(), folder.path(), Policy::WARY).unwrap_err();
    assert_eq!(not_there.fault(), Some(FaultCode::File), "{not_there}");
    assert!(agent.ping().is_ok());
}

#[test]
fn an_identity_is_given_in_one_call() {
    let notes: &'static Notes = Box::leak(Box::default());
    let mut agent = agent_with(notes);
    let identity = Identity {
        host_name: Some(b"clone-7".to_vec()),
        clock: Some(Time { seconds: 1_700_000_000, nanoseconds: 0 }),
        entropy: Some(vec![1; 32]),
    };

    agent.set_identity(&identity).unwrap();
    agent.shut_down(Shutdown::Reboot, Duration::from_millis(1500)).unwrap();
    // The answer comes before the deed; another answer comes after it.
    agent.ping().unwrap();

    let want = ["entropy 32", "clock 1700000000", "host name clone-7", "shut down Reboot 1.5s"];
    assert_eq!(*notes.0.lock().unwrap(), want);
}

/// An agent that greets properly, takes a request, and then does what it likes.
fn hostile(limit: Duration, deed: impl FnOnce(&mut UnixStream) + Send + 'static) -> Agent {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut decoder = Decoder::default();
        let mut next = |stream: &mut UnixStream| {
            while decoder.next_message().unwrap().is_none() {
                if decoder.read_from(stream).unwrap() == 0 {
                    return;
                }
            }
        };
        next(&mut theirs);
        say(&mut theirs, &Message::Welcome { version: 1, features: u64::MAX, agent: b"evil".to_vec() });
        next(&mut theirs);
        deed(&mut theirs);
        // Stays until the other side has had enough.
        let _ = std::io::copy(&mut theirs, &mut std::io::sink());
    });
    Agent::new(ours, limit).unwrap()
}

fn say(stream: &mut UnixStream, message: &Message) {
    let mut frame = Vec::new();
    encode(message, &mut frame).unwrap();
    // The other side may have had enough already.
    let _ = stream.write_all(&frame);
}

fn data(stream: u8, length: usize) -> Message {
    Message::Data { stream, bytes: vec![b'x'; length] }
}

fn entry(path: &str, kind: EntryKind) -> Message {
    let path = RelativePath::new(path.as_bytes()).unwrap();
    Message::Entry(Entry { path, mode: 0o777, modified: Time::default(), kind })
}

#[test]
fn a_command_of_a_lying_agent_ends_with_an_error() {
    let started = || Message::Started { pid: 1 };
    type Deed = Box<dyn FnOnce(&mut UnixStream) + Send>;
    let flood = |stream: &mut UnixStream| {
        (0..100).for_each(|_| say(stream, &data(stream::STDOUT, MAX_DATA_BYTES)));
    };
    let cases: [(&str, Deed); 8] = [
        ("garbage", Box::new(|s| drop(s.write_all(&[0xff; 64])))),
        ("another answer", Box::new(|s| say(s, &Message::Pong { cookie: 1 }))),
        (
            "credit beyond the window",
            Box::new(move |s| {
                say(s, &started());
                say(s, &Message::Credit { stream: stream::STDIN, bytes: u32::MAX });
            }),
        ),
        (
            "an end twice",
            Box::new(move |s| {
                say(s, &started());
                (0..2).for_each(|_| say(s, &Message::End { stream: stream::STDOUT }));
            }),
        ),
        (
            "data after the end",
            Box::new(move |s| {
                say(s, &started());
                say(s, &Message::End { stream: stream::STDOUT });
                say(s, &data(stream::STDOUT, 1));
            }),
        ),
        (
            "an answer that nobody asked for",
            Box::new(move |s| {
                say(s, &started());
                say(s, &Message::Pong { cookie: 9 });
            }),
        ),
        (
            "a flood beyond the window",
            Box::new(move |s| {
                say(s, &started());
                flood(s);
            }),
        ),
        (
            "data on input",
            Box::new(move |s| {
                say(s, &started());
                say(s, &data(stream::STDIN, 1));
            }),
        ),
    ];
    for (name, deed) in cases {
        // The reader never takes anything, so that nothing gives the flood room.
        let (_never, go_on) = mpsc::channel();
        let mut slow = SlowReader { go_on, waited: name != "a flood beyond the window", total: 0 };
        let mut agent = hostile(LIMIT, deed);
        drop(_never);
        let result = agent.exec(&words(&["true"]), Io::output(&mut slow));
        let refused = matches!(result, Err(Error::Protocol(_)));
        // A reader that fails because nobody will wake it is the other end that the flood may meet first.
        assert!(refused || matches!(result, Err(Error::Output(_))), "{name}: {result:?}");
    }
}

#[test]
fn a_silent_agent_is_an_error_after_the_limit() {
    let short = Duration::from_millis(200);
    let exec = |deed: fn(&mut UnixStream)| hostile(short, deed).exec(&words(&["true"]), Io::default());
    assert!(matches!(exec(|_| ()), Err(Error::Silent(_))));
    assert!(matches!(exec(|s| say(s, &Message::Started { pid: 1 })), Err(Error::Silent(_))));
    // Half a frame is no sign of life.
    assert!(matches!(exec(|s| drop(s.write_all(&[9, 0, 0, 0, 0x11]))), Err(Error::Silent(_))));
    let folder = tempfile::tempdir().unwrap();
    let get = hostile(short, |_| ()).get("/x".as_ref(), &folder.path().join("x"), Policy::WARY);
    assert!(matches!(get, Err(Error::Silent(_))));
    assert!(matches!(hostile(short, |_| ()).ping(), Err(Error::Silent(_))));
}

#[test]
fn an_agent_that_does_not_read_is_an_error_after_the_limit() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    say(&mut theirs, &Message::Welcome { version: 1, features: u64::MAX, agent: Vec::new() });
    let mut agent = Agent::new(ours, Duration::from_millis(200)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("large"), noise(5_000_000)).unwrap();

    let result = agent.put(&folder.path().join("large"), "/x".as_ref());

    assert!(matches!(result, Err(Error::Silent(_) | Error::Closed)), "{result:?}");
    drop(theirs);
}

#[test]
fn a_hostile_copy_stays_in_its_destination_and_leaves_nothing_half() {
    let file = |path: &str, size| entry(path, EntryKind::File { size });
    let link = |path: &str, target: &str| entry(path, EntryKind::Link { target: target.into() });
    let cases: [(&str, Vec<Message>); 6] = [
        ("no root", vec![file("x", 1)]),
        ("a second root", vec![entry("", EntryKind::Directory), entry("", EntryKind::Directory)]),
        ("through a link", vec![entry("", EntryKind::Directory), link("l", "sub"), file("l/x", 1)]),
        ("too much", vec![file("", 1), data(stream::FILE, 2)]),
        ("too little", vec![file("", 2), data(stream::FILE, 1), Message::End { stream: stream::FILE }]),
        ("a size beyond all", vec![file("", u64::MAX)]),
    ];
    for (name, mut messages) in cases {
        let folder = tempfile::tempdir().unwrap();
        messages.push(Message::Done(Summary::default()));
        let mut agent = hostile(LIMIT, move |stream| messages.iter().for_each(|message| say(stream, message)));

        let result = agent.get("/x".as_ref(), &folder.path().join("copy"), Policy::WARY);

        assert!(matches!(result, Err(Error::Files(_))), "{name}: {result:?}");
        let files = fs::read_dir(folder.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_file());
        assert_eq!(files.count(), 0, "{name}");
    }
}

#[test]
fn names_of_a_guest_do_not_choose_names_here() {
    for path in ["/", "..", "/etc/..", ""] {
        assert_eq!(guest_file_name(path.as_ref()), "", "{path}");
    }
    assert_eq!(guest_file_name("/etc/hosts".as_ref()), "hosts");
}

#[test]
fn an_agent_of_another_version_is_told_apart() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    say(&mut theirs, &Message::Error(Fault::new(FaultCode::Version, "version 9\u{1b}[31m only")));
    let error = Agent::new(ours, LIMIT).unwrap_err();
    assert_eq!(error.to_string(), "version 9 [31m only");
}

/// A monitor's socket on which `answers` are given, one to each connection.
fn monitor(folder: &Path, answers: Vec<&'static [u8]>) -> std::path::PathBuf {
    let path = folder.join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let mut mute = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = [0; 14];
            stream.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"CONNECT 20826\n");
            if stream.write_all(answer).is_ok() {
                match answer {
                    b"OK 1\n" => serve(OwnedFd::from(stream), &&*Box::leak(Box::<Notes>::default())),
                    // Open, and nobody there.
                    b"OK 2\n" => mute.push(stream),
                    _ => {}
                }
            }
        }
    });
    path
}

#[test]
fn a_guest_that_still_boots_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = monitor(folder.path(), vec![b"", b"what?\n", b"OK", b"OK 1\n"]);
    let limits = Limits { connect: LIMIT, answer: LIMIT };
    assert!(Agent::connect(&path, &limits).unwrap().ping().is_ok());
}

#[test]
fn a_connection_that_the_guest_forgot_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = monitor(folder.path(), vec![b"OK 2\n", b"OK 1\n"]);
    let limits = Limits { connect: LIMIT, answer: LIMIT };
    assert!(Agent::connect(&path, &limits).unwrap().ping().is_ok());
}

#[test]
fn a_guest_without_an_agent_is_an_error_after_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { connect: Duration::from_millis(100), answer: LIMIT };
    let path = monitor(folder.path(), vec![b""; 100]);
    assert!(matches!(Agent::connect(&path, &limits), Err(Error::NoAgent { .. })));
    assert!(matches!(Agent::connect(&folder.path().join("none"), &limits), Err(Error::Socket { .. })));
}
