//! Commands and files in a real guest, through its agent.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{linux, one_line, queztl};
use queztl_agent_client::{Agent, Exec, Exit, Identity, Io, Limits, Policy, Shutdown, Time};
use tempfile::TempDir;

/// A guest with an agent, ended when dropped.
struct Guest {
    folder: TempDir,
    machine: Child,
}

impl Guest {
    /// Starts one; `None` if no kernel is built here.
    fn start(vcpus: &str) -> Option<Guest> {
        let (kernel, initrd) = linux()?;
        let folder = tempfile::tempdir().unwrap();
        let mut command = queztl();
        command.args(["run", "--accel", "soft", "--ram", "512M", "--vcpus", vcpus, "--timeout", "300", "--vsock"]);
        command.arg(folder.path().join("vsock")).arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
        command.args(["--append", "console=ttyS0 quiet queztl.run=\"sleep 1000\""]);
        let machine = command.stdout(Stdio::null()).spawn().unwrap();
        Some(Guest { folder, machine })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = queztl();
        command.arg(verb).arg("--vsock").arg(self.path("vsock")).args(["--wait", "100", "--answer", "100"]);
        command.args(arguments);
        command
    }

    fn exec(&self, arguments: &[&str]) -> Output {
        self.command("exec", arguments).output().unwrap()
    }

    fn shell(&self, script: &str) -> Output {
        self.exec(&["--", "sh", "-c", script])
    }

    fn copy(&self, from: &str, to: &str) -> Output {
        self.command("copy", &[from, to]).output().unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.machine.kill();
        let _ = self.machine.wait();
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn assert_success(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A file of so many bytes without a short period.
fn noise(path: &Path, length: usize) {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend((state >> 16).to_le_bytes());
    }
    bytes.truncate(length);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_command_in_a_guest_ends_as_here() {
    let Some(guest) = Guest::start("1") else { return };

    let output = guest.shell("echo to out; echo to err >&2; exit 42");
    assert_eq!(output.status.code(), Some(42));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"to out\n"[..], &b"to err\n"[..]));

    assert_eq!(guest.shell("kill -9 $$").status.code(), Some(128 + 9));
    let missing = guest.exec(&["--", "no-such-program"]);
    assert_eq!(missing.status.code(), Some(127), "{}", one_line(&missing));
    let not_a_program = guest.exec(&["--", "/etc/passwd"]);
    assert_eq!(not_a_program.status.code(), Some(126), "{}", one_line(&not_a_program));
    let no_directory = guest.exec(&["--cwd", "/none", "--", "true"]);
    assert_eq!(no_directory.status.code(), Some(125), "{}", one_line(&no_directory));
}

#[test]
fn user_environment_and_directory_are_the_ones_asked_for() {
    let Some(guest) = Guest::start("1") else { return };
    let output = guest.exec(&[
        "--user",
        "nobody",
        "--env",
        "COLOUR=light blue",
        "--cwd",
        "/tmp",
        "--",
        "sh",
        "-c",
        "id -u; id -G; echo $COLOUR; pwd; cat /proc/self/oom_score_adj",
    ]);
    assert_eq!(text(&output), "65534\n65534\nlight blue\n/tmp\n0\n");
    assert_eq!(text(&guest.shell("id -u; pwd")), "0\n/root\n");
}

#[test]
fn more_than_all_buffers_goes_through_a_guest() {
    let Some(guest) = Guest::start("2") else { return };
    noise(&guest.path("in"), 8 << 20);
    let mut command = guest.command("exec", &["--", "cat"]);
    command.stdin(fs::File::open(guest.path("in")).unwrap()).stdout(fs::File::create(guest.path("out")).unwrap());

    let output = command.output().unwrap();

    assert_success(&output);
    assert!(fs::read(guest.path("in")).unwrap() == fs::read(guest.path("out")).unwrap());
}

#[test]
fn a_terminal_in_a_guest_has_a_size() {
    let Some(guest) = Guest::start("1") else { return };
    let mut child = guest.command("exec", &["--tty", "--", "sh", "-c", "stty size; tty; read word; echo got $word"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_success(&output);
    // The terminal echoes the word in between, whenever it comes.
    assert!(text(&output).contains("24 80\r\n") && text(&output).contains("/dev/pts/"), "{}", text(&output));
    assert!(text(&output).ends_with("got hello\r\n"), "{}", text(&output));
}

#[test]
fn a_signal_here_is_a_signal_there_and_the_end_here_is_the_end_there() {
    let Some(guest) = Guest::start("1") else { return };
    let wait_for = |what: &str| while !text(&guest.shell("ps -o args")).contains(what) {};
    let mut caught =
        guest.command("exec", &["--", "sh", "-c", "trap 'exit 33' TERM; sleep 7001 & wait"]).spawn().unwrap();
    wait_for("sleep 7001");
    common::send(&caught, libc::SIGTERM);
    assert_eq!(caught.wait().unwrap().code(), Some(33));

    let mut killed = guest.command("exec", &["--", "sleep", "7002"]).spawn().unwrap();
    wait_for("sleep 7002");
    killed.kill().and_then(|()| killed.wait()).unwrap();
    // Ends only when it is gone; the test runner has a limit.
    while text(&guest.shell("ps -o args")).contains("sleep 7002") {}
}

#[test]
fn large_files_go_in_and_come_out_whole() {
    let Some(guest) = Guest::start("1") else { return };
    let (here, back) = (guest.path("here"), guest.path("back"));
    noise(&here, 64 << 20);

    assert_success(&guest.copy(here.to_str().unwrap(), "guest:/root/there"));
    assert_success(&guest.copy("guest:/root/there", back.to_str().unwrap()));

    let there = text(&guest.shell("sha256sum < /root/there"));
    let sum = Command::new("sha256sum").stdin(fs::File::open(&here).unwrap()).output().unwrap();
    assert_eq!(there, text(&sum));
    assert!(fs::read(&here).unwrap() == fs::read(&back).unwrap());
}

#[test]
fn directories_keep_modes_times_and_links_and_lead_nowhere_else() {
    let Some(guest) = Guest::start("1") else { return };
    let make = "mkdir -p /root/t/sub && cd /root/t && echo text > sub/file && chmod 4751 sub/file \
                && touch -d @1000000000 sub/file && ln -s sub/file inside && ln -s /etc/passwd outside && mknod dev c 1 3";
    assert_success(&guest.shell(make));

    let output = guest.copy("guest:/root/t", guest.path("copy").to_str().unwrap());
    assert_success(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("left out"), "{output:?}");
    assert_success(&guest.copy(guest.path("copy").to_str().unwrap(), "guest:/tmp/"));

    use std::os::unix::fs::MetadataExt;
    let file = fs::metadata(guest.path("copy/sub/file")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.mtime()), (0o751, 1_000_000_000));
    assert_eq!(fs::read_to_string(guest.path("copy/inside")).unwrap(), "text\n");
    assert!(!guest.path("copy/outside").is_symlink() && !guest.path("copy/dev").exists());
    assert_eq!(text(&guest.shell("cat /tmp/copy/inside; stat -c %a /tmp/copy/sub/file")), "text\n751\n");
    let full = guest.copy("guest:/none", guest.path("none").to_str().unwrap());
    assert_eq!(full.status.code(), Some(4), "{}", one_line(&full));
}

#[test]
fn twenty_sessions_run_at_once() {
    let Some(guest) = Guest::start("2") else { return };
    // All of them wait for a file that only comes when the last one runs.
    assert_success(&guest.shell("mkdir /tmp/here"));
    let script = "touch /tmp/here/$0; while [ $(ls /tmp/here | wc -l) -lt 20 ]; do sleep 0.2; done; exit $0";
    let start = |number: i32| {
        let mut command = guest.command("exec", &["--", "sh", "-c", script, &number.to_string()]);
        (number, command.spawn().unwrap())
    };
    let children: Vec<_> = (1..=20).map(start).collect();
    for (number, mut child) in children {
        assert_eq!(child.wait().unwrap().code(), Some(number));
    }
}

#[test]
fn an_agent_that_is_killed_comes_back() {
    let Some(guest) = Guest::start("1") else { return };
    let killed = guest.shell("kill -9 $PPID; sleep 100");
    assert_eq!(killed.status.code(), Some(125), "{}", one_line(&killed));
    assert_eq!(guest.shell("exit 5").status.code(), Some(5));
}

#[test]
fn a_clone_becomes_another_machine_and_can_be_shut_down() {
    let Some(mut guest) = Guest::start("1") else { return };
    let limits = Limits { connect: Duration::from_secs(100), answer: Duration::from_secs(100) };
    let mut agent = Agent::connect(&guest.path("vsock"), &limits).unwrap();
    let identity = Identity {
        host_name: Some(b"clone-3".to_vec()),
        clock: Some(Time { seconds: 2_000_000_000, nanoseconds: 0 }),
        entropy: Some(vec![0x5a; 64]),
    };

    agent.set_identity(&identity).unwrap();

    let seen = text(&guest.shell("hostname; date +%s"));
    let (name, clock) = seen.trim().split_once('\n').unwrap();
    assert_eq!(name, "clone-3");
    assert!((2_000_000_000..2_000_000_300).contains(&clock.parse::<u64>().unwrap()), "{clock}");
    agent.shut_down(Shutdown::PowerOff, Duration::from_secs(5)).unwrap();
    assert_eq!(guest.machine.wait().unwrap().code(), Some(0));
}

#[test]
fn what_is_wrong_is_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none");
    let none = none.to_str().unwrap();
    let no_socket = common::output(["exec", "--vsock", none, "--", "true"]);
    assert_eq!(no_socket.status.code(), Some(125));
    assert!(one_line(&no_socket).contains("is the virtual machine running"), "{}", one_line(&no_socket));
    let both = common::output(["copy", "--vsock", none, "guest:a", "guest:b"]);
    assert_eq!(both.status.code(), Some(2));
    assert!(one_line(&both).contains("exactly one"), "{}", one_line(&both));
    let relative = common::output(["exec", "--vsock", none, "--cwd", "a", "--", "true"]);
    assert_eq!(relative.status.code(), Some(2), "{}", one_line(&relative));
}

/// The median of so many runs, in milliseconds.
fn median_ms(runs: usize, mut run: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[runs / 2]
}

/// `cargo test --release -p queztl-hv --test agent the_cost_of_a_command -- --ignored --nocapture`
#[test]
#[ignore = "it measures, and promises nothing"]
fn the_cost_of_a_command_and_of_a_copy() {
    let Some(guest) = Guest::start("1") else { return };
    let limits = Limits { connect: Duration::from_secs(100), answer: Duration::from_secs(100) };
    let connect = || Agent::connect(&guest.path("vsock"), &limits).unwrap();
    let exec = Exec { argv: vec![b"/bin/true".to_vec()], ..Exec::default() };
    let mut agent = connect();
    let run = |agent: &mut Agent| assert_eq!(agent.exec(&exec, Io::default()).unwrap(), Exit::Status(0));
    run(&mut agent);
    let show = |what: &str, ms: f64| println!("{what:<30} {ms:8.2} ms");
    show("ping", median_ms(200, || assert!(agent.ping().is_ok())));
    show("exec true, open session", median_ms(100, || run(&mut agent)));
    show("exec true, new session", median_ms(100, || run(&mut connect())));
    show("queztl-hv exec -- true", median_ms(50, || assert_success(&guest.exec(&["--", "true"]))));
    let (here, back) = (guest.path("here"), guest.path("back"));
    noise(&here, 64 << 20);
    let show = |what: &str, ms: f64| println!("{what:<30} {:8.0} MiB/s", 64.0 / (ms / 1e3));
    show("copy 64 MiB into the guest", median_ms(5, || assert!(agent.put(&here, "/root/there".as_ref()).is_ok())));
    let there = "/root/there".as_ref();
    show("copy 64 MiB out of the guest", median_ms(5, || assert!(agent.get(there, &back, Policy::WARY).is_ok())));
}
