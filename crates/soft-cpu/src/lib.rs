//! An x86-64 CPU in software that boots unmodified Linux.
//!
//! Promises: the architecture as the guest's CPUID describes it, with precise exceptions and the host's memory model;
//! several CPUs on as many threads; no privileges needed.
//!
//! How, from the outside in:
//! - [`Cpu::run`] (`run.rs`) runs decoded blocks and takes events between them;
//! - `decode.rs` makes blocks (`block.rs`) of operations (`op.rs`): the hot ones in Rust (`ops/`), everything that
//!   computes without privilege as a native thunk of the same instruction (`native/`), the rest in `system/`;
//! - `debug.rs` watches breakpoints, one instruction at a time;
//! - `translator/` turns blocks that run often into host code;
//! - `rest.rs` gives the memory of all that back when the guest hardly runs;
//! - `mmu/` translates addresses through a software TLB and sees every write to code;
//! - [`platform::Platform`] is the machine around it, [`Control`] the handle for other threads.

mod arena;
mod block;
mod code_space;
mod control;
mod cpu;
pub mod cpuid;
mod debug;
mod decode;
mod fault;
mod flags;
mod mmu;
mod native;
mod op;
mod ops;
pub mod platform;
mod rest;
mod run;
mod shared;
pub mod state;
mod system;
mod translator;

pub use control::Control;
pub use cpu::Cpu;
pub use fault::{Exception, vector};
pub use mmu::PHYSICAL_BITS;
pub use run::Exit;
pub use shared::Shared;
pub use state::State;
pub use translator::{TRANSLATION_THRESHOLD, TranslatorStatistics};

/// Builds the tables that every CPU of the process reads, which the first one would do otherwise: half a megabyte each for
/// decoding and encoding instructions. Starts no thread.
pub fn prepare() {
    decode::prepare();
    translator::prepare();
}
