//! Runs one instruction on the software CPU, in ring 3 of long mode, with the arena mapped as on the host.

use std::sync::Arc;

use queztl_guest_memory::GuestRam;
use queztl_soft_cpu::cpuid::{CpuidConfig, CpuidPolicy};
use queztl_soft_cpu::platform::Platform;
use queztl_soft_cpu::state::{Fpu, Segment, bits, seg};
use queztl_soft_cpu::{Cpu, Shared, State, vector};
use vm_memory::{Bytes, GuestAddress};

use crate::arena::{BASE, CODE, DATA, DATA_LEN, ENTRY, PAGE, READ_ONLY};
use crate::case::{Ending, FLAGS, Registers, X87};

/// A machine with nothing around the CPU.
struct Nothing;

impl Platform for Nothing {}

/// Faults in ring 3.
const HLT: u8 = 0xf4;

/// Guest-physical places.
const TABLES: u64 = 0x1_0000;
const ARENA: u64 = 0x10_0000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;

/// The software CPU as an executor of single instructions.
pub struct Guest {
    ram: Arc<GuestRam>,
    cpu: Cpu,
    template: State,
}

impl Guest {
    pub fn new(fs_base: u64) -> Guest {
        let ram = Arc::new(GuestRam::new(16 << 20).expect("a little RAM"));
        build_tables(&ram);
        let code_page = GuestAddress(ARENA + (CODE - BASE));
        ram.memory().write_slice(&[HLT; PAGE as usize], code_page).expect("the code page is RAM");
        let shared = Shared::new(
            ram.clone(),
            Arc::new(Nothing),
            CpuidPolicy::new(&CpuidConfig::one_socket(1, 1_000_000_000)),
            1,
        )
        .expect("executable memory");
        let cpu = Cpu::new(Arc::new(shared), 0);
        Guest { ram, cpu, template: user_state(fs_base) }
    }

    /// Puts an instruction in place.
    pub fn set_code(&mut self, bytes: &[u8]) {
        let at = GuestAddress(ARENA + (ENTRY - BASE));
        self.ram.memory().write_slice(&[HLT; 256], at).expect("the code page is RAM");
        self.ram.memory().write_slice(bytes, at).expect("the code page is RAM");
    }

    /// The data pages.
    pub fn data(&mut self) -> &mut [u8] {
        let page = self.ram.host_page(ARENA + (DATA - BASE)).expect("the data pages are RAM");
        // SAFETY: RAM of one region is contiguous, and the CPU does not run now.
        unsafe { std::slice::from_raw_parts_mut(page.host, DATA_LEN) }
    }

    /// Runs the instruction put in place.
    pub fn run(&mut self, before: &Registers) -> (Registers, Ending) {
        self.load(before);
        let ending = match self.cpu.step() {
            Ok(()) => Ending::Completed,
            Err(exception) => Ending::Raised {
                vector: exception.vector,
                error: exception.error.unwrap_or(0),
                address: if exception.vector == 14 { exception.address } else { 0 },
            },
        };
        (self.registers(), ending)
    }

    /// Runs the instructions put in place at full speed, to their end or to a fault.
    pub fn run_block(&mut self, before: &Registers) -> (Registers, Ending) {
        self.load(before);
        let ending = match self.cpu.run_to_exception() {
            Ok(exit) => panic!("nothing stops this run, but it ended with {exit:?}"),
            // The HLT behind the instruction, or where it branched to.
            Err(exception) if exception.vector == vector::GP && self.is_at_hlt() => Ending::Completed,
            Err(exception) => Ending::Raised {
                vector: exception.vector,
                error: exception.error.unwrap_or(0),
                address: if exception.vector == 14 { exception.address } else { 0 },
            },
        };
        (self.registers(), ending)
    }

    /// Whether the next instruction is one of those around the ones put in place.
    fn is_at_hlt(&self) -> bool {
        let rip = self.cpu.state().rip;
        let byte = self.ram.memory().read_obj::<u8>(GuestAddress(ARENA + rip.wrapping_sub(BASE)));
        byte.is_ok_and(|byte| byte == HLT)
    }

    /// Translates every block that runs from now on, or none.
    pub fn set_translator(&mut self, on: bool) {
        self.cpu.set_translator(on.then_some(0));
    }

    fn load(&mut self, before: &Registers) {
        let state = &mut self.template;
        state.gpr = before.gpr;
        state.rip = before.rip;
        state.rflags = before.flags | 0x202;
        before.x87.to_image(&mut state.fpu.legacy);
        for (vector, ymm) in state.fpu.vectors.iter_mut().zip(&before.ymm) {
            vector.0[..32].copy_from_slice(ymm);
        }
        state.fpu.mxcsr = before.mxcsr;
        self.cpu.set_state(&self.template);
    }

    fn registers(&self) -> Registers {
        let state = self.cpu.state();
        Registers {
            gpr: state.gpr,
            flags: state.rflags & FLAGS,
            rip: state.rip,
            ymm: std::array::from_fn(|n| std::array::from_fn(|byte| state.fpu.vectors[n].0[byte])),
            mxcsr: state.fpu.mxcsr,
            x87: X87::from_image(&state.fpu.legacy),
        }
    }
}

/// Four levels of tables that map the arena to [`ARENA`].
fn build_tables(ram: &GuestRam) {
    let write = |at: u64, value: u64| ram.memory().write_obj(value, GuestAddress(at)).expect("the tables are RAM");
    let index = |level: u32| (BASE >> (12 + 9 * level) & 0x1ff) * 8;
    for level in (1..4).rev() {
        let table = TABLES + u64::from(3 - level) * PAGE;
        write(table + index(level), (table + PAGE) | PRESENT | WRITABLE | USER);
    }
    let last = TABLES + 3 * PAGE;
    let page = |address: u64, rights: u64| {
        write(last + (address >> 12 & 0x1ff) * 8, (ARENA + (address - BASE)) | PRESENT | USER | rights);
    };
    for offset in (0..DATA_LEN as u64).step_by(PAGE as usize) {
        page(DATA + offset, if DATA + offset < READ_ONLY { WRITABLE } else { 0 });
    }
    page(CODE, 0);
}

/// Ring 3 as Linux sets it up.
fn user_state(fs_base: u64) -> State {
    let mut state = State::default();
    let data = Segment { base: 0, limit: u32::MAX, selector: 0x2b, attributes: 0xc0f3 };
    state.segments = [Segment { selector: 0, ..data }; 6];
    state.segments[seg::CS] = Segment { selector: 0x33, attributes: 0xa0fb, ..data };
    state.segments[seg::SS] = data;
    state.segments[seg::FS].base = fs_base;
    state.cr0 = bits::CR0_PE | bits::CR0_MP | bits::CR0_ET | bits::CR0_NE | bits::CR0_WP | bits::CR0_PG;
    state.cr3 = TABLES;
    state.cr4 = bits::CR4_PAE | bits::CR4_OSFXSR | bits::CR4_OSXMMEXCPT | bits::CR4_OSXSAVE;
    state.efer = bits::EFER_SCE | bits::EFER_LME | bits::EFER_LMA | bits::EFER_NXE;
    state.xcr0 = 7;
    // Too short for an I/O permission map: every port is out of bounds.
    state.tr.limit = 0x3f;
    state.fpu = Fpu::default();
    state
}
