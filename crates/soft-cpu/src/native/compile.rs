//! From a guest instruction to a thunk: what it reads and writes, and the code around it.
//!
//! ```text
//! load vectors, flags, general registers   what the instruction reads or writes in part
//! the instruction                          memory operand at [rdi], registers the host cannot spare renamed
//! store general registers, vectors, flags  what it writes
//! ```
//! Registers that an instruction names explicitly may be renamed; those it uses by nature (RDX of MULX) stay. Of the
//! host's registers, RDI points at the memory operand and R11 at the CPU; RAX, RCX, RDX, RBX, RSI and R8–R10 stand for
//! themselves and, while free, for the others.

use iced_x86::{
    Code, CodeSize, CpuidFeature, Encoder, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, MemorySize,
    Mnemonic, OpAccess, OpKind, Register, RflagsBits, UsedRegister,
};

use super::direct::{self, Entrance};
use super::emit::Emitter;
use super::thunk::{BitIndex, Memory, Thunk, Unit};
use super::{features, gate, special, trap};

/// A thunk that has no place in executable memory yet; without code, it needs none.
pub(super) struct Draft {
    pub code: Vec<u8>,
    /// Where in the code the direct entry for any address starts; the one for simple addresses is at its start.
    pub any_address: usize,
    /// Where in the code the thunk proper starts, after the direct entries.
    pub inner: usize,
    pub thunk: Thunk,
}

/// Host registers that guest registers may occupy, by number: RAX, RCX, RDX, RBX, RSI, R8, R9, R10. The first five
/// need no REX prefix.
const POOL: [usize; 8] = [0, 1, 2, 3, 6, 8, 9, 10];
const POOL_WITHOUT_REX: usize = 5;
const RAX: usize = 0;
const RBX: usize = 3;
const RSP: usize = 4;

const ARITHMETIC: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;
const SYSTEM: u32 = RflagsBits::DF | RflagsBits::IF | RflagsBits::AC;

/// The instruction without what differs between two uses of the same form; `None` for those that thunks never do.
pub(super) fn normalise(instruction: &Instruction) -> Option<Instruction> {
    let mut key = *instruction;
    key.set_ip(0);
    key.set_len(0);
    key.set_has_rep_prefix(false);
    key.set_has_repne_prefix(false);
    if special::keeps_address(&key) {
        return Some(key);
    }
    if is_foreign(&key) {
        return None;
    }
    to_long_mode_form(&mut key);
    key.set_segment_prefix(Register::None);
    if (0..key.op_count()).any(|operand| key.op_kind(operand) == OpKind::Memory) {
        // With a bit index the address is not complete before the thunk runs, so its size is part of the form.
        let narrow = bit_index(&key).is_some() && short_addresses(&key);
        key.set_memory_base(if narrow { Register::EDI } else { Register::RDI });
        key.set_memory_index(Register::None);
        key.set_memory_index_scale(1);
        key.set_memory_displacement64(0);
        key.set_memory_displ_size(0);
    }
    Some(key)
}

/// Whether the memory operand has a 32-bit address.
fn short_addresses(instruction: &Instruction) -> bool {
    let named = if instruction.memory_base() == Register::None {
        instruction.memory_index()
    } else {
        instruction.memory_base()
    };
    if named == Register::None {
        instruction.memory_displ_size() == 4 && instruction.code_size() != CodeSize::Code64
    } else {
        named.size() == 4
    }
}

/// Instructions that belong to other parts of the CPU, or that the host must not run for a guest.
fn is_foreign(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    if special::is_special(instruction) {
        return false;
    }
    let listed = matches!(
        instruction.mnemonic(),
        INVALID
            | Div
            | Idiv
            | Lea
            | In
            | Out
            | Cli
            | Sti
            | Cld
            | Std
            | Cpuid
            | Rdtsc
            | Rdtscp
            | Rdpmc
            | Rdpid
            | Pause
            | Sgdt
            | Sidt
            | Sldt
            | Str
            | Smsw
            | Lar
            | Lsl
            | Verr
            | Verw
            | Lds
            | Les
            | Lfs
            | Lgs
            | Lss
            | Arpl
            | Bound
            | Into
            | Enter
            | Leave
            | Xgetbv
            | Xsetbv
            | Xlatb
            | Ud0
            | Ud1
            | Ud2
            | Fxsave
            | Fxsave64
            | Fxrstor
            | Fxrstor64
    );
    let system_registers = (0..instruction.op_count()).any(|operand| {
        let register = instruction.op_register(operand);
        register.is_segment_register() || register.is_cr() || register.is_dr() || register.is_tr()
    });
    listed
        || system_registers
        || instruction.flow_control() != FlowControl::Next
        || instruction.is_privileged()
        || instruction.is_stack_instruction()
        || instruction.is_string_instruction()
        || instruction.is_save_restore_instruction()
        || instruction.is_vsib()
}

/// Replaces forms that 64-bit mode does not have by their equals there.
fn to_long_mode_form(instruction: &mut Instruction) {
    let code = match instruction.code() {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
        Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
        Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
        Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
        Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
        Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
        Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
        Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
        code => code,
    };
    instruction.set_code(code);
}

/// Prepares a normalised instruction; `None` if no thunk can do it.
pub(super) fn draft(instruction: &Instruction) -> Option<Draft> {
    if let Some(thunk) = special::thunk(instruction) {
        return Some(Draft { code: Vec::new(), any_address: 0, inner: 0, thunk });
    }
    // What does not exist in 64-bit mode cannot be encoded below.
    if !features::available(instruction) {
        return None;
    }
    let short = instruction.memory_base() == Register::EDI;
    let mut instruction = *instruction;
    if short {
        instruction.set_memory_base(Register::RDI);
    }
    let instruction = &instruction;
    let plan = Plan::new(instruction)?;
    let (memory, len) = memory_operand(instruction)?;
    let unit = unit(instruction, &plan);
    let traps = if is_x87_relic(instruction) { 0 } else { traps(unit) };
    let align_mask = alignment(instruction, len) - 1;
    let entrance = Entrance { needs: gate::needs(unit.gate(), traps), memory, len, align_mask };
    let (code, any_address, inner) = plan.emit(&entrance)?;
    let thunk = Thunk {
        entry: std::ptr::null(),
        direct: None,
        len,
        align_mask,
        memory,
        unit,
        gate: unit.gate(),
        traps,
        needs: entrance.needs,
        locked: instruction.has_lock_prefix() || (instruction.mnemonic() == Mnemonic::Xchg && memory == Memory::Modify),
        bit_index: plan.bit_index.map(|(guest, size)| BitIndex { register: guest as u8, size, short }),
        special: special::none,
        instruction: *instruction,
    };
    Some(Draft { code, any_address, inner, thunk })
}

/// Instructions of older coprocessors: they do nothing, and do not wait.
fn is_x87_relic(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Fndisi | Mnemonic::Fneni | Mnemonic::Fnsetpm)
}

fn traps(unit: Unit) -> u8 {
    match unit {
        Unit::None => 0,
        Unit::X87 | Unit::Mmx | Unit::Wait => trap::X87,
        Unit::Sse | Unit::Avx => trap::MXCSR,
        Unit::SseMmx => trap::X87 | trap::MXCSR,
    }
}

fn unit(instruction: &Instruction, plan: &Plan) -> Unit {
    let features = instruction.cpuid_features();
    if features.iter().any(|f| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387)) {
        return Unit::X87;
    }
    let without_vectors = plan.vectors.is_empty() && !converts(instruction);
    match (plan.vex, without_vectors, plan.mmx) {
        (true, false, _) => Unit::Avx,
        (false, false, true) => Unit::SseMmx,
        (false, false, false) => Unit::Sse,
        (_, true, true) => Unit::Mmx,
        (_, true, false) if instruction.mnemonic() == Mnemonic::Emms => Unit::Mmx,
        _ => Unit::None,
    }
}

/// Conversions of floating-point numbers from memory to a general or MMX register: vector instructions without a
/// vector register.
fn converts(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        instruction.mnemonic(),
        Cvtss2si
            | Cvttss2si
            | Cvtsd2si
            | Cvttsd2si
            | Vcvtss2si
            | Vcvttss2si
            | Vcvtsd2si
            | Vcvttsd2si
            | Cvtps2pi
            | Cvttps2pi
            | Cvtpd2pi
            | Cvttpd2pi
    )
}

/// How the memory operand is used, and its length in bytes.
fn memory_operand(instruction: &Instruction) -> Option<(Memory, u32)> {
    let Some(operand) = (0..instruction.op_count()).find(|&operand| instruction.op_kind(operand) == OpKind::Memory)
    else {
        return Some((Memory::None, 0));
    };
    let mut factory = InstructionInfoFactory::new();
    let access = factory.info(instruction).op_access(operand);
    if matches!(instruction.mnemonic(), Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb) {
        return Some((Memory::Read, 1));
    }
    let memory = match access {
        // Prefetches and the like: the host may be given any address.
        OpAccess::None | OpAccess::NoMemAccess => return Some((Memory::None, 0)),
        OpAccess::Read | OpAccess::CondRead => Memory::Read,
        OpAccess::Write => Memory::Write,
        OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => Memory::Modify,
    };
    let len = instruction.memory_size().size() as u32;
    (len > 0 && len <= 512).then_some((memory, len))
}

/// The alignment that the memory operand must have, bytes (SDM vol. 1 §14.9; vol. 2 §2.4).
fn alignment(instruction: &Instruction, len: u32) -> u32 {
    use Mnemonic::*;
    let mnemonic = instruction.mnemonic();
    let strict = match instruction.encoding() {
        EncodingKind::Legacy if mnemonic == Cmpxchg16b => true,
        EncodingKind::Legacy => {
            let sse = !instruction.cpuid_features().iter().all(|f| matches!(f, CpuidFeature::FPU | CpuidFeature::MMX));
            let free = matches!(
                mnemonic,
                Movups
                    | Movupd
                    | Movdqu
                    | Lddqu
                    | Pcmpestri
                    | Pcmpestri64
                    | Pcmpestrm
                    | Pcmpestrm64
                    | Pcmpistri
                    | Pcmpistrm
            );
            sse && len == 16 && !free
        }
        _ => matches!(mnemonic, Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa),
    };
    if strict && instruction.memory_size() != MemorySize::Unknown { len.next_power_of_two() } else { 1 }
}

/// One vector register that an instruction uses.
#[derive(Clone, Copy)]
struct VectorUse {
    number: usize,
    load: bool,
    store: bool,
}

/// One general register that an instruction uses.
#[derive(Clone, Copy)]
struct GprUse {
    guest: usize,
    host: usize,
    store: bool,
}

/// What surrounds the instruction.
struct Plan {
    instruction: Instruction,
    vectors: Vec<VectorUse>,
    gprs: Vec<GprUse>,
    mmx: bool,
    vex: bool,
    /// 256-bit operands.
    wide: bool,
    flags_in: bool,
    flags_out: bool,
    /// Guest number of the register with a bit index into memory, and the operand size in bits.
    bit_index: Option<(usize, u8)>,
}

impl Plan {
    fn new(instruction: &Instruction) -> Option<Plan> {
        let mut factory = InstructionInfoFactory::new();
        // Without a base register in the way, every register the instruction uses is one of the guest's.
        let mut bare = *instruction;
        if bare.memory_base() != Register::None {
            bare.set_memory_base(Register::None);
            bare.set_memory_displ_size(8);
        }
        let used: Vec<UsedRegister> = factory.info(&bare).used_registers().to_vec();
        let vex = instruction.encoding() == EncodingKind::VEX;
        if !vex && instruction.encoding() != EncodingKind::Legacy {
            return None;
        }
        let read = instruction.rflags_read();
        let modified = instruction.rflags_modified();
        if (read | modified) & SYSTEM != 0 {
            return None;
        }
        let mut plan = Plan {
            instruction: *instruction,
            vectors: Vec::new(),
            gprs: Vec::new(),
            mmx: false,
            vex,
            wide: false,
            flags_in: read & ARITHMETIC != 0 || keeps_some_flags(instruction),
            flags_out: modified & ARITHMETIC != 0,
            bit_index: bit_index(instruction),
        };
        for register in &used {
            plan.note(register)?;
        }
        plan.rename()?;
        Some(plan)
    }

    fn note(&mut self, used: &UsedRegister) -> Option<()> {
        let (register, access) = (used.register(), used.access());
        let stores = writes(access);
        if register.is_vector_register() {
            self.wide |= register.is_ymm();
            self.note_vector(register.number(), access != OpAccess::Write || !self.vex, stores)
        } else if register.is_gpr() {
            self.note_gpr(register.full_register().number(), stores)
        } else if register.is_mm() {
            self.mmx = true;
            Some(())
        } else {
            // Segments count as used by every memory operand; any other register is the system's.
            (register.is_st() || (register.is_segment_register() && !stores)).then_some(())
        }
    }

    fn note_vector(&mut self, number: usize, load: bool, store: bool) -> Option<()> {
        if number >= 16 {
            return None;
        }
        match self.vectors.iter_mut().find(|v| v.number == number) {
            Some(vector) => {
                vector.load |= load;
                vector.store |= store;
            }
            None => self.vectors.push(VectorUse { number, load, store }),
        }
        Some(())
    }

    fn note_gpr(&mut self, guest: usize, store: bool) -> Option<()> {
        let explicit = operands(&self.instruction).any(|(_, register)| register.full_register().number() == guest);
        if !explicit && !POOL.contains(&guest) {
            return None;
        }
        match self.gprs.iter_mut().find(|g| g.guest == guest) {
            Some(gpr) => gpr.store |= store,
            None => self.gprs.push(GprUse { guest, host: guest, store }),
        }
        Some(())
    }

    /// Moves guest registers that the host cannot spare to free ones, in the instruction too.
    fn rename(&mut self) -> Option<()> {
        let no_rex = operands(&self.instruction).any(|(_, r)| (Register::AH..=Register::BH).contains(&r));
        let pool = if no_rex { &POOL[..POOL_WITHOUT_REX] } else { &POOL[..] };
        let mut taken: Vec<usize> = self.gprs.iter().map(|g| g.guest).filter(|g| POOL.contains(g)).collect();
        for gpr in self.gprs.iter_mut().filter(|g| !POOL.contains(&g.guest)) {
            // RSI first: RAX and RBX cost more when they carry guest registers.
            gpr.host = pool.iter().rev().copied().find(|host| !taken.contains(host))?;
            taken.push(gpr.host);
        }
        let renamed: Vec<(u32, Register)> = operands(&self.instruction)
            .filter_map(|(operand, register)| {
                let guest = register.full_register().number();
                let gpr = self.gprs.iter().find(|g| g.guest == guest && g.host != guest)?;
                Some((operand, sized(gpr.host, register.size())))
            })
            .collect();
        for (operand, register) in renamed {
            self.instruction.set_op_register(operand, register);
        }
        Some(())
    }

    /// The direct entries followed by the thunk's own code; where the second entry and the thunk's own code start.
    fn emit(&self, entrance: &Entrance) -> Option<(Vec<u8>, usize, usize)> {
        let mut encoder = Encoder::try_new(64).ok()?;
        encoder.encode(&self.instruction, 0).ok()?;
        let body = encoder.take_buffer();
        let mut out = Emitter::default();
        let (any_address, patches) = entrance.emit(&mut out);
        let inner = out.bytes.len();
        let uses_rbx = self.gprs.iter().any(|g| g.host == RBX);
        if uses_rbx {
            out.push_rbx();
        }
        self.emit_loads(&mut out);
        out.raw(&body);
        self.emit_stores(&mut out);
        if self.wide {
            out.vzeroupper();
        }
        if uses_rbx {
            out.pop_rbx();
        }
        out.ret();
        direct::slow_path(&mut out, &patches);
        Some((out.bytes, any_address, inner))
    }

    fn emit_loads(&self, out: &mut Emitter) {
        for vector in self.vectors.iter().filter(|v| v.load) {
            if self.vex {
                out.move_vex(vector.number, false, self.wide);
            } else {
                out.move_xmm(vector.number, false);
            }
        }
        let is_index = |gpr: &GprUse| self.bit_index.is_some_and(|(guest, _)| guest == gpr.guest);
        // The index within the operand; the operand's address takes the rest. Before the flags, which this changes.
        if let (Some(gpr), Some((_, size))) = (self.gprs.iter().find(|g| is_index(g)), self.bit_index) {
            out.load_gpr(gpr.host, gpr.guest);
            out.mask_gpr(gpr.host, size - 1);
            if gpr.host == RAX && self.flags_in {
                // Keep clear of the register that carries the flags.
                out.raw(&[0x50]);
            }
        }
        if self.flags_in {
            out.load_flags();
        }
        for gpr in &self.gprs {
            if !is_index(gpr) {
                out.load_gpr(gpr.host, gpr.guest);
            } else if gpr.host == RAX && self.flags_in {
                out.raw(&[0x58]);
            }
        }
    }

    fn emit_stores(&self, out: &mut Emitter) {
        for gpr in self.gprs.iter().filter(|g| g.store) {
            out.store_gpr(gpr.host, gpr.guest);
        }
        for vector in self.vectors.iter().filter(|v| v.store) {
            if self.vex {
                // A 128-bit result has zeroes above it, and they are part of the result.
                out.move_vex(vector.number, true, true);
            } else {
                out.move_xmm(vector.number, true);
            }
        }
        if self.flags_out {
            out.store_flags();
        }
    }
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// The general registers among the operands, with the operand's number.
fn operands(instruction: &Instruction) -> impl Iterator<Item = (u32, Register)> + '_ {
    (0..instruction.op_count())
        .filter(|&operand| instruction.op_kind(operand) == OpKind::Register)
        .map(|operand| (operand, instruction.op_register(operand)))
        .filter(|(_, register)| register.is_gpr())
}

/// Register `number` at `size` bytes; never a high-byte register.
fn sized(number: usize, size: usize) -> Register {
    let number = number as u32;
    match size {
        1 if number < RSP as u32 => Register::AL + number,
        1 => Register::SPL + (number - RSP as u32),
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

/// Whether some arithmetic flag may come through the instruction unchanged, so that the old ones must be there.
fn keeps_some_flags(instruction: &Instruction) -> bool {
    let modified = instruction.rflags_modified() & ARITHMETIC;
    let defined = modified & !instruction.rflags_undefined();
    modified != 0 && defined != ARITHMETIC
}

/// BT, BTS, BTR and BTC on memory with a register index: the index's number and the operand size in bits.
fn bit_index(instruction: &Instruction) -> Option<(usize, u8)> {
    let bit_test = matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    if !bit_test || instruction.op0_kind() != OpKind::Memory || instruction.op1_kind() != OpKind::Register {
        return None;
    }
    let register = instruction.op1_register();
    Some((register.full_register().number(), (register.size() * 8) as u8))
}
