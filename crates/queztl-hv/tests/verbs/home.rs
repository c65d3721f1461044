//! A home for one test: its daemon, which the first verb starts, and its machines.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use queztl_guest_image::Store;
use serde_json::Value;
use tempfile::TempDir;

use crate::common;

/// More than anything here takes, on a busy host too.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Home {
    pub folder: TempDir,
}

impl Home {
    /// A home whose machines have kernels of a few instructions.
    pub fn new() -> Home {
        Home { folder: tempfile::tempdir().unwrap() }
    }

    /// A home with the guest kernels of this host; says so and gives `None` if there are none.
    pub fn with_linux() -> Option<Home> {
        common::linux()?;
        let home = Home::new();
        let store = Store::open().ok()?;
        for part in ["kernels", "rootfs"] {
            symlink(store.root().join(part), home.folder.path().join(part)).unwrap();
        }
        Some(home)
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The program, in this home.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = common::queztl();
        command.env("QUEZTL_HOME", self.path()).env_remove("QUEZTL_ADDRESS").args(words);
        command
    }

    pub fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What it prints; it must succeed.
    #[track_caller]
    pub fn says(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The line with which it is refused, as the user's mistake.
    #[track_caller]
    pub fn refuses(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
        common::one_line(&output)
    }

    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.says(&[words, &["-o", "json"]].concat())).unwrap()
    }

    /// What a shell in the guest prints; the agent may take its time.
    #[track_caller]
    pub fn shell(&self, vm: &str, script: &str) -> String {
        self.says(&["exec", vm, "--wait", "100", "--", "sh", "-c", script])
    }

    /// A small machine with our Linux.
    #[track_caller]
    pub fn spawn(&self, name: &str, more: &[&str]) {
        let words = ["spawn", name, "--ram", "128M", "--accel", "soft"];
        assert_eq!(self.says(&[&words, more].concat()), format!("{name}\n"));
    }

    /// A machine that sleeps for ever.
    #[track_caller]
    pub fn spawn_idle(&self, name: &str) {
        let kernel = self.idle_kernel();
        let kernel = kernel.to_str().unwrap();
        self.says(&["spawn", name, "--ram", "16M", "--accel", "soft", "--kernel", kernel]);
    }

    /// `hlt` in a loop.
    pub fn idle_kernel(&self) -> PathBuf {
        common::guest(self.path(), &[0xf4, 0xeb, 0xfd])
    }

    /// The state of a machine.
    #[track_caller]
    pub fn state(&self, vm: &str) -> String {
        self.json(&["info", vm])["state"].as_str().unwrap().to_owned()
    }

    /// The process that the daemon is, or that a machine runs in.
    #[track_caller]
    pub fn pid(&self, words: &[&str]) -> u32 {
        let value = self.json(words);
        let pid = value.get("pid").or_else(|| value.get("runtime").and_then(|runtime| runtime.get("pid")));
        pid.and_then(Value::as_u64).unwrap_or_else(|| panic!("no process in {value}")) as u32
    }

    /// The processes of daemons of this home.
    pub fn daemons(&self) -> Vec<u32> {
        let home = format!("QUEZTL_HOME={}", self.path().display());
        let numbers =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_ours = |pid: &u32| {
            let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let has = |file: &[u8], text: &str| file.split(|byte| *byte == 0).any(|part| part == text.as_bytes());
            has(&read("environ"), &home) && has(&read("cmdline"), "daemon")
        };
        numbers.filter(is_ours).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // What fails here has failed for a reason that the test has told.
        let names = self.output(&["list", "-o", "name"]);
        let names = String::from_utf8_lossy(&names.stdout).into_owned();
        let names: Vec<&str> = names.lines().collect();
        if !names.is_empty() {
            let _ = self.output(&[&["delete", "--force"], &names[..]].concat());
        }
        let _ = self.output(&["daemon", "stop"]);
    }
}

/// Ends a process as a failure would.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Waits until something is so.
#[track_caller]
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < end, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}
