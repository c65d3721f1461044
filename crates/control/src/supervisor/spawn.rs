//! A process for a machine.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};

use queztl_api::{Code, Problem};
use queztl_vmm::process::zygote::{MEMORY_FD, Zygote};
use queztl_vmm::process::{Folder, MachineFile, ProcessId, Start};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Whoever begins the processes of machines: a zygote, which the first machine brings.
#[derive(Debug)]
pub(crate) struct Spawner {
    program: PathBuf,
    zygote: Mutex<Option<Zygote>>,
}

impl Spawner {
    pub fn new(program: &Path) -> Spawner {
        Spawner { program: program.into(), zygote: Mutex::new(None) }
    }

    /// Starts the process that runs the machine of `folder`. It inherits `memory`, whose descriptors are written into `file`.
    pub fn spawn(
        &self,
        folder: &Folder,
        mut file: MachineFile,
        memory: &[Arc<OwnedFd>],
    ) -> Result<(ProcessId, OwnedFd), Problem> {
        let failed = |what: &str, error: &dyn std::fmt::Display| Problem::new(Code::Host, format!("{what}: {error}"));
        crate::vms::make_folder(folder.path())?;
        if let Start::Fork { memory: numbers, .. } = &mut file.start {
            *numbers = (MEMORY_FD..).take(memory.len()).collect();
        }
        write_machine(folder, &file).map_err(|error| failed("the machine's file cannot be written", &error))?;
        remove_leavings(folder)?;
        // Taken here, so that a daemon that finds the machine after this one sees its process whenever there is one.
        let lock = folder.reserve().map_err(|error| failed("the machine cannot be taken for a process", &error))?;
        let log = File::options().append(true).create(true).open(folder.log());
        let log = log.map_err(|error| failed("the log of the machine cannot be written", &error))?;
        let memory: Vec<_> = memory.iter().map(|fd| fd.as_fd()).collect();
        let pid = self.ask(|zygote| zygote.begin(folder.path(), &lock, &log, &memory));
        let pid =
            pid.map_err(|error| failed(&format!("{:?} cannot be started for the machine", self.program), &error))?;
        // Nobody has asked how it ended, so that the number is still its own.
        let pidfd = Pid::from_raw(pid as i32).ok_or(rustix::io::Errno::SRCH);
        let pidfd = pidfd.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let process = ProcessId::of(pid).map_err(|error| failed("the process cannot be looked at", &error))?;
        let pidfd = pidfd.map_err(|error| failed("the process of the machine cannot be watched", &error))?;
        Ok((process, pidfd))
    }

    /// How a process that has ended did so, if this daemon began it. To be asked once.
    pub fn end_of(&self, pid: u32) -> Option<ExitStatus> {
        let zygote = self.zygote.lock().unwrap_or_else(PoisonError::into_inner);
        zygote.as_ref()?.end_of(pid).ok().flatten()
    }

    /// Asks the zygote; another one if it is gone.
    fn ask<T>(&self, question: impl Fn(&Zygote) -> io::Result<T>) -> io::Result<T> {
        let mut zygote = self.zygote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = zygote.as_ref() {
            match question(present) {
                Err(error) if is_gone(&error) => tracing::warn!(%error, "the zygote is gone: another one is started"),
                answered => return answered,
            }
        }
        *zygote = None;
        question(zygote.insert(Zygote::start(&self.program)?))
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected)
}

/// Writes what the process is to run. A host that loses its power loses the process too, and the next one has a file of its
/// own: it need not reach the disk.
fn write_machine(folder: &Folder, file: &MachineFile) -> std::io::Result<()> {
    let path = folder.machine();
    let new = path.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(file)?)?;
    std::fs::rename(new, path)
}

/// Sockets and report of an earlier run: nobody shall take them for this one's.
fn remove_leavings(folder: &Folder) -> Result<(), Problem> {
    for path in [folder.exit(), folder.control(), folder.console(), folder.vsock()] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Problem::new(Code::Host, format!("{path:?} is left over and cannot be removed: {error}")));
            }
            _ => {}
        }
    }
    Ok(())
}
