//! Runs of instructions, as one block: flags that an instruction leaves for a later one, branches over the next
//! instruction, accesses between them, and faults in their middle.

use iced_x86::{Code, Encoder, FastFormatter, FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits};

use crate::arena::{DATA, ENTRY, READ_ONLY};
use crate::case::{Ending, Registers, differences};
use crate::guest::Guest;
use crate::host::{Host, fs_base};
use crate::rng::Rng;
use crate::{ARENA, DATA_LEN, MISALIGNED_MODE, Settings, forms, operands};

/// Instructions in one sequence.
const LENGTH: usize = 12;
/// Sequences for one case of the other test.
const SHARE: u64 = 10;

fn is_conditional(code: Code) -> bool {
    code.flow_control() == FlowControl::ConditionalBranch && code.is_jcc_short() && code.op_code().operand_size() == 64
}

/// Instructions that read and write registers and flags only, and cannot fault.
fn is_plain(instruction: &Instruction) -> bool {
    !accesses_memory(instruction) && is_local(instruction)
}

fn accesses_memory(instruction: &Instruction) -> bool {
    let memory = (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
    memory && !matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop)
}

/// Instructions with one memory operand, which its address alone decides.
fn is_plain_access(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let indexed = matches!(instruction.mnemonic(), Bt | Bts | Btr | Btc) && instruction.op1_kind() == OpKind::Register;
    accesses_memory(instruction)
        && is_local(instruction)
        && !indexed
        && !instruction.is_vsib()
        && !instruction.is_save_restore_instruction()
        && !matches!(instruction.mnemonic(), Fldcw | Fldenv | Fnstenv | Fnsave | Frstor | Ldmxcsr | Vldmxcsr)
        && !format!("{:?}", instruction.mnemonic()).starts_with("Sha")
}

/// Instructions whose effect does not go beyond their operands.
fn is_local(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let registers = (0..instruction.op_count()).all(|operand| match instruction.op_kind(operand) {
        OpKind::Register => instruction.op_register(operand).full_register() != Register::RSP,
        OpKind::Memory => true,
        kind => format!("{kind:?}").starts_with("Imm"),
    });
    let mnemonic = instruction.mnemonic();
    registers
        && instruction.flow_control() == FlowControl::Next
        && !instruction.is_privileged()
        && !instruction.is_stack_instruction()
        && !instruction.is_string_instruction()
        && !matches!(mnemonic, Div | Idiv | Cli | Sti | In | Out | Rcl | Rcr | Maskmovq | Maskmovdqu | Vmaskmovdqu | Xlatb)
        // The reserved bits of a shared encoding are nobody's business here.
        && !instruction.has_lock_prefix()
}

/// An instruction with a memory operand in the data pages, or now and then where it faults.
fn access(codes: &[Code], rng: &mut Rng) -> Vec<u8> {
    loop {
        let Some(bytes) = forms::encode(rng.pick(codes), rng) else { continue };
        let mut instruction = forms::decode(&bytes);
        if !is_plain_access(&instruction) {
            continue;
        }
        let place = match rng.below(100) {
            0..70 => DATA + rng.below(0x70) * 64,
            70..94 => DATA + rng.below(0x1f80),
            94..97 => READ_ONLY + rng.below(0xf00),
            _ => READ_ONLY + 0x1000 + rng.below(0xf00),
        };
        instruction.set_memory_base(Register::None);
        instruction.set_memory_index(Register::None);
        instruction.set_memory_index_scale(1);
        instruction.set_memory_displ_size(8);
        instruction.set_memory_displacement64(place);
        instruction.set_segment_prefix(Register::None);
        let mut encoder = Encoder::new(64);
        if encoder.encode(&instruction, ENTRY).is_ok() {
            return encoder.take_buffer();
        }
    }
}

fn plain(codes: &[Code], rng: &mut Rng) -> Vec<u8> {
    loop {
        if let Some(bytes) = forms::encode(rng.pick(codes), rng)
            && is_plain(&forms::decode(&bytes))
        {
            return bytes;
        }
    }
}

/// Follows which flags the architecture leaves undefined, in the notation of [`RflagsBits`]. Inside a block they may
/// differ from the host's, so nothing may read them.
#[derive(Default)]
struct Undefined(u32);

impl Undefined {
    fn allows(&self, instruction: &Instruction) -> bool {
        instruction.rflags_read() & self.0 == 0
    }

    fn after(&mut self, instruction: &Instruction, may_be_skipped: bool) {
        let written = instruction.rflags_modified() & !instruction.rflags_undefined();
        let counts = instruction.op_count() > 1 && instruction.op_register(instruction.op_count() - 1) == Register::CL;
        if !may_be_skipped && !counts {
            self.0 &= !written;
        }
        self.0 |= instruction.rflags_undefined();
    }

    /// As RFLAGS bits.
    fn flags(&self) -> u64 {
        let bits = [
            (RflagsBits::CF, 0),
            (RflagsBits::PF, 2),
            (RflagsBits::AF, 4),
            (RflagsBits::ZF, 6),
            (RflagsBits::SF, 7),
            (RflagsBits::OF, 11),
        ];
        bits.iter().filter(|(bit, _)| self.0 & bit != 0).fold(0, |flags, (_, position)| flags | 1 << position)
    }
}

/// Instructions one after the other, and before each and after the last, the flags that are undefined.
struct Sequence {
    instructions: Vec<Vec<u8>>,
    undefined: Vec<u64>,
}

impl Sequence {
    /// The undefined flags where `rip` points.
    fn undefined_at(&self, rip: u64) -> u64 {
        let mut address = ENTRY;
        let index = self.instructions.iter().position(|bytes| {
            let here = address == rip;
            address += bytes.len() as u64;
            here
        });
        self.undefined[index.unwrap_or(self.instructions.len())]
    }
}

fn sequence(integer: &[Code], all: &[Code], conditional: &[Code], rng: &mut Rng) -> Sequence {
    let mut sequence: Vec<Vec<u8>> = Vec::new();
    let mut undefined = Undefined::default();
    let mut history = Vec::new();
    while sequence.len() < LENGTH {
        let codes = if rng.chance(80) { integer } else { all };
        let next = if rng.chance(25) { access(codes, rng) } else { plain(codes, rng) };
        let instruction = forms::decode(&next);
        if !undefined.allows(&instruction) {
            continue;
        }
        let branch = vec![rng.pick(conditional).op_code().op_code() as u8, next.len() as u8];
        let skips = rng.chance(20) && undefined.allows(&forms::decode(&branch));
        history.push(undefined.flags());
        if skips {
            sequence.push(branch);
            history.push(undefined.flags());
        }
        undefined.after(&instruction, skips);
        sequence.push(next);
    }
    history.push(undefined.flags());
    Sequence { instructions: sequence, undefined: history }
}

fn masked_registers(rng: &mut Rng) -> Registers {
    let mut before = operands::registers(rng);
    before.mxcsr = before.mxcsr & 0xe07f | 0x1f80;
    before.x87.control |= 0x3f;
    before.x87.status &= 0x7f7f;
    before
}

fn listing(sequence: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for bytes in sequence {
        FastFormatter::new().format(&forms::decode(bytes), &mut text);
        let hex: String = bytes.iter().map(|b| format!(" {b:02x}")).collect();
        text.push_str(&format!("   {hex}\n"));
    }
    text
}

#[test]
fn sequences_of_instructions_end_as_on_the_host() {
    sequences(false);
}

#[test]
fn sequences_of_instructions_end_as_on_the_host_when_translated() {
    sequences(true);
}

fn sequences(translated: bool) {
    let _arena = ARENA.lock();
    let settings = Settings::from_environment();
    let all = forms::codes();
    let conditional: Vec<Code> = all.iter().copied().filter(|code| is_conditional(*code)).collect();
    let integer: Vec<Code> = all
        .iter()
        .copied()
        .filter(|code| {
            let feature = format!("{:?}", code.cpuid_features());
            ["INTEL", "X64", "CMOV", "BMI", "ADX", "CNT"].iter().any(|name| feature.contains(name))
        })
        .collect();
    let (mut host, mut guest) = (Host::new(), Guest::new(fs_base()));
    guest.set_translator(translated);
    let mut faults = 0;
    let numbers = match settings.only {
        Some(only) => only..only + 1,
        None => 0..settings.instructions / SHARE,
    };
    for number in numbers {
        let mut rng = Rng::new(settings.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ number);
        let sequence = sequence(&integer, &all, &conditional, &mut rng);
        let before = masked_registers(&mut rng);
        let bytes = sequence.instructions.concat();
        let data: Vec<u8> = (0..DATA_LEN / 16).flat_map(|_| rng.lane()).collect();
        host.set_data(&data, true);
        guest.data().copy_from_slice(&data);
        host.set_code(&bytes);
        guest.set_code(&bytes);
        let (mut native, ending) = host.run(&before, bytes.len() as u64);
        let (mut emulated, guest_ending) = guest.run_block(&before);
        if native.mxcsr & MISALIGNED_MODE != 0 {
            // A bit of one maker's processors, which the guest is not promised.
            continue;
        }
        faults += u64::from(ending != Ending::Completed);
        let undefined = sequence.undefined_at(native.rip);
        native.flags &= !undefined;
        emulated.flags &= !undefined;
        let mut found = differences(&before, &native, &emulated);
        if ending != guest_ending {
            found.push(format!("  ending: host {ending:x?}  soft-cpu {guest_ending:x?}"));
        }
        if host.data() != guest.data() {
            found.push("  memory differs".into());
        }
        let listing = listing(&sequence.instructions);
        assert!(found.is_empty(), "QUEZTL_SEED={}:{number}\n{listing}{}", settings.seed, found.join("\n"));
    }
    println!("{faults} sequences ended in a fault");
}
