//! The running CPU: architectural state in the form that executes fast, and what is derived from it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use queztl_guest_memory::GuestRam;

use crate::block::BlockCache;
use crate::control::{Control, DROP, DROP_ALL};
use crate::debug::Debug;
use crate::fault::{Exception, Outcome, Raised};
use crate::flags;
use crate::mmu::Tlb;
use crate::native;
use crate::platform::Platform;
use crate::rest::Rest;
use crate::shared::Shared;
use crate::state::{Activity, Fpu, Msrs, Segment, State, Table, attribute, bits, rflags, seg};
use crate::translator::{Frame, Translator};

/// Slots of [`Cpu::regs`] beyond the sixteen general registers, so that every part of an effective address is one load
/// from the same array and no part needs a branch.
pub(crate) mod slot {
    /// Always zero: the absent base, index or segment.
    pub const ZERO: usize = 16;
    /// The instruction pointer of the running block's first instruction.
    pub const BLOCK_IP: usize = 17;
    /// The effective address that a preceding address operation computed.
    pub const ADDRESS: usize = 18;
    /// Bases of ES, CS, SS, DS, FS, GS.
    pub const SEGMENT_BASES: usize = 19;
    pub const COUNT: usize = 25;
}

/// How instructions are decoded: the size of the code segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CodeSize {
    Bits16 = 0,
    Bits32 = 1,
    Bits64 = 2,
}

impl CodeSize {
    pub fn bitness(self) -> u32 {
        16 << self as u32
    }
}

/// One x86-64 CPU. Belongs to one thread; others reach it through its [`Control`].
///
/// `repr(C)` with the hot fields first: generated code addresses them by fixed offsets.
#[repr(C, align(64))]
pub struct Cpu {
    /// General registers and the other parts of addresses; see [`slot`].
    pub(crate) regs: [u64; slot::COUNT],
    /// The arithmetic flags in the layout of [`crate::flags`].
    pub(crate) flags: u16,
    /// Size of the stack pointer: all ones, 2^32 - 1 or 2^16 - 1.
    pub(crate) stack_mask: u64,
    /// The translations that the present privilege may use.
    pub(crate) tlb: *mut crate::mmu::TlbSet,
    pub(crate) fpu: Fpu,
    /// What translated code and Rust tell each other.
    pub(crate) frame: Frame,

    /// Address of the present instruction. Kept exact only where an instruction of [`crate::system`] runs and between
    /// blocks; elsewhere it is the block's first address plus the operation's offset.
    pub(crate) rip: u64,
    /// Address after the present instruction; valid like `rip`.
    pub(crate) next_rip: u64,
    /// RFLAGS without the arithmetic flags. Bit 1 is always set.
    pub(crate) rflags_system: u64,
    /// Use [`Cpu::set_segment`] to change one.
    pub(crate) segments: [Segment; 6],
    pub(crate) ldtr: Segment,
    pub(crate) tr: Segment,
    pub(crate) gdtr: Table,
    pub(crate) idtr: Table,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) xcr0: u64,
    pub(crate) dr: [u64; 8],
    pub(crate) msrs: Msrs,
    pub(crate) activity: Activity,
    pub(crate) interrupt_shadow: bool,
    pub(crate) nmi_masked: bool,

    // Derived by `refresh`.
    /// Current privilege level, 0..=3.
    pub(crate) cpl: u8,
    pub(crate) code_size: CodeSize,
    /// Which of x87, SSE and AVX may run without a fault: [`native::gate`] bits.
    pub(crate) fpu_gate: u8,
    /// Why native instructions may need the slow path: [`native::gate::closed`].
    pub(crate) closed: u8,
    /// What the native instructions know about the floating-point environment.
    pub(crate) native: native::Environment,

    /// Retired instructions up to the start of the present block.
    pub(crate) instructions: u64,
    /// The block loop asks the platform for a new limit when `instructions` reaches this.
    pub(crate) instruction_limit: u64,
    /// Position of the present operation within the block, counted by the slow paths only.
    pub(crate) exception: Option<Exception>,
    /// An event may be pending that the CPU could not take when it was last asked.
    pub(crate) event_blocked: bool,
    pub(crate) entered_user: bool,
    /// Single-step trap due after the present instruction.
    pub(crate) trap_pending: bool,
    pub(crate) debug: Debug,
    /// The access being made is to a descriptor table, task state or handler's stack: [`Cpu::as_supervisor`].
    pub(crate) system_access: bool,
    pub(crate) spin: crate::system::Spin,

    pub(crate) tlbs: Box<Tlb>,
    pub(crate) blocks: BlockCache,
    pub(crate) translator: Translator,
    pub(crate) rest: Rest,
    /// A copy of bytes that do not lie in one page of RAM, while an instruction works on them.
    pub(crate) bounce: Bounce,
    pub(crate) id: u32,
    pub(crate) control: Arc<Control>,
    pub(crate) shared: Arc<Shared>,
}

// SAFETY: the raw pointers inside (`tlb`, and those of the block cache) point into boxes that the CPU itself owns or into
// guest RAM that `shared` keeps alive.
unsafe impl Send for Cpu {}

/// Space for one operand; large enough for any memory operand (FXSAVE and XSAVE areas are copied field by field).
#[repr(C, align(64))]
pub(crate) struct Bounce(pub [u8; 512]);

impl Cpu {
    /// CPU number `id` of the machine `shared`, in its reset state.
    pub fn new(shared: Arc<Shared>, id: u32) -> Cpu {
        let control = shared.control(id);
        let mut tlbs = Tlb::new();
        let tlb = tlbs.set(0);
        let mut cpu = Cpu {
            regs: [0; slot::COUNT],
            flags: 0,
            stack_mask: 0,
            tlb,
            fpu: Fpu::default(),
            frame: Frame::default(),
            rip: 0,
            next_rip: 0,
            rflags_system: rflags::RESERVED_ONE,
            segments: Default::default(),
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: Table::default(),
            idtr: Table::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            dr: [0; 8],
            msrs: Msrs::default(),
            activity: Activity::Running,
            interrupt_shadow: false,
            nmi_masked: false,
            cpl: 0,
            code_size: CodeSize::Bits16,
            fpu_gate: 0,
            closed: 0,
            native: native::Environment::default(),
            instructions: 0,
            instruction_limit: 0,
            exception: None,
            event_blocked: false,
            entered_user: false,
            trap_pending: false,
            debug: Debug::default(),
            system_access: false,
            spin: Default::default(),
            tlbs,
            blocks: BlockCache::default(),
            translator: Translator::default(),
            rest: Rest::default(),
            bounce: Bounce([0; 512]),
            id,
            control,
            shared,
        };
        cpu.set_state(&State::default());
        cpu
    }

    /// The architectural state. Only while `run` is not running.
    pub fn state(&self) -> State {
        let mut state = State {
            gpr: [0; 16],
            rip: self.rip,
            rflags: self.rflags(),
            segments: self.segments,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            xcr0: self.xcr0,
            dr: self.dr,
            msrs: self.msrs.clone(),
            fpu: self.fpu.clone(),
            activity: self.activity_after_kicks(),
            interrupt_shadow: self.interrupt_shadow,
            nmi_masked: self.nmi_masked,
            instructions: self.instructions,
        };
        state.gpr.copy_from_slice(&self.regs[..16]);
        state
    }

    /// A kick that has not been noticed yet is no part of the state: its effect is.
    fn activity_after_kicks(&self) -> Activity {
        if self.activity == Activity::Halted && self.control.is_kicked() { Activity::Running } else { self.activity }
    }

    /// Replaces the architectural state.
    pub fn set_state(&mut self, state: &State) {
        self.regs[..16].copy_from_slice(&state.gpr);
        self.rip = state.rip;
        self.set_rflags(state.rflags);
        for (index, segment) in state.segments.iter().enumerate() {
            self.set_segment(index, *segment);
        }
        self.ldtr = state.ldtr;
        self.tr = state.tr;
        self.gdtr = state.gdtr;
        self.idtr = state.idtr;
        self.cr0 = state.cr0;
        self.cr2 = state.cr2;
        self.cr3 = state.cr3;
        self.cr4 = state.cr4;
        self.efer = state.efer;
        self.xcr0 = state.xcr0;
        self.dr = state.dr;
        self.msrs = state.msrs.clone();
        self.fpu = state.fpu.clone();
        self.activity = state.activity;
        self.interrupt_shadow = state.interrupt_shadow;
        self.nmi_masked = state.nmi_masked;
        self.debug = Debug::default();
        self.instructions = state.instructions;
        self.instruction_limit = 0;
        self.control.notify();
        self.flush_tlb_all();
        self.refresh();
    }

    /// The handle for other threads.
    pub fn control(&self) -> Arc<Control> {
        self.control.clone()
    }

    /// Retired instructions since reset.
    pub fn instructions(&self) -> u64 {
        self.instructions
    }

    /// Guest RAM, borrowed apart from the CPU: slow paths change the CPU while they hold a page.
    pub(crate) fn guest_ram<'a>(&self) -> &'a GuestRam {
        let ram: *const GuestRam = &*self.shared.ram;
        // SAFETY: `shared` is set once and keeps the RAM alive as long as the CPU; callers keep the reference no longer
        // than a method of the CPU runs.
        unsafe { &*ram }
    }

    /// RFLAGS as the guest sees it.
    pub(crate) fn rflags(&self) -> u64 {
        self.rflags_system | flags::to_rflags(self.flags)
    }

    /// Sets RFLAGS, reserved bits forced to their values. The caller calls [`Cpu::refresh`] if AC or VM may have
    /// changed, and [`Cpu::recheck_events`] if IF may have been set.
    pub(crate) fn set_rflags(&mut self, value: u64) {
        const KEPT: u64 = 0x003f_7fd5;
        self.flags = flags::from_rflags(value);
        self.rflags_system = (value & KEPT & !rflags::ARITHMETIC) | rflags::RESERVED_ONE;
    }

    /// Sets a segment register; the caller calls [`Cpu::refresh`] after CS or SS.
    pub(crate) fn set_segment(&mut self, index: usize, segment: Segment) {
        self.segments[index] = segment;
        self.regs[slot::SEGMENT_BASES + index] = segment.base;
    }

    /// In long mode (EFER.LMA), 64-bit or compatibility.
    pub(crate) fn long_mode(&self) -> bool {
        self.efer & bits::EFER_LMA != 0
    }

    /// Real-address mode or virtual-8086 mode: segments are paragraphs.
    pub(crate) fn real_segments(&self) -> bool {
        self.cr0 & bits::CR0_PE == 0 || self.rflags_system & rflags::VM != 0
    }

    /// Derives CPL, code and stack size, TLB set and FPU gate from the architectural state. To be called after any
    /// change of CS, SS, CR0, CR4, XCR0, EFER, or of RFLAGS.AC or VM.
    pub(crate) fn refresh(&mut self) {
        let (cs, ss) = (self.segments[seg::CS], self.segments[seg::SS]);
        self.cpl = if self.cr0 & bits::CR0_PE == 0 {
            0
        } else if self.rflags_system & rflags::VM != 0 {
            3
        } else {
            cs.selector as u8 & 3
        };
        self.code_size = if self.long_mode() && cs.has(attribute::LONG) {
            CodeSize::Bits64
        } else if cs.has(attribute::BIG) && !self.real_segments() {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        self.stack_mask = if self.code_size == CodeSize::Bits64 {
            u64::MAX
        } else if ss.has(attribute::BIG) && !self.real_segments() {
            0xffff_ffff
        } else {
            0xffff
        };
        // In 64-bit mode the bases of ES, CS, SS and DS count as zero, whatever the registers hold.
        let flat = self.code_size == CodeSize::Bits64;
        for index in [seg::ES, seg::CS, seg::SS, seg::DS] {
            self.regs[slot::SEGMENT_BASES + index] = if flat { 0 } else { self.segments[index].base };
        }
        self.fpu_gate = native::gate::derive(self.cr0, self.cr4, self.xcr0);
        self.closed = native::gate::closed(self.fpu_gate, self.native.traps);
        self.select_tlb();
        if self.cpl == 3 && !self.entered_user {
            self.entered_user = true;
            self.outside(|platform, id| platform.entered_user_mode(id));
        }
    }

    /// Notes `exception` for delivery.
    #[cold]
    pub(crate) fn raise(&mut self, exception: Exception) -> Raised {
        self.exception = Some(exception);
        Raised
    }

    /// Fails with `exception`.
    #[cold]
    pub(crate) fn fail<T>(&mut self, exception: Exception) -> Outcome<T> {
        Err(self.raise(exception))
    }

    /// Asks for pending events again at the next block, if one was refused before.
    pub(crate) fn recheck_events(&mut self) {
        if self.event_blocked {
            self.event_blocked = false;
            self.control.notify();
        }
    }

    /// Calls the platform. Meanwhile the thread counts as outside guest code: other vCPUs need not wait for it, and the
    /// host's floating-point environment is in force. Host pointers into guest RAM taken before are stale after.
    pub(crate) fn outside<R>(&mut self, call: impl FnOnce(&dyn Platform, u32) -> R) -> R {
        let inside = native::suspend_environment(self);
        self.control.set_in_guest(false);
        let result = call(&*self.shared.platform, self.id);
        if inside {
            native::resume_environment(self);
            self.enter_guest();
        }
        result
    }

    /// Leaves the host CPU to others, the `offers`-th time in the same spin. Other CPUs need not wait for this one meanwhile.
    ///
    /// Where all CPUs can run at once, that is a matter of a moment. Where they cannot, and a guest with hundreds of them has
    /// all but one spin (Linux starts its processors that way), yielding lets each spinner have its turn before the one that
    /// works: there the spinners sleep, each about as long as it has been spinning.
    pub(crate) fn give_way(&mut self, offers: u32) {
        const YIELDS: u32 = 16;
        const SHORTEST: Duration = Duration::from_micros(50);
        const DOUBLINGS: u32 = 8;
        self.control.set_in_guest(false);
        match offers.checked_sub(YIELDS) {
            Some(sleeps) if self.shared.is_overcommitted() => {
                self.control.wait(Some(SHORTEST * (1 << sleeps.min(DOUBLINGS))))
            }
            _ => std::thread::yield_now(),
        }
        self.enter_guest();
    }

    /// Marks the thread as touching guest RAM, and answers what was asked while it did not.
    pub(crate) fn enter_guest(&mut self) {
        self.control.set_in_guest(true);
        if self.control.attention() & DROP != 0 {
            self.answer_drops();
        }
    }

    #[cold]
    pub(crate) fn answer_drops(&mut self) {
        let asked = self.control.attention() & DROP;
        if asked & DROP_ALL != 0 {
            self.flush_tlb_all();
        }
        self.tlbs.drop_writes();
        std::sync::atomic::fence(Ordering::SeqCst);
        self.control.clear(asked);
    }
}
