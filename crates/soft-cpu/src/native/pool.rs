//! The cache of thunks and the memory they run from.
//!
//! Bytes that a thunk was given never change.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use iced_x86::Instruction;

use super::compile::{self, Draft};
use super::thunk::{Direct, Thunk};
use crate::code_space::CodeSpace;
use crate::op::Handler;

/// Space for code, bytes: several hundred thousand instruction forms. A guest that uses more gets #UD for new ones; it
/// takes a program that generates forms on purpose.
const CAPACITY: usize = 64 << 20;
/// Thunks start at multiples of this.
const ALIGN: usize = 32;

/// The thunks of one machine, shared by its CPUs.
pub(crate) struct NativePool {
    inner: Mutex<Inner>,
}

struct Inner {
    /// By normalised instruction; `None` for those that no thunk can do.
    thunks: HashMap<Instruction, Option<Box<Thunk>>>,
    code: CodeSpace,
}

impl NativePool {
    /// An empty pool.
    ///
    /// # Errors
    /// The host refuses a memory file or an executable mapping of it.
    pub fn new() -> io::Result<NativePool> {
        let code = CodeSpace::new(c"queztl-thunks", CAPACITY)?;
        Ok(NativePool { inner: Mutex::new(Inner { thunks: HashMap::new(), code }) })
    }

    /// The thunk for `instruction`, made if there is none; `None` if it is privileged, a branch, a string or stack
    /// instruction, or one that the host cannot run.
    pub fn compile(&self, instruction: &Instruction) -> Option<&Thunk> {
        let key = compile::normalise(instruction)?;
        let mut inner = self.lock();
        let Inner { thunks, code } = &mut *inner;
        if !thunks.contains_key(&key) {
            // A full map stops growing with the code: forms without code are bounded by the same count.
            if thunks.len() >= CAPACITY / ALIGN {
                return None;
            }
            let thunk = compile::draft(&key).and_then(|draft| place(code, draft));
            thunks.insert(key, thunk.map(Box::new));
        }
        let thunk: *const Thunk = &**thunks.get(&key)?.as_ref()?;
        // SAFETY: boxes in the map are neither replaced nor removed, so the thunk lives as long as the pool.
        Some(unsafe { &*thunk })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts the draft's code into executable memory; `None` if the space is used up.
fn place(code: &mut CodeSpace, draft: Draft) -> Option<Thunk> {
    let Draft { code: bytes, any_address, inner, mut thunk } = draft;
    if bytes.is_empty() {
        return Some(thunk);
    }
    let start = code.place(&bytes, ALIGN)?;
    // SAFETY: both entries lie within the code just placed, and are functions of the type that operations have.
    unsafe {
        thunk.entry = start.add(inner);
        // A register bit index moves the operand, which only Rust knows how to follow.
        thunk.direct = thunk.bit_index.is_none().then(|| Direct {
            based: std::mem::transmute::<*const u8, Handler>(start),
            any: std::mem::transmute::<*const u8, Handler>(start.add(any_address)),
        });
    }
    Some(thunk)
}
