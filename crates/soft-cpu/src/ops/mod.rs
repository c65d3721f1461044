//! The hot operations: integer arithmetic, moves, stack, branches and strings.
//!
//! Each file holds the handlers of one family and a `select` that picks the handler for an instruction, or `None` where
//! the family does not know it; [`crate::decode`] asks one after the other.

pub(crate) mod alu;
pub(crate) mod branch;
pub(crate) mod divide;
pub(crate) mod fused;
pub(crate) mod moves;
pub(crate) mod native_flags;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;
