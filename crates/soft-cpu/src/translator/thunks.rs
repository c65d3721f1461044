//! The code that all translated blocks share: ways in and out, calls into Rust, and the vector registers' journeys.

use std::mem::offset_of;

use super::asm::{Asm, Mem, cc, host};
use super::frame::{NOT_LOADED, place};
use super::registers::{resident, state};
use crate::code_space::CodeSpace;
use crate::cpu::Cpu;
use crate::state::{Fpu, Vector};

/// Why generated code was left; the value that [`Thunks::enter`] returns.
pub(super) mod exit {
    /// An operation run by Rust ended the block: [`super::super::frame::Frame::flow`] says how.
    pub const OPERATION: u32 = 1;
    /// A jump within the page that leads to no translated block yet; `rip` is set.
    pub const LINK: u32 = 2;
    /// A jump to a target that is not remembered; `rip` is set.
    pub const INDIRECT: u32 = 3;
    /// A jump that remembers its own target, to another; `rip` is set.
    pub const SLOT: u32 = 6;
    /// Something may want attention; `rip` is set.
    pub const LOOK: u32 = 4;
    /// The block at `rip` cannot run as translated now: its bytes have changed, or a unit it needs is closed.
    pub const INTERPRET: u32 = 5;
}

/// Enters generated code at the address given; returns an [`exit`].
pub(super) type Enter = unsafe extern "C" fn(*const u8, *mut Cpu) -> u32;

/// Runs the operations of the instruction of a site; zero if the block goes on after it.
pub(super) type RunSite = unsafe extern "C" fn(*mut Cpu, u32) -> u32;

/// Executable addresses of the shared code.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thunks {
    pub enter: u64,
    /// Jumped to with an [`exit`] in EAX.
    pub leave: u64,
    /// Called with a site's number in ECX. Returns only if the block goes on. Flags must be in the CPU's state, and come
    /// back there.
    pub run_site: u64,
    /// Called: brings the guest's vector registers into the host's. Keeps the flags, destroys RAX.
    pub load_vectors: u64,
}

fn vector(number: usize) -> Mem {
    Mem::State((offset_of!(Cpu, fpu) + offset_of!(Fpu, vectors) + number * size_of::<Vector>()) as u32)
}

impl Thunks {
    /// Emits the shared code; `None` if there is no room.
    pub fn new(space: &mut CodeSpace, run_site: RunSite) -> Option<Thunks> {
        let mut asm = Asm::default();
        let base = space.next() as u64;
        let avx = is_x86_feature_detected!("avx");

        let enter = base + asm.here() as u64;
        emit_enter(&mut asm);

        let load_vectors = base + asm.here() as u64;
        move_vectors(&mut asm, avx, false);
        asm.op_mem(false, &[0x8a], host::RAX, place::CLOSED);
        asm.op_mem(false, &[0x88], host::RAX, place::VECTORS_MISSING);
        asm.raw(&[0xc3]);

        let save_vectors = base + asm.here() as u64;
        move_vectors(&mut asm, avx, true);
        asm.op_mem(false, &[0xc6], 0, place::VECTORS_MISSING);
        asm.raw(&[NOT_LOADED]);
        if avx {
            // vzeroupper: the host's own SSE code must not drag the upper halves along.
            asm.raw(&[0xc5, 0xf8, 0x77]);
        }
        asm.raw(&[0xc3]);

        let leave = base + asm.here() as u64;
        for (guest, register) in resident() {
            asm.store(state(guest), register);
        }
        let saved = asm.here();
        save_loaded_vectors(&mut asm, base, save_vectors);
        emit_return(&mut asm);

        let thunk = base + asm.here() as u64;
        emit_run_site(&mut asm, base, run_site, save_vectors, saved);

        space.place(&asm.bytes, 64)?;
        Some(Thunks { enter, leave, run_site: thunk, load_vectors })
    }
}

/// `fn enter(code, _)`: saves what the C convention asks for, and jumps to the code with the guest's registers loaded.
fn emit_enter(asm: &mut Asm) {
    use host::*;
    // push rbp, rbx, r12–r15; sub rsp, 8
    asm.raw(&[0x55, 0x53, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, 0x48, 0x83, 0xec, 0x08]);
    asm.store(place::HOST_RSP, RSP);
    asm.mov(RAX, RDI);
    for (guest, register) in resident() {
        asm.load(register, state(guest));
    }
    // jmp rax
    asm.raw(&[0xff, 0xe0]);
}

/// The end of `enter`: EAX is the result.
fn emit_return(asm: &mut Asm) {
    asm.load(host::RSP, place::HOST_RSP);
    // add rsp, 8; pop r15–r12, rbx, rbp; ret
    asm.raw(&[0x48, 0x83, 0xc4, 0x08, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5b, 0x5d, 0xc3]);
}

fn emit_run_site(asm: &mut Asm, base: u64, run_site: RunSite, save_vectors: u64, saved: usize) {
    use host::*;
    for (guest, register) in resident() {
        asm.store(state(guest), register);
    }
    // mov esi, ecx
    asm.mov_32(RSI, RCX);
    save_loaded_vectors(asm, base, save_vectors);
    asm.load(RDI, place::THIS);
    // sub rsp, 8: the stack is aligned at the block's level, and the return address lies on it.
    asm.raw(&[0x48, 0x83, 0xec, 0x08]);
    asm.mov_imm(RAX, run_site as usize as u64);
    // call rax; add rsp, 8; test eax, eax
    asm.raw(&[0xff, 0xd0, 0x48, 0x83, 0xc4, 0x08, 0x85, 0xc0]);
    let leaves = asm.jcc(cc::NE);
    for (guest, register) in resident() {
        asm.load(register, state(guest));
    }
    asm.raw(&[0xc3]);
    asm.bind_here(leaves);
    asm.mov_imm(RAX, u64::from(exit::OPERATION));
    let end = asm.jmp();
    asm.bind(end, saved);
}

/// Calls `save` unless the vector registers are in the CPU's state already. Keeps EAX and ECX.
fn save_loaded_vectors(asm: &mut Asm, base: u64, save: u64) {
    // cmp byte [vectors_missing], NOT_LOADED
    asm.op_mem(false, &[0x80], 7, place::VECTORS_MISSING);
    asm.raw(&[NOT_LOADED]);
    let skip = asm.jcc(cc::E);
    asm.call_to(base, save);
    asm.bind_here(skip);
}

/// All vector registers from or to the CPU's state.
fn move_vectors(asm: &mut Asm, avx: bool, store: bool) {
    for number in 0..16_u8 {
        let mem = vector(number.into());
        if avx {
            // gs; VEX.256.0F 10/11 /r
            let not_r = if number < 8 { 0x80 } else { 0 };
            asm.raw(&[0x65, 0xc4, not_r | 0x61, 0x7c, 0x10 | u8::from(store)]);
            asm.modrm_mem(number, mem);
        } else {
            asm.op_mem(false, &[0x0f, 0x10 | u8::from(store)], number, mem);
        }
    }
}
