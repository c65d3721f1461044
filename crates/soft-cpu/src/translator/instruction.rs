//! An instruction that runs in place: the guest's own, with its registers renamed and its memory operand behind a host
//! pointer.

use iced_x86::{Code, Instruction, InstructionInfo, Mnemonic, OpAccess, OpKind, Register};

use super::asm::{Mem, host};
use super::emit::{Emitter, Slow, Stub};
use super::few::Few;
use super::flags::{FlagUse, Flags, Recipe};
use super::frame::place;
use super::registers::{Home, home, is_high_byte, number, sized, state};
use crate::native::InPlace;

/// What the block knows about an instruction.
pub(super) struct Facts {
    /// Arithmetic flags that are read after it.
    pub live: u32,
    /// What it takes to run it in place; `None` if Rust must run it.
    pub in_place: Option<InPlace>,
    /// The vector registers must be loaded again after a call into Rust.
    pub loads_vectors: bool,
}

/// A guest register that an instruction names or implies, and the host register that stands for it.
#[derive(Clone, Copy)]
struct Carrier {
    guest: usize,
    host: u8,
    /// The carrier differs from where the register lives.
    moved: bool,
    reads: bool,
    writes: bool,
}

/// The host registers of one instruction.
#[derive(Default)]
struct Plan {
    carriers: Few<Carrier, 8>,
    /// Host register that points to the memory operand.
    pointer: Option<u8>,
}

impl Plan {
    fn host(&self, guest: usize) -> Option<u8> {
        self.carriers.iter().find(|carrier| carrier.guest == guest).map(|carrier| carrier.host)
    }
}

impl Emitter<'_> {
    /// Appends `insn` in place; `None`, with nothing lasting emitted, if that cannot be done.
    pub fn in_place(&mut self, insn: &Instruction, facts: &Facts, info: &InstructionInfo) -> Option<()> {
        let in_place = facts.in_place?;
        let mut copy = without_fixed_registers(insn);
        let flags = FlagUse::of(insn, facts.live);
        let accesses = in_place.memory.is_some();
        let plan = plan(&copy, info, accesses, flags.needs != 0)?;
        rename(&mut copy, &plan)?;
        // Everything that can fail comes before the first byte, but for the encoding itself.
        let mark = (self.asm.here(), self.flags, self.context.sites.len());
        let done = self.emit_in_place(insn, &copy, &plan, &flags, facts, &in_place);
        if done.is_none() {
            self.asm.bytes.truncate(mark.0);
            self.flags = mark.1;
            self.context.sites.truncate(mark.2);
        }
        done
    }

    fn emit_in_place(
        &mut self,
        insn: &Instruction,
        renamed: &Instruction,
        plan: &Plan,
        flags: &FlagUse,
        facts: &Facts,
        in_place: &InPlace,
    ) -> Option<()> {
        let mut patches = Vec::new();
        let mut recipe = None;
        if let Some(write) = in_place.memory {
            recipe = self.guard_flags();
            self.address(insn)?;
            patches = self.translate(write, in_place.len, in_place.align_mask);
            if plan.pointer == Some(host::RCX) {
                self.asm.mov(host::RCX, host::RAX);
            }
        }
        if flags.needs_carry_only() {
            self.need_carry();
        } else if flags.needs != 0 {
            self.need_flags();
        }
        for carrier in plan.carriers.iter().filter(|c| c.moved && c.reads) {
            match home(carrier.guest) {
                Home::Host(register) => self.asm.mov(carrier.host, register),
                Home::State => self.asm.load(carrier.host, state(carrier.guest)),
            }
        }
        let start = self.asm.here();
        self.encode(renamed)?;
        let end = self.asm.here();
        for carrier in plan.carriers.iter().filter(|c| c.moved && c.writes) {
            match home(carrier.guest) {
                Home::Host(register) => self.asm.mov(register, carrier.host),
                Home::State => self.asm.store(state(carrier.guest), carrier.host),
            }
        }
        if flags.sets {
            let plain = patches.is_empty() && plan.carriers.iter().all(|carrier| !carrier.moved);
            let recipe = if plain { Recipe::of(renamed, &self.asm.bytes[start..end]) } else { None };
            self.flags = Flags { in_host: true, in_state: false, recipe };
        }
        if !patches.is_empty() {
            let site = self.site(insn)?;
            self.stubs.push(Stub::Slow(Slow {
                patches,
                site,
                recipe,
                done: Some(self.asm.here()),
                loads_flags: self.flags.in_host,
                loads_vectors: facts.loads_vectors,
            }));
        }
        Some(())
    }

    /// LEA of a 32- or 64-bit result.
    pub fn lea(&mut self, insn: &Instruction) -> Option<()> {
        let size = insn.op0_register().size();
        if size < 4 {
            return None;
        }
        let mark = self.asm.here();
        let Some(mem) = self.plain_address(insn) else {
            self.asm.bytes.truncate(mark);
            return None;
        };
        let guest = number(insn.op0_register());
        let target = match home(guest) {
            Home::Host(register) => register,
            Home::State => host::RAX,
        };
        self.asm.op_mem(size == 8, &[super::asm::opcode::LEA], target, mem);
        if target == host::RAX {
            self.asm.store(state(guest), host::RAX);
        }
        Some(())
    }

    /// PUSH of a 64-bit register or immediate.
    pub fn push(&mut self, insn: &Instruction, facts: &Facts) -> Option<()> {
        if insn.stack_pointer_increment() != -8 {
            return None;
        }
        let register = match insn.op0_kind() {
            OpKind::Register if insn.op0_register().is_gpr64() => Some(insn.op0_register()),
            OpKind::Register => return None,
            OpKind::Memory => return self.push_memory(insn, facts),
            _ => None,
        };
        let recipe = self.guard_flags();
        let patches = self.stack_slot();
        match register {
            Some(register) => {
                let value = self.bring(register, host::RCX);
                self.asm.store(Mem::Base(host::RAX, 0), value);
            }
            None => {
                self.asm.op_mem(true, &[0xc7], 0, Mem::Base(host::RAX, 0));
                self.asm.raw(&(insn.immediate(0) as i32).to_le_bytes());
            }
        }
        self.asm.lea(host::R15, Mem::Base(host::R15, -8));
        self.slow(insn, facts, patches, recipe)
    }

    /// PUSH of a 64-bit operand in memory.
    fn push_memory(&mut self, insn: &Instruction, facts: &Facts) -> Option<()> {
        let (mark, flags) = (self.asm.here(), self.flags);
        let recipe = self.guard_flags();
        if self.address(insn).is_none() {
            self.asm.bytes.truncate(mark);
            self.flags = flags;
            return None;
        }
        let mut patches = self.translate(false, 8, 0);
        self.asm.load(host::RAX, Mem::Base(host::RAX, 0));
        self.asm.store(place::SPILL, host::RAX);
        patches.extend(self.stack_slot());
        self.asm.load(host::RCX, place::SPILL);
        self.asm.store(Mem::Base(host::RAX, 0), host::RCX);
        self.asm.lea(host::R15, Mem::Base(host::R15, -8));
        self.slow(insn, facts, patches, recipe)
    }

    /// The host address of the slot that a push writes, into RAX.
    pub fn stack_slot(&mut self) -> Vec<super::asm::Patch> {
        self.asm.lea(host::RAX, Mem::Base(host::R15, -8));
        self.translate(true, 8, 0)
    }

    /// POP to a 64-bit register.
    pub fn pop(&mut self, insn: &Instruction, facts: &Facts) -> Option<()> {
        if insn.stack_pointer_increment() != 8 || !insn.op0_register().is_gpr64() {
            return None;
        }
        let recipe = self.guard_flags();
        self.asm.mov(host::RAX, host::R15);
        let patches = self.translate(false, 8, 0);
        self.asm.load(host::RAX, Mem::Base(host::RAX, 0));
        self.asm.lea(host::R15, Mem::Base(host::R15, 8));
        let guest = number(insn.op0_register());
        match home(guest) {
            Home::Host(register) => self.asm.mov(register, host::RAX),
            Home::State => self.asm.store(state(guest), host::RAX),
        }
        self.slow(insn, facts, patches, recipe)
    }

    /// LEAVE in its 64-bit form.
    pub fn leave(&mut self, insn: &Instruction, facts: &Facts) -> Option<()> {
        if insn.code() != Code::Leaveq {
            return None;
        }
        let recipe = self.guard_flags();
        self.asm.mov(host::RAX, host::RBP);
        let patches = self.translate(false, 8, 0);
        self.asm.load(host::RAX, Mem::Base(host::RAX, 0));
        self.asm.lea(host::R15, Mem::Base(host::RBP, 8));
        self.asm.mov(host::RBP, host::RAX);
        self.slow(insn, facts, patches, recipe)
    }

    fn slow(
        &mut self,
        insn: &Instruction,
        facts: &Facts,
        patches: Vec<super::asm::Patch>,
        recipe: Option<Recipe>,
    ) -> Option<()> {
        let site = self.site(insn)?;
        let done = Some(self.asm.here());
        let loads_vectors = facts.loads_vectors;
        self.stubs.push(Stub::Slow(Slow { patches, site, recipe, done, loads_flags: false, loads_vectors }));
        Some(())
    }
}

/// Chooses a host register for each general register of the instruction.
fn plan(insn: &Instruction, info: &InstructionInfo, accesses: bool, loads_flags: bool) -> Option<Plan> {
    let mut plan = Plan::default();
    let mut free = Few::<u8, 2>::default();
    free.push(host::RAX)?;
    free.push(host::RCX)?;
    let used = |guest: usize| {
        info.used_registers().iter().filter(move |used| used.register().is_gpr() && number(used.register()) == guest)
    };
    let add = |plan: &mut Plan, guest: usize, host: u8, partial: bool| {
        let reads = partial || used(guest).any(|u| u.access() != OpAccess::Write || u.register().size() < 4);
        let writes = used(guest).any(|u| !matches!(u.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None));
        let moved = home(guest) != Home::Host(host);
        plan.carriers.push(Carrier { guest, host, moved, reads, writes })
    };
    // Registers that the encoding implies must be themselves.
    for guest in implied(insn, info)?.iter() {
        match (guest, home(guest)) {
            (0 | 1, _) => {
                free.remove(guest as u8);
                add(&mut plan, guest, guest as u8, false)?;
            }
            (_, Home::Host(register)) if usize::from(register) == guest => add(&mut plan, guest, register, false)?,
            _ => return None,
        }
    }
    if accesses {
        // RAX is in the way of the flags.
        let pointer = free.iter().find(|register| !(loads_flags && *register == host::RAX))?;
        free.remove(pointer);
        plan.pointer = Some(pointer);
    }
    let high = operands(insn).any(|(_, register)| is_high_byte(register));
    if high && operands(insn).any(|(_, register)| register.size() == 8) {
        return None;
    }
    for (_, register) in operands(insn) {
        let guest = number(register);
        if plan.host(guest).is_some() {
            continue;
        }
        let own = match home(guest) {
            // Without a REX prefix, a byte register below RBX's number is itself; any other size below R8's.
            Home::Host(own) if high => {
                let plain = own < 4 || own < 8 && register.size() > 1;
                plain.then_some(own)
            }
            Home::Host(own) => Some(own),
            Home::State => None,
        };
        let carrier = match own {
            Some(own) => own,
            None => free.pop()?,
        };
        add(&mut plan, guest, carrier, false)?;
    }
    Some(plan)
}

/// General registers, by number, that the instruction uses without naming them in a field of its encoding.
fn implied(insn: &Instruction, info: &InstructionInfo) -> Option<Few<usize, 8>> {
    let fixed = |operand| is_fixed(insn.code(), operand);
    let named = |guest: usize| operands(insn).any(|(op, register)| number(register) == guest && !fixed(op));
    let address =
        |guest: usize| [insn.memory_base(), insn.memory_index()].iter().any(|r| r.is_gpr() && number(*r) == guest);
    // A register may be implied and named at once.
    let mut result = Few::default();
    for guest in (0..4).filter(|&guest| implies(insn, guest)) {
        result.push(guest)?;
    }
    for (operand, register) in operands(insn) {
        if fixed(operand) && !result.contains(number(register)) {
            result.push(number(register))?;
        }
    }
    for used in info.used_registers().iter().filter(|used| used.register().is_gpr()) {
        let guest = number(used.register());
        let by_address_only = address(guest) && used.access() == OpAccess::Read && !implies(insn, guest);
        if !named(guest) && !result.contains(guest) && !by_address_only {
            result.push(guest)?;
        }
    }
    Some(result)
}

/// Whether the code, one that [`without_fixed_registers`] gives, has a certain general register for this operand if it has
/// a register there, whatever the bits of its encoding. Not asked from the library: it would make tables of half a megabyte
/// for all codes.
fn is_fixed(code: Code, operand: u32) -> bool {
    use Mnemonic::*;
    match code.mnemonic() {
        Rol | Ror | Rcl | Rcr | Shl | Shr | Sal | Sar => operand == 1,
        Shld | Shrd => operand == 2,
        In | Out | Fnstsw | Fstsw | Fnstdw | Fstdw | Fnstsg | Fstsg => true,
        Insb | Insw | Insd | Outsb | Outsw | Outsd => true,
        Stosb | Stosw | Stosd | Stosq | Lodsb | Lodsw | Lodsd | Lodsq | Scasb | Scasw | Scasd | Scasq => true,
        _ => false,
    }
}

/// Whether an instruction reads a register by its nature, as distinct from its memory operand's address.
fn implies(insn: &Instruction, guest: usize) -> bool {
    use Mnemonic::*;
    match insn.mnemonic() {
        Mul | Imul if insn.op_count() == 1 => guest == 0 || guest == 2,
        Mulx => guest == 2,
        Cmpxchg => guest == 0,
        Cmpxchg8b | Cmpxchg16b => guest < 4,
        // Anything else that implies registers has no memory operand, or implies vectors only.
        Pcmpestri | Pcmpestri64 | Pcmpestrm | Pcmpestrm64 | Vpcmpestri | Vpcmpestri64 | Vpcmpestrm | Vpcmpestrm64 => {
            guest == 0 || guest == 2
        }
        _ => false,
    }
}

/// The general registers among the operands, with the operand's number.
fn operands(insn: &Instruction) -> impl Iterator<Item = (u32, Register)> + '_ {
    (0..insn.op_count())
        .filter(|&operand| insn.op_kind(operand) == OpKind::Register)
        .map(|operand| (operand, insn.op_register(operand)))
        .filter(|(_, register)| register.is_gpr())
}

/// Puts the plan's registers into the instruction.
fn rename(insn: &mut Instruction, plan: &Plan) -> Option<()> {
    for operand in 0..insn.op_count() {
        let register = insn.op_register(operand);
        if insn.op_kind(operand) != OpKind::Register || !register.is_gpr() {
            continue;
        }
        let host = plan.host(number(register))?;
        let new = if is_high_byte(register) {
            (host < 4).then(|| Register::AH + u32::from(host))?
        } else {
            sized(host, register.size())
        };
        insn.set_op_register(operand, new);
    }
    let memory = (0..insn.op_count()).any(|operand| insn.op_kind(operand) == OpKind::Memory);
    if memory {
        let pointer = plan.pointer?;
        insn.set_memory_base(sized(pointer, 8));
        insn.set_memory_index(Register::None);
        insn.set_memory_index_scale(1);
        insn.set_memory_displacement64(0);
        insn.set_memory_displ_size(0);
        insn.set_segment_prefix(Register::None);
    }
    Some(())
}

/// The instruction in the form whose registers can all be chosen, without what does not count.
fn without_fixed_registers(insn: &Instruction) -> Instruction {
    use Code::*;
    let mut copy = *insn;
    copy.set_ip(0);
    copy.set_len(0);
    copy.set_has_rep_prefix(false);
    copy.set_has_repne_prefix(false);
    copy.set_segment_prefix(Register::None);
    let code = match insn.code() {
        Add_AL_imm8 => Add_rm8_imm8,
        Add_AX_imm16 => Add_rm16_imm16,
        Add_EAX_imm32 => Add_rm32_imm32,
        Add_RAX_imm32 => Add_rm64_imm32,
        Or_AL_imm8 => Or_rm8_imm8,
        Or_AX_imm16 => Or_rm16_imm16,
        Or_EAX_imm32 => Or_rm32_imm32,
        Or_RAX_imm32 => Or_rm64_imm32,
        Adc_AL_imm8 => Adc_rm8_imm8,
        Adc_AX_imm16 => Adc_rm16_imm16,
        Adc_EAX_imm32 => Adc_rm32_imm32,
        Adc_RAX_imm32 => Adc_rm64_imm32,
        Sbb_AL_imm8 => Sbb_rm8_imm8,
        Sbb_AX_imm16 => Sbb_rm16_imm16,
        Sbb_EAX_imm32 => Sbb_rm32_imm32,
        Sbb_RAX_imm32 => Sbb_rm64_imm32,
        And_AL_imm8 => And_rm8_imm8,
        And_AX_imm16 => And_rm16_imm16,
        And_EAX_imm32 => And_rm32_imm32,
        And_RAX_imm32 => And_rm64_imm32,
        Sub_AL_imm8 => Sub_rm8_imm8,
        Sub_AX_imm16 => Sub_rm16_imm16,
        Sub_EAX_imm32 => Sub_rm32_imm32,
        Sub_RAX_imm32 => Sub_rm64_imm32,
        Xor_AL_imm8 => Xor_rm8_imm8,
        Xor_AX_imm16 => Xor_rm16_imm16,
        Xor_EAX_imm32 => Xor_rm32_imm32,
        Xor_RAX_imm32 => Xor_rm64_imm32,
        Cmp_AL_imm8 => Cmp_rm8_imm8,
        Cmp_AX_imm16 => Cmp_rm16_imm16,
        Cmp_EAX_imm32 => Cmp_rm32_imm32,
        Cmp_RAX_imm32 => Cmp_rm64_imm32,
        Test_AL_imm8 => Test_rm8_imm8,
        Test_AX_imm16 => Test_rm16_imm16,
        Test_EAX_imm32 => Test_rm32_imm32,
        Test_RAX_imm32 => Test_rm64_imm32,
        Xchg_r16_AX => Xchg_rm16_r16,
        Xchg_r32_EAX => Xchg_rm32_r32,
        Xchg_r64_RAX => Xchg_rm64_r64,
        Mov_AL_moffs8 => Mov_r8_rm8,
        Mov_AX_moffs16 => Mov_r16_rm16,
        Mov_EAX_moffs32 => Mov_r32_rm32,
        Mov_RAX_moffs64 => Mov_r64_rm64,
        Mov_moffs8_AL => Mov_rm8_r8,
        Mov_moffs16_AX => Mov_rm16_r16,
        Mov_moffs32_EAX => Mov_rm32_r32,
        Mov_moffs64_RAX => Mov_rm64_r64,
        code => code,
    };
    copy.set_code(code);
    copy
}

#[cfg(test)]
mod tests {
    use iced_x86::OpCodeOperandKind;

    use super::*;

    #[test]
    fn fixed_registers_are_those_of_the_library() {
        use OpCodeOperandKind::*;
        for code in Code::values() {
            let mut insn = Instruction::default();
            insn.set_code(code);
            let code = without_fixed_registers(&insn).code();
            for operand in 0..code.op_code().op_count() {
                let kind = code.op_code().op_kind(operand);
                if matches!(kind, al | cl | ax | eax | rax | dx) {
                    assert!(is_fixed(code, operand), "{code:?} {operand}");
                } else if format!("{kind:?}").starts_with('r') {
                    // Fields of the encoding that name a general register, or memory instead.
                    assert!(!is_fixed(code, operand), "{code:?} {operand}");
                }
            }
        }
    }
}
