//! A process that the processes of machines begin as copies of: `queztl-hv vmm --zygote`, one for each daemon.
//!
//! What every such process would do first (loading and relocating the program, building tables) has been done once, and its
//! memory is shared until somebody writes to it. A machine begins some milliseconds sooner and takes a megabyte less.
//!
//! ```text
//!  daemon ── begin DIR, with the lock, the log and files of memory ──> zygote ── fork ──> the machine's process
//!         <── number of the process ──────────────────────────────────
//!         ── how did NUMBER end? ─────────────────────────────────────> wait
//! ```
//! Promises:
//! - the zygote has one thread, no descriptors but its socket and what any program begins with, and has read nothing of any
//!   machine: a copy knows of no other machine;
//! - the number of a process stays its own until the daemon has asked how it ended, or is gone;
//! - the zygote ends when the daemon does; what it has begun does not.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Where a new process finds the lock of its directory.
pub const LOCK_FD: RawFd = 512;
/// Where it finds the files of its memory, one number after the other.
pub const MEMORY_FD: RawFd = LOCK_FD + 1;
/// Most files of memory that fit into one message beside lock and log.
pub const MAX_MEMORY_FILES: usize = MAX_FILES - 2;

/// What the kernel passes in one message (`SCM_MAX_FD`).
const MAX_FILES: usize = 253;
const MAX_MESSAGE_BYTES: usize = 1 + libc::PATH_MAX as usize;

/// First byte of a message.
mod kind {
    /// The path of a machine's directory follows.
    pub const BEGIN: u8 = b'B';
    /// The number of a process follows, 4 bytes, little-endian.
    pub const END: u8 = b'E';
}

/// The daemon's end. The process goes when this is dropped.
#[derive(Debug)]
pub struct Zygote {
    socket: Option<OwnedFd>,
    child: Child,
}

impl Zygote {
    /// Starts `program` as a zygote.
    ///
    /// # Errors
    /// The host refuses a socket or a process.
    pub fn start(program: &Path) -> io::Result<Zygote> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(program);
        command.args(["vmm", "--zygote"]).stdin(Stdio::from(theirs)).stdout(Stdio::null());
        Ok(Zygote { child: command.spawn()?, socket: Some(ours) })
    }

    /// Begins the process of the machine in `directory`; gives its number. It inherits `memory` from [`MEMORY_FD`] on.
    ///
    /// # Errors
    /// The zygote is gone, or the host refuses another process.
    pub fn begin(&self, directory: &Path, lock: &File, log: &File, memory: &[BorrowedFd<'_>]) -> io::Result<u32> {
        let mut files = vec![lock.as_fd(), log.as_fd()];
        files.extend(memory);
        let answer = self.ask(&[&[kind::BEGIN], directory.as_os_str().as_bytes()].concat(), &files)?;
        match answer {
            pid if pid > 0 => Ok(pid as u32),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }

    /// How a process that has ended did so; `None` if it is none of this zygote's, or has not ended. Afterwards its number
    /// may be another one's.
    ///
    /// # Errors
    /// The zygote is gone.
    pub fn end_of(&self, pid: u32) -> io::Result<Option<ExitStatus>> {
        let mut message = vec![kind::END];
        message.extend(pid.to_le_bytes());
        let status = self.ask(&message, &[])?;
        Ok((status >= 0).then(|| ExitStatus::from_raw(status)))
    }

    fn ask(&self, message: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<i32> {
        let socket = self.socket.as_ref().ok_or(rustix::io::Errno::PIPE)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let too_much = !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files));
        if too_much || message.len() > MAX_MESSAGE_BYTES {
            return Err(rustix::io::Errno::TOOBIG.into());
        }
        rustix::io::retry_on_intr(|| sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL))?;
        let mut answer = [0; 4];
        match rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut answer))? {
            4 => Ok(i32::from_le_bytes(answer)),
            _ => Err(rustix::io::Errno::PIPE.into()),
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // It ends once nobody can write to it any more.
        self.socket = None;
        let _ = self.child.wait();
    }
}

/// Serves a daemon at the other end of `socket`, which is standard input. Returns in each new process, with the directory of
/// its machine, and in the zygote itself, with `None`, when the daemon is gone.
///
/// # Errors
/// The socket is none, or a new process cannot take what it was given.
pub fn serve(socket: BorrowedFd<'_>) -> io::Result<Option<PathBuf>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads cannot be copied"));
    }
    let mut message = vec![0; MAX_MESSAGE_BYTES];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        let mut files: Vec<OwnedFd> = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                files.extend(descriptors);
            }
        }
        let whole = !received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        let answer = match message[..received.bytes].split_first() {
            None => return Ok(None),
            Some((&kind::BEGIN, directory)) if whole => match fork() {
                0 => {
                    take_over(files)?;
                    return Ok(Some(PathBuf::from(std::ffi::OsString::from_vec(directory.to_vec()))));
                }
                pid => pid,
            },
            Some((&kind::END, number)) => {
                <[u8; 4]>::try_from(number).map_or(-1, |number| end_of(i32::from_le_bytes(number)))
            }
            Some(_) => -libc::EINVAL,
        };
        // What a new process has is not held open here: the lock of its directory is free once it has ended.
        drop(files);
        rustix::io::retry_on_intr(|| rustix::io::write(socket, &answer.to_le_bytes()))?;
    }
}

/// 0 in the new process, its number or what the kernel has against it in this one.
fn fork() -> i32 {
    // SAFETY: there is no other thread, as `serve` has seen, so that the copy is as whole as this process.
    match unsafe { libc::fork() } {
        -1 => -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN),
        pid => pid,
    }
}

/// The wait status of a child that has ended, else a negative number.
fn end_of(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: the status is this function's.
    match unsafe { libc::waitpid(pid.max(1), &raw mut status, libc::WNOHANG) } {
        waited if waited > 0 => status,
        _ => -1,
    }
}

/// Puts what a new process was given to where it looks for it: lock, log, then files of memory. The daemon's socket is not
/// for it.
fn take_over(files: Vec<OwnedFd>) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    let mut files = files.into_iter();
    let (Some(lock), Some(log)) = (files.next(), files.next()) else {
        return Err(io::Error::other("a new process was given no lock and no log"));
    };
    rustix::stdio::dup2_stderr(&log)?;
    for (number, file) in (LOCK_FD..).zip(std::iter::once(lock).chain(files)) {
        place(&file, number)?;
    }
    Ok(())
}

fn place(file: &OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: the call touches no memory; nobody has a descriptor of that number, since those that were passed and those that
    // any program has are fewer.
    match unsafe { libc::dup2(file.as_raw_fd(), number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
