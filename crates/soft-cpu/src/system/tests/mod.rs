//! Small guests for the system half: a machine with tables in place, a few bytes of code, one step at a time.

mod cache;
mod control;
mod debug;
mod delivery;
mod legacy;
mod save;
mod transfer;

use std::sync::{Arc, Mutex};

use queztl_guest_memory::GuestRam;

use super::{Delivery, TripleFault, deliver};
use crate::cpu::Cpu;
use crate::cpuid::{CpuidConfig, CpuidPolicy};
use crate::fault::Exception;
use crate::platform::Platform;
use crate::shared::Shared;
use crate::state::{Segment, State, Table, bits, gpr, rflags, seg};

/// A descriptor as the tables hold it, from base, limit and the attribute word of [`Segment`].
pub(super) const fn descriptor(base: u64, limit: u64, attributes: u64) -> u64 {
    (limit & 0xffff) | (base & 0xff_ffff) << 16 | attributes << 40 | (limit & 0xf_0000) << 32 | (base >> 24) << 56
}

pub(super) const CODE64: u16 = 0x08;
pub(super) const DATA: u16 = 0x10;
pub(super) const USER_CODE32: u16 = 0x1b;
pub(super) const USER_DATA: u16 = 0x23;
pub(super) const USER_CODE64: u16 = 0x2b;
pub(super) const TASK: u16 = 0x30;
pub(super) const CODE32: u16 = 0x40;
pub(super) const GATE: u16 = 0x48;
pub(super) const ABSENT: u16 = 0x58;
pub(super) const LOCAL_TABLE: u16 = 0x60;
pub(super) const CODE16: u16 = 0x70;

/// Linear addresses, which are physical ones.
pub(super) const GDT: u64 = 0x5000;
pub(super) const IDT: u64 = 0x6000;
pub(super) const TSS: u64 = 0x7000;
pub(super) const KERNEL_CODE: u64 = 0x1_0000;
pub(super) const HANDLER: u64 = 0x1_8000;
pub(super) const KERNEL_STACK: u64 = 0x9000;
pub(super) const IST_STACK: u64 = 0xb000;
pub(super) const RSP0: u64 = 0xa000;
/// From here to 4 MiB pages belong to ring 3.
pub(super) const USER_CODE: u64 = 0x20_0000;
pub(super) const USER_STACK: u64 = 0x20_8000;
pub(super) const USER_MEMORY: u64 = 0x21_0000;
/// Nothing is mapped from here on.
pub(super) const UNMAPPED: u64 = 0x40_0000;

const TABLES: u64 = 0x1000;

/// A machine that notes what reaches it.
#[derive(Default)]
pub(super) struct Notes {
    pub written: Mutex<Vec<(u16, Vec<u8>)>>,
    pub reads: Mutex<u32>,
    pub priority: Mutex<u8>,
    pub tsc_adjust: Mutex<u64>,
    pub msrs: Mutex<Vec<(u32, u64)>>,
}

/// The feature bit of [`super::hypercall`].
const PV_UNHALT: u32 = 1 << 7;

/// The one machine register that the fake platform knows.
pub(super) const PLATFORM_MSR: u32 = 0x4b56_4d00;

impl Platform for Notes {
    fn port_read(&self, _: u32, _: u16, data: &mut [u8]) {
        let mut reads = self.reads.lock().unwrap();
        *reads += 1;
        data.fill(*reads as u8);
    }
    fn port_write(&self, _: u32, port: u16, data: &[u8]) {
        self.written.lock().unwrap().push((port, data.to_vec()));
    }
    fn msr_read(&self, _: u32, msr: u32) -> Option<u64> {
        (msr == PLATFORM_MSR).then_some(0x1122_3344_5566_7788)
    }
    fn msr_write(&self, _: u32, msr: u32, value: u64) -> bool {
        self.msrs.lock().unwrap().push((msr, value));
        msr == PLATFORM_MSR
    }
    fn task_priority(&self, _: u32) -> u8 {
        *self.priority.lock().unwrap()
    }
    fn set_task_priority(&self, _: u32, class: u8) {
        *self.priority.lock().unwrap() = class;
    }
    fn tsc(&self, _: u32, _: u64) -> u64 {
        0x12_3456_789a
    }
    fn set_tsc_adjust(&self, _: u32, adjust: u64) {
        *self.tsc_adjust.lock().unwrap() = adjust;
    }
}

/// A CPU with RAM and tables.
pub(super) struct Guest {
    pub cpu: Cpu,
    pub notes: Arc<Notes>,
}

impl Guest {
    /// The CPU as after power-on, with 8 MiB of empty RAM.
    pub fn reset() -> Guest {
        Guest::with_features(0)
    }

    /// The same with more bits in CPUID leaf 0x4000_0001.
    fn with_features(paravirtual: u32) -> Guest {
        let notes = Arc::new(Notes::default());
        let ram = Arc::new(GuestRam::new(8 << 20).unwrap());
        let mut cpuid = CpuidPolicy::new(&CpuidConfig::one_socket(2, 1_000_000_000));
        cpuid.edit(0x4000_0001, 0, |leaf| leaf.eax |= paravirtual);
        let shared = Arc::new(Shared::new(ram, notes.clone(), cpuid, 2).unwrap());
        Guest { cpu: Cpu::new(shared, 1), notes }
    }

    /// 64-bit mode, ring 0, interrupts off, at [`KERNEL_CODE`]; tables, task state and gates in place.
    pub fn kernel() -> Guest {
        Guest::reset().into_kernel()
    }

    /// The same with the hypercalls of [`super::hypercall`].
    pub fn with_hypercalls() -> Guest {
        Guest::with_features(PV_UNHALT).into_kernel()
    }

    fn into_kernel(self) -> Guest {
        let mut guest = self;
        guest.write_paging();
        guest.write_gdt();
        guest.write_tss64();
        for vector in 0..=255 {
            guest.gate64(vector, 0x8e, 0);
        }
        let mut state = long_state();
        state.rip = KERNEL_CODE;
        state.gpr[gpr::RSP] = KERNEL_STACK;
        guest.cpu.set_state(&state);
        guest
    }

    /// The same machine in ring 3, interrupts on, at [`USER_CODE`].
    pub fn user() -> Guest {
        Guest::kernel().into_user()
    }

    /// Goes on in ring 3.
    pub fn into_user(self) -> Guest {
        let mut guest = self;
        let mut state = guest.cpu.state();
        state.segments[seg::CS] = Segment { selector: USER_CODE64, attributes: 0xa0fb, limit: u32::MAX, base: 0 };
        state.segments[seg::SS] = Segment { selector: USER_DATA, attributes: 0xc0f3, limit: u32::MAX, base: 0 };
        state.rip = USER_CODE;
        state.gpr[gpr::RSP] = USER_STACK;
        state.rflags |= rflags::IF;
        guest.cpu.set_state(&state);
        guest
    }

    /// 32-bit protected mode without paging, ring 0, at [`KERNEL_CODE`].
    pub fn protected() -> Guest {
        let mut guest = Guest::reset();
        guest.write_gdt();
        guest.cpu.write_physical(GDT + u64::from(TASK), &descriptor(TSS, 0x67, 0x8b).to_le_bytes());
        guest.poke(TSS + 4, &(RSP0 as u32).to_le_bytes());
        guest.poke(TSS + 8, &DATA.to_le_bytes());
        for vector in 0..=255_u64 {
            let gate = HANDLER & 0xffff | u64::from(CODE32) << 16 | 0x8e << 40 | (HANDLER & 0xffff_0000) << 32;
            guest.poke(IDT + vector * 8, &gate.to_le_bytes());
        }
        let mut state = long_state();
        state.cr0 = bits::CR0_PE | bits::CR0_ET | bits::CR0_NE;
        (state.cr3, state.cr4, state.efer) = (0, 0, 0);
        state.segments[seg::CS] = Segment { selector: CODE32, attributes: 0xc09b, limit: u32::MAX, base: 0 };
        state.tr = Segment { selector: TASK, attributes: 0x8b, limit: 0x67, base: TSS };
        state.idtr.limit = 0x7ff;
        state.rip = KERNEL_CODE;
        state.gpr[gpr::RSP] = KERNEL_STACK;
        guest.cpu.set_state(&state);
        guest
    }

    /// Real mode at 0x1000:0, stack at 0:0x9000.
    pub fn real() -> Guest {
        let mut guest = Guest::reset();
        let mut state = State::default();
        state.segments[seg::CS] = Segment::real(0x1000);
        state.rip = 0;
        state.gpr[gpr::RSP] = KERNEL_STACK;
        state.idtr.limit = 0x3ff;
        guest.cpu.set_state(&state);
        guest
    }

    fn write_paging(&mut self) {
        self.poke(TABLES, &((TABLES + 0x1000) | 7).to_le_bytes());
        self.poke(TABLES + 0x1000, &((TABLES + 0x2000) | 7).to_le_bytes());
        // Two pages of 2 MiB: the kernel's and the programs'.
        self.poke(TABLES + 0x2000, &0x83_u64.to_le_bytes());
        self.poke(TABLES + 0x2008, &(0x20_0000_u64 | 0x87).to_le_bytes());
    }

    fn write_gdt(&mut self) {
        let entries = [
            (CODE64, descriptor(0, 0xf_ffff, 0xa09b)),
            (DATA, descriptor(0, 0xf_ffff, 0xc093)),
            (USER_CODE32, descriptor(0, 0xf_ffff, 0xc0fb)),
            (USER_DATA, descriptor(0, 0xf_ffff, 0xc0f3)),
            (USER_CODE64, descriptor(0, 0xf_ffff, 0xa0fb)),
            (TASK, descriptor(TSS, 0x6f, 0x89)),
            (CODE32, descriptor(0, 0xf_ffff, 0xc09b)),
            (ABSENT, descriptor(0, 0xf_ffff, 0xc013)),
            (LOCAL_TABLE, descriptor(0x8000, 0xff, 0x82)),
            (CODE16, descriptor(0, 0xffff, 0x009b)),
        ];
        for (selector, entry) in entries {
            self.poke(GDT + u64::from(selector & !7), &entry.to_le_bytes());
        }
    }

    fn write_tss64(&mut self) {
        self.poke(TSS + 4, &RSP0.to_le_bytes());
        self.poke(TSS + 36, &(IST_STACK + 8).to_le_bytes());
        // No I/O permission bitmap.
        self.poke(TSS + 102, &0x70_u16.to_le_bytes());
    }

    /// A 64-bit gate to [`HANDLER`]; `kind` is the byte of present bit, DPL and type.
    pub fn gate64(&mut self, vector: u8, kind: u64, ist: u64) {
        let low = HANDLER & 0xffff | u64::from(CODE64) << 16 | ist << 32 | kind << 40 | (HANDLER & 0xffff_0000) << 32;
        self.poke(IDT + u64::from(vector) * 16, &low.to_le_bytes());
        self.poke(IDT + u64::from(vector) * 16 + 8, &0_u64.to_le_bytes());
    }

    pub fn poke(&mut self, address: u64, bytes: &[u8]) {
        self.cpu.write_physical(address, bytes);
    }

    pub fn peek<const N: usize>(&mut self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.cpu.read_physical(address, &mut bytes);
        bytes
    }

    pub fn peek64(&mut self, address: u64) -> u64 {
        u64::from_le_bytes(self.peek(address))
    }

    pub fn peek32(&mut self, address: u64) -> u32 {
        u32::from_le_bytes(self.peek(address))
    }

    pub fn peek16(&mut self, address: u64) -> u16 {
        u16::from_le_bytes(self.peek(address))
    }

    /// Puts code where the CPU is.
    pub fn code(&mut self, bytes: &[u8]) -> &mut Guest {
        let address = self.cpu.segments[seg::CS].base + self.cpu.rip;
        self.poke(address, bytes);
        self
    }

    /// Runs the given instruction.
    pub fn run(&mut self, bytes: &[u8]) -> Result<(), Exception> {
        self.code(bytes);
        self.cpu.step()
    }

    /// Runs the given instruction, which must succeed.
    pub fn ok(&mut self, bytes: &[u8]) -> &mut Guest {
        assert_eq!(self.run(bytes), Ok(()), "{bytes:02x?}");
        self
    }

    /// Runs the given instruction, which must fault; returns vector and error code.
    pub fn fault(&mut self, bytes: &[u8]) -> (u8, Option<u32>) {
        let before = self.cpu.state();
        let exception = self.run(bytes).expect_err("the instruction should fault");
        let after = State { instructions: before.instructions, ..self.cpu.state() };
        assert_eq!(after, before, "a fault changes nothing");
        (exception.vector, exception.error)
    }

    pub fn deliver(&mut self, exception: Exception) -> Result<(), TripleFault> {
        deliver(&mut self.cpu, Delivery::Exception(exception))
    }

    pub fn reg(&self, register: usize) -> u64 {
        self.cpu.regs[register]
    }

    pub fn set(&mut self, register: usize, value: u64) -> &mut Guest {
        self.cpu.regs[register] = value;
        self
    }

    /// Pushes 64-bit values downwards from the stack pointer, first value deepest.
    pub fn push64(&mut self, values: &[u64]) -> &mut Guest {
        for value in values {
            let top = self.reg(gpr::RSP) - 8;
            self.poke(top, &value.to_le_bytes());
            self.set(gpr::RSP, top);
        }
        self
    }

    pub fn selector(&self, index: usize) -> u16 {
        self.cpu.segments[index].selector
    }
}

fn long_state() -> State {
    let mut state = State {
        cr0: bits::CR0_PE | bits::CR0_PG | bits::CR0_WP | bits::CR0_ET | bits::CR0_NE | bits::CR0_MP,
        cr3: TABLES,
        cr4: bits::CR4_PAE | bits::CR4_OSFXSR | bits::CR4_OSXSAVE | bits::CR4_FSGSBASE,
        efer: bits::EFER_LME | bits::EFER_LMA | bits::EFER_SCE | bits::EFER_NXE,
        xcr0: 7,
        ..State::default()
    };
    let data = Segment { selector: DATA, attributes: 0xc093, limit: u32::MAX, base: 0 };
    state.segments = [data; 6];
    state.segments[seg::CS] = Segment { selector: CODE64, attributes: 0xa09b, limit: u32::MAX, base: 0 };
    state.gdtr = Table { base: GDT, limit: 0xff };
    state.idtr = Table { base: IDT, limit: 0xfff };
    state.tr = Segment { selector: TASK, attributes: 0x8b, limit: 0x6f, base: TSS };
    state.ldtr = Segment::default();
    state.msrs.star = u64::from(USER_CODE32 & !3) << 48 | u64::from(CODE64) << 32;
    state
}
