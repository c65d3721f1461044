//! Which instructions the host can run for the guest.

use iced_x86::{CpuidFeature, Instruction};

/// Whether the host has everything that `instruction` needs, and the instruction belongs to a set that thunks cover.
/// An allow-list: what is not named here is an invalid opcode to the guest, however capable the host.
pub(super) fn available(instruction: &Instruction) -> bool {
    instruction.cpuid_features().iter().all(|feature| has(*feature))
}

fn has(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    match feature {
        INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CMOV | CX8 | FPU | FPU287 | FPU387 | MMX
        | FXSR | SSE | SSE2 | MULTIBYTENOP | PREFETCHW | CET_IBT | CLFSH => true,
        SSE3 => is_x86_feature_detected!("sse3"),
        SSSE3 => is_x86_feature_detected!("ssse3"),
        SSE4_1 => is_x86_feature_detected!("sse4.1"),
        SSE4_2 => is_x86_feature_detected!("sse4.2"),
        SSE4A => is_x86_feature_detected!("sse4a"),
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
        RDRAND => is_x86_feature_detected!("rdrand"),
        RDSEED => is_x86_feature_detected!("rdseed"),
        CLFLUSHOPT => leaf7_ebx(23),
        CLWB => leaf7_ebx(24),
        _ => false,
    }
}

/// Whether a bit of CPUID.(7,0):EBX is set on the host.
fn leaf7_ebx(bit: u32) -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & (1 << bit) != 0
}
