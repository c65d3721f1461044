//! The process of one machine and its directory.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use queztl_vmm::config::{AccelChoice, MachineConfig, SoftOptions};
use queztl_vmm::control;
use queztl_vmm::process::console::{self, Message, Mode};
use queztl_vmm::process::{ExitReport, Folder, MachineFile};

use super::{guest, queztl};

const LONG: Duration = Duration::from_secs(60);

/// A machine's directory, and perhaps its process.
pub struct Vm {
    _directory: tempfile::TempDir,
    pub folder: Folder,
    pub file: MachineFile,
    pub child: Option<Child>,
}

impl Vm {
    /// A machine on the software CPU whose guest is `code`.
    pub fn new(code: &[u8]) -> Vm {
        let directory = tempfile::tempdir().unwrap();
        guest(directory.path(), code);
        let config = serde_json::from_str::<MachineConfig>(r#"{"kernel":"guest","ram_bytes":16777216}"#).unwrap();
        let accel = AccelChoice::Soft(SoftOptions::default());
        let config = MachineConfig { accel, debug_exit: Some(0xf4), ..config };
        let folder = Folder::new(directory.path());
        Vm { _directory: directory, folder, file: MachineFile::new(config), child: None }
    }

    pub fn command(&self) -> Command {
        self.file.write(&self.folder.machine()).unwrap();
        let mut command = queztl();
        command.arg("vmm").arg(self.folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Starts the process and waits until it answers.
    pub fn start(&mut self) {
        let mut child = self.command().spawn().unwrap();
        let answers = || {
            control::Client::connect(&self.folder.control()).and_then(|mut client| client.status()).is_ok()
                && self.folder.console().exists()
        };
        wait_until("an answer", || {
            assert_eq!(child.try_wait().unwrap(), None, "{}", self.log());
            answers()
        });
        self.child = Some(child);
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.log()).unwrap_or_default()
    }

    /// Waits for the end; gives the exit status and the report.
    pub fn end(&mut self) -> (Option<i32>, Option<ExitReport>) {
        let status = self.child.take().unwrap().wait().unwrap().code();
        (status, ExitReport::read(&self.folder.exit()).unwrap())
    }

    pub fn child(&self) -> &Child {
        self.child.as_ref().unwrap()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "{what} never came");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What the guest answers to a key.
pub fn typed(vm: &Vm, key: u8) -> u8 {
    let mut console = console::Client::connect(&vm.folder.console(), Mode::Type, false).unwrap();
    console.keys().unwrap().input(&[key]).unwrap();
    loop {
        if let Message::Output(bytes) = console.message().unwrap()
            && let Some(byte) = bytes.last()
        {
            return *byte;
        }
    }
}
