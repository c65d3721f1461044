//! Exit statuses of the program, as its help lists them.
//!
//! All are even, because the debug exit port gives odd ones; `exec` alone passes on what its command gave.

use std::process::ExitCode;

use queztl_vmm::config::Outcome;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The guest powered itself off, or the command succeeded.
    Success,
    /// The arguments are wrong, or a file they name cannot be used.
    Usage,
    /// The host or the VMM failed.
    Failure,
    /// The guest panicked.
    GuestPanic,
    /// Triple fault in the guest.
    TripleFault,
    /// The time given is over.
    Timeout,
    /// Stopped from outside.
    Stopped,
    /// A thread made a system call that it must not make, and the process was ended.
    Confinement,
    /// The guest wrote this value to the debug exit port.
    DebugExit(u8),
    /// What a command in a guest ended with; `exec` has statuses of its own.
    Command(u8),
}

impl Status {
    /// The number that the parent process gets.
    pub const fn code(self) -> u8 {
        match self {
            Status::Success => 0,
            Status::Usage => 2,
            Status::Failure => 4,
            Status::GuestPanic => 6,
            Status::TripleFault => 8,
            Status::Timeout => 10,
            Status::Stopped => 12,
            Status::Confinement => 14,
            Status::DebugExit(value) => value << 1 | 1,
            Status::Command(status) => status,
        }
    }
}

impl From<Outcome> for Status {
    fn from(outcome: Outcome) -> Status {
        match outcome {
            Outcome::PowerOff | Outcome::Moved => Status::Success,
            Outcome::Panic => Status::GuestPanic,
            Outcome::TripleFault => Status::TripleFault,
            Outcome::Timeout => Status::Timeout,
            Outcome::DebugExit(value) => Status::DebugExit(value),
            Outcome::Stopped => Status::Stopped,
            Outcome::SourceLost => Status::Failure,
        }
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> ExitCode {
        ExitCode::from(status.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_status_can_be_mistaken_for_a_debug_exit() {
        let others = [
            Status::Success,
            Status::Usage,
            Status::Failure,
            Status::GuestPanic,
            Status::TripleFault,
            Status::Timeout,
            Status::Stopped,
            Status::Confinement,
        ];
        assert!(others.iter().all(|status| status.code() % 2 == 0));
        assert_eq!(Status::DebugExit(0).code(), 1);
        assert_eq!(Status::DebugExit(0x21).code(), 0x43);
        assert_eq!(Status::DebugExit(0xff).code(), 0xff);
    }
}
