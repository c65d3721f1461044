//! What is said when a thread makes a call that is not on its list: one line, then the end of the process.
//!
//! The kernel answers such a call with the signal SIGSYS (SECCOMP_RET_TRAP, seccomp(2)). The handler neither allocates nor
//! locks, and makes no calls but those on every list.

use std::io::Write;

use super::{KIND, Kind, POLICY, names};

/// How a program reports the end of a process.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// What its messages begin with.
    pub program: &'static str,
    /// The exit status.
    pub status: u8,
    /// Called before the line is written. It must neither allocate, nor wait for locks, nor make system calls but `ioctl`
    /// with TCSETS on standard input: it may interrupt anything.
    pub before: fn(),
}

impl Report {
    /// Says `what` and ends the process at once.
    pub(super) fn end(&self, what: &str) -> ! {
        (self.before)();
        let mut line = Line::default();
        let _ = writeln!(line, "{}: {what}", self.program);
        line.print();
        // SAFETY: ends the process without running anything else.
        unsafe { libc::_exit(self.status.into()) }
    }
}

/// A line of limited length, without an allocation.
struct Line {
    bytes: [u8; 512],
    used: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line { bytes: [0; 512], used: 0 }
    }
}

impl Write for Line {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let count = data.len().min(self.bytes.len() - self.used);
        self.bytes[self.used..self.used + count].copy_from_slice(&data[..count]);
        self.used += count;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Line {
    fn text(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    fn print(&self) {
        let text = self.text();
        // SAFETY: the pointer names as many bytes as told.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }
}

/// The part of `siginfo_t` that a filter's signal fills (signal.h, `_sigsys`).
#[repr(C)]
struct SysInfo {
    signal: i32,
    error: i32,
    code: i32,
    _padding: i32,
    address: usize,
    call: i32,
    architecture: u32,
}

/// `si_code` of a signal that comes from a filter.
const SYS_SECCOMP: i32 = 1;

pub(super) fn install_handler() {
    // SAFETY: sigaction is plain data, for which zero is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as extern "C" fn(i32, *const SysInfo, usize) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and is async-signal-safe.
    unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) };
}

extern "C" fn on_signal(_signal: i32, info: *const SysInfo, _context: usize) {
    // SAFETY: the kernel gives a `siginfo_t`, of which this is the beginning.
    let (code, call) = unsafe { ((*info).code, (*info).call) };
    let Some(policy) = POLICY.get() else { return };
    let mut line = Line::default();
    describe(&mut line, KIND.get(), (code == SYS_SECCOMP).then_some(call));
    policy.report.end(std::str::from_utf8(line.text()).unwrap_or("a system call was refused"));
}

/// The sentence for `call` by a thread of kind `kind`; without a call, the signal came from somewhere else.
fn describe(line: &mut impl Write, kind: Option<Kind>, call: Option<i32>) {
    let thread = kind.map_or("thread without a list", Kind::name);
    let _ = match call {
        Some(call) => {
            let name = names::name(call).unwrap_or("unknown");
            write!(line, "the {thread} made a system call that is not on its list, {name} ({call}): ")
        }
        None => write!(line, "somebody sent SIGSYS to the {thread}: "),
    };
    let _ = write!(line, "the virtual machine was ended; please report it, --seccomp log goes on without ending");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(kind: Option<Kind>, call: Option<i32>) -> String {
        let mut line = Line::default();
        describe(&mut line, kind, call);
        String::from_utf8(line.text().to_vec()).unwrap()
    }

    #[test]
    fn the_sentence_names_thread_and_call() {
        let said = sentence(Some(Kind::Net), Some(libc::SYS_execve as i32));
        assert!(
            said.starts_with("the network device's thread made a system call that is not on its list, execve (59):")
        );
        assert!(sentence(Some(Kind::Rng), Some(9999)).contains("unknown (9999)"));
        assert!(sentence(None, None).contains("somebody sent SIGSYS"));
    }

    #[test]
    fn a_long_text_is_cut() {
        let mut line = Line::default();
        let _ = line.write_all(&[b'x'; 600]);
        assert_eq!(line.text().len(), 512);
    }
}
