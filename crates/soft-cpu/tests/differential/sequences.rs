//! Runs of instructions on registers, as one block: flags that an instruction leaves for a later one, and branches over
//! the next instruction.

use iced_x86::{Code, FastFormatter, FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits};
use queztl_soft_cpu::Exit;

use crate::arena::ENTRY;
use crate::case::{Ending, Registers, differences};
use crate::guest::Guest;
use crate::host::{Host, fs_base};
use crate::rng::Rng;
use crate::{ARENA, Settings, forms, operands};

/// Instructions in one sequence.
const LENGTH: usize = 12;
/// Sequences for one case of the other test.
const SHARE: u64 = 10;
/// `out 0x80, al`
const STOP: [u8; 2] = [0xe6, 0x80];

fn is_conditional(code: Code) -> bool {
    code.flow_control() == FlowControl::ConditionalBranch && code.is_jcc_short() && code.op_code().operand_size() == 64
}

/// Instructions that read and write registers and flags only, and cannot fault.
fn is_plain(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let registers = (0..instruction.op_count()).all(|operand| match instruction.op_kind(operand) {
        OpKind::Register => instruction.op_register(operand).full_register() != Register::RSP,
        OpKind::Memory => matches!(instruction.mnemonic(), Lea | Nop),
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

/// A sequence, one instruction after the other, and what it leaves undefined.
fn sequence(integer: &[Code], all: &[Code], conditional: &[Code], rng: &mut Rng) -> (Vec<Vec<u8>>, Undefined) {
    let mut sequence: Vec<Vec<u8>> = Vec::new();
    let mut undefined = Undefined::default();
    while sequence.len() < LENGTH {
        let next = plain(if rng.chance(80) { integer } else { all }, rng);
        let instruction = forms::decode(&next);
        if !undefined.allows(&instruction) {
            continue;
        }
        let branch = vec![rng.pick(conditional).op_code().op_code() as u8, next.len() as u8];
        let skips = rng.chance(20) && undefined.allows(&forms::decode(&branch));
        if skips {
            sequence.push(branch);
        }
        undefined.after(&instruction, skips);
        sequence.push(next);
    }
    (sequence, undefined)
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
    let numbers = match settings.only {
        Some(only) => only..only + 1,
        None => 0..settings.instructions / SHARE,
    };
    for number in numbers {
        let mut rng = Rng::new(settings.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ number);
        let (sequence, undefined) = sequence(&integer, &all, &conditional, &mut rng);
        let before = masked_registers(&mut rng);
        let mut bytes = sequence.concat();
        let len = bytes.len() as u64;
        host.set_code(&bytes);
        bytes.extend(STOP);
        guest.set_code(&bytes);
        let (mut native, ending) = host.run(&before, len);
        let (mut emulated, exit) = guest.run_to_port(&before);
        assert_eq!(
            (ending, exit),
            (Ending::Completed, Exit::Stopped),
            "QUEZTL_SEED={}:{number}\n{}",
            settings.seed,
            listing(&sequence)
        );
        assert_eq!(emulated.rip, ENTRY + len + STOP.len() as u64);
        native.flags &= !undefined.flags();
        emulated.flags &= !undefined.flags();
        emulated.rip = native.rip;
        let found = differences(&before, &native, &emulated);
        assert!(found.is_empty(), "QUEZTL_SEED={}:{number}\n{}{}", settings.seed, listing(&sequence), found.join("\n"));
    }
}
