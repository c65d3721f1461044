//! Runs the test guests of `guest/tests` and reads what they report.
//!
//! A test guest is a small kernel for one topic (page faults, interrupts, …) that checks what the processor and the
//! machine do against the architecture's manual. It prints one line for each case and writes its verdict to the debug
//! exit port:
//!
//! ```text
//! ok NAME                              the case holds
//! skip NAME: reason                    not applicable here
//! FAIL NAME: got 0x.., want 0x..       it does not hold
//! ```
//!
//! [`Guest::build`] makes the image with gcc, [`Machine::run`] runs it on `queztl-hv` or on QEMU's software CPU,
//! [`Report::verdict`] says in a sentence what went wrong. The same images run on both machines: where QEMU is known to
//! deviate from the manual, the guest is told (by its command line) to skip the case.

mod guest;
mod machine;
mod report;

pub use guest::{BuildError, Guest};
pub use machine::{Machine, RunError};
pub use report::Report;
