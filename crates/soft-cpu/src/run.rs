//! The loop that runs blocks, takes events and delivers exceptions.
//!
//! ```text
//! run ──> attend: stop? events? write paths? limit?      between blocks, only if something asks
//!     └─> blocks: operation after operation, block after block through links and the jump cache
//!              ├─ Fault ──> system::deliver
//!              ├─ Halt  ──> sleep until something asks
//!              └─ Sync  ──> look at everything again
//! ```

use std::hash::{Hash, Hasher};

use iced_x86::Mnemonic;

use crate::block::Block;
use crate::control::{DROP, EVENT, STOP};
use crate::cpu::{Cpu, slot};
use crate::fault::{Exception, Raised, vector};
use crate::mmu::PAGE_MASK;
use crate::native;
use crate::op::{Flow, Op, SEGMENT_SS};
use crate::platform::{Accepts, Event, Idle};
use crate::state::{Activity, rflags};
use crate::system::{self, Delivery};
use crate::translator::{Entries, Left};

/// Why [`Cpu::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// [`crate::Control::stop`] was called. Calling `run` again goes on.
    Stopped,
    /// Triple fault: the processor has shut down.
    Shutdown,
}

/// How one pass over blocks ended.
enum Pass {
    /// Something may want attention.
    Look,
    Halted,
    Raised,
}

impl Cpu {
    /// Runs until [`crate::Control::stop`] or a triple fault. A halted CPU sleeps inside.
    pub fn run(&mut self) -> Exit {
        match self.run_until(|_| false) {
            Ok(exit) => exit,
            Err(_) => Exit::Shutdown,
        }
    }

    /// Runs like [`Cpu::run`], but returns the first exception instead of delivering it. For tests.
    pub fn run_to_exception(&mut self) -> Result<Exit, Exception> {
        self.run_until(|_| true)
    }

    /// Runs; an exception for which `returns` holds is returned instead of delivered.
    #[inline(always)]
    fn run_until(&mut self, returns: impl Fn(&Exception) -> bool) -> Result<Exit, Exception> {
        native::enter_environment(self);
        self.enter_translator();
        self.enter_guest();
        let exit = loop {
            if let Some(exit) = self.attend() {
                break Ok(exit);
            }
            if self.activity != Activity::Running {
                self.sleep();
                continue;
            }
            self.end_idle_shadow();
            let pass = if self.steps() { self.careful() } else { self.blocks() };
            match pass {
                Pass::Look => {}
                Pass::Halted => self.activity = Activity::Halted,
                Pass::Raised => {
                    let exception = self.exception.take().expect("a raised exception is noted");
                    tracing::trace!(cpu = self.id, "{exception:x?} at {:#x}", self.rip);
                    if returns(&exception) {
                        break Err(exception);
                    }
                    if system::deliver(self, Delivery::Exception(exception)).is_err() {
                        tracing::debug!(cpu = self.id, "triple fault after {exception:x?} at {:#x}", self.rip);
                        break Ok(Exit::Shutdown);
                    }
                }
            }
        };
        self.control.set_in_guest(false);
        self.leave_translator();
        native::leave_environment(self);
        exit
    }

    /// Executes exactly one instruction, without taking events; an exception is returned instead of delivered. For
    /// tests and debuggers.
    pub fn step(&mut self) -> Result<(), Exception> {
        while !self.advance()? {}
        Ok(())
    }

    /// Executes one instruction, or as much of a repeated one as is done at a time; gives whether it is complete. If not,
    /// the registers are exact, and RIP is at the instruction still.
    fn advance(&mut self) -> Result<bool, Exception> {
        native::enter_environment(self);
        self.enter_guest();
        let before = self.instructions;
        let pass = self.single();
        self.control.set_in_guest(false);
        native::leave_environment(self);
        match pass {
            Pass::Raised => Err(self.exception.take().expect("a raised exception is noted")),
            Pass::Halted => {
                self.activity = Activity::Halted;
                Ok(true)
            }
            Pass::Look => Ok(self.instructions != before),
        }
    }

    /// Finishes the present instruction for another accelerator that cannot: executes it, exactly once, and delivers the
    /// exception it raises, if any. A guest may repeat an instruction for hours, and the caller has other things to attend
    /// to: a repeated one may be left at a point where the architecture allows interrupts, with RIP still at it. RAM may
    /// have been written behind this CPU's back, so its code is decoded anew. `Some` after a triple fault.
    pub fn finish_instruction(&mut self) -> Option<Exit> {
        self.blocks.forget();
        let exception = self.advance().err()?;
        self.deliver_alone(Delivery::Exception(exception))
    }

    /// Takes `event` as if the platform had given it. `Some` after a triple fault.
    pub fn accept(&mut self, event: Event) -> Option<Exit> {
        self.blocks.forget();
        native::enter_environment(self);
        self.enter_guest();
        let exit = self.handle_event(event);
        self.control.set_in_guest(false);
        native::leave_environment(self);
        exit
    }

    /// Delivers `exception` as if the last instruction had raised it; for another accelerator that has begun to. `Some`
    /// after a triple fault.
    pub fn take_exception(&mut self, exception: Exception) -> Option<Exit> {
        self.blocks.forget();
        self.deliver_alone(Delivery::Exception(exception))
    }

    /// Delivers outside of `run`.
    fn deliver_alone(&mut self, delivery: Delivery) -> Option<Exit> {
        native::enter_environment(self);
        self.enter_guest();
        let delivered = system::deliver(self, delivery);
        self.control.set_in_guest(false);
        native::leave_environment(self);
        delivered.err().map(|_| Exit::Shutdown)
    }

    /// Whether instructions must be run one at a time: single-stepping, breakpoints, or an interrupt shadow to be worn
    /// off.
    fn steps(&self) -> bool {
        self.interrupt_shadow || self.rflags_system & (rflags::TF | rflags::RF) != 0 || self.has_breakpoints()
    }

    /// Ends an interrupt shadow that holds nothing back: what comes from now on might as well have come after the next
    /// instruction.
    fn end_idle_shadow(&mut self) {
        if self.interrupt_shadow && !self.debug.shadow && !self.event_blocked && self.control.attention() == 0 {
            self.interrupt_shadow = false;
        }
    }

    #[inline]
    fn wants_attention(&self) -> bool {
        self.control.attention() != 0 || self.instructions >= self.instruction_limit
    }

    /// Answers whatever asks for attention.
    fn attend(&mut self) -> Option<Exit> {
        if self.instructions >= self.instruction_limit {
            self.trace_state();
            let instructions = self.instructions;
            self.instruction_limit = self.outside(|platform, id| platform.instruction_limit(id, instructions));
        }
        let attention = self.control.attention();
        if attention & STOP != 0 {
            self.control.clear(STOP);
            return Some(Exit::Stopped);
        }
        if attention & DROP != 0 {
            self.answer_drops();
        }
        if attention & EVENT != 0 {
            return self.take_event();
        }
        None
    }

    /// Logs a digest of the state, for comparing two runs that count instructions: the first line that differs tells
    /// within how many instructions they parted.
    fn trace_state(&self) {
        const TARGET: &str = "queztl_soft_cpu::lockstep";
        if !tracing::enabled!(target: TARGET, tracing::Level::TRACE) {
            return;
        }
        let digest = |hash: &dyn Fn(&mut std::hash::DefaultHasher)| {
            let mut hasher = std::hash::DefaultHasher::new();
            hash(&mut hasher);
            hasher.finish()
        };
        let registers = digest(&|hasher| self.regs[..16].hash(hasher));
        let system = digest(&|hasher| {
            self.regs[slot::SEGMENT_BASES..].hash(hasher);
            [self.cr0, self.cr2, self.cr3, self.cr4].hash(hasher);
        });
        let vectors = digest(&|hasher| self.fpu.vectors.iter().for_each(|vector| vector.0.hash(hasher)));
        tracing::trace!(
            target: TARGET,
            cpu = self.id,
            instructions = self.instructions,
            rip = format_args!("{:#x}", self.rip),
            flags = format_args!("{:#x}", self.rflags()),
            registers = format_args!("{registers:#018x}"),
            system = format_args!("{system:#018x}"),
            vectors = format_args!("{vectors:#018x}"),
        );
    }

    fn take_event(&mut self) -> Option<Exit> {
        self.control.clear(EVENT);
        let running = self.activity != Activity::WaitForStartup;
        let accepts = Accepts {
            interrupts: running && self.rflags_system & rflags::IF != 0 && !self.interrupt_shadow,
            nmi: running && !self.nmi_masked && !self.interrupt_shadow,
        };
        let Some(event) = self.outside(|platform, id| platform.take_event(id, accepts)) else {
            self.event_blocked |= !accepts.interrupts || !accepts.nmi;
            return None;
        };
        // There may be more where this came from.
        self.control.raise_quietly(EVENT);
        self.handle_event(event)
    }

    fn handle_event(&mut self, event: Event) -> Option<Exit> {
        let delivery = match event {
            Event::Init => {
                system::init(self);
                return None;
            }
            Event::Startup(vector) => {
                if self.activity == Activity::WaitForStartup {
                    system::startup(self, vector);
                }
                return None;
            }
            Event::Interrupt(vector) => Delivery::External(vector),
            Event::Nmi => Delivery::Nmi,
        };
        self.activity = Activity::Running;
        system::deliver(self, delivery).err().map(|_| Exit::Shutdown)
    }

    /// Sleeps until something wants attention.
    fn sleep(&mut self) {
        if self.activity == Activity::Halted && self.control.take_kick() {
            self.activity = Activity::Running;
            return;
        }
        if self.control.attention() != 0 {
            return;
        }
        let instructions = self.instructions;
        match self.outside(|platform, id| platform.idle(id, instructions)) {
            Idle::Park => {
                self.control.set_in_guest(false);
                self.park();
                self.enter_guest();
            }
            Idle::SkipTo(count) => {
                self.instructions = self.instructions.max(count);
                self.instruction_limit = 0;
            }
        }
    }

    /// Runs one instruction unless a breakpoint lies on it.
    fn careful(&mut self) -> Pass {
        match self.instruction_breakpoint() {
            Ok(()) => self.single(),
            Err(Raised) => Pass::Raised,
        }
    }

    /// Runs one instruction, then the traps that follow an instruction.
    fn single(&mut self) -> Pass {
        let Ok(block) = self.find_block(true) else { return Pass::Raised };
        // SAFETY: the block has just been found; it lives until another is built.
        let insn = unsafe { (*block).instructions().next() };
        let mut watch = self.watch(insn.as_ref());
        let is_int1 = insn.is_some_and(|insn| insn.mnemonic() == Mnemonic::Int1);
        let shadow = std::mem::take(&mut self.interrupt_shadow);
        self.trap_pending = self.rflags_system & rflags::TF != 0;
        let before = self.instructions;
        let (flow, op) = self.execute(block);
        let pass = self.finish(flow, block, op);
        if matches!(pass, Pass::Raised) {
            return pass;
        }
        if shadow && !self.interrupt_shadow {
            self.recheck_events();
        }
        if is_int1 {
            self.merge_debug_traps(&mut watch);
        }
        // An instruction that is not complete yet is a repeated one, after an iteration.
        let iteration = self.instructions == before;
        if self.debug_traps(watch, iteration).is_err() {
            if matches!(pass, Pass::Halted) {
                self.activity = Activity::Halted;
            }
            return Pass::Raised;
        }
        pass
    }

    /// Runs blocks until something wants attention.
    fn blocks(&mut self) -> Pass {
        let Ok(mut block) = self.find_block(false) else { return Pass::Raised };
        loop {
            if let Some(entries) = self.translation(block) {
                match self.translated(entries) {
                    Ok(next) => block = next,
                    Err(pass) => return pass,
                }
                continue;
            }
            let (flow, op) = self.execute(block);
            if flow as u32 > Flow::Indirect as u32 {
                return self.finish(flow, block, op);
            }
            // SAFETY: blocks found by the cache live until it is cleared, which only building a block does.
            self.instructions += u64::from(unsafe { (*block).count });
            if self.wants_attention() {
                return Pass::Look;
            }
            block = match self.next_block(block, flow) {
                Some(next) => next,
                None => return Pass::Raised,
            };
        }
    }

    /// Runs translated code as far as it goes; then the block to go on with, or why to stop.
    fn translated(&mut self, entries: Entries) -> Result<*mut Block, Pass> {
        match self.run_translated(entries) {
            Left::Operation(block, flow, op) => self.after(block, flow, op),
            Left::Link(block, flow, link) => {
                if self.wants_attention() {
                    return Err(Pass::Look);
                }
                let (cleared, dropped) = (self.blocks.cleared, self.translations_dropped());
                let next = self.next_block(block, flow).ok_or(Pass::Raised)?;
                // SAFETY: the cache returned a live block.
                let linkable = unsafe { (*next).is_linkable() };
                if self.blocks.cleared == cleared
                    && linkable
                    && let Some(entries) = self.translation(next)
                    // Translating may have dropped the code with the link in it.
                    && self.translations_dropped() == dropped
                {
                    self.patch_link(link, next, entries);
                }
                Ok(next)
            }
            Left::Indirect(slot) => {
                if self.wants_attention() {
                    return Err(Pass::Look);
                }
                let next = self.look_up(std::ptr::null_mut(), Flow::Indirect).ok_or(Pass::Raised)?;
                if let Some(entries) = self.translation(next) {
                    self.remember_target(entries, slot);
                }
                Ok(next)
            }
            Left::Look => Err(Pass::Look),
            Left::Interpret => {
                let block = self.find_block(false).map_err(|Raised| Pass::Raised)?;
                let (flow, op) = self.execute(block);
                self.after(block, flow, op)
            }
        }
    }

    /// The block after one that an operation has ended.
    fn after(&mut self, block: *mut Block, flow: Flow, op: *const Op) -> Result<*mut Block, Pass> {
        if flow as u32 > Flow::Indirect as u32 {
            return Err(self.finish(flow, block, op));
        }
        // SAFETY: blocks live until one is built.
        self.instructions += u64::from(unsafe { (*block).count });
        if self.wants_attention() {
            return Err(Pass::Look);
        }
        let next = self.next_block(block, flow).ok_or(Pass::Raised)?;
        if flow == Flow::Indirect
            && let Some(entries) = self.translation(next)
        {
            self.remember_target(entries, None);
        }
        Ok(next)
    }

    /// The block at `rip`, reached from `from` by `flow`.
    #[inline(always)]
    fn next_block(&mut self, from: *mut Block, flow: Flow) -> Option<*mut Block> {
        if flow != Flow::Indirect {
            // SAFETY: `from` has just run, and links lead to blocks of the same cache generation.
            let next = unsafe { (*from).links[(flow as u32 - Flow::Jump0 as u32) as usize] };
            // SAFETY: as above.
            if !next.is_null() && unsafe { (*next).is_valid() } {
                return Some(next);
            }
        }
        self.look_up(from, flow)
    }

    fn look_up(&mut self, from: *mut Block, flow: Flow) -> Option<*mut Block> {
        let rip = self.rip;
        let set = self.tlb as u64 | self.code_size as u64;
        // SAFETY: `tlb` points to one of the CPU's own sets.
        let epoch = unsafe { (*self.tlb).exec_epoch };
        if let Some(block) = self.blocks.jump(rip, set, epoch) {
            self.link(from, flow, block);
            return Some(block);
        }
        let decoded = self.blocks.decoded;
        let block = self.find_block(false).ok()?;
        // Building may have cleared the cache, and `from` with it; a built block is linked the next time round.
        if self.blocks.decoded == decoded {
            // SAFETY: the cache returned a live block.
            if unsafe { (*block).is_linkable() } {
                // The walk may have changed the set's epoch.
                // SAFETY: as above.
                let epoch = unsafe { (*self.tlb).exec_epoch };
                self.blocks.remember_jump(rip, set, epoch, block);
            }
            self.link(from, flow, block);
        }
        Some(block)
    }

    /// Links `from` to `to` if that is right under every mapping: both lie in the same page, seen at the same distance.
    fn link(&mut self, from: *mut Block, flow: Flow, to: *mut Block) {
        if flow == Flow::Indirect {
            return;
        }
        let same_page = self.regs[slot::BLOCK_IP] & PAGE_MASK == self.rip & PAGE_MASK;
        // SAFETY: both were found in the cache since it was last cleared.
        unsafe {
            if same_page && (*from).is_linkable() && (*to).is_linkable() {
                (*from).links[(flow as u32 - Flow::Jump0 as u32) as usize] = to;
            }
        }
    }

    /// Runs the operations of one block; returns how it ended and where.
    #[inline(always)]
    fn execute(&mut self, block: *mut Block) -> (Flow, *const crate::op::Op) {
        self.blocks.running = block;
        self.regs[slot::BLOCK_IP] = self.rip;
        // SAFETY: the block is live, and its last operation never returns `Next`.
        unsafe {
            let mut op = (*block).ops.as_ptr();
            loop {
                let flow = ((*op).run)(self, &*op);
                if flow != Flow::Next {
                    return (flow, op);
                }
                op = op.add(1);
            }
        }
    }

    /// Accounts for the end of a block that is not a plain jump.
    fn finish(&mut self, flow: Flow, block: *mut Block, op: *const crate::op::Op) -> Pass {
        // SAFETY: the block has just run and building is the only thing that drops blocks.
        let (block, op) = unsafe { (&*block, &*op) };
        match flow {
            Flow::Fault => {
                self.instructions += block.completed_before(op);
                self.rip = op.ip(self);
                self.settle_segment(op.segment);
                return Pass::Raised;
            }
            Flow::Again => self.instructions += block.completed_before(op),
            Flow::Halt => {
                self.instructions += u64::from(block.count);
                return Pass::Halted;
            }
            _ => self.instructions += u64::from(block.count),
        }
        Pass::Look
    }

    /// An address that is not canonical is #SS through the stack segment, #GP through any other.
    fn settle_segment(&mut self, segment: u8) {
        if let Some(exception) = &mut self.exception
            && exception.segment_dependent
            && segment == SEGMENT_SS
        {
            exception.vector = vector::SS;
        }
    }
}
