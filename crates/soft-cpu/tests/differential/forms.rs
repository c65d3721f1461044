//! Random encodings of every instruction that a ring-3 program may try without losing control of itself.

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction, MandatoryPrefix, Mnemonic,
    OpCodeInfo, OpCodeOperandKind, OpCodeTableKind,
};

use crate::arena::ENTRY;
use crate::rng::Rng;

/// The instructions under test.
pub fn codes() -> Vec<Code> {
    Code::values().filter(|code| is_tested(*code)).collect()
}

fn is_tested(code: Code) -> bool {
    let op = code.op_code();
    op.is_instruction()
        && op.mode64()
        && !op.fwait()
        && matches!(op.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.cpuid_features().iter().all(|feature| host_has(*feature))
        && !is_excluded(code)
}

/// What depends on time or on the operating system, what would leave the sandbox, and what would change the segments
/// under the test program.
fn is_excluded(code: Code) -> bool {
    use Mnemonic::*;
    let mnemonic = code.mnemonic();
    let by_flow =
        matches!(code.flow_control(), FlowControl::Interrupt | FlowControl::XbeginXabortXend | FlowControl::Exception);
    let listed = matches!(
        mnemonic,
        INVALID
            | Syscall
            | Sysret
            | Sysretq
            | Sysenter
            | Sysexit
            | Sysexitq
            | Int
            | Int1
            | Int3
            | Into
            | Iret
            | Iretd
            | Iretq
            | Retf
            | Rdtsc
            | Rdtscp
            | Rdpmc
            | Rdpid
            | Rdpru
            | Cpuid
            | Rdrand
            | Rdseed
            | Xgetbv
            | Xsetbv
            | Popf
            | Popfd
            | Popfq
            | Lar
            | Lsl
            | Verr
            | Verw
            | Sgdt
            | Sidt
            | Sldt
            | Str
            | Smsw
            | Lss
            | Lfs
            | Lgs
            | Rdfsbase
            | Wrfsbase
            | Rdgsbase
            | Wrgsbase
            | Monitor
            | Mwait
            | Monitorx
            | Mwaitx
            | Enter
            | Vmcall
            | Vmmcall
            | Swapgs
            | Fxsave
            | Fxsave64
            | Fxrstor
            | Fxrstor64
            | Rsm
            | Pushf
            | Pushfq
            | Rdsspd
            | Rdsspq
            | Reservednop
            | Pause
    );
    let far = matches!(
        code,
        Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664 | Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664
    );
    // Processors do not agree how many bytes this one reads.
    let disputed = code == Code::Movsxd_r16_rm16;
    let name = format!("{code:?}");
    let segment = name.contains("Sreg") || name.ends_with("_FS") || name.ends_with("_GS");
    by_flow
        || listed
        || far
        || disputed
        || segment
        || code.op_code().is_save_restore() && mnemonic != Fnsave && mnemonic != Frstor
}

fn host_has(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    match feature {
        INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CMOV | CX8 | FPU | FPU287 | FPU387 | MMX
        | SSE | SSE2 | MULTIBYTENOP | CLFSH | PREFETCHW | PAUSE | MSR | CET_IBT => true,
        SSE3 => is_x86_feature_detected!("sse3"),
        SSSE3 => is_x86_feature_detected!("ssse3"),
        SSE4_1 => is_x86_feature_detected!("sse4.1"),
        SSE4_2 => is_x86_feature_detected!("sse4.2"),
        POPCNT => is_x86_feature_detected!("popcnt"),
        LZCNT => is_x86_feature_detected!("lzcnt"),
        BMI1 => is_x86_feature_detected!("bmi1"),
        BMI2 => is_x86_feature_detected!("bmi2"),
        ADX => is_x86_feature_detected!("adx"),
        MOVBE => is_x86_feature_detected!("movbe"),
        CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
        AES => is_x86_feature_detected!("aes"),
        PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        SHA => is_x86_feature_detected!("sha"),
        GFNI => is_x86_feature_detected!("gfni"),
        VAES => is_x86_feature_detected!("vaes"),
        VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        AVX => is_x86_feature_detected!("avx"),
        AVX2 => is_x86_feature_detected!("avx2"),
        FMA => is_x86_feature_detected!("fma"),
        F16C => is_x86_feature_detected!("f16c"),
        _ => false,
    }
}

/// Decodes at [`ENTRY`].
pub fn decode(bytes: &[u8]) -> Instruction {
    Decoder::with_ip(64, bytes, ENTRY, DecoderOptions::NONE).decode()
}

/// A random encoding of `code`, or `None` if none was found.
pub fn encode(code: Code, rng: &mut Rng) -> Option<Vec<u8>> {
    for _ in 0..200 {
        let mut bytes =
            if code.encoding() == EncodingKind::VEX { vex(code.op_code(), rng) } else { legacy(code.op_code(), rng) };
        let instruction = decode(&bytes);
        if instruction.code() == code && !instruction.is_invalid() {
            bytes.truncate(instruction.len());
            return Some(bytes);
        }
    }
    None
}

fn prefixes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    if rng.chance(8) {
        bytes.push(rng.pick(&[0x64, 0x65, 0x3e, 0x36]));
    }
    if rng.chance(4) {
        bytes.push(0x67);
    }
}

fn legacy(op: &OpCodeInfo, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    prefixes(rng, &mut bytes);
    if op.can_use_lock_prefix() && rng.chance(40) {
        bytes.push(0xf0);
    }
    if op.can_use_rep_prefix() && rng.chance(60) {
        bytes.push(if op.can_use_repne_prefix() && rng.chance(50) { 0xf2 } else { 0xf3 });
    }
    if op.operand_size() == 16 || op.mandatory_prefix() == MandatoryPrefix::P66 {
        bytes.push(0x66);
    }
    match op.mandatory_prefix() {
        MandatoryPrefix::PF3 => bytes.push(0xf3),
        MandatoryPrefix::PF2 => bytes.push(0xf2),
        _ => {}
    }
    let wide = op.operand_size() == 64 && (!op.default_op_size64() || rng.chance(20));
    let wide = wide || (op.operand_size() == 0 && rng.chance(30));
    let rex = 0x40 | u8::from(wide) << 3 | if rng.chance(60) { rng.below(8) as u8 } else { 0 };
    if rex != 0x40 || rng.chance(10) {
        bytes.push(rex);
    }
    match op.table() {
        OpCodeTableKind::T0F => bytes.push(0x0f),
        OpCodeTableKind::T0F38 => bytes.extend([0x0f, 0x38]),
        OpCodeTableKind::T0F3A => bytes.extend([0x0f, 0x3a]),
        _ => {}
    }
    opcode(op, rng, &mut bytes);
    bytes
}

fn vex(op: &OpCodeInfo, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    prefixes(rng, &mut bytes);
    let map = match op.table() {
        OpCodeTableKind::T0F => 1,
        OpCodeTableKind::T0F38 => 2,
        _ => 3,
    };
    let pp = match op.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    let wide = if op.is_wig() { rng.chance(50) } else { op.w() == 1 };
    let long = if op.is_lig() { rng.chance(50) } else { op.l() == 1 };
    let vvvv = if rng.chance(40) { 0xf } else { rng.below(16) as u8 };
    let inverted = if rng.chance(50) { 7 } else { rng.below(8) as u8 };
    let last = vvvv << 3 | u8::from(long) << 2 | pp;
    if map == 1 && !wide && inverted & 3 == 3 && rng.chance(50) {
        bytes.extend([0xc5, (inverted & 4) << 5 | last]);
    } else {
        bytes.extend([0xc4, inverted << 5 | map, u8::from(wide) << 7 | last]);
    }
    opcode(op, rng, &mut bytes);
    bytes
}

/// The opcode, a ModRM byte that suits it, and more random bytes than any operand needs.
fn opcode(op: &OpCodeInfo, rng: &mut Rng, bytes: &mut Vec<u8>) {
    let code = op.op_code();
    if op.op_code_len() == 2 {
        bytes.push((code >> 8) as u8);
    }
    use OpCodeOperandKind::*;
    let register_in_opcode =
        op.op_kinds().iter().any(|kind| matches!(kind, r8_opcode | r16_opcode | r32_opcode | r64_opcode | sti_opcode));
    let low = if register_in_opcode { rng.below(8) as u8 } else { 0 };
    bytes.push(code as u8 | low);
    let mut modrm = rng.next() as u8;
    if rng.chance(35) {
        modrm |= 0xc0;
    } else if modrm >= 0xc0 {
        modrm &= 0xbf;
    }
    if op.is_group() {
        modrm = (modrm & 0xc7) | (op.group_index() as u8) << 3;
    }
    if op.is_rm_group() {
        modrm = (modrm & 0xf8) | op.rm_group_index() as u8;
    }
    bytes.push(modrm);
    let tail = if rng.chance(25) { rng.integer() } else { rng.next() };
    bytes.extend(tail.to_le_bytes());
    bytes.extend(rng.next().to_le_bytes());
}
