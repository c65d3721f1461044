//! What a software CPU needs from the machine around it.

/// Something that reaches a vCPU from outside its instruction stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A maskable interrupt with its vector; taking it has acknowledged it at the controller.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// INIT: reset to the state in which the processor waits for a start-up IPI.
    Init,
    /// Start-up IPI: begin in real mode at `vector << 12`. Ignored unless the processor waits for it.
    Startup(u8),
}

/// Which events a vCPU can take now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepts {
    /// RFLAGS.IF is set and no shadow (STI, MOV SS) is in force.
    pub interrupts: bool,
    /// No NMI is being handled.
    pub nmi: bool,
}

/// What a halted vCPU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Sleep until [`crate::Control::notify`].
    Park,
    /// Go on at once; the instruction counter becomes the given value (instruction-counted time jumps to its next
    /// deadline instead of waiting for it).
    SkipTo(u64),
}

/// The machine, as its CPUs see it. Called from the vCPU threads, `cpu` being the caller's number.
///
/// A read of something that is not there gives all ones, a write to it does nothing, as on a PC's bus. Data lengths are
/// 1, 2, 4 or 8 for memory-mapped I/O and 1, 2 or 4 for ports.
///
/// Without any method of its own, a platform is a machine with nothing around its CPUs, whose time is made of executed
/// instructions: what tests start from.
pub trait Platform: Send + Sync {
    /// Reads memory-mapped I/O at a guest-physical address that is not RAM.
    fn mmio_read(&self, _cpu: u32, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    /// Writes memory-mapped I/O at a guest-physical address that is not RAM.
    fn mmio_write(&self, _cpu: u32, _address: u64, _data: &[u8]) {}
    /// Reads an I/O port.
    fn port_read(&self, _cpu: u32, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    /// Writes an I/O port.
    fn port_write(&self, _cpu: u32, _port: u16, _data: &[u8]) {}

    /// Reads a model-specific register that the CPU itself does not hold (local APIC, paravirtual clock, …);
    /// `None` makes the instruction fault with #GP.
    fn msr_read(&self, _cpu: u32, _msr: u32) -> Option<u64> {
        None
    }
    /// Writes such a register; false makes the instruction fault with #GP.
    fn msr_write(&self, _cpu: u32, _msr: u32, _value: u64) -> bool {
        false
    }

    /// Takes the most urgent event that is pending for `cpu` and that it accepts. Called after
    /// [`crate::Control::notify`], and again when the CPU starts to accept more.
    fn take_event(&self, _cpu: u32, _accepts: Accepts) -> Option<Event> {
        None
    }
    /// CR8: the task-priority class of the local APIC, 0..=15.
    fn task_priority(&self, _cpu: u32) -> u8 {
        0
    }
    /// Sets CR8; `class` is 0..=15.
    fn set_task_priority(&self, _cpu: u32, _class: u8) {}

    /// The time-stamp counter before TSC_ADJUST. `instructions` is the caller's count of retired instructions, from
    /// which instruction-counted time is made; real time ignores it.
    fn tsc(&self, _cpu: u32, instructions: u64) -> u64 {
        instructions
    }
    /// The guest has written TSC_ADJUST, or the counter itself: what CPU `cpu` reads is [`Platform::tsc`] plus `adjust`
    /// (modulo 2^64) from now on. Not called for [`crate::Cpu::set_state`].
    fn set_tsc_adjust(&self, _cpu: u32, _adjust: u64) {}
    /// Called when the caller's instruction count reaches the limit given last; returns the next limit.
    /// Real time returns `u64::MAX` and is not called again.
    fn instruction_limit(&self, _cpu: u32, _instructions: u64) -> u64 {
        u64::MAX
    }
    /// Called when the CPU halts with nothing to do.
    fn idle(&self, _cpu: u32, _instructions: u64) -> Idle {
        Idle::Park
    }
    /// Called once, when the CPU enters privilege level 3 for the first time.
    fn entered_user_mode(&self, _cpu: u32) {}
}
