//! What the guest is told about its processor.
//!
//! The promise is the intersection of what the host has and what this CPU implements, dressed as a processor that every
//! kernel knows: AuthenticAMD, family 15, model 107, which keeps Linux off the work-arounds of newer families. What is
//! promised works; what works differently from one CPU of the machine to the next (APIC ids) or with control registers
//! (OSXSAVE, the size of the XSAVE area) is filled in when the instruction runs.
//!
//! Leaves as in APM vol. 3 appendix E and SDM vol. 2A, CPUID; the paravirtual ones as in the kernel's
//! `Documentation/virt/kvm/x86/cpuid.rst`.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::collections::BTreeMap;

use crate::cpu::Cpu;
use crate::mmu::PHYSICAL_BITS;
use crate::state::bits;
use crate::system::xsave::{AREA_BYTES, component};

/// Family 15, model 107, stepping 1.
const SIGNATURE: u32 = 0x0006_0fb1;
const BRAND: &[u8; 48] = b"Queztl soft-cpu\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const LINEAR_BITS: u32 = 48;

/// Bytes of a standard XSAVE area without AVX.
const AREA_WITHOUT_AVX: u32 = 576;

/// Highest leaves of the three ranges.
const LAST_BASIC: u32 = 0xd;
const LAST_PARAVIRTUAL: u32 = 0x4000_0010;
const LAST_EXTENDED: u32 = 0x8000_0021;

/// Feature bits by leaf and register.
mod feature {
    /// Leaf 1, ECX.
    pub mod leaf1_ecx {
        pub const SSE3: u32 = 1 << 0;
        pub const PCLMULQDQ: u32 = 1 << 1;
        pub const SSSE3: u32 = 1 << 9;
        pub const FMA: u32 = 1 << 12;
        pub const CX16: u32 = 1 << 13;
        pub const SSE41: u32 = 1 << 19;
        pub const SSE42: u32 = 1 << 20;
        pub const X2APIC: u32 = 1 << 21;
        pub const MOVBE: u32 = 1 << 22;
        pub const POPCNT: u32 = 1 << 23;
        pub const TSC_DEADLINE: u32 = 1 << 24;
        pub const AES: u32 = 1 << 25;
        pub const XSAVE: u32 = 1 << 26;
        pub const OSXSAVE: u32 = 1 << 27;
        pub const AVX: u32 = 1 << 28;
        pub const F16C: u32 = 1 << 29;
        pub const RDRAND: u32 = 1 << 30;
        pub const HYPERVISOR: u32 = 1 << 31;
        /// Those that the host must have.
        pub const FROM_HOST: u32 =
            SSE3 | PCLMULQDQ | SSSE3 | FMA | CX16 | SSE41 | SSE42 | MOVBE | POPCNT | AES | AVX | F16C | RDRAND;
        pub const OWN: u32 = X2APIC | TSC_DEADLINE | XSAVE | HYPERVISOR;
        /// Those that need XSAVE's AVX state.
        pub const WITH_AVX: u32 = FMA | AVX | F16C;
    }

    /// Leaf 1, EDX: FPU, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, MTRR, PGE, CMOV, PAT, PSE-36, CLFLUSH, MMX, FXSR, SSE,
    /// SSE2.
    pub const LEAF1_EDX: u32 = 1
        | 1 << 2
        | 1 << 3
        | 1 << 4
        | 1 << 5
        | 1 << 6
        | 1 << 8
        | 1 << 9
        | 1 << 11
        | 1 << 12
        | 1 << 13
        | 1 << 15
        | 1 << 16
        | 1 << 17
        | 1 << 19
        | 1 << 23
        | 1 << 24
        | 1 << 25
        | 1 << 26;
    /// Leaf 1, EDX: several logical processors.
    pub const HTT: u32 = 1 << 28;

    /// Leaf 7, EBX.
    pub mod leaf7_ebx {
        pub const FSGSBASE: u32 = 1 << 0;
        pub const TSC_ADJUST: u32 = 1 << 1;
        pub const BMI1: u32 = 1 << 3;
        pub const AVX2: u32 = 1 << 5;
        pub const SMEP: u32 = 1 << 7;
        pub const BMI2: u32 = 1 << 8;
        pub const ERMS: u32 = 1 << 9;
        pub const RDSEED: u32 = 1 << 18;
        pub const ADX: u32 = 1 << 19;
        pub const SMAP: u32 = 1 << 20;
        pub const CLFLUSHOPT: u32 = 1 << 23;
        pub const CLWB: u32 = 1 << 24;
        pub const SHA: u32 = 1 << 29;
        pub const FROM_HOST: u32 = BMI1 | AVX2 | BMI2 | RDSEED | ADX | CLFLUSHOPT | CLWB | SHA;
        pub const OWN: u32 = FSGSBASE | TSC_ADJUST | SMEP | ERMS | SMAP;
        pub const WITH_AVX: u32 = BMI1 | AVX2 | BMI2;
    }

    /// Leaf 7, ECX.
    pub mod leaf7_ecx {
        pub const UMIP: u32 = 1 << 2;
        pub const GFNI: u32 = 1 << 8;
        pub const VAES: u32 = 1 << 9;
        pub const VPCLMULQDQ: u32 = 1 << 10;
        pub const RDPID: u32 = 1 << 22;
        pub const FROM_HOST: u32 = GFNI | VAES | VPCLMULQDQ;
        pub const OWN: u32 = UMIP | RDPID;
        pub const WITH_AVX: u32 = VAES | VPCLMULQDQ;
    }

    /// Leaf 7, EDX: short REP MOVSB is fast.
    pub const FSRM: u32 = 1 << 4;
    /// Leaf 7 subleaf 1, EAX: short REP STOSB is fast.
    pub const FSRS: u32 = 1 << 11;

    /// Leaf 0x8000_0001, ECX.
    pub mod extended_ecx {
        pub const LAHF: u32 = 1 << 0;
        pub const CMP_LEGACY: u32 = 1 << 1;
        pub const ABM: u32 = 1 << 5;
        pub const PREFETCHW: u32 = 1 << 8;
        pub const TOPOLOGY: u32 = 1 << 22;
    }

    /// Leaf 0x8000_0001, EDX: what AMD repeats of leaf 1.
    pub const REPEATED: u32 = 0x0183_f3ff;
    /// Leaf 0x8000_0001, EDX: SYSCALL, NX, MMX extensions, 1 GiB pages, RDTSCP, long mode.
    pub const EXTENDED_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 22 | 1 << 26 | 1 << 27 | 1 << 29;

    /// Leaf 0xd subleaf 1, EAX.
    pub const XSAVEOPT: u32 = 1 << 0;
    pub const XSAVEC: u32 = 1 << 1;
    pub const XGETBV1: u32 = 1 << 2;

    /// Leaf 0x8000_0008, EBX: FXSAVE and XSAVE always store the x87 pointers.
    pub const XSAVE_POINTERS: u32 = 1 << 2;

    /// Leaf 0x8000_0021, EAX: LFENCE serialises; a null selector clears the base; automatic IBRS; no need to flush
    /// return predictors.
    pub const EXTENDED2: u32 = 1 << 2 | 1 << 6 | 1 << 8 | 1 << 29;

    /// Leaf 0x4000_0001, EAX: no I/O delays needed, the clock by its second set of MSRs, and stable between CPUs.
    pub const PARAVIRTUAL: u32 = 1 << 1 | 1 << 3 | 1 << 24;
}

/// What one CPUID leaf returns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

impl CpuidResult {
    const fn new(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
        CpuidResult { eax, ebx, ecx, edx }
    }
}

/// What the table promises, in the form that the CPU's own checks need.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Features {
    /// CR4 bits that may be set.
    pub cr4: u64,
    /// XCR0 bits that may be set.
    pub xcr0: u64,
    pub xsaveopt: bool,
    pub xsavec: bool,
    pub rdpid: bool,
}

/// The machine, as far as CPUID tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidConfig {
    /// Processors: cores with one thread each.
    pub vcpus: u32,
    /// Cores that a socket takes, which share its last cache: a power of two, or all processors.
    pub socket_vcpus: u32,
    /// Frequency of the time-stamp counter.
    pub tsc_hz: u64,
}

impl CpuidConfig {
    /// A machine of one socket.
    pub fn one_socket(vcpus: u32, tsc_hz: u64) -> CpuidConfig {
        CpuidConfig { vcpus, socket_vcpus: vcpus, tsc_hz }
    }

    /// Cores of a socket: at least one, at most 256, never more than there are.
    pub fn cores(&self) -> u32 {
        self.socket_vcpus.min(self.vcpus).clamp(1, 256)
    }

    /// Bits of an APIC id that number the cores of a socket; the bits above number the sockets.
    pub fn core_bits(&self) -> u32 {
        self.cores().next_power_of_two().trailing_zeros()
    }
}

/// All leaves of one machine.
#[derive(Debug, Clone)]
pub struct CpuidTable {
    /// By leaf and subleaf; leaves without subleaves are at subleaf 0.
    leaves: BTreeMap<(u32, u32), CpuidResult>,
    features: Features,
}

impl CpuidTable {
    /// The leaf as every CPU sees it, before the parts that depend on the CPU and its state. Zero where there is none.
    pub fn get(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let subleaf = if has_subleaves(leaf) { subleaf } else { 0 };
        self.leaves.get(&(leaf, subleaf)).copied().unwrap_or_default()
    }

    /// Every leaf and subleaf with what [`CpuidTable::get`] gives for it, in ascending order.
    pub fn leaves(&self) -> impl Iterator<Item = ((u32, u32), CpuidResult)> + '_ {
        self.leaves.iter().map(|(place, result)| (*place, *result))
    }

    /// Replaces a leaf. Promising more than [`CpuidPolicy::new`] did promises instructions that do not work.
    pub fn set(&mut self, leaf: u32, subleaf: u32, result: CpuidResult) {
        self.leaves.insert((leaf, if has_subleaves(leaf) { subleaf } else { 0 }), result);
        self.features = self.derive_features();
    }

    /// Changes a leaf in place; see [`CpuidTable::set`].
    pub fn edit(&mut self, leaf: u32, subleaf: u32, change: impl FnOnce(&mut CpuidResult)) {
        let mut result = self.get(leaf, subleaf);
        change(&mut result);
        self.set(leaf, subleaf, result);
    }

    pub(crate) fn features(&self) -> Features {
        self.features
    }

    fn derive_features(&self) -> Features {
        let (leaf1, leaf7, state) = (self.get(1, 0), self.get(7, 0), self.get(0xd, 1));
        let mut cr4 = bits::CR4_TSD
            | bits::CR4_DE
            | bits::CR4_PSE
            | bits::CR4_PAE
            | bits::CR4_MCE
            | bits::CR4_PGE
            | bits::CR4_PCE
            | bits::CR4_OSFXSR
            | bits::CR4_OSXMMEXCPT;
        let mut allow = |bit: u64, offered: bool| cr4 |= if offered { bit } else { 0 };
        allow(bits::CR4_UMIP, leaf7.ecx & feature::leaf7_ecx::UMIP != 0);
        allow(bits::CR4_FSGSBASE, leaf7.ebx & feature::leaf7_ebx::FSGSBASE != 0);
        allow(bits::CR4_SMEP, leaf7.ebx & feature::leaf7_ebx::SMEP != 0);
        allow(bits::CR4_SMAP, leaf7.ebx & feature::leaf7_ebx::SMAP != 0);
        let xsave = leaf1.ecx & feature::leaf1_ecx::XSAVE != 0;
        allow(bits::CR4_OSXSAVE, xsave);
        let avx = leaf1.ecx & feature::leaf1_ecx::AVX != 0;
        Features {
            cr4,
            xcr0: component::X87 | component::SSE | if avx { component::AVX } else { 0 },
            xsaveopt: xsave && state.eax & feature::XSAVEOPT != 0,
            xsavec: xsave && state.eax & feature::XSAVEC != 0,
            rdpid: leaf7.ecx & feature::leaf7_ecx::RDPID != 0,
        }
    }

    /// The leaf as `cpu` sees it now.
    pub(crate) fn query(&self, cpu: &Cpu, leaf: u32, subleaf: u32) -> CpuidResult {
        let mut result = self.get(leaf, subleaf);
        let id = cpu.id;
        match leaf {
            1 => {
                result.ebx |= (id & 0xff) << 24;
                if cpu.cr4 & bits::CR4_OSXSAVE != 0 && result.ecx & feature::leaf1_ecx::XSAVE != 0 {
                    result.ecx |= feature::leaf1_ecx::OSXSAVE;
                }
            }
            0xb => {
                result.edx = id;
                // Levels that do not exist repeat the number that was asked for.
                result.ecx = result.ecx & !0xff | subleaf & 0xff;
            }
            0xd if subleaf <= 1 && result != CpuidResult::default() => result.ebx = area_bytes(cpu.xcr0),
            0x8000_001e => {
                result.eax = id;
                result.ebx |= id & 0xff;
                result.ecx |= id >> self.get(0xb, 1).eax & 0xff;
            }
            _ => {}
        }
        result
    }
}

/// Whether ECX selects among several tables.
pub fn has_subleaves(leaf: u32) -> bool {
    matches!(leaf, 7 | 0xb | 0xd | 0x8000_001d)
}

fn area_bytes(xcr0: u64) -> u32 {
    if xcr0 & component::AVX != 0 { AREA_BYTES } else { AREA_WITHOUT_AVX }
}

/// What the host has.
#[derive(Debug, Clone, Copy)]
struct Host {
    leaf1: CpuidResult,
    leaf7: CpuidResult,
    extended: CpuidResult,
    /// The host's operating system lets programs use YMM registers.
    avx: bool,
}

impl Host {
    fn ask() -> Host {
        let plain = |leaf: u32| {
            let r = __cpuid(leaf);
            CpuidResult::new(r.eax, r.ebx, r.ecx, r.edx)
        };
        let leaf7 = if plain(0).eax >= 7 {
            let r = __cpuid_count(7, 0);
            CpuidResult::new(r.eax, r.ebx, r.ecx, r.edx)
        } else {
            CpuidResult::default()
        };
        Host { leaf1: plain(1), leaf7, extended: plain(0x8000_0001), avx: is_x86_feature_detected!("avx") }
    }
}

/// Makes the table of a machine.
#[derive(Debug)]
pub struct CpuidPolicy;

impl CpuidPolicy {
    /// Everything that the host and this CPU can do together.
    #[expect(clippy::new_ret_no_self, reason = "a policy is nothing but its table")]
    pub fn new(config: &CpuidConfig) -> CpuidTable {
        table(config, &Host::ask())
    }
}

fn table(config: &CpuidConfig, host: &Host) -> CpuidTable {
    let mut table = CpuidTable { leaves: BTreeMap::new(), features: Features::default() };
    basic_leaves(&mut table, config, host);
    state_leaves(&mut table, host);
    topology_leaves(&mut table, config);
    paravirtual_leaves(&mut table, config);
    extended_leaves(&mut table, config, host);
    cache_leaves(&mut table, config);
    table
}

fn basic_leaves(table: &mut CpuidTable, config: &CpuidConfig, host: &Host) {
    use feature::{leaf1_ecx, leaf7_ebx, leaf7_ecx};
    let avx = |mask: u32| if host.avx { u32::MAX } else { !mask };
    let (ebx, ecx, edx) = vendor();
    table.set(0, 0, CpuidResult::new(LAST_BASIC, ebx, ecx, edx));
    let threads = config.cores().min(255);
    let features = (host.leaf1.ecx & leaf1_ecx::FROM_HOST | leaf1_ecx::OWN) & avx(leaf1_ecx::WITH_AVX);
    let several = if config.cores() > 1 { feature::HTT } else { 0 };
    // CLFLUSH lines are 64 bytes, counted in eights.
    table.set(1, 0, CpuidResult::new(SIGNATURE, 8 << 8 | threads << 16, features, feature::LEAF1_EDX | several));
    // The local APIC timer runs in every power state.
    table.set(6, 0, CpuidResult::new(1 << 2, 0, 0, 0));
    let ebx = (host.leaf7.ebx & leaf7_ebx::FROM_HOST | leaf7_ebx::OWN) & avx(leaf7_ebx::WITH_AVX);
    let ecx = (host.leaf7.ecx & leaf7_ecx::FROM_HOST | leaf7_ecx::OWN) & avx(leaf7_ecx::WITH_AVX);
    table.set(7, 0, CpuidResult::new(1, ebx, ecx, feature::FSRM));
    table.set(7, 1, CpuidResult::new(feature::FSRS, 0, 0, 0));
}

/// "AuthenticAMD" in EBX, ECX and EDX, in the order of the registers.
fn vendor() -> (u32, u32, u32) {
    let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    (word(b"Auth"), word(b"cAMD"), word(b"enti"))
}

fn state_leaves(table: &mut CpuidTable, host: &Host) {
    let xcr0 = component::X87 | component::SSE | if host.avx { component::AVX } else { 0 };
    let size = area_bytes(xcr0);
    table.set(0xd, 0, CpuidResult::new(xcr0 as u32, size, size, 0));
    let instructions = feature::XSAVEOPT | feature::XSAVEC | feature::XGETBV1;
    table.set(0xd, 1, CpuidResult::new(instructions, size, 0, 0));
    if host.avx {
        // YMM upper halves: 256 bytes behind the header.
        table.set(0xd, 2, CpuidResult::new(256, AREA_WITHOUT_AVX, 0, 0));
    }
}

fn topology_leaves(table: &mut CpuidTable, config: &CpuidConfig) {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    table.set(0xb, 0, CpuidResult::new(0, 1, THREADS, 0));
    table.set(0xb, 1, CpuidResult::new(config.core_bits(), config.cores(), CORES | 1, 0));
}

fn paravirtual_leaves(table: &mut CpuidTable, config: &CpuidConfig) {
    let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    table.set(0x4000_0000, 0, CpuidResult::new(LAST_PARAVIRTUAL, word(b"KVMK"), word(b"VMKV"), word(b"M\0\0\0")));
    table.set(0x4000_0001, 0, CpuidResult::new(feature::PARAVIRTUAL, 0, 0, 0));
    // Frequencies in kHz: the time-stamp counter's, and the local APIC timer's, which counts nanoseconds.
    let tsc_khz = u32::try_from(config.tsc_hz / 1000).unwrap_or(u32::MAX);
    table.set(LAST_PARAVIRTUAL, 0, CpuidResult::new(tsc_khz, 1_000_000, 0, 0));
}

fn extended_leaves(table: &mut CpuidTable, config: &CpuidConfig, host: &Host) {
    use feature::extended_ecx;
    let (ebx, ecx, edx) = vendor();
    table.set(0x8000_0000, 0, CpuidResult::new(LAST_EXTENDED, ebx, ecx, edx));
    let mut ecx = extended_ecx::LAHF | extended_ecx::PREFETCHW | extended_ecx::TOPOLOGY;
    ecx |= host.extended.ecx & extended_ecx::ABM;
    if config.cores() > 1 {
        ecx |= extended_ecx::CMP_LEGACY;
    }
    let edx = feature::LEAF1_EDX & feature::REPEATED | feature::EXTENDED_EDX;
    table.set(0x8000_0001, 0, CpuidResult::new(SIGNATURE, 0, ecx, edx));
    for (leaf, part) in (0x8000_0002_u32..).zip(BRAND.chunks_exact(16)) {
        let word = |at: usize| u32::from_le_bytes([part[at], part[at + 1], part[at + 2], part[at + 3]]);
        table.set(leaf, 0, CpuidResult::new(word(0), word(4), word(8), word(12)));
    }
    // The time-stamp counter runs at one rate, always.
    table.set(0x8000_0007, 0, CpuidResult::new(0, 0, 0, 1 << 8));
    let cores = (config.cores() - 1) | config.core_bits() << 12;
    let widths = PHYSICAL_BITS | LINEAR_BITS << 8;
    table.set(0x8000_0008, 0, CpuidResult::new(widths, feature::XSAVE_POINTERS, cores, 0));
    // One thread per core, one node per socket; core and node are filled in.
    table.set(0x8000_001e, 0, CpuidResult::new(0, 0, 0, 0));
    table.set(LAST_EXTENDED, 0, CpuidResult::new(feature::EXTENDED2, 0, 0, 0));
}

/// One cache for leaf 0x8000_001d.
struct Cache {
    /// 1 data, 2 instructions, 3 both.
    kind: u32,
    level: u32,
    /// CPUs that share it.
    shared_by: u32,
    ways: u32,
    sets: u32,
}

impl Cache {
    fn leaf(&self) -> CpuidResult {
        const SELF_INITIALISING: u32 = 1 << 8;
        const LINE: u32 = 64;
        let eax = self.kind | self.level << 5 | SELF_INITIALISING | (self.shared_by - 1) << 14;
        CpuidResult::new(eax, (LINE - 1) | (self.ways - 1) << 22, self.sets - 1, 0)
    }
}

/// L1 32 KiB each, L2 512 KiB, L3 16 MiB shared by a socket: sizes that programs size their buffers by.
fn cache_leaves(table: &mut CpuidTable, config: &CpuidConfig) {
    let l1_tlb = 0xff40_ff40;
    let l1 = 32 << 24 | 8 << 16 | 1 << 8 | 64;
    table.set(0x8000_0005, 0, CpuidResult::new(l1_tlb, l1_tlb, l1, l1));
    // Associativity codes (APM vol. 3 table E-4): 6 is 8 ways, 8 is 16 ways. L3 sizes count 512 KiB.
    let l2 = 512 << 16 | 6 << 12 | 1 << 8 | 64;
    let l3 = 32 << 18 | 8 << 12 | 1 << 8 | 64;
    table.set(0x8000_0006, 0, CpuidResult::new(0, 0x4200_4200, l2, l3));
    let socket = 1 << config.core_bits();
    let caches = [
        Cache { kind: 1, level: 1, shared_by: 1, ways: 8, sets: 64 },
        Cache { kind: 2, level: 1, shared_by: 1, ways: 8, sets: 64 },
        Cache { kind: 3, level: 2, shared_by: 1, ways: 8, sets: 1024 },
        Cache { kind: 3, level: 3, shared_by: socket, ways: 16, sets: 16384 },
    ];
    for (subleaf, cache) in (0..).zip(caches) {
        table.set(0x8000_001d, subleaf, cache.leaf());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_HOST: Host = Host {
        leaf1: CpuidResult::new(0, 0, 0, 0),
        leaf7: CpuidResult::new(0, 0, 0, 0),
        extended: CpuidResult::new(0, 0, 0, 0),
        avx: false,
    };
    const FULL_HOST: Host = Host {
        leaf1: CpuidResult::new(0, 0, u32::MAX, u32::MAX),
        leaf7: CpuidResult::new(0, u32::MAX, u32::MAX, u32::MAX),
        extended: CpuidResult::new(0, 0, u32::MAX, u32::MAX),
        avx: true,
    };

    fn config(vcpus: u32) -> CpuidConfig {
        CpuidConfig::one_socket(vcpus, 2_500_000_000)
    }

    #[test]
    fn a_host_without_avx_promises_no_avx_anywhere() {
        let host = Host { avx: false, ..FULL_HOST };
        let table = table(&config(1), &host);
        assert_eq!(table.get(1, 0).ecx & feature::leaf1_ecx::WITH_AVX, 0);
        assert_eq!(table.get(7, 0).ebx & feature::leaf7_ebx::AVX2, 0);
        assert_eq!(table.get(0xd, 0), CpuidResult::new(3, 576, 576, 0));
        assert_eq!(table.features().xcr0, 3);
    }

    #[test]
    fn what_only_the_host_has_is_not_promised() {
        let table = table(&config(1), &FULL_HOST);
        const AVX512F: u32 = 1 << 16;
        const RTM: u32 = 1 << 11;
        const MONITOR: u32 = 1 << 3;
        const PCID: u32 = 1 << 17;
        const SVM: u32 = 1 << 2;
        const LA57: u32 = 1 << 16;
        assert_eq!(table.get(7, 0).ebx & (AVX512F | RTM), 0);
        assert_eq!(table.get(7, 0).ecx & LA57, 0);
        assert_eq!(table.get(1, 0).ecx & (MONITOR | PCID), 0);
        assert_eq!(table.get(0x8000_0001, 0).ecx & SVM, 0);
    }

    #[test]
    fn what_the_host_lacks_is_not_promised() {
        let table = table(&config(1), &NO_HOST);
        assert_eq!(table.get(1, 0).ecx, feature::leaf1_ecx::OWN);
        assert_eq!(table.get(7, 0).ebx, feature::leaf7_ebx::OWN);
        assert_eq!(table.get(0x8000_0001, 0).ecx & feature::extended_ecx::ABM, 0);
    }

    #[test]
    fn the_xsave_area_with_avx_has_832_bytes() {
        let table = table(&config(1), &FULL_HOST);
        assert_eq!(table.get(0xd, 0), CpuidResult::new(7, 832, 832, 0));
        assert_eq!(table.get(0xd, 2), CpuidResult::new(256, 576, 0, 0));
    }

    #[test]
    fn topology_leaves_agree_up_to_256_processors() {
        for vcpus in [1, 2, 3, 4, 16, 255, 256] {
            let table = table(&config(vcpus), &FULL_HOST);
            let cores = table.get(0xb, 1);
            let size = table.get(0x8000_0008, 0).ecx;
            assert_eq!(cores.ebx, vcpus);
            assert_eq!(size & 0xff, vcpus - 1);
            assert_eq!(size >> 12 & 0xf, cores.eax);
            assert!(1 << cores.eax >= vcpus, "{vcpus} ids fit into {} bits", cores.eax);
            assert_eq!(table.get(1, 0).edx & feature::HTT != 0, vcpus > 1);
        }
    }

    #[test]
    fn sockets_share_nothing() {
        let table = table(&CpuidConfig { socket_vcpus: 2, ..config(6) }, &FULL_HOST);
        assert_eq!((table.get(0xb, 1).eax, table.get(0xb, 1).ebx), (1, 2));
        assert_eq!(table.get(0x8000_0008, 0).ecx, 1 | 1 << 12);
        assert_eq!(table.get(0x8000_001d, 3).eax >> 14 & 0xfff, 1, "the last cache has two users");
        let alone = CpuidConfig { socket_vcpus: 1, ..config(6) };
        assert_eq!(super::table(&alone, &FULL_HOST).get(1, 0).edx & feature::HTT, 0);
    }

    #[test]
    fn the_brand_reads_as_text() {
        let table = table(&config(1), &FULL_HOST);
        let text: Vec<u8> = (0x8000_0002..=0x8000_0004)
            .flat_map(|leaf| {
                let r = table.get(leaf, 0);
                [r.eax, r.ebx, r.ecx, r.edx].map(u32::to_le_bytes).concat()
            })
            .collect();
        assert!(text.starts_with(b"Queztl soft-cpu\0"));
    }

    #[test]
    fn taking_a_feature_away_takes_its_control_bit_away() {
        let mut table = table(&config(1), &FULL_HOST);
        assert_ne!(table.features().cr4 & bits::CR4_SMAP, 0);
        table.edit(7, 0, |leaf| leaf.ebx &= !feature::leaf7_ebx::SMAP);
        assert_eq!(table.features().cr4 & bits::CR4_SMAP, 0);
    }
}
