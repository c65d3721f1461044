//! A process for a machine.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use queztl_api::{Code, Problem};
use queztl_vmm::process::{Folder, MachineFile, ProcessId, Start};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// While descriptors are open to the next process, no other may be started.
static SPAWNING: Mutex<()> = Mutex::new(());

/// Starts the process that runs the machine of `folder`. It inherits `memory`, whose descriptors are written into `file`.
pub(crate) fn spawn(
    program: &Path,
    folder: &Folder,
    mut file: MachineFile,
    memory: &[Arc<OwnedFd>],
) -> Result<(ProcessId, OwnedFd), Problem> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Problem::new(Code::Host, format!("{what}: {error}"));
    crate::vms::make_folder(folder.path())?;
    if let Start::Fork { memory: numbers, .. } = &mut file.start {
        *numbers = memory.iter().map(|fd| fd.as_raw_fd()).collect();
    }
    write_machine(folder, &file).map_err(|error| failed("the machine's file cannot be written", &error))?;
    remove_leavings(folder)?;
    // Taken here, so that a daemon that finds the machine after this one sees its process whenever there is one.
    let lock = folder.reserve().map_err(|error| failed("the machine cannot be taken for a process", &error))?;
    let log = File::options().append(true).create(true).open(folder.log());
    let log = log.map_err(|error| failed("the log of the machine cannot be written", &error))?;
    let mut command = Command::new(program);
    command.arg("vmm").arg(folder.path()).arg("--lock-fd").arg(lock.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let child = {
        let _spawning = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
        let inherit = |flags| {
            fcntl_setfd(&lock, flags)?;
            memory.iter().try_for_each(|fd| fcntl_setfd(fd, flags))
        };
        let child = inherit(FdFlags::empty()).map_err(std::io::Error::from).and_then(|()| command.spawn());
        // Descriptors of ours are always valid.
        let _ = inherit(FdFlags::CLOEXEC);
        child.map_err(|error| failed(&format!("{program:?} cannot be started for the machine"), &error))?
    };
    // Nobody has waited for the child, so that the number is still its own.
    let pidfd = Pid::from_raw(child.id() as i32).ok_or(rustix::io::Errno::SRCH);
    let pidfd = pidfd.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let process = ProcessId::of(child.id()).map_err(|error| failed("the process cannot be looked at", &error))?;
    let pidfd = pidfd.map_err(|error| failed("the process of the machine cannot be watched", &error))?;
    Ok((process, pidfd))
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
